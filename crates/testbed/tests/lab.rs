//! The lab itself, on real namespaces.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use testbed::{Connection, Lab, LabKind, Netns, Outcome, Server, probe, require_root, wait_until};

const SECOND: Duration = Duration::from_secs(1);
const SHORT: Duration = Duration::from_millis(150);

fn links_of_this_host() -> Vec<String> {
    let mut names: Vec<_> = nix::ifaddrs::getifaddrs()
        .unwrap()
        .map(|entry| entry.interface_name)
        .collect();
    names.dedup();
    names
}

#[test]
fn workloads_on_a_bridge_reach_each_other_over_both_families() {
    require_root!();
    let before = links_of_this_host();
    let lab = Lab::new("tbed").unwrap();
    let front = lab.bridge("front", "10.1.0.1/24", "fd01::1/64").unwrap();
    let web = lab
        .workload("web")
        .on(&front)
        .v4("10.1.0.2")
        .v6("fd01::2")
        .build()
        .unwrap();
    let api = lab
        .workload("api")
        .on(&front)
        .v4("10.1.0.3")
        .v6("fd01::3")
        .build()
        .unwrap();
    assert_eq!(links_of_this_host(), before, "the real host is untouched");

    let server = Server::new("api")
        .tcp(8080)
        .udp(53)
        .start(&api.netns)
        .unwrap();
    for host in ["10.1.0.3", "[fd01::3]"] {
        let tcp = web
            .run(|| probe::tcp(format!("{host}:8080"), SECOND))
            .unwrap();
        let udp = web
            .run(|| probe::udp(format!("{host}:53"), SECOND))
            .unwrap();
        let http = web
            .run(|| probe::http_get(format!("{host}:8080"), "/x", SECOND))
            .unwrap();
        let closed = web.run(|| probe::tcp(format!("{host}:9"), SECOND)).unwrap();
        let no_udp = web.run(|| probe::udp(format!("{host}:9"), SECOND)).unwrap();
        assert_eq!(tcp, Outcome::Replied, "{host}");
        assert_eq!(udp, Outcome::Replied, "{host}");
        assert_eq!(http, (Outcome::Replied, "api /x\n".to_owned()));
        assert_eq!(closed, Outcome::Refused);
        assert_eq!(no_udp, Outcome::Refused);
    }
    for address in api.addresses() {
        assert_eq!(
            web.run(|| probe::ping(address, SECOND)).unwrap(),
            Outcome::Replied
        );
    }
    let nobody: IpAddr = "10.1.0.77".parse().unwrap();
    let silent = web.run(|| probe::ping(nobody, SHORT)).unwrap();
    assert!(!silent.reached(), "{silent}");
    assert_eq!(server.connections(), 4);
    assert_eq!(server.reached_by(web.v4().unwrap().into()), 3);
    assert_eq!(server.reached_by("10.1.0.9".parse().unwrap()), 0);
    assert!(server.bytes_from(web.v4().unwrap().into()) > 0);
    assert_eq!(server.bytes_from("10.1.0.9".parse().unwrap()), 0);
}

#[test]
fn routed_and_second_networks_are_connected_through_the_host() {
    require_root!();
    let lab = Lab::new("tbed").unwrap();
    let front = lab.bridge("front", "10.1.0.1/24", "fd01::1/64").unwrap();
    let back = lab.bridge("back", "10.2.0.1/24", "fd02::1/64").unwrap();
    let both = lab
        .workload("both")
        .on(&front)
        .v4("10.1.0.2")
        .v6("fd01::2")
        .on(&back)
        .v4("10.2.0.2")
        .v6("fd02::2")
        .build()
        .unwrap();
    let lone = lab
        .workload("lone")
        .routed()
        .v4("10.9.0.2")
        .v6("fd09::2")
        .build()
        .unwrap();
    assert_eq!(both.interfaces[1].host_name, "v-both1");
    assert_eq!(both.interfaces[1].inner_name, "eth1");
    let _server = Server::new("both").tcp(80).start(&both.netns).unwrap();
    for to in ["10.1.0.2:80", "10.2.0.2:80", "[fd01::2]:80", "[fd02::2]:80"] {
        assert_eq!(
            lone.run(|| probe::tcp(to, SECOND)).unwrap(),
            Outcome::Replied,
            "{to}"
        );
    }
}

#[test]
fn a_bridge_keeps_its_mac_address_when_ports_join() {
    require_root!();
    let lab = Lab::new("tbed").unwrap();
    let front = lab.bridge("front", "10.1.0.1/24", "fd01::1/64").unwrap();
    let mac = || {
        let mut command = lab.host().command("ip").unwrap();
        command.args(["-brief", "link", "show", "dev", &front.name]);
        let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
        output.split_ascii_whitespace().nth(2).unwrap().to_owned()
    };
    let before = mac();
    // MAC addresses of veths are random: eight ports would make a change all but certain.
    for number in 2..10 {
        let name = format!("w{number}");
        let builder = lab.workload(&name).on(&front);
        builder.v4(&format!("10.1.0.{number}")).build().unwrap();
    }
    assert_eq!(mac(), before);
}

