use std::sync::Arc;

use dataplane_common::conntrack::CtEntry;
use dataplane_common::identity::{HOST, WORLD};
use dataplane_common::policy::rule_id;
use dataplane_common::v4_mapped;
use flowgraph::direction::Sockets;
use policy::model::{Mode, Modes, Unselected};

use super::*;
use crate::controller::test_state;

const WEB: u32 = 1003;
const API_ADDRESS: [u8; 4] = [10, 0, 0, 2];
const WEB_ADDRESS: [u8; 4] = [10, 0, 0, 3];

fn state() -> Arc<ControlState> {
    test_state(
        &[("api", 2), ("web", 3)],
        Modes {
            default: Mode::Protect,
            groups: [].into(),
        },
        Unselected::Deny,
    )
}

/// `web` opens a connection to `api`:8080; the packet is the SYN.
fn syn() -> FlowEvent {
    FlowEvent {
        time_ns: 1_000,
        packets: [1, 0],
        bytes: [60, 0],
        state: EndpointState::new(7, 1).0,
        endpoint: WEB,
        ifindex: 3,
        identity: 300,
        peer: 301,
        rule_id: rule_id::DEFAULT_DENY,
        local: v4_mapped(WEB_ADDRESS),
        remote: v4_mapped(API_ADDRESS),
        local_port_be: 40_000_u16.to_be(),
        remote_port_be: 8080_u16.to_be(),
        kind: EventKind::New as u8,
        verdict: dataplane_common::stats::Verdict::Forwarded as u8,
        reason: 0,
        direction: PacketDirection::Egress as u8,
        protocol: 6,
        tcp_flags: 0x02,
        ct_flags: flags::OPENER_LOCAL,
        family: 4,
        _pad: [0; 8],
    }
}

fn record_with(event: &FlowEvent, listeners: &ListenerTable) -> FlowRecord {
    let state = state();
    let enricher = Enricher {
        state: &state,
        listeners,
        clock: Clock::with_offset(Timestamp::from_second(1_700_000_000).unwrap(), 0),
    };
    enricher.event(event, None).unwrap()
}

fn record(event: &FlowEvent) -> FlowRecord {
    record_with(event, &ListenerTable::default())
}

#[test]
fn a_syn_names_both_ends_the_port_and_the_direction() {
    let record = record(&syn());
    assert_eq!(record.direction, Direction::Egress);
    assert_eq!(record.opener, Opener::Certain);
    assert_eq!(record.is_reply, Some(false));
    assert_eq!(record.source.workload.as_deref(), Some("web"));
    assert_eq!(record.source.group.as_deref(), Some("shop/web"));
    assert_eq!(record.source.port, Some(40_000));
    assert_eq!(record.destination.workload.as_deref(), Some("api"));
    let l4 = record.l4.unwrap();
    assert_eq!((l4.protocol, l4.port), (Protocol::TCP, Some(8080)));
    assert_eq!(record.generation, Some(7));
    assert_eq!((record.packets, record.reply_packets), (1, 0));
    assert_eq!(record.drop_reason, None);
}

#[test]
fn a_reply_keeps_the_openers_orientation() {
    let mut event = syn();
    event.kind = EventKind::Closed as u8;
    event.direction = PacketDirection::Ingress as u8;
    event.packets = [5, 4];
    event.bytes = [500, 4_000];
    let record = record(&event);
    assert_eq!(record.is_reply, Some(true));
    assert_eq!(record.source.workload.as_deref(), Some("web"));
    assert_eq!(record.l4.as_ref().unwrap().port, Some(8080));
    assert_eq!((record.packets, record.reply_packets), (9, 4));
    assert_eq!((record.bytes, record.reply_bytes), (4_500, 4_000));
}

#[test]
fn the_destinations_view_of_the_same_flow_has_the_same_orientation() {
    let mut event = syn();
    event.endpoint = 1002;
    event.local = v4_mapped(API_ADDRESS);
    event.remote = v4_mapped(WEB_ADDRESS);
    event.local_port_be = 8080_u16.to_be();
    event.remote_port_be = 40_000_u16.to_be();
    event.direction = PacketDirection::Ingress as u8;
    event.ct_flags = 0;
    let record = record(&event);
    assert_eq!(record.direction, Direction::Ingress);
    assert_eq!(record.source.workload.as_deref(), Some("web"));
    assert_eq!(record.l4.as_ref().unwrap().port, Some(8080));
    assert_eq!(record.is_reply, Some(false));
}

#[test]
fn an_unsure_opener_is_unknown_and_names_no_port() {
    let mut event = syn();
    event.ct_flags |= flags::OPENER_UNSURE;
    let record = record(&event);
    assert_eq!(record.direction, Direction::Unknown);
    assert_eq!(record.opener, Opener::Unknown);
    assert_eq!(record.is_reply, None);
    assert_eq!(record.l4.as_ref().unwrap().port, None);
    assert_eq!(record.observation.reporter, Some(Reporter::Source));
}

