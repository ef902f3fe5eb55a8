use flowgraph::aggregate::{EdgeStore, Limits, Snapshot};
use flowgraph::edge::{Edge, EdgeKey, Passage, PeerKey, Service, Suspicion};
use flowgraph::record::{Event, FlowRecord, Opener, Reporter, TcpFlags, Verdict};
use policy::model::Protocol;
use proptest::prelude::*;

use crate::build::{Talk, at, edge_key, group, world};

fn store(records: &[FlowRecord]) -> EdgeStore {
    let mut store = EdgeStore::new(Limits::default());
    for record in records {
        store.apply(record);
    }
    store
}

fn web_to_api() -> EdgeKey {
    edge_key(
        group("shop", "web"),
        group("shop", "api"),
        Protocol::TCP,
        8080,
    )
}

fn only(store: &EdgeStore) -> Edge {
    let mut edges = store.edges();
    assert_eq!(edges.len(), 1, "{edges:#?}");
    edges.remove(0)
}

#[test]
fn two_reporters_and_many_reports_are_one_connection() {
    let talk = Talk::tcp("10.0.0.1", "10.0.0.3", 8080);
    let edge = only(&store(&talk.whole()));
    assert_eq!(edge.key, web_to_api());
    assert_eq!((edge.connections, edge.answered), (1, 1));
    assert_eq!(edge.traffic.packets, [10, 10]);
    assert_eq!(edge.traffic.bytes, [1_000, 10_000]);
    assert_eq!((edge.egress.forwarded, edge.ingress.forwarded), (1, 1));
    assert_eq!(edge.openers.certain, 1);
    assert_eq!((edge.first_seen, edge.last_seen), (at(0), at(20)));
    assert_eq!(
        edge.sources.members.iter().collect::<Vec<_>>(),
        ["shop/web-1"]
    );
    assert_eq!(
        edge.destinations.members.iter().collect::<Vec<_>>(),
        ["shop/api-1"]
    );
    assert_eq!(edge.days.count(), 1);
    assert_eq!(edge.passage(), Passage::Passed);
    assert_eq!(edge.suspicion, None);
}

#[test]
fn totals_are_idempotent_and_late_ones_change_nothing() {
    let records = Talk::tcp("10.0.0.1", "10.0.0.3", 8080).whole();
    let once = store(&records).edges();
    let mut again = records.clone();
    again.extend(records.iter().rev().cloned());
    again.extend(records);
    assert_eq!(store(&again).edges(), once);
}

#[test]
fn distinct_flows_workloads_and_families_add_up_on_one_edge() {
    let mut records = Vec::new();
    for (source, destination, port, start) in [
        ("10.0.0.1", "10.0.0.3", 40_000, 0),
        ("10.0.0.1", "10.0.0.3", 40_001, 0),
        ("10.0.0.2", "10.0.0.3", 40_000, 86_400),
        ("fd00::2", "fd00::3", 40_000, 0),
    ] {
        let talk = Talk::tcp(source, destination, 8080)
            .client_port(port)
            .starting(start);
        records.extend(talk.whole());
    }
    let edge = only(&store(&records));
    assert_eq!((edge.connections, edge.traffic.packets), (4, [40, 40]));
    assert_eq!(edge.sources.count(), 2);
    assert_eq!(edge.source_ips.count(), 3);
    assert_eq!(edge.days.count(), 2);
    assert_eq!(edge.samples.members.len(), 3);
}

#[test]
fn only_the_destination_reports_what_comes_from_outside() {
    let talk = Talk::tcp("198.51.100.9", "10.0.0.1", 443);
    let records: Vec<_> = talk
        .whole()
        .into_iter()
        .filter(|record| record.reporter() == Some(Reporter::Destination))
        .collect();
    let edge = only(&store(&records));
    assert_eq!(edge.key.source, world("198.51.100.9"));
    assert_eq!((edge.connections, edge.traffic.packets), (1, [10, 10]));
    assert_eq!((edge.egress.forwarded, edge.ingress.forwarded), (0, 1));
}

#[test]
fn addresses_outside_are_kept_apart_and_the_host_is_one() {
    let mut records = Vec::new();
    for source in ["198.51.100.9", "198.51.100.10", "2001:db8::9", "10.0.0.254"] {
        records.extend(Talk::tcp(source, "10.0.0.1", 443).whole());
    }
    let sources: Vec<_> = store(&records)
        .edges()
        .into_iter()
        .map(|e| e.key.source)
        .collect();
    assert_eq!(
        sources,
        [
            PeerKey::Host,
            world("198.51.100.9"),
            world("198.51.100.10"),
            world("2001:db8::9")
        ]
    );
}

