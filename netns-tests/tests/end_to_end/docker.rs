//! Containers of a real dockerd, found before and after the daemon starts.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netns_tests::bed::{ADMIN, PATIENT, SILENCE, TCP, policy};
use netns_tests::portcullis::{Daemon, Options, SOON};
use serde_json::Value;
use testbed::{Dockerd, Lab, Outcome, Server, probe, require_root, wait_for, wait_until};

/// A lab whose host runs a dockerd with two user networks, `front` and `back`.
struct Yard {
    // Dropped before the lab, in which it runs.
    docker: Dockerd,
    lab: Lab,
}

impl Yard {
    fn new() -> Self {
        let lab = Lab::new("e2e-docker").expect("a lab");
        let docker = Dockerd::start(lab.host()).expect("a dockerd");
        for (name, number) in [("front", 1), ("back", 2)] {
            let (v4, v6) = (
                format!("10.62.{number}.0/24"),
                format!("fd62:{number}::/64"),
            );
            docker
                .docker(&[
                    "network", "create", "--ipv6", "--subnet", &v4, "--subnet", &v6, name,
                ])
                .expect("a network");
        }
        Self { docker, lab }
    }

    /// A container as compose would start it: project `shop`, on one network.
    fn service(&self, service: &str, network: &str, address: u8) -> String {
        let name = format!("shop-{service}-1");
        let number = if network == "front" { 1 } else { 2 };
        self.docker
            .run_sleeping(
                &name,
                &[
                    "--network",
                    network,
                    "--ip",
                    &format!("10.62.{number}.{address}"),
                    "--ip6",
                    &format!("fd62:{number}::{address:x}"),
                    "--label",
                    "com.docker.compose.project=shop",
                    "--label",
                    &format!("com.docker.compose.service={service}"),
                    "--label",
                    "com.docker.compose.container-number=1",
                ],
            )
            .expect("a container");
        name
    }

    fn serve(&self, container: &str) -> Server {
        let netns = self.docker.netns_of(container).expect("it runs");
        Server::new(container)
            .tcp(TCP)
            .tcp(ADMIN)
            .start(&netns)
            .expect("a server")
    }

    fn tcp(&self, from: &str, to: IpAddr, port: u16, timeout: Duration) -> Outcome {
        let address = SocketAddr::new(to, port);
        let netns = self.docker.netns_of(from).expect("it runs");
        netns
            .run(|| probe::tcp(address, timeout))
            .expect("its namespace")
    }

    #[track_caller]
    fn allowed(&self, from: &str, to: &[IpAddr], port: u16) {
        for &to in to {
            let outcome = self.tcp(from, to, port, PATIENT);
            assert_eq!(outcome, Outcome::Replied, "{from} -> {to}:{port}");
        }
    }

    /// Silence, and nothing of it at the server.
    #[track_caller]
    fn denied(&self, from: &str, to: &[IpAddr], port: u16, server: &Server) {
        let before = server.connections();
        for &to in to {
            let outcome = self.tcp(from, to, port, SILENCE);
            assert_eq!(outcome, Outcome::TimedOut, "{from} -> {to}:{port}");
        }
        assert_eq!(server.connections(), before, "{from} reached the server");
    }

    fn daemon(&self, options: Options) -> Daemon {
        Daemon::start(&self.lab, options.docker(&self.docker.socket()))
    }
}

fn addresses(network: u8, address: u8) -> [IpAddr; 2] {
    [
        format!("10.62.{network}.{address}")
            .parse()
            .expect("an address"),
        format!("fd62:{network}::{address:x}")
            .parse()
            .expect("an address"),
    ]
}

/// Waits until the container is known and enforced at these addresses.
fn wait_enforced(daemon: &Daemon, name: &str, at: &[IpAddr]) -> Value {
    wait_for(SOON, &format!("{name} to be enforced"), || {
        daemon.workload(name).filter(|workload| {
            let known = workload["addresses"].to_string();
            workload["enforced"] == true && at.iter().all(|ip| known.contains(&format!("\"{ip}\"")))
        })
    })
    .unwrap_or_else(|error| panic!("{error}: {:#}", daemon.json(&["workloads"])))
}

fn rules() -> String {
    policy(
        "shop",
        "default-deny",
        "podSelector: {}\npolicyTypes: [Ingress, Egress]",
    ) + &netns_tests::bed::allow("web", "api", TCP)
}

