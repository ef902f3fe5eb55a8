//! The host's own traffic, and addresses that are not the sender's.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use netns_tests::bed::{ADMIN, Bed, Family, PATIENT, SILENCE, TCP, UDP, default_deny, policy};
use netns_tests::portcullis::{Daemon, Options};
use testbed::{Outcome, Server, ip_batch, probe, require_root};

#[test]
fn the_host_reaches_workloads_whatever_policy_says_and_workloads_reach_it_by_policy() {
    require_root!();
    let bed = Bed::new();
    let host = Server::new("host")
        .tcp(TCP)
        .tcp(ADMIN)
        .start(bed.lab.host())
        .expect("a server on the host");
    let daemon = Daemon::start(
        &bed.lab,
        Options::new().inventory(bed.inventory()).mode("protect"),
    );
    daemon.replace(&default_deny());
    let addresses = ["10.61.0.1", "fd61::1"].map(|text| text.parse::<IpAddr>().expect("valid"));
    let from_host = |to: IpAddr| {
        let to = SocketAddr::new(to, TCP);
        bed.lab
            .host()
            .run(|| probe::tcp(to, PATIENT))
            .expect("the host")
    };
    let to_host = |port: u16, index: usize| {
        let to = SocketAddr::new(addresses[index], port);
        let timeout = if port == TCP { PATIENT } else { SILENCE };
        let before = host.connections();
        let outcome = bed
            .web
            .run(|| probe::tcp(to, timeout))
            .expect("a namespace");
        (outcome, host.connections() - before)
    };
    for family in Family::BOTH {
        assert_eq!(from_host(family.of(&bed.web)), Outcome::Replied);
        assert_eq!(from_host(family.of(&bed.peer)), Outcome::Replied);
    }
    for index in 0..addresses.len() {
        assert_eq!(to_host(ADMIN, index), (Outcome::TimedOut, 0));
    }
    let refused = daemon.flow(&["--verdict", "dropped", "--from", "shop/web", "--to", "host"]);
    assert_eq!(refused["direction"], "egress", "{refused}");
    assert_eq!(refused["destination"]["port"], ADMIN, "{refused}");

    daemon.apply(&policy(
        "shop",
        "to-host",
        &format!(
            "podSelector: {{matchLabels: {{app: web}}}}\npolicyTypes: [Egress]\negress:\n- to:\n  \
             - ipBlock: {{cidr: 10.61.0.1/32}}\n  - ipBlock: {{cidr: \"fd61::1/128\"}}\n  \
             ports: [{{port: {TCP}}}]"
        ),
    ));
    for index in 0..addresses.len() {
        assert_eq!(to_host(TCP, index), (Outcome::Replied, 1));
        assert_eq!(to_host(ADMIN, index), (Outcome::TimedOut, 0));
    }
    for family in Family::BOTH {
        assert_eq!(from_host(family.of(&bed.web)), Outcome::Replied);
    }
}

#[test]
fn a_workload_cannot_send_from_an_address_that_is_not_its_own() {
    require_root!();
    let bed = Bed::new();
    let everything = policy(
        "shop",
        "open",
        "podSelector: {}\npolicyTypes: [Ingress, Egress]\ningress: [{}]\negress: [{}]",
    );
    let daemon = Daemon::start(
        &bed.lab,
        Options::new()
            .inventory(bed.inventory())
            .policies(everything)
            .mode("protect"),
    );
    bed.both_allowed(&bed.web, &bed.api, TCP);
    // Nobody's address, and a neighbour's.
    let spoofed = ["10.61.0.77", "10.61.0.12", "fd61::77", "fd61::c"];
    let lines: Vec<String> = spoofed
        .iter()
        .map(|address| match address.contains(':') {
            true => format!("addr add {address}/64 dev eth0 nodad"),
            false => format!("addr add {address}/24 dev eth0"),
        })
        .collect();
    ip_batch(&bed.web.netns, &lines).expect("more addresses");
    for address in spoofed {
        let source: IpAddr = address.parse().expect("an address");
        let family = if source.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        let to = SocketAddr::new(family.of(&bed.api), UDP);
        let seen = bed.reached(source, to.ip());
        let dropped = daemon.packets("dropped", "source_spoofed");
        let answered = bed
            .web
            .run(|| {
                let socket = UdpSocket::bind((source, 0))?;
                socket.send_to(b"x", to)?;
                socket.set_read_timeout(Some(SILENCE))?;
                Ok::<_, std::io::Error>(socket.recv(&mut [0; 8]).is_ok())
            })
            .expect("a namespace")
            .expect("a socket");
        assert!(!answered, "{address} got an answer");
        assert_eq!(bed.reached(source, to.ip()), seen, "{address} passed");
        assert!(daemon.packets("dropped", "source_spoofed") > dropped);
        let refused = daemon.flow(&["--drop-reason", "source_spoofed", "--ip", address]);
        assert_eq!(refused["verdict"], "dropped", "{refused}");
    }
    // Its own addresses work as before.
    let lines: Vec<String> = lines
        .iter()
        .map(|line| line.replace("addr add", "addr del").replace(" nodad", ""))
        .collect();
    ip_batch(&bed.web.netns, &lines).expect("fewer addresses");
    bed.both_allowed(&bed.web, &bed.api, TCP);
}