#[test]
fn a_reused_tuple_is_a_second_connection() {
    let first = Talk::tcp("10.0.0.1", "10.0.0.3", 8080);
    let second = first.clone().starting(600);
    let mut records = first.whole();
    records.extend(second.whole());
    let edge = only(&store(&records));
    assert_eq!((edge.connections, edge.traffic.packets), (2, [20, 20]));
}

#[test]
fn totals_of_a_reader_that_missed_the_beginning_belong_to_the_running_flow() {
    let talk = Talk::tcp("10.0.0.1", "10.0.0.3", 8080);
    let mut closed = talk.record(Reporter::Source, Event::Closed, [10, 10]);
    closed.first_seen = closed.time;
    let records = [
        talk.record(Reporter::Source, Event::Summary, [5, 5]),
        closed.clone(),
        // Nor does the other side count again, though its hook saw the flow seconds later.
        talk.clone()
            .starting(3)
            .record(Reporter::Destination, Event::Summary, [4, 5]),
    ];
    let edge = only(&store(&records));
    assert_eq!((edge.connections, edge.traffic.packets), (1, [10, 10]));
}

#[test]
fn an_opener_found_later_moves_the_flow_to_its_edge() {
    let unknown = Talk::tcp("10.0.0.3", "10.0.0.1", 40_000)
        .client_port(8080)
        .opener(Opener::Unknown);
    let inferred = Talk::tcp("10.0.0.1", "10.0.0.3", 8080).opener(Opener::Inferred);
    let mut store = store(&[unknown.record(Reporter::Source, Event::Summary, [3, 3])]);
    let edge = only(&store);
    assert_eq!(edge.key.service, Service::Undecided);
    assert_eq!(edge.openers.unknown, 1);
    store.take_changes();
    let key = store.apply(&inferred.record(Reporter::Destination, Event::Summary, [4, 4]));
    assert_eq!(key, Some(web_to_api()));
    let edge = only(&store);
    assert_eq!((edge.connections, edge.traffic.packets), (1, [4, 4]));
    assert_eq!((edge.openers.inferred, edge.openers.unknown), (1, 0));
    let changes = store.take_changes();
    assert_eq!(changes.changed.len(), 1);
    assert_eq!(changes.removed.len(), 1);
    assert!(changes.removed[0].contains("undecided"));
    // A later record that knows less does not take it back.
    store.apply(&unknown.record(Reporter::Source, Event::Summary, [5, 5]));
    assert_eq!(only(&store).key, web_to_api());
}

#[test]
fn certainty_beats_inference_and_contradiction_is_unknown() {
    let certain = Talk::tcp("10.0.0.1", "10.0.0.3", 8080);
    let wrong = Talk::tcp("10.0.0.3", "10.0.0.1", 40_000)
        .client_port(8080)
        .opener(Opener::Inferred);
    let summary = |talk: &Talk, reporter| talk.record(reporter, Event::Summary, [3, 3]);
    let records = [
        summary(&wrong, Reporter::Source),
        summary(&certain, Reporter::Source),
    ];
    assert_eq!(only(&store(&records)).key, web_to_api());
    let both = wrong.opener(Opener::Certain);
    let records = [
        summary(&both, Reporter::Source),
        summary(&certain, Reporter::Source),
    ];
    assert_eq!(only(&store(&records)).key.service, Service::Undecided);
}

#[test]
fn an_edge_passed_only_if_both_sides_passed_it() {
    let talk = Talk::tcp("10.0.0.1", "10.0.0.4", 5432);
    let mut store = store(&[
        talk.record(Reporter::Source, Event::New, [1, 0]),
        talk.denied(Reporter::Destination, "policy_default_deny"),
        talk.denied(Reporter::Destination, "policy_default_deny"),
    ]);
    let edge = only(&store);
    assert_eq!(edge.passage(), Passage::Denied);
    assert_eq!((edge.egress.forwarded, edge.ingress.dropped), (1, 2));
    let last = edge.ingress.last.unwrap();
    assert_eq!(last.verdict, Verdict::Dropped);
    assert_eq!(last.drop_reason.as_deref(), Some("policy_default_deny"));
    // The same when it is the source's policy that denies.
    let mut records = talk.whole();
    records.push(
        talk.clone()
            .starting(50)
            .denied(Reporter::Source, "policy_revoked"),
    );
    assert_eq!(only(&self::store(&records)).passage(), Passage::Denied);
    // Allowed later: the next connection passes both.
    for record in talk.starting(100).client_port(41_000).whole() {
        store.apply(&record);
    }
    assert_eq!(only(&store).passage(), Passage::Passed);
}

