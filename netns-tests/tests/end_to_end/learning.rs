//! What is learned: every edge in its true direction, never on a reply's port, whether its flows are
//! long or a single packet pair, and also when they began before the daemon.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use netns_tests::bed::{ADMIN, Bed, Family, PATIENT, TCP, UDP, tcp, udp};
use netns_tests::portcullis::{Daemon, Options, SOON};
use serde_json::Value;
use std::io::Write;
use testbed::{Connection, Outcome, Server, Workload, probe, require_root, wait_until};

/// A TCP service in the range ephemeral ports come from.
const HIGH: u16 = 45_000;
/// A source port below every service's.
const LOW: u16 = 1_001;
/// A TCP service whose server speaks first.
const PUSH: u16 = 7_000;
/// A UDP service that goes on sending to its client.
const FEED: u16 = 6_000;

/// From, to, service, as the graph shows them.
type Edge = (String, String, String);

fn edge(from: &str, to: &str, service: &str) -> Edge {
    (from.to_owned(), to.to_owned(), service.to_owned())
}

/// What the test does, and nothing else.
fn truth() -> BTreeSet<Edge> {
    [
        // Begun before the daemon.
        edge("shop/web", "shop/api", "8080/TCP"),
        edge("lab/peer", "shop/web", "7000/TCP"),
        edge("shop/api", "lab/peer", "5353/UDP"),
        edge("lab/peer", "shop/api", "6000/UDP"),
        // Begun after it.
        edge("shop/api", "shop/web", "9000/TCP"),
        edge("shop/web", "lab/peer", "5353/UDP"),
        edge("lab/peer", "shop/api", "45000/TCP"),
    ]
    .into()
}

