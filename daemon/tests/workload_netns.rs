//! The workload registry on real namespaces.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::future::Future;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::preflight::{Facts, Places};
use daemon::workload::docker::DockerConfig;
use daemon::workload::inventory::Inventory;
use daemon::workload::listeners;
use daemon::workload::model::{EstateSnapshot, Source, WorkloadState};
use daemon::workload::registry::{self, RegistryConfig, RegistryHandle};
use policy::model::Protocol;
use testbed::{Lab, Server, ip_batch, require_root};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(10);

/// Runs `work` with a registry in the lab's host namespace, then asserts that it shuts down.
fn with_registry<F: Future<Output = ()>>(
    lab: &Lab,
    inventory: Option<Inventory>,
    work: impl FnOnce(RegistryHandle) -> F + Send,
) {
    lab.host()
        .run(|| {
            // One thread, so that everything happens in this namespace.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let cancel = CancellationToken::new();
                let mut tasks = JoinSet::new();
                let config = RegistryConfig {
                    docker: DockerConfig::Off,
                    inventory,
                };
                let handle = registry::start(config, cancel.clone(), &mut tasks)
                    .await
                    .unwrap();
                work(handle).await;
                cancel.cancel();
                let ended = async { while tasks.join_next().await.is_some() {} };
                timeout(DEADLINE, ended)
                    .await
                    .expect("the registry ends when cancelled");
            });
        })
        .unwrap();
}

async fn until(
    handle: &RegistryHandle,
    what: &str,
    condition: impl Fn(&EstateSnapshot) -> bool,
) -> Arc<EstateSnapshot> {
    let mut estate = handle.estate.clone();
    let waited = timeout(DEADLINE, estate.wait_for(|snapshot| condition(snapshot))).await;
    match waited {
        Ok(snapshot) => Arc::clone(&snapshot.unwrap()),
        Err(_) => panic!("no {what}: {:#?}", handle.estate.borrow()),
    }
}

fn id(netns: &testbed::Netns) -> String {
    format!("netns:{}", netns.name().unwrap())
}

#[test]
fn namespaces_are_found_before_and_after_the_start() {
    require_root!();
    let lab = Lab::new("wreg").unwrap();
    let front = lab.bridge("front", "10.1.0.1/24", "fd01::1/64").unwrap();
    let web = lab
        .workload("web")
        .on(&front)
        .v4("10.1.0.2")
        .v6("fd01::2")
        .build()
        .unwrap();
    let other = Lab::new("wreg").unwrap();
    let foreign = other.bridge("front", "10.1.0.1/24", "fd01::1/64").unwrap();
    let foreign = other
        .workload("web")
        .on(&foreign)
        .v4("10.1.0.2")
        .build()
        .unwrap();
    with_registry(&lab, None, async |handle| {
        let first = Arc::clone(&handle.estate.borrow());
        assert_eq!(first.workloads.len(), 1, "complete at once: {first:#?}");
        let found = first.by_id(&id(&web.netns)).unwrap();
        let interface = &web.interfaces[0];
        assert_eq!(found.source, Source::Netns);
        assert_eq!(found.interfaces[0].ifindex, interface.host_ifindex);
        assert_eq!(found.interfaces[0].name, "v-web");
        assert_eq!(found.interfaces[0].mac, Some(interface.mac));
        assert_eq!(found.interfaces[0].netns, Some(web.netns.inode().unwrap()));
        let addresses = &found.spec.addresses;
        assert_eq!(addresses[..2], web.addresses()[..], "v4 and v6");
        assert!(matches!(addresses[2..], [IpAddr::V6(v6)] if v6.is_unicast_link_local()));
        for own in ["10.1.0.1", "fd01::1"] {
            assert!(
                first.host_addresses.contains(&own.parse().unwrap()),
                "{first:#?}"
            );
        }
        assert!(
            first.by_id(&id(&foreign.netns)).is_none(),
            "another host's workload"
        );
        assert_eq!(first.problems, []);

        let api = lab
            .workload("api")
            .on(&front)
            .v4("10.1.0.3")
            .routed()
            .v6("fd09::3")
            .build()
            .unwrap();
        let both = |s: &EstateSnapshot| {
            s.by_id(&id(&api.netns)).is_some_and(|w| {
                w.interfaces.len() == 2
                    && api.addresses().iter().all(|a| w.spec.addresses.contains(a))
            })
        };
        let later = until(&handle, "second workload", both).await;
        assert_eq!(
            later.by_id(&id(&web.netns)),
            Some(found),
            "the first is as it was"
        );
        assert!(later.revision > first.revision);
    });
}