#[test]
fn a_drop_that_is_not_policys_word_does_not_deny_the_edge() {
    let talk = Talk::tcp("10.0.0.1", "10.0.0.3", 8080);
    let mut records = talk.whole();
    records.push(
        talk.clone()
            .starting(100)
            .denied(Reporter::Source, "conntrack_full"),
    );
    let edge = only(&store(&records));
    assert_eq!((edge.passage(), edge.egress.dropped), (Passage::Passed, 1));
    let denied_only = store(&[talk.denied(Reporter::Source, "source_spoofed")]);
    assert_eq!(only(&denied_only).passage(), Passage::Unjudged);
}

#[test]
fn audit_is_its_own_passage() {
    let mut record =
        Talk::tcp("10.0.0.1", "10.0.0.4", 5432).record(Reporter::Source, Event::New, [1, 0]);
    record.verdict = Verdict::Audit;
    record.drop_reason = Some("policy_default_deny".to_owned());
    let edge = only(&store(&[record]));
    assert_eq!((edge.passage(), edge.egress.audit), (Passage::Audited, 1));
}

#[test]
fn echo_requests_and_replies_are_one_edge_by_type() {
    let icmp = |icmp_type| {
        let mut record =
            Talk::tcp("10.0.0.1", "10.0.0.3", 0).record(Reporter::Source, Event::Summary, [2, 2]);
        record.source.port = None;
        record.destination.port = None;
        let l4 = record.l4.as_mut().unwrap();
        l4.protocol = Protocol::ICMP;
        l4.port = None;
        l4.tcp_flags = None;
        l4.icmp_type = icmp_type;
        record
    };
    for icmp_type in [8, 0] {
        let edge = only(&store(&[icmp(Some(icmp_type))]));
        assert_eq!(edge.key.service, Service::IcmpType(8));
        assert_eq!(edge.key.to_string(), "shop/web -> shop/api ICMP type 8");
        assert_eq!(edge.answered, 1);
    }
    // Totals do not carry the type; the first packet's record did.
    assert_eq!(only(&store(&[icmp(Some(8)), icmp(None)])).connections, 1);
    assert_eq!(only(&store(&[icmp(None)])).key.service, Service::Protocol);
}

#[test]
fn a_refused_connection_is_not_answered() {
    let talk = Talk::tcp("10.0.0.1", "10.0.0.3", 81);
    let mut refused = talk.record(Reporter::Source, Event::Closed, [1, 1]);
    refused.is_reply = Some(true);
    refused.l4.as_mut().unwrap().tcp_flags = Some(TcpFlags(0x14));
    let edge = only(&store(&[
        talk.record(Reporter::Source, Event::New, [1, 0]),
        refused.clone(),
    ]));
    assert_eq!((edge.connections, edge.answered), (1, 0));
    assert_eq!(edge.suspicion, Some(Suspicion::OneOff));
    // Retransmitted SYNs do not make it one.
    refused.packets = 3;
    assert!(only(&store(&[refused])).is_unanswered());
}

#[test]
fn a_scanner_is_suspected_and_its_neighbours_are_not() {
    let mut records = Vec::new();
    for port in 1..=30 {
        let talk = Talk::tcp("10.0.0.2", "10.0.0.4", port);
        records.push(talk.record(Reporter::Source, Event::New, [1, 0]));
    }
    // The scan finds one open port, where nothing is said.
    let mut open =
        Talk::tcp("10.0.0.2", "10.0.0.4", 5432).record(Reporter::Source, Event::Closed, [3, 2]);
    (open.bytes, open.reply_bytes) = (5 * 52, 2 * 52);
    records.push(open);
    // Meanwhile the group does its work, and another looks for something once.
    records.extend(Talk::tcp("10.0.0.1", "10.0.0.3", 8080).whole());
    records.push(Talk::tcp("10.0.0.3", "10.0.0.4", 9).record(Reporter::Source, Event::New, [1, 0]));
    let edges = store(&records).edges();
    let suspicion = |key: &EdgeKey| edges.iter().find(|e| e.key == *key).unwrap().suspicion;
    let to_db = |source, port| {
        edge_key(
            group("shop", source),
            group("shop", "db"),
            Protocol::TCP,
            port,
        )
    };
    assert_eq!(edges.len(), 33);
    for port in 1..=30 {
        assert_eq!(
            suspicion(&to_db("web", port)),
            Some(Suspicion::SuspectedScan)
        );
    }
    assert_eq!(
        suspicion(&to_db("web", 5432)),
        Some(Suspicion::SuspectedScan)
    );
    assert_eq!(suspicion(&web_to_api()), None);
    assert_eq!(suspicion(&to_db("api", 9)), Some(Suspicion::OneOff));
}

