//! Random traffic with known truth through the whole crate: sockets and kernel evidence ->
//! `decide` -> records -> `EdgeStore` -> `suggest` -> `policy::evaluate`.
//!
//! The mix holds what learners get wrong: connections that began before anybody watched, whose first
//! packet comes from either end; servers that closed their listener; unconnected UDP clients; a UDP
//! server that speaks again after conntrack forgot the flow; TFTP, which answers from a new port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use flowgraph::aggregate::{EdgeStore, Limits};
use flowgraph::direction::{Evidence, ListenerTable, Side, Sockets, decide};
use flowgraph::edge::PeerKey;
use flowgraph::record::{
    Direction, Event, FlowRecord, L4, Observation, Opener, Peer, Reporter, Verdict,
};
use flowgraph::suggest::{Options, suggest};
use policy::evaluate::{Evaluator, Flow};
use policy::model::{Estate, Protocol, Unselected};
use proptest::prelude::*;

use crate::build::{at, peer, workload};
use crate::suggest::{passes, policies, protected};

const GROUPS: usize = 5;
const OUTSIDE: [&str; 2] = ["198.51.100.7", "203.0.113.9"];

/// Five groups of two workloads in two namespaces; one more that no traffic touches.
fn estate() -> Estate {
    let mut estate = Estate::default();
    for group in 0..=GROUPS {
        let namespace = if group % 2 == 0 { "even" } else { "odd" };
        for replica in 0..2 {
            estate.workloads.push(workload(
                &format!("{namespace}/g{group}-{replica}"),
                &format!("{namespace}/g{group}"),
                &format!("app=g{group} pod=g{group}-{replica}"),
                &[&address(group, replica)],
            ));
        }
    }
    estate
}

fn address(group: usize, replica: usize) -> String {
    format!("10.0.{group}.{}", replica + 1)
}