#[test]
fn a_recreated_workload_keeps_its_identity() {
    require_root!();
    let lab = Lab::new("wreg").unwrap();
    let front = lab.bridge("front", "10.1.0.1/24", "").unwrap();
    let old = lab
        .workload("web")
        .on(&front)
        .v4("10.1.0.2")
        .build()
        .unwrap();
    with_registry(&lab, None, async |handle| {
        let web = id(&old.netns);
        lab.remove(&old).unwrap();
        until(&handle, "removal", |s| s.workloads.is_empty()).await;
        let new = lab
            .workload("web")
            .on(&front)
            .v4("10.1.0.7")
            .build()
            .unwrap();
        let address: IpAddr = "10.1.0.7".parse().unwrap();
        let seen = until(&handle, "return", |s| s.by_address(address).is_some()).await;
        let found = seen.by_id(&web).unwrap();
        assert_eq!(found.interfaces[0].ifindex, new.interfaces[0].host_ifindex);
        assert!(seen.by_address("10.1.0.2".parse().unwrap()).is_none());
    });
}

#[test]
fn an_address_that_changes_inside_is_seen_within_milliseconds() {
    require_root!();
    let lab = Lab::new("wreg").unwrap();
    let front = lab.bridge("front", "10.1.0.1/24", "fd01::1/64").unwrap();
    let web = lab
        .workload("web")
        .on(&front)
        .v4("10.1.0.2")
        .build()
        .unwrap();
    with_registry(&lab, None, async |handle| {
        let mut took = Vec::new();
        for number in 10..21 {
            let address: IpAddr = format!("fd01::{number}").parse().unwrap();
            ip_batch(
                &web.netns,
                &[format!("addr add {address}/64 dev eth0 nodad")],
            )
            .unwrap();
            let changed = Instant::now();
            until(&handle, "new address", |s| s.by_address(address).is_some()).await;
            took.push(changed.elapsed());
        }
        took.sort();
        // The unprompted scan comes once a second: this can only be the kernel's event.
        assert!(took[took.len() / 2] < Duration::from_millis(50), "{took:?}");
        ip_batch(&web.netns, &["addr del 10.1.0.2/24 dev eth0".to_owned()]).unwrap();
        let gone: IpAddr = "10.1.0.2".parse().unwrap();
        until(&handle, "removed address", |s| s.by_address(gone).is_none()).await;
    });
}

#[test]
fn a_veth_whose_peer_is_elsewhere_is_not_mistaken() {
    require_root!();
    let lab = Lab::new("wreg").unwrap();
    let front = lab.bridge("front", "10.1.0.1/24", "").unwrap();
    let web = lab
        .workload("web")
        .on(&front)
        .v4("10.1.0.2")
        .build()
        .unwrap();
    // A private cable between two namespaces, one of which has no veth into the host: the indices
    // are the same as on the other side of web's cable.
    let hidden = lab.netns("hidden").unwrap();
    let peer = web.netns.path().display().to_string();
    let index = web.interfaces[0].host_ifindex;
    ip_batch(
        &hidden,
        &[
            format!("link add name cable index {index} type veth peer name eth9 netns {peer}"),
            "addr add 10.8.0.1/24 dev cable".to_owned(),
            "link set dev cable up".to_owned(),
        ],
    )
    .unwrap();
    ip_batch(&web.netns, &["addr add 10.8.0.2/24 dev eth9".to_owned()]).unwrap();
    with_registry(&lab, None, async |handle| {
        handle.rescan().await.unwrap();
        let snapshot = Arc::clone(&handle.estate.borrow());
        assert_eq!(snapshot.workloads.len(), 1, "{snapshot:#?}");
        let found = snapshot.by_id(&id(&web.netns)).unwrap();
        assert_eq!(found.interfaces.len(), 1);
        let cable: IpAddr = "10.8.0.2".parse().unwrap();
        assert!(
            !found.spec.addresses.contains(&cable),
            "not reachable through the host"
        );
    });
}