#[test]
fn a_scan_cannot_fill_the_store_and_what_it_missed_is_counted() {
    let limits = Limits {
        unanswered_per_source: 50,
        ..Limits::default()
    };
    let mut store = EdgeStore::new(limits);
    for port in 1..=1_000 {
        let record =
            Talk::tcp("10.0.0.2", "10.0.0.4", port).record(Reporter::Source, Event::New, [1, 0]);
        for _ in 0..2 {
            store.apply(&record);
        }
        let denied =
            Talk::tcp("10.0.0.2", "10.0.0.3", port).denied(Reporter::Source, "policy_deny");
        store.apply(&denied);
    }
    assert_eq!(store.stats().edges, 50);
    let folded: Vec<_> = store.folded().cloned().collect();
    assert_eq!(folded.len(), 1);
    assert_eq!(folded[0].source, Some(group("shop", "web")));
    assert_eq!(folded[0].attempts, 1_950);
    assert!(
        store
            .edges()
            .iter()
            .all(|e| e.suspicion == Some(Suspicion::SuspectedScan))
    );
    // What answers gets its edge all the same, even a flow that was folded first.
    let record =
        Talk::tcp("10.0.0.2", "10.0.0.4", 999).record(Reporter::Source, Event::Summary, [9, 9]);
    assert!(store.apply(&record).is_some());
    assert_eq!(store.stats().edges, 51);
    assert_eq!(store.folded().next().unwrap().attempts, 1_950);
}

#[test]
fn answered_edges_are_never_too_many() {
    let mut store = EdgeStore::new(Limits {
        unanswered_per_source: 10,
        ..Limits::default()
    });
    for port in 1..=100 {
        for record in Talk::tcp("10.0.0.1", "10.0.0.3", port).whole() {
            assert!(store.apply(&record).is_some());
        }
    }
    assert_eq!((store.stats().edges, store.folded().count()), (100, 0));
    // And what was answered once stays so when the store is read back.
    let mut store = EdgeStore::restore(
        Limits {
            unanswered_per_source: 10,
            ..Limits::default()
        },
        store.snapshot(),
    );
    let probe = Talk::tcp("10.0.0.1", "10.0.0.3", 200).record(Reporter::Source, Event::New, [1, 0]);
    assert!(store.apply(&probe).is_some());
}

#[test]
fn a_restart_loses_and_doubles_nothing() {
    let talk = Talk::tcp("10.0.0.1", "10.0.0.3", 8080);
    let records = talk.whole();
    let uninterrupted = store(&records);
    for cut in 0..records.len() {
        let before = store(&records[..cut]);
        let text = serde_json::to_string(&before.snapshot()).unwrap();
        let snapshot: Snapshot = serde_json::from_str(&text).unwrap();
        let mut after = EdgeStore::restore(Limits::default(), snapshot);
        // Events of before the restart may be read again.
        for record in records.iter().skip(cut.saturating_sub(2)) {
            after.apply(record);
        }
        assert_eq!(after.snapshot(), uninterrupted.snapshot(), "cut at {cut}");
    }
}

#[test]
fn loss_is_attributed_to_the_edges_watched_meanwhile() {
    let mut first =
        Talk::tcp("10.0.0.1", "10.0.0.3", 8080).record(Reporter::Source, Event::Summary, [3, 3]);
    first.observation.lost_events = 7;
    let later = Talk::tcp("10.0.0.1", "10.0.0.4", 5432).starting(7_200);
    let mut store = store(&[
        first,
        later.record(Reporter::Source, Event::Summary, [3, 3]),
    ]);
    let lost = |store: &EdgeStore| {
        store
            .edges()
            .iter()
            .map(|e| e.lost_events)
            .collect::<Vec<_>>()
    };
    assert_eq!(lost(&store), [7, 0]);
    store.note_loss(at(7_205), 5);
    assert_eq!(lost(&store), [7, 5]);
    assert_eq!(store.stats().lost_events, 12);
    assert_eq!(store.lost_events(at(0), at(7_205)), 12);
    assert_eq!(store.lost_events(at(9), at(0)), 0);
}

