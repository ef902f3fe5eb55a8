//! Kernel events and conntrack entries to flow records: names for addresses, rules for numbers, and
//! an opener where there is evidence for one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use dataplane_common::conntrack::flags;
use dataplane_common::endpoint::EndpointState;
use dataplane_common::event::{EventKind, FlowEvent};
use dataplane_common::identity::FIRST_DYNAMIC;
use dataplane_common::{Addr16, Direction as PacketDirection, DropReason, Identity};
use flowgraph::direction::{Evidence, ListenerTable, Side, decide};
use flowgraph::record::{
    Direction, Event, FlowRecord, L4, Observation, Opener, Peer, Reporter, TcpFlags, Verdict,
};
use jiff::Timestamp;
use policy::model::{Protocol, Workload};

use super::clock::Clock;
use crate::controller::ControlState;
use crate::dataplane::CtSnapshot;

/// Everything a record is enriched with, as of one moment.
#[derive(Clone, Copy)]
pub struct Enricher<'a> {
    /// Policies, workloads and rules in force.
    pub state: &'a ControlState,
    /// Listening sockets.
    pub listeners: &'a ListenerTable,
    /// Kernel time to wall time.
    pub clock: Clock,
}

/// A flow as one endpoint sees it, however it was observed.
struct Observed {
    endpoint: u32,
    identity: Option<Identity>,
    peer: Identity,
    local: Option<IpAddr>,
    remote: Option<IpAddr>,
    local_port: u16,
    remote_port: u16,
    protocol: u8,
    ct_flags: u8,
    /// Direction of the packet that caused the record, if one did.
    packet: Option<PacketDirection>,
    tcp_flags: Option<u8>,
    verdict: Verdict,
    reason: u8,
    rule_id: u32,
    state: EndpointState,
    /// From the opener and from the responder, as the kernel takes them.
    packets: [u64; 2],
    bytes: [u64; 2],
    event: Event,
    time: Timestamp,
    first_seen: Timestamp,
    last_seen: Timestamp,
}

