//! Policy changes and daemon starts during live connections.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use netns_tests::bed::{
    Bed, Family, PATIENT, SILENCE, TCP, UDP, allow, connect, default_deny, policy,
};
use netns_tests::portcullis::{Daemon, Options};
use testbed::{Connection, Outcome, Workload, require_root};

/// A port of the suites' own listeners, whose server side speaks first when the test wants it to.
const PUSH: u16 = 7000;

/// Both ends of an established connection.
struct Pair {
    client: Connection,
    server: TcpStream,
}

impl Pair {
    fn open(family: Family, from: &Workload, to: &Workload) -> Self {
        let address = SocketAddr::new(family.of(to), PUSH);
        let listener = to
            .run(|| TcpListener::bind(address))
            .expect("a namespace")
            .expect("a listener");
        let client = from
            .run(|| Connection::open(address, PATIENT))
            .expect("a namespace")
            .unwrap_or_else(|outcome| panic!("no connection to {address}: {outcome}"));
        let (server, _) = listener.accept().expect("the connection");
        Self { client, server }
    }

    /// The server's line, which needs no packet of the client first.
    fn push(&mut self, line: &str, timeout: Duration) -> Outcome {
        writeln!(self.server, "{line}").expect("room in the send buffer");
        self.client.expect(line, timeout)
    }

    /// What the server received within `timeout`.
    fn received(&mut self, timeout: Duration) -> String {
        use std::io::Read;
        self.server
            .set_read_timeout(Some(timeout))
            .expect("a timeout");
        let mut buffer = [0; 64];
        match self.server.read(&mut buffer) {
            Ok(length) => String::from_utf8_lossy(&buffer[..length]).into_owned(),
            Err(_) => String::new(),
        }
    }
}

#[test]
fn revocation_stops_packets_of_both_directions_and_widening_resumes_them() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(
        &bed.lab,
        Options::new().inventory(bed.inventory()).mode("protect"),
    );
    let open = default_deny() + &allow("web", "api", PUSH);
    for family in Family::BOTH {
        daemon.replace(&open);
        let mut forward = Pair::open(family, &bed.web, &bed.api);
        let mut reply = Pair::open(family, &bed.web, &bed.api);
        assert_eq!(forward.push("first", PATIENT), Outcome::Replied);
        assert_eq!(reply.push("first", PATIENT), Outcome::Replied);

        daemon.replace(&default_deny());
        // The next packet is the opener's on one connection, the responder's on the other.
        assert_eq!(forward.client.send("held"), Outcome::Connected);
        assert_eq!(reply.push("held", SILENCE), Outcome::TimedOut);
        assert_eq!(forward.received(SILENCE), "");
        let ip = family.of(&bed.web).to_string();
        let refused = daemon.flow(&[
            "--verdict",
            "dropped",
            "--drop-reason",
            "policy_revoked",
            "--ip",
            &ip,
        ]);
        assert_eq!(refused["source"]["workload"], "web", "{refused}");
        assert_eq!(refused["destination"]["port"], PUSH, "{refused}");

        daemon.replace(&open);
        assert_eq!(forward.received(PATIENT), "held\n", "TCP sends it again");
        assert_eq!(reply.client.expect("held", PATIENT), Outcome::Replied);
    }
    let learned = daemon.flows(&["--from", "shop/api", "--to", "shop/web"]);
    assert!(learned.is_empty(), "a reply became a flow: {learned:#?}");
}

#[test]
fn a_change_that_does_not_concern_a_connection_leaves_it_alone() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(
        &bed.lab,
        Options::new().inventory(bed.inventory()).mode("protect"),
    );
    let open = default_deny() + &allow("web", "api", TCP);
    daemon.replace(&open);
    let mut connections: Vec<Connection> = Family::BOTH
        .iter()
        .map(|&family| connect(family, &bed.web, &bed.api, TCP))
        .collect();
    for round in 0..10 {
        daemon.apply(&allow("api", "web", 7100 + round));
        for connection in &mut connections {
            let line = format!("round {round}");
            assert_eq!(connection.exchange(&line, PATIENT), Outcome::Replied);
        }
    }
    assert_eq!(daemon.packets("dropped", ""), 0);
}

