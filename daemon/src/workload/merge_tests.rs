use super::*;
use crate::workload::netlink::HostLink;
use crate::workload::netns::InnerInterface;

/// Our own namespace in these tables.
const OWN: u64 = 1;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Index, host-side name and addresses of a veth.
type Veth<'a> = (u32, &'a str, &'a [&'a str]);
/// Inode, name under /run/netns and veths of a namespace.
type Row<'a> = (u64, Option<&'a str>, &'a [Veth<'a>]);

fn view(rows: &[Row<'_>]) -> KernelView {
    let mut view = KernelView {
        own_inode: OWN,
        ..KernelView::default()
    };
    for (inode, name, pairs) in rows {
        let path = match name {
            Some(name) => PathBuf::from(format!("/run/netns/{name}")),
            None => PathBuf::from(format!("/proc/{inode}/ns/net")),
        };
        let mut netns = NetnsView {
            inode: *inode,
            name: name.map(str::to_owned),
            command: Some("sleep".to_owned()),
            container: false,
            pairs: Vec::new(),
            error: None,
            path: path.clone(),
        };
        for (ifindex, host, addresses) in *pairs {
            let link = HostLink {
                ifindex: *ifindex,
                name: (*host).to_owned(),
                peer: Some((0, 2)),
            };
            view.links.insert(link.name.clone(), link.clone());
            netns.pairs.push(VethPair {
                host: link,
                inner: Some(InnerInterface {
                    name: "eth0".to_owned(),
                    mac: Some([2, 0, 0, 0, 0, *ifindex as u8]),
                    addresses: addresses.iter().map(|text| ip(text)).collect(),
                }),
            });
        }
        view.netnses.insert(*inode, netns);
        view.paths.insert(path, *inode);
    }
    view
}

fn container(name: &str, inode: u64) -> Container {
    Container {
        id: format!("{name}-id"),
        name: name.to_owned(),
        image: format!("{name}:1"),
        labels: Labels::new(),
        pid: inode as u32,
        sandbox_key: None,
        network: NetworkMode::Own,
        addresses: Vec::new(),
    }
}

fn docker(containers: Vec<Container>) -> DockerState {
    DockerState {
        connected: true,
        attempted: true,
        containers: containers.into_iter().map(|c| (c.id.clone(), c)).collect(),
        problem: None,
    }
}

fn inventory(workloads: &str) -> Inventory {
    Inventory::parse(&format!("kind: Inventory\nworkloads:\n{workloads}"), "inv").unwrap()
}

fn run(view: &KernelView, inventory: &Inventory, docker: &DockerState) -> EstateSnapshot {
    merge(Inputs {
        view,
        inventory,
        docker,
    })
}

fn ids(snapshot: &EstateSnapshot) -> Vec<&str> {
    snapshot.workloads.iter().map(|w| w.id.0.as_str()).collect()
}

#[test]
fn a_bare_namespace_is_a_workload_with_all_its_interfaces() {
    let view = view(&[(
        10,
        Some("web"),
        &[
            (5, "v0", &["fe80::5", "10.0.0.2", "fd00::2"]),
            (6, "v1", &["10.1.0.2"]),
        ],
    )]);
    let snapshot = run(&view, &Inventory::default(), &DockerState::default());
    assert_eq!(ids(&snapshot), ["netns:web"]);
    let web = &snapshot.workloads[0];
    assert_eq!(web.spec.group, "netns/web");
    assert_eq!(web.spec.labels["app"], "web");
    let expected = ["10.0.0.2", "10.1.0.2", "fd00::2", "fe80::5"].map(ip);
    assert_eq!(web.spec.addresses, expected, "link-local comes last");
    let interfaces: Vec<_> = web.interfaces.iter().map(|i| (i.ifindex, i.mac)).collect();
    assert_eq!(
        interfaces,
        [(5, Some([2, 0, 0, 0, 0, 5])), (6, Some([2, 0, 0, 0, 0, 6]))]
    );
    assert_eq!(web.interfaces[0].netns, Some(10));
    assert!(!web.learn_addresses && snapshot.problems.is_empty());
    assert_eq!(snapshot.by_ifindex(6).unwrap().id, web.id);
    assert_eq!(snapshot.by_address(ip("10.1.0.2")).unwrap().id, web.id);
}

#[test]
fn the_way_out_is_no_workload() {
    let mut view = view(&[
        (10, Some("world"), &[(5, "up", &["192.0.2.1"])]),
        (11, Some("web"), &[(6, "v0", &["10.0.0.2"])]),
    ]);
    view.uplinks.insert(5);
    let snapshot = run(&view, &Inventory::default(), &DockerState::default());
    assert_eq!(ids(&snapshot), ["netns:web"]);
    assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
}

#[test]
fn inventory_beats_docker_beats_namespace() {
    let view = view(&[
        (10, None, &[(5, "v0", &["10.0.0.2"])]),
        (11, None, &[(6, "v1", &["10.0.0.3"])]),
        (12, Some("plain"), &[(7, "v2", &["10.0.0.4"])]),
    ]);
    let docker = docker(vec![container("web", 10), container("api", 11)]);
    let inventory =
        inventory("- {name: front, namespace: shop, interface: v0, labels: {app: f}}\n");
    let snapshot = run(&view, &inventory, &docker);
    assert_eq!(
        ids(&snapshot),
        ["docker:api", "inventory:shop/front", "netns:plain"]
    );
    let front = snapshot.by_id("inventory:shop/front").unwrap();
    assert_eq!(front.spec.group, "shop/f");
    assert_eq!(
        front.image.as_deref(),
        Some("web:1"),
        "Docker still tells the image"
    );
    assert_eq!(front.container_id.as_deref(), Some("web-id"));
    let api = snapshot.by_id("docker:api").unwrap();
    assert_eq!(api.spec.group, "docker/api");
    assert_eq!(api.spec.addresses, [ip("10.0.0.3")]);
    assert_eq!(api.netns_path, Some(PathBuf::from("/proc/11/ns/net")));
}

#[test]
fn declared_addresses_stand_and_other_interfaces_of_the_namespace_join() {
    let view = view(&[(
        10,
        None,
        &[(5, "v0", &["10.0.0.99"]), (6, "v1", &["10.1.0.2"])],
    )]);
    let inventory = inventory("- {name: a, interface: v0, ips: [10.0.0.2]}\n");
    let snapshot = run(&view, &inventory, &DockerState::default());
    assert_eq!(ids(&snapshot), ["inventory:default/a"]);
    let a = &snapshot.workloads[0];
    assert_eq!(a.spec.addresses, [ip("10.0.0.2"), ip("10.1.0.2")]);
    assert_eq!(
        a.interfaces.len(),
        2,
        "no interface of it stays without an owner"
    );
}

#[test]
fn two_inventory_workloads_may_share_a_namespace_by_interface() {
    let view = view(&[(
        10,
        Some("x"),
        &[(5, "v0", &["10.0.0.2"]), (6, "v1", &["10.1.0.2"])],
    )]);
    let inventory = inventory("- {name: a, interface: v0}\n- {name: b, interface: v1}\n");
    let snapshot = run(&view, &inventory, &DockerState::default());
    let of = |id| snapshot.by_id(id).unwrap();
    assert_eq!(of("inventory:default/a").spec.addresses, [ip("10.0.0.2")]);
    assert_eq!(of("inventory:default/b").spec.addresses, [ip("10.1.0.2")]);
    assert_eq!(snapshot.workloads.len(), 2);
}

#[test]
fn a_declared_workload_that_is_gone_owns_nothing_and_says_so() {
    let inventory = inventory("- {name: a, interface: v0, ips: [10.0.0.2]}\n");
    let snapshot = run(&view(&[]), &inventory, &DockerState::default());
    let a = &snapshot.workloads[0];
    assert_eq!(a.state, WorkloadState::Absent);
    assert!(a.spec.addresses.is_empty() && a.interfaces.is_empty());
    assert!(
        snapshot.problems[0].cause.contains("v0"),
        "{:?}",
        snapshot.problems
    );
    assert!(
        snapshot.problems[0].hint.contains("inv:3:24"),
        "{:?}",
        snapshot.problems
    );
}

#[test]
fn an_interface_without_readable_peer_has_its_addresses_learned() {
    let mut view = view(&[]);
    let tap = HostLink {
        ifindex: 9,
        name: "tap0".to_owned(),
        peer: None,
    };
    view.links.insert("tap0".to_owned(), tap);
    let learned = inventory("- {name: vm, interface: tap0}\n");
    let vm = run(&view, &learned, &DockerState::default())
        .workloads
        .remove(0);
    assert!(vm.learn_addresses);
    assert_eq!((vm.interfaces[0].ifindex, vm.interfaces[0].mac), (9, None));
    let declared = inventory("- {name: vm, interface: tap0, ips: [10.0.0.2]}\n");
    let vm = run(&view, &declared, &DockerState::default())
        .workloads
        .remove(0);
    assert!(!vm.learn_addresses, "declared addresses are pinned");
}

#[test]
fn an_address_belongs_to_one_workload() {
    let mut view = view(&[
        (10, Some("a"), &[(5, "v0", &["10.0.0.2", "10.0.0.1"])]),
        (11, Some("b"), &[(6, "v1", &["10.0.0.2", "10.0.0.3"])]),
    ]);
    view.host_addresses.insert(ip("10.0.0.1"));
    let snapshot = run(&view, &Inventory::default(), &DockerState::default());
    let addresses = |id| snapshot.by_id(id).unwrap().spec.addresses.clone();
    assert_eq!(addresses("netns:a"), [ip("10.0.0.2")]);
    assert_eq!(addresses("netns:b"), [ip("10.0.0.3")]);
    let causes: Vec<_> = snapshot.problems.iter().map(|p| p.cause.as_str()).collect();
    assert_eq!(
        causes,
        [
            "its address 10.0.0.1 belongs to the host already",
            "its address 10.0.0.2 belongs to netns:a already"
        ]
    );
}

#[test]
fn containers_that_cannot_be_protected_are_problems_not_workloads() {
    let view = view(&[(10, None, &[(5, "v0", &["10.0.0.2"])])]);
    let mut host = container("host", 20);
    host.network = NetworkMode::Host;
    let mut sidecar = container("sidecar", 10);
    sidecar.network = NetworkMode::Container;
    let mut lonely = container("lonely", 21);
    lonely.network = NetworkMode::None;
    let macvlan = container("macvlan", 22);
    let web = container("web", 10);
    let snapshot = run(
        &view,
        &Inventory::default(),
        &docker(vec![host, sidecar, lonely, macvlan, web]),
    );
    assert_eq!(ids(&snapshot), ["docker:web"]);
    let subjects: Vec<_> = snapshot
        .problems
        .iter()
        .map(|p| p.subject.as_str())
        .collect();
    assert_eq!(subjects, ["container host", "container macvlan"]);
}

#[test]
fn a_container_namespace_waits_for_its_name_only_while_docker_answers() {
    let mut view = view(&[(10, None, &[(5, "v0", &["10.0.0.2"])])]);
    view.netnses.get_mut(&10).unwrap().container = true;
    let waiting = run(&view, &Inventory::default(), &docker(Vec::new()));
    assert!(waiting.workloads.is_empty());
    let alone = run(&view, &Inventory::default(), &DockerState::default());
    assert_eq!(ids(&alone), ["netns:sleep-10"]);
}

#[test]
fn a_veth_into_nowhere_is_reported() {
    let mut view = view(&[]);
    let link = |name: &str, ifindex, peer| {
        let name = name.to_owned();
        (
            name.clone(),
            HostLink {
                ifindex,
                name,
                peer,
            },
        )
    };
    view.links.extend([
        link("v0", 5, Some((3, 2))),
        link("up", 6, Some((4, 2))),
        link("br0", 7, None),
    ]);
    view.uplinks.insert(6);
    let snapshot = run(&view, &Inventory::default(), &DockerState::default());
    let subjects: Vec<_> = snapshot
        .problems
        .iter()
        .map(|p| p.subject.as_str())
        .collect();
    assert_eq!(subjects, ["interface v0"]);
    let declared = inventory("- {name: a, interface: v0}\n");
    let snapshot = run(&view, &declared, &DockerState::default());
    assert!(snapshot.problems.is_empty(), "declaring it is the way out");
    assert!(snapshot.workloads[0].learn_addresses);
}

#[test]
fn ids_and_names_stay_unique() {
    let view = view(&[
        (10, None, &[(5, "v0", &["10.0.0.2"])]),
        (11, None, &[(6, "v1", &["10.0.0.3"])]),
    ]);
    let twin = |inode: u64, id: &str| Container {
        id: id.to_owned(),
        ..container("web", inode)
    };
    let docker = docker(vec![twin(10, "aaa"), twin(11, "bbb")]);
    let snapshot = run(&view, &Inventory::default(), &docker);
    assert_eq!(ids(&snapshot), ["docker:web", "docker:web@bbb"]);
    let names: BTreeSet<_> = snapshot.workloads.iter().map(|w| &w.spec.name).collect();
    assert_eq!(names.len(), 2);
    assert_eq!(snapshot.problems.len(), 2);
}