/// Edges of the graph; one without a known direction has the service `undecided`.
fn learned(daemon: &Daemon) -> BTreeSet<Edge> {
    let graph = daemon.json(&["graph"]);
    let label = |id: &Value| {
        let nodes = graph["nodes"].as_array().expect("nodes");
        let node = nodes.iter().find(|node| node["id"] == *id);
        text(&node.expect("a node of that id")["label"])
    };
    graph["edges"]
        .as_array()
        .expect("edges")
        .iter()
        .map(|found| {
            let service = match found["service"].as_str() {
                Some(kind) => kind.to_owned(),
                None => text(&found["label"]),
            };
            (label(&found["from"]), label(&found["to"]), service)
        })
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// A connection whose server speaks whenever asked to.
struct Feed {
    client: Connection,
    server: TcpStream,
}

impl Feed {
    fn open(family: Family, from: &Workload, to: &Workload) -> Self {
        let address = SocketAddr::new(family.of(to), PUSH);
        let listener = to
            .run(|| TcpListener::bind(address))
            .expect("a namespace")
            .expect("a listener");
        let client = from
            .run(|| Connection::open(address, PATIENT))
            .expect("a namespace")
            .expect("a connection");
        let (server, _) = listener.accept().expect("the connection");
        // The service goes on listening as long as the connection lives: leaked on purpose, for
        // without a listener nothing could tell who opened it.
        std::mem::forget(listener);
        Self { client, server }
    }

    fn push(&mut self) {
        writeln!(self.server, "news").expect("room in the send buffer");
        assert_eq!(self.client.expect("news", PATIENT), Outcome::Replied);
    }
}

fn socket(on: &Workload, local: SocketAddr) -> UdpSocket {
    let socket = on
        .run(|| UdpSocket::bind(local))
        .expect("a namespace")
        .expect("a socket");
    socket.set_read_timeout(Some(PATIENT)).expect("a timeout");
    socket
}

/// Everything that lives while daemons come and go.
struct Old {
    calls: Vec<Connection>,
    feeds: Vec<Feed>,
    queries: Vec<UdpSocket>,
    streams: Vec<(UdpSocket, UdpSocket)>,
}

impl Old {
    fn open(bed: &Bed) -> Self {
        let mut old = Self {
            calls: Vec::new(),
            feeds: Vec::new(),
            queries: Vec::new(),
            streams: Vec::new(),
        };
        for family in Family::BOTH {
            let [web, api, peer] =
                [&bed.web, &bed.api, &bed.peer].map(|workload| family.of(workload));
            old.calls
                .push(netns_tests::bed::connect(family, &bed.web, &bed.api, TCP));
            old.feeds.push(Feed::open(family, &bed.peer, &bed.web));
            let query = socket(&bed.api, SocketAddr::new(api, 0));
            query.connect(SocketAddr::new(peer, UDP)).expect("a peer");
            old.queries.push(query);
            let server = socket(&bed.api, SocketAddr::new(api, FEED));
            let client = socket(&bed.peer, SocketAddr::new(peer, 0));
            client
                .connect(SocketAddr::new(api, FEED))
                .expect("a server");
            client.send(b"subscribe").expect("sent");
            let (_, subscriber) = server.recv_from(&mut [0; 16]).expect("the subscription");
            server.send_to(b"news", subscriber).expect("sent");
            client.recv(&mut [0; 16]).expect("news");
            old.streams.push((server, client));
            let _ = web;
        }
        old.go_on();
        old
    }

    /// A round on everything. The server's side speaks first where it can.
    fn go_on(&mut self) {
        for feed in &mut self.feeds {
            feed.push();
        }
        for (server, client) in &self.streams {
            let subscriber = client.local_addr().expect("bound");
            server.send_to(b"news", subscriber).expect("sent");
            client.recv(&mut [0; 16]).expect("news");
        }
        for call in &mut self.calls {
            assert_eq!(call.exchange("line", PATIENT), Outcome::Replied);
        }
        for query in &self.queries {
            query.send(b"query").expect("sent");
            query.recv(&mut [0; 16]).expect("an answer");
        }
    }
}

/// Flows of one exchange each.
fn short_flows(bed: &Bed) {
    for family in Family::BOTH {
        let outcome = tcp(family, &bed.api, &bed.web, ADMIN, PATIENT);
        assert_eq!(outcome, Outcome::Replied);
        for _ in 0..3 {
            let outcome = udp(family, &bed.web, &bed.peer, UDP, PATIENT);
            assert_eq!(outcome, Outcome::Replied);
        }
        let high = SocketAddr::new(family.of(&bed.api), HIGH);
        let call = bed
            .peer
            .run(|| Connection::open_from(LOW, high, PATIENT))
            .expect("a namespace");
        let mut call = call.expect("a connection from a low port");
        assert_eq!(call.exchange("line", PATIENT), Outcome::Replied);
        // A reset frees the port for the next round at once.
        call.abort();
    }
}

#[test]
fn edges_have_their_true_direction_and_the_rules_made_of_them_give_the_same_verdicts() {
    require_root!();
    let bed = Bed::new();
    let _high = Server::new("high")
        .tcp(HIGH)
        .start(&bed.api.netns)
        .expect("a server");
    let mut old = Old::open(&bed);
    let daemon = Daemon::start(&bed.lab, Options::new().inventory(bed.inventory()));
    for _ in 0..3 {
        old.go_on();
        short_flows(&bed);
    }

    let truth = truth();
    wait_until(SOON, "every edge to be learned", || {
        learned(&daemon).is_superset(&truth)
    })
    .unwrap_or_else(|error| panic!("{error}: {:#?}", learned(&daemon)));
    // Later looks at flows that go on must not add another reading of them.
    old.go_on();
    wait_until(SOON, "totals of the flows under way", || {
        let graph = daemon.json(&["graph"]);
        let mut edges = graph["edges"].as_array().expect("edges").iter();
        // Four rounds over two families, one packet at least.
        edges.all(|edge| {
            let packets = edge["traffic"]["packets"].as_array().expect("two counts");
            packets.iter().filter_map(Value::as_u64).sum::<u64>() >= 8
        })
    })
    .unwrap_or_else(|error| panic!("{error}: {:#}", daemon.json(&["graph"])));
    assert_eq!(learned(&daemon), truth);

    let suggestion = daemon.json(&["policy", "suggest"]);
    assert_eq!(suggestion["left_out"], Value::Array(Vec::new()));
    let exported = daemon.ok(&["policy", "export", "--learned"]).stdout;
    only_services(&exported);

    // What was learned is all that is allowed, and it is allowed.
    let flows = daemon.flows(&["--verdict", "forwarded"]);
    daemon.replace(&exported);
    daemon.mode("protect");
    same_verdicts(&daemon, &flows);
    for _ in 0..2 {
        old.go_on();
        short_flows(&bed);
    }
    assert_eq!(daemon.packets("dropped", ""), 0);
    bed.both_denied(&bed.peer, &bed.api, TCP);
    bed.both_denied(&bed.web, &bed.api, ADMIN);
    bed.both_denied(&bed.api, &bed.web, TCP);

    // The export of what is in force says the same again.
    let again = daemon.ok(&["policy", "export"]).stdout;
    only_services(&again);
    let spec = |daemon: &Daemon| -> Vec<Value> {
        let list = daemon.json(&["policy", "list"]);
        let mut list = list.as_array().expect("policies").clone();
        for policy in &mut list {
            for place in ["source", "line"] {
                policy.as_object_mut().expect("a policy").remove(place);
            }
        }
        list
    };
    let before = spec(&daemon);
    assert!(!before.is_empty());
    daemon.replace(&again);
    assert_eq!(spec(&daemon), before);
    same_verdicts(&daemon, &flows);
    old.go_on();
    short_flows(&bed);
}

/// No port in the rules but those of services; every policy says which directions it isolates.
fn only_services(documents: &str) {
    let services = [TCP, ADMIN, UDP, HIGH, PUSH, FEED];
    let ports: BTreeSet<u16> = documents
        .lines()
        .filter_map(|line| {
            line.trim_start()
                .trim_start_matches("- ")
                .strip_prefix("port: ")
        })
        .map(|port| port.trim().parse().expect("a number"))
        .collect();
    assert_eq!(ports, services.into(), "{documents}");
    assert!(!documents.contains("endPort"), "{documents}");
    let policies = documents.matches("kind: NetworkPolicy").count();
    assert_eq!(documents.matches("policyTypes:").count(), policies);
    assert_eq!(policies, 3, "one a group: {documents}");
}

/// Explains every recorded flow with a known opener under the policies in force.
fn same_verdicts(daemon: &Daemon, flows: &[Value]) {
    let questions: BTreeSet<(String, String, String)> = flows
        .iter()
        .filter(|flow| flow["opener"] != "unknown")
        .filter_map(|flow| {
            let port = flow["l4"]["port"].as_u64()?;
            let protocol = flow["l4"]["protocol"].as_str()?.to_lowercase();
            Some((
                text(&flow["source"]["ip"]),
                text(&flow["destination"]["ip"]),
                format!("{port}/{protocol}"),
            ))
        })
        .collect();
    assert!(questions.len() >= truth().len() * 2, "{questions:#?}");
    for (from, to, port) in questions {
        let answer = daemon.json(&[
            "policy", "explain", "--from", &from, "--to", &to, "--port", &port,
        ]);
        assert_eq!(answer["verdict"], "forwarded", "{answer:#}");
    }
}

#[test]
fn learning_survives_a_restart_and_goes_on() {
    require_root!();
    let bed = Bed::new();
    let mut daemon = Daemon::start(&bed.lab, Options::new().inventory(bed.inventory()));
    bed.both_allowed(&bed.web, &bed.api, TCP);
    let first = edge("shop/web", "shop/api", "8080/TCP");
    let mut expected = BTreeSet::from([first]);
    wait_until(SOON, "the edge", || learned(&daemon) == expected).expect("it was used");
    daemon.stop();
    // Flows begin while nobody looks.
    let mut unseen = netns_tests::bed::connect(Family::V4, &bed.peer, &bed.api, TCP);
    daemon.restart();
    assert!(learned(&daemon).is_superset(&expected));
    assert_eq!(unseen.exchange("still", PATIENT), Outcome::Replied);
    bed.both_allowed(&bed.api, &bed.web, ADMIN);
    expected.insert(edge("lab/peer", "shop/api", "8080/TCP"));
    expected.insert(edge("shop/api", "shop/web", "9000/TCP"));
    wait_until(SOON, "all edges", || learned(&daemon) == expected)
        .unwrap_or_else(|error| panic!("{error}: {:#?}", learned(&daemon)));
}

#[test]
fn a_port_scan_makes_no_rules() {
    require_root!();
    let bed = Bed::new();
    let daemon = Daemon::start(&bed.lab, Options::new().inventory(bed.inventory()));
    bed.both_allowed(&bed.web, &bed.api, TCP);
    let ports: Vec<u16> = (20_000..20_200).collect();
    for family in Family::BOTH {
        let target = family.of(&bed.api);
        let scan = bed
            .peer
            .run(|| probe::port_scan(target, &ports, PATIENT))
            .expect("a namespace");
        assert!(scan.iter().all(|(_, outcome)| *outcome == Outcome::Refused));
    }
    wait_until(SOON, "the scan to be seen", || {
        learned(&daemon).len() >= ports.len() / 2
    })
    .ok();
    let exported = daemon.ok(&["policy", "export", "--learned"]).stdout;
    assert!(exported.contains("port: 8080"), "{exported}");
    assert!(!exported.contains("port: 20"), "{exported}");
    let left_out = daemon.json(&["policy", "suggest"])["left_out"].to_string();
    assert!(left_out.contains("one of the tries"), "{left_out}");
}