#[test]
fn a_udp_exchange_is_revoked_and_resumed() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(
        &bed.lab,
        Options::new().inventory(bed.inventory()).mode("protect"),
    );
    let rule = |app: &str, kind: &str, peer: &str, other: &str| {
        policy(
            "shop",
            &format!("udp-{app}"),
            &format!(
                "podSelector: {{matchLabels: {{app: {app}}}}}\npolicyTypes: [{kind}]\n{}:\n- {peer}:\n  \
                 - podSelector: {{matchLabels: {{app: {other}}}}}\n  ports:\n  \
                 - {{protocol: UDP, port: {UDP}}}",
                kind.to_lowercase()
            ),
        )
    };
    let open = default_deny()
        + &rule("web", "Egress", "to", "api")
        + &rule("api", "Ingress", "from", "web");
    for family in Family::BOTH {
        daemon.replace(&open);
        let to = SocketAddr::new(family.of(&bed.api), UDP);
        let socket = bed
            .web
            .run(|| {
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                socket.connect(to).map(|()| socket)
            })
            .expect("a namespace")
            .expect("a socket");
        let exchange = |timeout: Duration| {
            socket.set_read_timeout(Some(timeout)).expect("a timeout");
            socket.send(b"x").expect("room in the send buffer");
            socket.recv(&mut [0; 8]).is_ok()
        };
        assert!(exchange(PATIENT));
        let before = bed.reached(family.of(&bed.web), to.ip());
        daemon.replace(&default_deny());
        assert!(!exchange(SILENCE));
        assert_eq!(bed.reached(family.of(&bed.web), to.ip()), before);
        daemon.replace(&open);
        assert!(exchange(PATIENT));
    }
}

#[test]
fn connections_older_than_the_daemon_survive_protect_if_policy_allows_them() {
    require_root!();
    let bed = Bed::new();
    for first_packet_by_client in [true, false] {
        let mut allowed: Vec<Pair> = Family::BOTH
            .iter()
            .map(|&family| Pair::open(family, &bed.web, &bed.api))
            .collect();
        let mut refused: Vec<Pair> = Family::BOTH
            .iter()
            .map(|&family| Pair::open(family, &bed.peer, &bed.api))
            .collect();
        let policies = default_deny() + &allow("web", "api", PUSH);
        let daemon = Daemon::start(
            &bed.lab,
            Options::new()
                .inventory(bed.inventory())
                .policies(policies)
                .mode("protect"),
        );
        for pair in &mut allowed {
            if first_packet_by_client {
                assert_eq!(pair.client.send("old"), Outcome::Connected);
                assert_eq!(pair.received(PATIENT), "old\n");
            } else {
                assert_eq!(pair.push("old", PATIENT), Outcome::Replied);
            }
            assert_eq!(pair.push("and on", PATIENT), Outcome::Replied);
        }
        for pair in &mut refused {
            if first_packet_by_client {
                assert_eq!(pair.client.send("old"), Outcome::Connected);
                assert_eq!(pair.received(SILENCE), "");
            } else {
                assert_eq!(pair.push("old", SILENCE), Outcome::TimedOut);
            }
        }
        assert!(daemon.packets("dropped", "policy_default_deny") > 0);
    }
}

#[test]
fn connections_seen_in_discover_survive_the_change_to_protect() {
    require_root!();
    let bed = Bed::new();
    let mut older = Pair::open(Family::V4, &bed.web, &bed.api);
    let daemon = Daemon::start(&bed.lab, Options::new().inventory(bed.inventory()));
    let mut newer = Pair::open(Family::V6, &bed.web, &bed.api);
    let mut stranger = Pair::open(Family::V4, &bed.peer, &bed.api);
    for pair in [&mut older, &mut newer, &mut stranger] {
        assert_eq!(pair.push("seen", PATIENT), Outcome::Replied);
    }
    daemon.replace(&(default_deny() + &allow("web", "api", PUSH)));
    daemon.mode("protect");
    for pair in [&mut older, &mut newer] {
        assert_eq!(pair.push("still here", PATIENT), Outcome::Replied);
    }
    assert_eq!(stranger.push("still here", SILENCE), Outcome::TimedOut);
}