#[test]
fn a_listener_turns_an_unsure_flow_and_its_counters_round() {
    // `web` serves on 40000 and `api` does not serve on 8080: `api` opened the flow.
    let mut listeners = ListenerTable::default();
    let mut web = Sockets::default();
    web.insert(Protocol::TCP, "0.0.0.0:40000".parse().unwrap());
    listeners.set("shop/web", web);
    listeners.set("shop/api", Sockets::default());
    let mut event = syn();
    event.ct_flags |= flags::OPENER_UNSURE;
    event.kind = EventKind::Closed as u8;
    event.packets = [5, 4];
    let record = record_with(&event, &listeners);
    assert_eq!(record.opener, Opener::Inferred);
    assert_eq!(record.direction, Direction::Ingress);
    assert_eq!(record.source.workload.as_deref(), Some("api"));
    assert_eq!(record.l4.as_ref().unwrap().port, Some(40_000));
    assert_eq!(record.reply_packets, 5);
    assert_eq!(record.is_reply, Some(true));
}

#[test]
fn a_drop_has_reason_and_rule() {
    let mut event = syn();
    event.kind = EventKind::Denied as u8;
    event.verdict = dataplane_common::stats::Verdict::Dropped as u8;
    event.reason = DropReason::PolicyDefaultDeny as u8;
    let denied = record(&event);
    assert_eq!(denied.drop_reason.as_deref(), Some("policy_default_deny"));
    assert_eq!(denied.rule.unwrap().policy, "default");

    event.reason = 200;
    event.verdict = 77;
    let unknown = record(&event);
    assert_eq!(unknown.verdict, Verdict::Dropped, "never overlooked");
    assert_eq!(unknown.drop_reason.as_deref(), Some("200"));
}

#[test]
fn host_and_world_are_no_workloads_whatever_their_address() {
    let mut event = syn();
    event.peer = HOST;
    assert!(record(&event).destination.is_host());
    event.peer = WORLD;
    let world = record(&event).destination;
    assert!(world.is_world() && world.workload.is_none());
}

#[test]
fn an_unparsable_packet_claims_nothing() {
    let mut event = syn();
    event.family = 0;
    event.protocol = 0;
    event.kind = EventKind::Denied as u8;
    event.verdict = dataplane_common::stats::Verdict::Dropped as u8;
    event.reason = DropReason::UnknownEtherType as u8;
    event.peer = 0;
    event.ct_flags = 0;
    let record = record(&event);
    assert_eq!(record.l4, None);
    assert_eq!(record.opener, Opener::Unknown);
    assert_eq!(record.direction, Direction::Unknown);
    assert_eq!(record.destination, Peer::default());
    assert_eq!(record.source.workload.as_deref(), Some("web"));
}

#[test]
fn an_icmp_echo_has_a_type_and_no_port() {
    let mut event = syn();
    event.protocol = 1;
    event.local_port_be = 77_u16.to_be();
    event.remote_port_be = 0x0800_u16.to_be();
    let record = record(&event);
    let l4 = record.l4.unwrap();
    assert_eq!(
        (l4.port, l4.icmp_type, l4.icmp_code),
        (None, Some(8), Some(0))
    );
    assert_eq!((record.source.port, record.destination.port), (None, None));
    assert_eq!(l4.tcp_flags, None);
}

#[test]
fn conntrack_totals_have_the_flows_own_times() {
    let state = state();
    let now_ns = 20_000_000_000;
    let enricher = Enricher {
        state: &state,
        listeners: &ListenerTable::default(),
        clock: Clock::with_offset(Timestamp::from_second(1_700_000_020).unwrap(), now_ns),
    };
    let entry = CtSnapshot {
        endpoint: WEB,
        local: WEB_ADDRESS.into(),
        remote: API_ADDRESS.into(),
        protocol: 6,
        local_port: 40_000,
        remote_port: 8080,
        entry: CtEntry {
            stamp: EndpointState::new(7, 1).0,
            packets: [10, 8],
            bytes: [1_000, 800],
            last_seen_ns: 15_000_000_000,
            created_ms: 5_000,
            rule_id: rule_id::UNSELECTED_ALLOW,
            peer: 301,
            tcp_flags: [0, 0],
            flags: flags::OPENER_LOCAL,
            verdict: 1,
        },
    };
    let record = enricher.conntrack(&entry, Event::Summary, now_ns);
    assert_eq!(record.first_seen.as_second(), 1_700_000_005);
    assert_eq!(record.last_seen.as_second(), 1_700_000_015);
    assert_eq!((record.packets, record.reply_packets), (18, 8));
    assert_eq!(record.is_reply, None, "no packet caused it");
    assert_eq!(record.source.identity, state.identity_of_endpoint(WEB));
    assert_eq!(record.rule.unwrap().policy, "builtin/unselected-allow");
}

#[test]
fn address_reports_and_unknown_kinds_are_no_flows() {
    let state = state();
    let enricher = Enricher {
        state: &state,
        listeners: &ListenerTable::default(),
        clock: Clock::sample(),
    };
    for kind in [EventKind::AddressSeen as u8, 0, 99] {
        let event = FlowEvent { kind, ..syn() };
        assert_eq!(enricher.event(&event, None), None);
    }
}