/// What a group serves; the last TCP port lies in the ephemeral range.
fn services(group: usize) -> [(Protocol, u16); 4] {
    let n = group as u16;
    [
        (Protocol::TCP, 8_000 + n),
        (Protocol::TCP, 80),
        (Protocol::TCP, 45_000 + n),
        (Protocol::UDP, 5_000 + n),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Seen from its first packet.
    Fresh,
    /// Began before the watch; the first packet seen comes from the server or from the client.
    Old { server_first: bool },
    /// As `Old`, and the server listens no more.
    Orphaned,
    /// UDP, seen afresh after a silence, with the server speaking first.
    LateServer,
    /// The server answers from a new port; the kernel sees a new flow from it.
    Tftp,
}

#[derive(Clone, Debug)]
struct Conversation {
    kind: Kind,
    /// An end is a (group, replica), or an address outside.
    client: Result<(usize, usize), usize>,
    server: Result<(usize, usize), usize>,
    service: usize,
    /// A UDP client that never connects its socket.
    unconnected: bool,
    /// The event of the first packet was lost.
    lost_new: bool,
    /// One packet pair, in a connection that is over at once.
    short: bool,
}

impl Conversation {
    fn protocol_and_port(&self) -> (Protocol, u16) {
        match self.server {
            Ok((group, _)) => services(group)[self.service],
            Err(_) => [(Protocol::TCP, 443), (Protocol::UDP, 123)][self.service % 2],
        }
    }
}

fn ip(end: Result<(usize, usize), usize>) -> String {
    match end {
        Ok((group, replica)) => address(group, replica),
        Err(outside) => OUTSIDE[outside].to_owned(),
    }
}

fn conversations() -> impl Strategy<Value = Vec<Conversation>> {
    let end = || {
        prop_oneof![
            6 => (0..GROUPS, 0..2_usize).prop_map(Ok),
            1 => (0..OUTSIDE.len()).prop_map(Err),
        ]
    };
    let kind = prop_oneof![
        4 => Just(Kind::Fresh),
        2 => any::<bool>().prop_map(|server_first| Kind::Old { server_first }),
        1 => Just(Kind::Orphaned),
        2 => Just(Kind::LateServer),
        1 => Just(Kind::Tftp),
    ];
    let flags = (any::<bool>(), proptest::bool::weighted(0.2), any::<bool>());
    let conversation = (kind, end(), end(), 0..4_usize, flags).prop_map(
        |(kind, client, server, service, (unconnected, lost_new, short))| Conversation {
            kind,
            client,
            server,
            service,
            unconnected,
            lost_new,
            short,
        },
    );
    proptest::collection::vec(conversation, 1..40).prop_map(|all| {
        all.into_iter()
            // One end must be a workload, and traffic with oneself is not policy's business.
            .filter(|c| (c.client.is_ok() || c.server.is_ok()) && ip(c.client) != ip(c.server))
            .filter(|c| {
                let udp = c.protocol_and_port().0 == Protocol::UDP;
                udp || !matches!(c.kind, Kind::LateServer | Kind::Tftp)
            })
            .collect()
    })
}

type Truth = BTreeSet<(PeerKey, PeerKey, u8, u16)>;

#[derive(Default)]
struct Simulation {
    records: Vec<FlowRecord>,
    /// Everything that happened, in its opener's orientation.
    truth: Truth,
    /// What a good learner must find.
    must_learn: Truth,
}

fn key(estate: &Estate, ip: &str) -> PeerKey {
    PeerKey::of(&peer(estate, ip, 0)).unwrap()
}

fn simulate(estate: &Estate, conversations: &[Conversation]) -> Simulation {
    // Listeners first: what is orphaned anywhere is closed everywhere.
    let orphaned: BTreeSet<_> = conversations
        .iter()
        .filter(|c| c.kind == Kind::Orphaned)
        .map(|c| (ip(c.server), c.protocol_and_port()))
        .collect();
    let mut sockets: BTreeMap<String, Sockets> = BTreeMap::new();
    for group in 0..=GROUPS {
        for replica in 0..2 {
            let ip = address(group, replica);
            let own = sockets.entry(ip.clone()).or_default();
            for (protocol, port) in services(group) {
                if !orphaned.contains(&(ip.clone(), (protocol, port))) {
                    own.insert(protocol, SocketAddr::new([0, 0, 0, 0].into(), port));
                }
            }
        }
    }
    let mut ports = 33_000_u16..;
    let mut tuples = Vec::new();
    for conversation in conversations {
        let client_port = ports.next().unwrap();
        if let (Ok(_), Protocol::UDP, true) = (
            conversation.client,
            conversation.protocol_and_port().0,
            conversation.unconnected || conversation.kind == Kind::Tftp,
        ) {
            let own = sockets.entry(ip(conversation.client)).or_default();
            own.insert(
                Protocol::UDP,
                SocketAddr::new([0, 0, 0, 0].into(), client_port),
            );
        }
        tuples.push((client_port, ports.next().unwrap()));
    }
    let mut table = ListenerTable::default();
    for workload in &estate.workloads {
        let own = sockets[&workload.addresses[0].to_string()].clone();
        table.set(format!("{}/{}", workload.namespace, workload.name), own);
    }

    let mut simulation = Simulation::default();
    for (n, (conversation, (client_port, new_port))) in conversations.iter().zip(tuples).enumerate()
    {
        let (protocol, service_port) = conversation.protocol_and_port();
        let (client, server) = (ip(conversation.client), ip(conversation.server));
        let truth = (
            key(estate, &client),
            key(estate, &server),
            protocol.0,
            service_port,
        );
        let is_orphaned = orphaned.contains(&(server.clone(), (protocol, service_port)));
        if conversation.kind == Kind::Fresh && (protocol == Protocol::TCP || !is_orphaned) {
            // With a single packet pair a TCP connection is a refused one.
            if !(conversation.short && protocol == Protocol::TCP) {
                simulation.must_learn.insert(truth.clone());
            }
        }
        simulation.truth.insert(truth);
        let server_port = if conversation.kind == Kind::Tftp {
            new_port
        } else {
            service_port
        };
        let ends = [
            (client.as_str(), client_port),
            (server.as_str(), server_port),
        ];
        let first_end = match conversation.kind {
            Kind::Fresh | Kind::Orphaned => 0,
            Kind::Old { server_first } => usize::from(server_first),
            Kind::LateServer | Kind::Tftp => 1,
        };
        let certain = matches!(
            conversation.kind,
            Kind::Fresh | Kind::LateServer | Kind::Tftp
        );
        for observer in 0..2 {
            observe(
                &mut simulation.records,
                estate,
                &table,
                &Hook {
                    protocol,
                    ends,
                    observer,
                    first_end,
                    certain,
                    lost_new: conversation.lost_new,
                    totals: if conversation.short { [1, 1] } else { [20, 30] },
                    start: n as i64 * 7,
                },
            );
        }
    }
    simulation
}

/// What the hook of one workload has to go on.
struct Hook<'a> {
    protocol: Protocol,
    /// Client and server.
    ends: [(&'a str, u16); 2],
    observer: usize,
    first_end: usize,
    certain: bool,
    lost_new: bool,
    totals: [u64; 2],
    start: i64,
}

/// The records one end's workload causes, made as the daemon makes them: it does not know who is
/// the client.
fn observe(records: &mut Vec<FlowRecord>, estate: &Estate, table: &ListenerTable, o: &Hook<'_>) {
    let peers: [Peer; 2] = o.ends.map(|(ip, port)| peer(estate, ip, port));
    let (local, remote) = (&peers[o.observer], &peers[1 - o.observer]);
    if local.workload.is_none() {
        return;
    }
    let sockets_of = |peer: &Peer| {
        let name = format!("{}/{}", peer.namespace.as_ref()?, peer.workload.as_ref()?);
        table.get(&name)
    };
    let socket = |peer: &Peer| SocketAddr::new(peer.ip.unwrap(), peer.port.unwrap());
    let first_sender = if o.first_end == o.observer {
        Side::Local
    } else {
        Side::Remote
    };
    let decision = decide(&Evidence {
        protocol: o.protocol,
        local: socket(local),
        remote: socket(remote),
        first_sender,
        first_is_opener: o.certain,
        icmp: None,
        local_sockets: sockets_of(local),
        remote_sockets: sockets_of(remote),
    });
    let source = decision.opener().unwrap_or(first_sender);
    let source_end = if source == Side::Local {
        o.observer
    } else {
        1 - o.observer
    };
    let known = decision.certainty() != Opener::Unknown;
    let mut packets = [[0; 2], o.totals];
    packets[0][o.first_end] = 1;
    for (event, packets) in [(Event::New, packets[0]), (Event::Closed, packets[1])] {
        if event == Event::New && o.lost_new {
            continue;
        }
        let last = if event == Event::New {
            o.start
        } else {
            o.start + 5
        };
        records.push(FlowRecord {
            time: at(last),
            event,
            verdict: Verdict::Forwarded,
            drop_reason: None,
            direction: match (known, source) {
                (false, _) => Direction::Unknown,
                (true, Side::Local) => Direction::Egress,
                (true, Side::Remote) => Direction::Ingress,
            },
            opener: decision.certainty(),
            is_reply: known.then_some(false),
            source: peers[source_end].clone(),
            destination: peers[1 - source_end].clone(),
            l4: Some(L4 {
                protocol: o.protocol,
                port: known.then_some(peers[1 - source_end].port.unwrap()),
                tcp_flags: None,
                icmp_type: None,
                icmp_code: None,
            }),
            l7: None,
            rule: None,
            staged_verdict: None,
            generation: None,
            packets: packets[0] + packets[1],
            bytes: 1_000 * (packets[0] + packets[1]),
            reply_packets: packets[1 - source_end],
            reply_bytes: 1_000 * packets[1 - source_end],
            first_seen: at(o.start),
            last_seen: at(last),
            observation: Observation {
                lost_events: 0,
                reporter: (!known).then_some(if source == Side::Local {
                    Reporter::Source
                } else {
                    Reporter::Destination
                }),
            },
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Shows that no learned rule names a reply's port or turns an edge round, that everything seen
    /// from its beginning is learned, and that the policies allow what was learned and nothing else.
    #[test]
    fn rules_name_only_what_servers_serve_and_allow_only_what_was_learned(
        conversations in conversations(),
        reversed in any::<bool>(),
    ) {
        let estate = estate();
        let mut simulation = simulate(&estate, &conversations);
        if reversed {
            simulation.records.reverse();
        }
        let mut store = EdgeStore::new(Limits::default());
        for record in &simulation.records {
            store.apply(record);
        }
        let edges = store.edges();
        for edge in &edges {
            if let Some(port) = edge.key.service.port() {
                let key = (edge.key.source.clone(), edge.key.destination.clone(), edge.key.protocol.0, port);
                prop_assert!(simulation.truth.contains(&key), "{} never happened", edge.key);
            }
        }
        let total: u64 = edges.iter().map(|edge| edge.connections).sum();
        prop_assert_eq!(total, conversations.len() as u64);

        let suggestion = suggest(&edges, &estate, &Options::default());
        let mut learned = Truth::new();
        for policy in &suggestion.policies {
            for evidence in policy.evidence.iter().flat_map(|rule| &rule.ports) {
                let (source, destination) = match evidence.direction {
                    policy::netpol::PolicyType::Egress => (policy.group.clone(), evidence.peer.clone()),
                    policy::netpol::PolicyType::Ingress => (evidence.peer.clone(), policy.group.clone()),
                };
                learned.insert((source, destination, evidence.protocol.0, evidence.port));
            }
        }
        prop_assert!(learned.is_subset(&simulation.truth));
        prop_assert!(simulation.must_learn.is_subset(&learned), "missing: {:?}", simulation.must_learn.difference(&learned));
        let edges_with_service = edges.iter().filter(|edge| edge.key.service.port().is_some()).count();
        prop_assert_eq!(learned.len() + suggestion.skipped.len(), edges_with_service);

        let policies = policies(&suggestion);
        let modes = protected();
        let evaluator = Evaluator::new(&estate, &policies, &modes, Unselected::Deny);
        let ips: Vec<IpAddr> = (0..=GROUPS)
            .map(|group| address(group, 1))
            .chain([address(0, 0), OUTSIDE[0].to_owned(), OUTSIDE[1].to_owned(), "192.0.2.1".to_owned()])
            .map(|ip| ip.parse().unwrap())
            .collect();
        // Every service port, and the client ports that were used.
        let mut ports: BTreeSet<u16> = (33_000..33_006).collect();
        ports.extend((0..GROUPS).flat_map(services).map(|(_, port)| port));
        ports.extend([443, 123]);
        for source in &ips {
            for destination in &ips {
                let (from, to) = (key(&estate, &source.to_string()), key(&estate, &destination.to_string()));
                if source == destination || !(from.is_workload() || to.is_workload()) {
                    continue;
                }
                for protocol in [Protocol::TCP, Protocol::UDP] {
                    for &port in &ports {
                        let flow = Flow { source: *source, destination: *destination, protocol, destination_port: port };
                        let expected = learned.contains(&(from.clone(), to.clone(), protocol.0, port));
                        prop_assert_eq!(passes(&evaluator, &flow), expected, "{:?}", flow);
                    }
                }
            }
        }
    }
}