#[test]
fn flows_are_forgotten_when_they_cannot_report_any_more() {
    let closed = Talk::tcp("10.0.0.1", "10.0.0.3", 8080);
    let open = Talk::tcp("10.0.0.1", "10.0.0.3", 8080).client_port(40_001);
    let mut records = closed.whole();
    records.push(open.record(Reporter::Source, Event::Summary, [5, 5]));
    let mut store = store(&records);
    let edges = store.edges();
    assert_eq!(store.stats().flows, 2);
    store.expire(at(60));
    assert_eq!(store.stats().flows, 2);
    store.expire(at(300));
    assert_eq!(store.stats().flows, 1);
    store.expire(at(30_000));
    assert_eq!(store.stats().flows, 0);
    assert_eq!(store.edges(), edges);
}

#[test]
fn too_many_flows_forget_the_most_silent_and_say_so() {
    let limits = Limits {
        flows: 80,
        ..Limits::default()
    };
    let mut store = EdgeStore::new(limits);
    for flow in 0..100_u16 {
        let talk = Talk::tcp("10.0.0.1", "10.0.0.3", 8080)
            .client_port(40_000 + flow)
            .starting(i64::from(flow) * 10);
        store.apply(&talk.record(Reporter::Source, Event::Summary, [5, 5]));
        assert!(store.stats().flows <= 80);
    }
    assert_eq!(only(&store).connections, 100);
    let stats = store.stats();
    assert_eq!(stats.flows as u64 + stats.evicted_flows, 100);
}

#[test]
fn records_without_addresses_are_counted_and_make_no_edge() {
    let mut record =
        Talk::tcp("10.0.0.1", "10.0.0.3", 8080).denied(Reporter::Source, "malformed_header");
    record.l4 = None;
    let mut store = store(&[]);
    assert_eq!(store.apply(&record), None);
    assert_eq!((store.stats().unattributed, store.stats().edges), (1, 0));
}

#[test]
fn a_removed_edge_is_gone_until_it_is_seen_again() {
    let talk = Talk::tcp("10.0.0.1", "10.0.0.3", 8080);
    let mut store = store(&[talk.record(Reporter::Source, Event::Summary, [3, 3])]);
    store.take_changes();
    assert!(store.remove(&web_to_api()).is_some());
    assert!(store.remove(&web_to_api()).is_none());
    assert_eq!(store.take_changes().removed, [web_to_api().id()]);
    store.apply(&talk.record(Reporter::Source, Event::Summary, [5, 5]));
    let edge = only(&store);
    assert_eq!((edge.connections, edge.traffic.packets), (1, [5, 5]));
}

/// Flows between a few peers; each tuple is used once.
fn talks() -> impl Strategy<Value = Vec<Talk>> {
    let ips = [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
        "10.0.0.4",
        "198.51.100.7",
        "fd00::1",
        "fd00::3",
    ];
    let talk = (
        0..ips.len(),
        0..ips.len(),
        1_u16..4,
        any::<bool>(),
        0_i64..100_000,
    );
    proptest::collection::vec(talk, 1..12).prop_map(move |rows| {
        rows.into_iter()
            .enumerate()
            .filter(|(_, (a, b, ..))| {
                ips[*a] != ips[*b] && ips[*a].contains(':') == ips[*b].contains(':')
            })
            .map(|(n, (a, b, port, udp, start))| {
                let talk = if udp { Talk::udp } else { Talk::tcp };
                talk(ips[a], ips[b], port)
                    .client_port(40_000 + n as u16)
                    .starting(start)
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn the_order_of_records_and_their_repetition_do_not_matter(
        talks in talks(),
        seed in any::<u64>(),
        opener_known_late in any::<bool>(),
    ) {
        let mut records: Vec<FlowRecord> = talks.iter().flat_map(Talk::whole).collect();
        for (n, talk) in talks.iter().enumerate() {
            records.push(talk.clone().starting(talk.start + 50).denied(Reporter::Source, "policy_deny"));
            if opener_known_late && n % 2 == 0 {
                records.push(talk.clone().opener(Opener::Inferred).record(Reporter::Source, Event::Summary, [2, 2]));
            }
        }
        let in_order = store(&records).edges();
        let total: u64 = in_order.iter().map(|edge| edge.connections).sum();
        prop_assert_eq!(total, talks.len() as u64);
        // Totals twice, in an order of the seed's choosing. Denials count each time, so once.
        let (denials, totals): (Vec<_>, Vec<_>) = records.into_iter().partition(|r| r.event == Event::Denied);
        let mut shuffled: Vec<_> = totals.iter().chain(&totals).cloned().chain(denials).collect();
        let mut state = seed | 1;
        for i in (1..shuffled.len()).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            shuffled.swap(i, (state % (i as u64 + 1)) as usize);
        }
        prop_assert_eq!(store(&shuffled).edges(), in_order);
    }
}