#[test]
fn the_interface_of_the_default_route_is_the_way_out() {
    require_root!();
    let lab = Lab::new("wreg").unwrap();
    let front = lab.bridge("front", "10.1.0.1/24", "").unwrap();
    let web = lab
        .workload("web")
        .on(&front)
        .v4("10.1.0.2")
        .build()
        .unwrap();
    let world = lab
        .workload("world")
        .routed()
        .v4("192.0.2.9")
        .build()
        .unwrap();
    with_registry(&lab, None, async |handle| {
        assert!(handle.estate.borrow().by_id(&id(&world.netns)).is_some());
        ip_batch(lab.host(), &["route add default dev v-world".to_owned()]).unwrap();
        let seen = until(&handle, "uplink", |s| s.by_id(&id(&world.netns)).is_none()).await;
        assert!(seen.by_id(&id(&web.netns)).is_some());
        assert_eq!(seen.problems, []);
    });
}

#[test]
fn a_namespace_without_a_name_is_found_by_its_process() {
    require_root!();
    let lab = Lab::new("wreg").unwrap();
    with_registry(&lab, None, async |handle| {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "600"]);
        let process = lab.host().exec(command).unwrap();
        let pid = process.id();
        let inside = testbed::Netns::of_pid(pid);
        let host = lab.host().inode().unwrap();
        testbed::wait_until(DEADLINE, "unshare", || {
            inside.inode().is_ok_and(|i| i != host)
        })
        .unwrap();
        let add = format!("link add name v-anon type veth peer name eth0 netns {pid}");
        ip_batch(lab.host(), &[add, "link set dev v-anon up".to_owned()]).unwrap();
        ip_batch(
            &inside,
            &[
                "addr add 10.5.0.2/24 dev eth0".to_owned(),
                "link set dev eth0 up".to_owned(),
            ],
        )
        .unwrap();
        let address: IpAddr = "10.5.0.2".parse().unwrap();
        let seen = until(&handle, "process", |s| s.by_address(address).is_some()).await;
        let found = seen.by_address(address).unwrap();
        assert_eq!(found.interfaces[0].netns, Some(inside.inode().unwrap()));
        assert!(found.id.0.starts_with("netns:"), "{}", found.id);
        drop(process);
        until(&handle, "end of the process", |s| s.workloads.is_empty()).await;
    });
}

#[test]
fn the_inventory_is_all_or_nothing() {
    require_root!();
    let lab = Lab::new("wreg").unwrap();
    let front = lab.bridge("front", "10.1.0.1/24", "fd01::1/64").unwrap();
    let web = lab
        .workload("web")
        .on(&front)
        .v4("10.1.0.2")
        .v6("fd01::2")
        .build()
        .unwrap();
    let db = lab
        .workload("db")
        .on(&front)
        .v4("10.1.0.3")
        .build()
        .unwrap();
    let inventory = |workloads: &str| {
        let text = format!(
            "kind: Inventory\nnamespaces: [{{name: shop, labels: {{team: a}}}}]\nworkloads:\n{workloads}"
        );
        Inventory::parse(&text, "inv.yaml").unwrap()
    };
    let good = format!(
        "- {{name: web-1, namespace: shop, labels: {{app: web}}, interface: v-web}}\n\
         - {{name: db-1, namespace: shop, labels: {{app: db}}, netns: {}, ips: [10.1.0.33]}}\n",
        db.netns
    );
    with_registry(&lab, Some(inventory(&good)), async |handle| {
        let first = Arc::clone(&handle.estate.borrow());
        assert_eq!(first.inventory_revision, 1);
        assert_eq!(first.workloads.len(), 2, "named ones only: {first:#?}");
        let found = first.by_id("inventory:shop/web-1").unwrap();
        assert_eq!(found.spec.group, "shop/web");
        assert_eq!(
            found.spec.addresses[..2],
            web.addresses()[..],
            "found, as none is declared"
        );
        assert_eq!(found.interfaces[0].mac, Some(web.interfaces[0].mac));
        let declared: IpAddr = "10.1.0.33".parse().unwrap();
        assert_eq!(
            first.by_id("inventory:shop/db-1").unwrap().spec.addresses,
            [declared]
        );
        assert_eq!(first.estate().namespace_labels("shop")["team"], "a");

        for (bad, place) in [
            (
                "- {name: x, interface: nothere}\n",
                "inv.yaml:4:24: interface `nothere`",
            ),
            (
                "- {name: x, netns: /run/netns/nothere}\n",
                "inv.yaml:4:20: network namespace",
            ),
            (
                "- {name: x, netns: /proc/thread-self/ns/net}\n",
                "inv.yaml:4:20: network namespace",
            ),
        ] {
            let error = handle
                .replace_inventory(inventory(bad))
                .await
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(place), "{error}");
        }
        handle.rescan().await.unwrap();
        // The bridge of the lab may get its link-local address only now; no inventory says that.
        let of_inventory = |snapshot: &EstateSnapshot| EstateSnapshot {
            revision: 0,
            host_addresses: Vec::new(),
            ..snapshot.clone()
        };
        let after = of_inventory(&handle.estate.borrow());
        assert_eq!(after, of_inventory(&first), "the state in force stays");

        let less = inventory("- {name: web-1, namespace: shop, interface: v-web}\n");
        assert_eq!(handle.replace_inventory(less).await.unwrap(), 2);
        let second = Arc::clone(&handle.estate.borrow());
        assert_eq!(
            second.inventory_revision, 2,
            "published before the call returns"
        );
        assert!(second.by_id("inventory:shop/db-1").is_none());
        assert!(
            second.by_id(&id(&db.netns)).is_some(),
            "a bare namespace again"
        );

        lab.remove(&web).unwrap();
        let absent = |s: &EstateSnapshot| {
            let web = s.by_id("inventory:shop/web-1");
            web.is_some_and(|w| w.state == WorkloadState::Absent)
        };
        let third = until(&handle, "absence", absent).await;
        assert!(third.by_address("10.1.0.2".parse().unwrap()).is_none());
        assert!(
            third.problems[0].cause.contains("v-web is gone"),
            "{:?}",
            third.problems
        );
        let again = lab
            .workload("web")
            .on(&front)
            .v4("10.1.0.2")
            .build()
            .unwrap();
        let back = until(&handle, "return", |s| s.problems.is_empty()).await;
        let found = back.by_id("inventory:shop/web-1").unwrap();
        assert_eq!(
            found.interfaces[0].ifindex,
            again.interfaces[0].host_ifindex
        );
    });
}

