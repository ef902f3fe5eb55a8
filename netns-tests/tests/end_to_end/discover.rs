//! Discover mode: everything passes, and every flow is recorded with its names and its direction.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use netns_tests::bed::{ADMIN, Bed, Family, PATIENT, TCP, UDP, ping, tcp, udp};
use netns_tests::portcullis::{Daemon, Options};
use testbed::{Outcome, require_root, wait_until};

#[test]
fn everything_passes_and_is_recorded_with_names_and_direction() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(&bed.lab, Options::new().inventory(bed.inventory()));
    bed.both_allowed(&bed.web, &bed.api, TCP);
    bed.both_allowed(&bed.peer, &bed.web, ADMIN);
    for family in Family::BOTH {
        let answered = udp(family, &bed.web, &bed.api, UDP, PATIENT);
        assert_eq!(answered, Outcome::Replied);
        assert_eq!(ping(family, &bed.api, &bed.peer, PATIENT), Outcome::Replied);
        let refused = tcp(family, &bed.api, &bed.web, 1, PATIENT);
        assert_eq!(refused, Outcome::Refused, "a refusal passes too");
    }

    let web = bed.web.addresses();
    for (ip, direction) in web.iter().flat_map(|ip| [(ip, "egress"), (ip, "ingress")]) {
        let ip = ip.to_string();
        let flow = daemon.flow(&[
            "--from",
            "shop/web",
            "--to",
            "shop/api",
            "--ip",
            &ip,
            "--direction",
            direction,
            "--port",
            "8080/tcp",
            "--event",
            "closed",
        ]);
        assert_eq!(flow["verdict"], "forwarded", "{flow}");
        assert_eq!(flow["opener"], "certain", "{flow}");
        assert_eq!(flow["source"]["group"], "shop/web", "{flow}");
        assert_eq!(flow["source"]["ip"], *ip, "{flow}");
        assert_eq!(flow["destination"]["labels"]["app"], "api", "{flow}");
        assert_eq!(flow["destination"]["port"], 8080, "{flow}");
        // Three packets to open, one line each way with its acknowledgement, the farewell.
        assert!(flow["packets"].as_u64() >= Some(6), "{flow}");
        assert!(flow["reply_packets"].as_u64() >= Some(2), "{flow}");
        assert!(flow.get("drop_reason").is_none(), "{flow}");
    }
    for protocol in ["icmp", "icmpv6"] {
        let flow = daemon.flow(&["--protocol", protocol, "--direction", "egress"]);
        assert_eq!(flow["source"]["workload"], "api", "{flow}");
        assert_eq!(flow["destination"]["workload"], "peer", "{flow}");
    }

    assert_eq!(daemon.packets("dropped", ""), 0);
    assert_eq!(daemon.packets("audit", ""), 0);
    assert!(daemon.packets("forwarded", "") > 0);
    let lost = daemon.json(&["counters"])["lost_events"].clone();
    let lost: u64 = lost
        .as_object()
        .expect("kinds of events")
        .values()
        .filter_map(serde_json::Value::as_u64)
        .sum();
    assert_eq!(lost, 0);
}

#[test]
fn the_graph_has_every_edge_once_and_in_its_direction() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(&bed.lab, Options::new().inventory(bed.inventory()));
    bed.both_allowed(&bed.web, &bed.api, TCP);
    bed.both_allowed(&bed.peer, &bed.web, TCP);
    let expected = [
        ("lab/peer", "shop/web", "8080/TCP"),
        ("shop/web", "shop/api", "8080/TCP"),
    ];
    let edges = testbed::wait_for(netns_tests::portcullis::SOON, "the edges", || {
        let graph = daemon.json(&["graph"]);
        let name = |id: &serde_json::Value| {
            let nodes = graph["nodes"].as_array().expect("nodes").iter();
            let mut nodes = nodes.filter(|node| node["id"] == *id);
            nodes.next().expect("a node of that id")["name"].to_string()
        };
        let mut edges: Vec<(String, String, String)> = graph["edges"]
            .as_array()
            .expect("edges")
            .iter()
            .map(|edge| {
                (
                    name(&edge["from"]),
                    name(&edge["to"]),
                    edge["label"].as_str().expect("a label").to_owned(),
                )
            })
            .collect();
        edges.sort();
        // Each edge stands for one connection per family.
        let counted = graph["edges"]
            .as_array()
            .expect("edges")
            .iter()
            .all(|edge| edge["connections"] == 2 && edge["answered"] == 2);
        (edges.len() >= expected.len() && counted).then_some(edges)
    })
    .unwrap_or_else(|error| panic!("{error}: {:#}", daemon.json(&["graph"])));
    let expected: Vec<(String, String, String)> = expected
        .iter()
        .map(|(from, to, label)| {
            (
                format!("\"{from}\""),
                format!("\"{to}\""),
                (*label).to_owned(),
            )
        })
        .collect();
    assert_eq!(edges, expected);
}

/// A service opens its socket without any event in the kernel. The first datagram to it asks for the
/// sockets, so that the next ones have a direction at once and not only after the next reading.
#[test]
fn the_first_flow_to_a_socket_opened_late_has_the_sockets_read_again() {
    require_root!();
    const LATE: u16 = 4_053;
    let bed = Bed::new();
    let daemon = Daemon::start(&bed.lab, Options::new().inventory(bed.inventory()));
    let server = SocketAddr::new(Family::V4.of(&bed.api), LATE);
    let bind = |on: &testbed::Workload, local: SocketAddr| {
        let socket = on.run(|| UdpSocket::bind(local));
        socket.expect("a namespace").expect("a socket")
    };
    let _server = bind(&bed.api, server);
    let port = LATE.to_string();
    wait_until(Duration::from_secs(3), "a flow with a direction", || {
        let client = bind(&bed.web, SocketAddr::new(Family::V4.of(&bed.web), 0));
        client.send_to(b"hello", server).expect("room to send");
        let flows = daemon.json(&["flows", "--port", &port, "--direction", "egress"]);
        flows.as_array().is_some_and(|flows| !flows.is_empty())
    })
    .unwrap_or_else(|error| panic!("{error}: {:#}", daemon.json(&["flows"])));
    let flow = daemon.flow(&["--port", &port, "--direction", "egress"]);
    assert_eq!(flow["source"]["workload"], "web", "{flow}");
    assert_eq!(flow["destination"]["workload"], "api", "{flow}");
}