#[test]
fn containers_of_before_and_after_the_start_are_learned_and_protected() {
    require_root!();
    let yard = Yard::new();
    let web = yard.service("web", "back", 10);
    let api = yard.service("api", "back", 11);
    let api_server = yard.serve(&api);
    let web_server = yard.serve(&web);
    let lone = {
        let options = [
            "--network",
            "front",
            "--ip",
            "10.62.1.30",
            "--ip6",
            "fd62:1::1e",
        ];
        yard.docker
            .run_sleeping("lone", &options)
            .expect("a container");
        "lone"
    };

    let daemon = yard.daemon(Options::new());
    for (name, group, at) in [
        (&*web, "shop/web", addresses(2, 10)),
        (&*api, "shop/api", addresses(2, 11)),
        (lone, "docker/lone", addresses(1, 30)),
    ] {
        let found = wait_enforced(&daemon, name, &at);
        assert_eq!(found["group"], group, "{found}");
        assert_eq!(found["source"], "docker", "{found}");
    }
    let db = yard.service("db", "back", 12);
    let db_server = yard.serve(&db);
    let found = wait_enforced(&daemon, &db, &addresses(2, 12));
    assert_eq!(found["group"], "shop/db", "{found}");
    let groups = daemon.json(&["groups"]).to_string();
    for group in ["shop/web", "shop/api", "shop/db", "docker/lone"] {
        assert!(groups.contains(&format!("\"{group}\"")), "{groups}");
    }

    yard.allowed(&web, &addresses(2, 11), TCP);
    yard.allowed(&api, &addresses(2, 12), ADMIN);
    for (from, to, port) in [
        ("shop/web", "shop/api", "8080"),
        ("shop/api", "shop/db", "9000"),
    ] {
        let flow = daemon.flow(&["--from", from, "--to", to, "--port", port]);
        assert_eq!(flow["verdict"], "forwarded", "{flow}");
        assert_eq!(flow["opener"], "certain", "{flow}");
    }

    let learned = daemon.ok(&["policy", "export", "--learned"]).stdout;
    daemon.replace(&learned);
    daemon.mode("protect");
    yard.allowed(&web, &addresses(2, 11), TCP);
    yard.allowed(&api, &addresses(2, 12), ADMIN);
    yard.denied(&web, &addresses(2, 11), ADMIN, &api_server);
    yard.denied(&web, &addresses(2, 12), ADMIN, &db_server);
    yard.denied(&api, &addresses(2, 10), TCP, &web_server);
    let refused = daemon.flow(&[
        "--verdict",
        "dropped",
        "--from",
        "shop/web",
        "--to",
        "shop/db",
    ]);
    assert_eq!(refused["drop_reason"], "policy_default_deny", "{refused}");
}

#[test]
fn a_container_that_returns_with_another_address_keeps_identity_and_rules() {
    require_root!();
    let yard = Yard::new();
    let api = yard.service("api", "back", 11);
    let web = yard.service("web", "back", 10);
    let daemon = yard.daemon(Options::new().policies(rules()).mode("protect"));
    let server = yard.serve(&api);
    let identity = wait_enforced(&daemon, &web, &addresses(2, 10))["identity"].clone();
    wait_enforced(&daemon, &api, &addresses(2, 11));
    yard.allowed(&web, &addresses(2, 11), TCP);

    // The same container on another address: a new interface, the same namespace.
    let docker = |arguments: &[&str]| yard.docker.docker(arguments).expect("docker to obey");
    docker(&["network", "disconnect", "back", &web]);
    docker(&[
        "network",
        "connect",
        "--ip",
        "10.62.2.20",
        "--ip6",
        "fd62:2::14",
        "back",
        &web,
    ]);
    let moved = wait_enforced(&daemon, &web, &addresses(2, 20));
    assert_eq!(moved["identity"], identity, "{moved}");
    assert_eq!(moved["group"], "shop/web");
    assert!(
        !moved["addresses"].to_string().contains("10.62.2.10"),
        "{moved}"
    );
    yard.allowed(&web, &addresses(2, 11), TCP);
    yard.denied(&web, &addresses(2, 11), ADMIN, &server);

    // Made anew, as `compose up` does after a change, and the old address given to another.
    docker(&["rm", "--force", &web]);
    let options = [
        "--network",
        "back",
        "--ip",
        "10.62.2.20",
        "--ip6",
        "fd62:2::14",
    ];
    yard.docker
        .run_sleeping("heir", &options)
        .expect("a container");
    let web = yard.service("web", "back", 21);
    let anew = wait_enforced(&daemon, &web, &addresses(2, 21));
    assert_eq!(anew["identity"], identity, "{anew}");
    wait_enforced(&daemon, "heir", &addresses(2, 20));
    yard.allowed(&web, &addresses(2, 11), TCP);
    yard.denied("heir", &addresses(2, 11), TCP, &server);

    docker(&["restart", "--time", "0", &web]);
    let restarted = wait_enforced(&daemon, &web, &addresses(2, 21));
    assert_eq!(restarted["identity"], identity, "{restarted}");
    yard.allowed(&web, &addresses(2, 11), TCP);
}

#[test]
fn a_container_on_two_networks_is_one_workload_and_one_that_stops_disappears() {
    require_root!();
    let yard = Yard::new();
    let edge = yard.service("web", "front", 10);
    yard.docker
        .docker(&[
            "network",
            "connect",
            "--ip",
            "10.62.2.10",
            "--ip6",
            "fd62:2::a",
            "back",
            &edge,
        ])
        .expect("docker to obey");
    let api = yard.service("api", "back", 11);
    let front = yard.service("front", "front", 12);
    let daemon = yard.daemon(Options::new().policies(rules()).mode("protect"));
    let api_server = yard.serve(&api);
    let edge_server = yard.serve(&edge);
    let mut both = addresses(1, 10).to_vec();
    both.extend(addresses(2, 10));
    wait_enforced(&daemon, &edge, &both);
    wait_enforced(&daemon, &api, &addresses(2, 11));
    wait_enforced(&daemon, &front, &addresses(1, 12));
    let workloads = daemon.json(&["workloads"]);
    assert_eq!(workloads.as_array().map(Vec::len), Some(3), "{workloads:#}");
    yard.allowed(&edge, &addresses(2, 11), TCP);
    yard.denied(&edge, &addresses(2, 11), ADMIN, &api_server);
    yard.denied(&front, &addresses(1, 10), TCP, &edge_server);

    yard.docker
        .docker(&["stop", "--time", "0", &front])
        .expect("docker to obey");
    wait_until(SOON, "the stopped container to disappear", || {
        daemon.workload(&front).is_none()
    })
    .unwrap_or_else(|error| panic!("{error}: {:#}", daemon.json(&["workloads"])));
    yard.allowed(&edge, &addresses(2, 11), TCP);
    yard.docker
        .docker(&["start", &front])
        .expect("docker to obey");
    wait_enforced(&daemon, &front, &addresses(1, 12));
    yard.denied(&front, &addresses(1, 10), TCP, &edge_server);
}