impl Enricher<'_> {
    /// The record of a kernel event. `first_seen` is the flow's first packet if it is known from
    /// before. `None` for events that are about no flow or of an unknown kind.
    #[must_use]
    pub fn event(&self, event: &FlowEvent, first_seen: Option<Timestamp>) -> Option<FlowRecord> {
        let kind = match EventKind::from_u8(event.kind)? {
            EventKind::New => Event::New,
            EventKind::Closed => Event::Closed,
            EventKind::Denied => Event::Denied,
            EventKind::Rejudged => Event::Rejudged,
            EventKind::AddressSeen => return None,
        };
        let time = self.clock.wall(event.time_ns);
        let known = event.family != 0;
        Some(self.record(Observed {
            endpoint: event.endpoint,
            identity: Some(event.identity),
            peer: event.peer,
            local: known.then(|| address(event.local)),
            remote: known.then(|| address(event.remote)),
            local_port: u16::from_be(event.local_port_be),
            remote_port: u16::from_be(event.remote_port_be),
            protocol: event.protocol,
            ct_flags: event.ct_flags,
            packet: PacketDirection::from_u8(event.direction),
            tcp_flags: Some(event.tcp_flags),
            verdict: verdict(event.verdict),
            reason: event.reason,
            rule_id: event.rule_id,
            state: EndpointState(event.state),
            packets: event.packets,
            bytes: event.bytes,
            event: kind,
            time,
            first_seen: first_seen.unwrap_or(time).min(time),
            last_seen: time,
        }))
    }

    /// The record of a conntrack entry: its totals so far, or with [`Event::Closed`] its last ones.
    /// `now_ns` is the moment of the scan on the monotonic clock.
    #[must_use]
    pub fn conntrack(&self, entry: &CtSnapshot, event: Event, now_ns: u64) -> FlowRecord {
        let last_seen = self.clock.wall(entry.entry.last_seen_ns);
        let first_seen = self.clock.wall_of_ms(entry.entry.created_ms, now_ns);
        self.record(Observed {
            endpoint: entry.endpoint,
            identity: None,
            peer: entry.entry.peer,
            local: Some(entry.local),
            remote: Some(entry.remote),
            local_port: entry.local_port,
            remote_port: entry.remote_port,
            protocol: entry.protocol,
            ct_flags: entry.entry.flags,
            packet: None,
            tcp_flags: None,
            verdict: verdict(entry.entry.verdict),
            reason: 0,
            rule_id: entry.entry.rule_id,
            state: EndpointState(entry.entry.stamp),
            packets: entry.entry.packets,
            bytes: entry.entry.bytes,
            event,
            time: last_seen,
            first_seen: first_seen.min(last_seen),
            last_seen,
        })
    }

    fn record(&self, observed: Observed) -> FlowRecord {
        let workload = self.state.workload_of_endpoint(observed.endpoint);
        let local = self.local_peer(&observed, workload);
        let remote = self.remote_peer(&observed);
        let protocol = Protocol(observed.protocol);
        let first_sender = if observed.ct_flags & flags::OPENER_LOCAL != 0 {
            Side::Local
        } else {
            Side::Remote
        };
        let is_icmp = matches!(protocol, Protocol::ICMP | Protocol::ICMPV6);
        let decision = decide(&Evidence {
            protocol,
            local: socket(&local),
            remote: socket(&remote),
            first_sender,
            first_is_opener: observed.protocol != 0
                && observed.ct_flags & flags::OPENER_UNSURE == 0,
            // The type stands in an event only, and is that of the packet of the event.
            icmp: observed.packet.filter(|_| is_icmp).map(|packet| {
                let icmp_type = (observed.remote_port >> 8) as u8;
                (sender(packet), icmp_type)
            }),
            local_sockets: workload.and_then(|workload| self.sockets(workload)),
            remote_sockets: observed
                .remote
                .and_then(|address| self.state.workload_of_address(address))
                .and_then(|workload| self.sockets(workload)),
        });
        // Who stands as the source: the opener, or without one the sender of the packet.
        let source = decision
            .opener()
            .or(observed.packet.map(sender))
            .unwrap_or(first_sender);
        let (direction, reporter) = match (decision.opener(), source) {
            (Some(Side::Local), _) => (Direction::Egress, None),
            (Some(Side::Remote), _) => (Direction::Ingress, None),
            (None, Side::Local) => (Direction::Unknown, Some(Reporter::Source)),
            (None, Side::Remote) => (Direction::Unknown, Some(Reporter::Destination)),
        };
        let is_reply = decision
            .opener()
            .and_then(|opener| observed.packet.map(|packet| sender(packet) != opener));
        // The kernel counts from its own idea of the opener.
        let forward = usize::from(source != first_sender);
        let reply = 1 - forward;
        let (source_peer, destination_peer) = match source {
            Side::Local => (local, remote),
            Side::Remote => (remote, local),
        };
        let l4 = (observed.protocol != 0).then(|| {
            let icmp = observed
                .packet
                .filter(|_| is_icmp)
                .map(|_| observed.remote_port.to_be_bytes());
            L4 {
                protocol,
                port: decision
                    .opener()
                    .filter(|_| has_ports(protocol))
                    .and(destination_peer.port),
                tcp_flags: observed
                    .tcp_flags
                    .filter(|_| protocol == Protocol::TCP)
                    .map(TcpFlags),
                icmp_type: icmp.map(|[icmp_type, _]| icmp_type),
                icmp_code: icmp.map(|[_, code]| code),
            }
        });
        let generation = observed.state.generation();
        FlowRecord {
            time: observed.time,
            event: observed.event,
            verdict: observed.verdict,
            drop_reason: drop_reason(observed.reason)
                .filter(|_| matches!(observed.verdict, Verdict::Dropped | Verdict::Audit)),
            direction,
            opener: if observed.protocol == 0 {
                Opener::Unknown
            } else {
                decision.certainty()
            },
            is_reply,
            source: source_peer,
            destination: destination_peer,
            l4,
            l7: None,
            rule: self.state.rule(observed.rule_id, generation),
            staged_verdict: None,
            generation: (generation != 0).then_some(u64::from(generation)),
            packets: observed.packets[0] + observed.packets[1],
            bytes: observed.bytes[0] + observed.bytes[1],
            reply_packets: observed.packets[reply],
            reply_bytes: observed.bytes[reply],
            first_seen: observed.first_seen,
            last_seen: observed.last_seen,
            observation: Observation {
                lost_events: 0,
                reporter,
            },
        }
    }

    fn sockets(&self, workload: &Workload) -> Option<&flowgraph::direction::Sockets> {
        self.listeners
            .get(&format!("{}/{}", workload.namespace, workload.name))
    }

    fn local_peer(&self, observed: &Observed, workload: Option<&Workload>) -> Peer {
        let identity = observed
            .identity
            .filter(|&identity| identity != 0)
            .or_else(|| self.state.identity_of_endpoint(observed.endpoint));
        peer(
            workload,
            identity,
            observed.local,
            observed.local_port,
            observed.protocol,
        )
    }

    fn remote_peer(&self, observed: &Observed) -> Peer {
        // What the kernel took for the host or the world is no workload, whatever the address says
        // by now; 0 (an unparsable packet, an entry without judgement) leaves it to the address.
        let reserved = (1..FIRST_DYNAMIC).contains(&observed.peer);
        let workload = observed
            .remote
            .filter(|_| !reserved)
            .and_then(|address| self.state.workload_of_address(address));
        peer(
            workload,
            (observed.peer != 0).then_some(observed.peer),
            observed.remote,
            observed.remote_port,
            observed.protocol,
        )
    }
}

fn peer(
    workload: Option<&Workload>,
    identity: Option<Identity>,
    ip: Option<IpAddr>,
    port: u16,
    protocol: u8,
) -> Peer {
    Peer {
        workload: workload.map(|workload| workload.name.clone()),
        namespace: workload.map(|workload| workload.namespace.clone()),
        group: workload.map(|workload| workload.group.clone()),
        labels: workload
            .map(|workload| workload.labels.clone())
            .unwrap_or_default(),
        identity,
        ip,
        port: has_ports(Protocol(protocol)).then_some(port),
        names: Vec::new(),
    }
}

const fn sender(packet: PacketDirection) -> Side {
    match packet {
        PacketDirection::Egress => Side::Local,
        PacketDirection::Ingress => Side::Remote,
    }
}

const fn has_ports(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP)
}

fn socket(peer: &Peer) -> SocketAddr {
    SocketAddr::new(
        peer.ip.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        peer.port.unwrap_or(0),
    )
}

pub(super) fn address(wire: Addr16) -> IpAddr {
    let v6 = Ipv6Addr::from(wire);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

/// A number this version does not know is taken for a drop, the outcome one must not overlook.
fn verdict(wire: u8) -> Verdict {
    dataplane_common::stats::Verdict::from_u8(wire).map_or(Verdict::Dropped, Verdict::from)
}

fn drop_reason(wire: u8) -> Option<String> {
    match DropReason::from_u8(wire) {
        Some(reason) => Some(reason.as_str().to_owned()),
        None if wire == 0 => None,
        None => Some(wire.to_string()),
    }
}

#[cfg(test)]
mod tests;