#[test]
fn listening_sockets_are_read_inside_the_namespace() {
    require_root!();
    let lab = Lab::new("wreg").unwrap();
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
        .build()
        .unwrap();
    web.netns
        .sysctl("net/ipv4/ip_local_port_range", "40000 50000")
        .unwrap();
    let _server = Server::new("web")
        .tcp(8080)
        .udp(53)
        .udp(45000)
        .start(&web.netns)
        .unwrap();
    let _other = Server::new("api").tcp(9090).start(&api.netns).unwrap();
    let client = api
        .run(|| testbed::Connection::open("10.1.0.2:8080", DEADLINE))
        .unwrap()
        .unwrap();
    let sockets = listeners::read(web.netns.path()).unwrap();
    let serves = |protocol, address: &str| sockets.serves(protocol, address.parse().unwrap());
    for address in ["10.1.0.2:8080", "[fd01::2]:8080"] {
        assert!(serves(Protocol::TCP, address), "{address}");
    }
    assert!(serves(Protocol::UDP, "10.1.0.2:53"));
    assert!(
        !serves(Protocol::UDP, "10.1.0.2:45000"),
        "in this namespace's ephemeral range"
    );
    assert!(
        !serves(Protocol::TCP, "10.1.0.2:9090"),
        "another namespace's"
    );
    let sockets = listeners::read(api.netns.path()).unwrap();
    assert!(
        !sockets.serves(Protocol::TCP, client.local_addr()),
        "connected, not listening"
    );
    assert_eq!(sockets.iter().count(), 2, "port 9090 on both families");
    let missing = listeners::read("/run/netns/not-there".as_ref()).unwrap_err();
    assert!(missing.to_string().contains("/run/netns/not-there"));
}

/// sysfs keeps showing the namespace it was mounted in; the findings must be about the daemon's own.
#[test]
fn blind_spots_are_those_of_the_daemons_own_namespace() {
    require_root!();
    let lab = Lab::new("blind").unwrap();
    ip_batch(
        lab.host(),
        &[
            "link add lower type veth peer name upper".to_owned(),
            "link add link lower name mv0 type macvlan".to_owned(),
        ],
    )
    .unwrap();
    let places = Places {
        bpffs: "/sys/fs/bpf/portcullis".into(),
        state_dir: "/var/lib/portcullis".into(),
        socket: "/run/portcullis/no-such.sock".into(),
        docker_socket: None,
    };
    let here = lab.host().run(|| Facts::read(&places).blind_links).unwrap();
    assert_eq!(here, [("mv0".to_owned(), "macvlan".to_owned())]);
    let elsewhere = Facts::read(&places).blind_links;
    assert!(!elsewhere.iter().any(|(name, _)| name == "mv0"));
}