#[test]
fn a_connection_notices_when_the_path_goes() {
    require_root!();
    let lab = Lab::new("tbed").unwrap();
    let front = lab.bridge("front", "10.1.0.1/24", "").unwrap();
    let web = lab
        .workload("web")
        .on(&front)
        .v4("10.1.0.2")
        .build()
        .unwrap();
    let api = lab
        .workload("api")
        .on(&front)
        .v4("10.1.0.3")
        .build()
        .unwrap();
    let _server = Server::new("api").tcp(80).start(&api.netns).unwrap();
    web.run(|| {
        let mut connection = Connection::open_from(40000, "10.1.0.3:80", SECOND).unwrap();
        assert_eq!(connection.local_addr().port(), 40000);
        assert_eq!(connection.exchange("one", SECOND), Outcome::Replied);
        let host_name = &api.interfaces[0].host_name;
        let down = |state: &str| {
            testbed::ip_batch(lab.host(), &[format!("link set {host_name} {state}")]).unwrap();
        };
        down("down");
        assert_eq!(connection.exchange("two", SHORT), Outcome::TimedOut);
        down("up");
        assert_eq!(
            connection.expect("two", Duration::from_secs(5)),
            Outcome::Replied
        );
    })
    .unwrap();
}

#[test]
fn a_scan_finds_exactly_the_open_ports() {
    require_root!();
    let lab = Lab::new("tbed").unwrap();
    let front = lab.bridge("front", "10.1.0.1/24", "").unwrap();
    let web = lab
        .workload("web")
        .on(&front)
        .v4("10.1.0.2")
        .build()
        .unwrap();
    let api = lab
        .workload("api")
        .on(&front)
        .v4("10.1.0.3")
        .build()
        .unwrap();
    let _server = Server::new("api")
        .tcp(80)
        .tcp(443)
        .start(&api.netns)
        .unwrap();
    let ports: Vec<u16> = (1..=600).collect();
    let target = api.v4().unwrap().into();
    let found = web
        .run(|| probe::port_scan(target, &ports, SECOND * 5))
        .unwrap();
    assert_eq!(found.len(), ports.len());
    for (port, outcome) in found {
        let open = [80, 443].contains(&port);
        let expected = if open {
            Outcome::Connected
        } else {
            Outcome::Refused
        };
        assert_eq!(outcome, expected, "port {port}");
    }
}

#[test]
fn a_process_runs_inside_and_dies_with_its_handle() {
    require_root!();
    let lab = Lab::new("tbed").unwrap();
    let mut command = Command::new("sleep");
    command.arg("60");
    let process = lab.host().exec(command).unwrap();
    let pid = process.id();
    let inside = Netns::of_pid(pid).inode().unwrap();
    assert_eq!(inside, lab.host().inode().unwrap());
    assert_ne!(inside, Netns::of_this_process().inode().unwrap());
    drop(process);
    let path = format!("/proc/{pid}");
    wait_until(SECOND, "the process to go", || {
        !std::path::Path::new(&path).exists()
    })
    .unwrap();
}

#[test]
fn everything_goes_with_the_lab_even_on_panic() {
    require_root!();
    for kind in [LabKind::OwnHost, LabKind::RealHost] {
        let before = links_of_this_host();
        let (tell, told) = std::sync::mpsc::channel();
        let panicked = std::thread::spawn(move || {
            let lab = Lab::with_kind("tbed", kind).unwrap();
            let bridge = lab.bridge("br", "", "").unwrap();
            let web = lab.workload("web").on(&bridge).build().unwrap();
            tell.send((lab.host().clone(), web.netns.clone())).unwrap();
            panic!("on purpose");
        })
        .join();
        assert!(panicked.is_err());
        let (host, web) = told.recv().unwrap();
        assert!(!web.path().exists());
        assert_eq!(host.path().exists(), kind == LabKind::RealHost);
        assert_eq!(links_of_this_host(), before, "{kind:?}");
    }
}

#[test]
fn names_are_taken_once_and_free_after_removal() {
    require_root!();
    let lab = Lab::new("tbed").unwrap();
    let front = lab.bridge("front", "10.1.0.1/24", "fd01::1/64").unwrap();
    let first = lab
        .workload("web")
        .on(&front)
        .v4("10.1.0.2")
        .build()
        .unwrap();
    let taken = lab.workload("web").on(&front).build().unwrap_err();
    assert!(taken.to_string().contains("taken"), "{taken}");
    lab.remove(&first).unwrap();
    let second = lab
        .workload("web")
        .on(&front)
        .v4("10.1.0.5")
        .build()
        .unwrap();
    assert_ne!(
        first.interfaces[0].host_ifindex,
        second.interfaces[0].host_ifindex
    );
    lab.destroy().unwrap();
    assert!(!second.netns.path().exists());
}

#[test]
fn a_refused_command_says_what_and_where() {
    require_root!();
    let lab = Lab::new("tbed").unwrap();
    let lines = ["link set nothere up".to_owned()];
    let error = testbed::ip_batch(lab.host(), &lines)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("nothere") && error.contains("Cannot find device"),
        "{error}"
    );
}
