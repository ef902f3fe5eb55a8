//! Outcomes -> ring buffer and counters.

use dataplane_common::{
    Direction,
    conntrack::CtEntry,
    event::{EventKind, FlowEvent},
    proto,
    stats::{Verdict, stats_index},
};

use crate::{
    maps::{EVENTS, LOST_EVENTS, PACKET_STATS},
    verdict::Flow,
};

/// Counts a packet once. The only writer of `packet_stats`.
#[inline(always)]
pub fn count(verdict: Verdict, direction: Direction, reason: u8, packets: u64, bytes: u64) {
    if let Some(counter) = PACKET_STATS.get_ptr_mut(stats_index(verdict, direction, reason)) {
        // SAFETY: the pointer is this CPU's slot, and programs of one CPU do not preempt each
        // other at the TC hook (bottom halves are off).
        unsafe {
            (*counter).packets += packets;
            (*counter).bytes += bytes;
        }
    }
}

/// What an event says beyond the flow itself.
#[derive(Clone, Copy)]
pub struct Details {
    pub kind: EventKind,
    pub verdict: Verdict,
    pub reason: u8,
    pub ct_flags: u8,
    pub rule_id: u32,
    pub peer: u32,
}

/// Sends an event about the packet at hand, or counts it as lost. With `totals` the event carries
/// the flow's counters, otherwise those of this packet.
#[inline(never)]
pub fn emit(flow: &Flow, details: &Details, totals: Option<&CtEntry>) {
    let Some(mut slot) = EVENTS.reserve::<FlowEvent>(0) else {
        lost(details.kind);
        return;
    };
    let packet = &flow.packet;
    let egress = flow.is_egress();
    let (local, remote, local_port_be, mut remote_port_be) = if egress {
        (
            packet.source,
            packet.destination,
            packet.header.source_port_be,
            packet.header.destination_port_be,
        )
    } else {
        (
            packet.destination,
            packet.source,
            packet.header.destination_port_be,
            packet.header.source_port_be,
        )
    };
    let mut local_port_be = local_port_be;
    if matches!(packet.header.protocol, proto::ICMP | proto::ICMPV6) {
        local_port_be = packet.header.source_port_be;
        remote_port_be = packet.header.destination_port_be;
    }
    let (packets, bytes) = match totals {
        Some(entry) => (entry.packets, entry.bytes),
        None => {
            let opener = details.ct_flags & dataplane_common::conntrack::flags::OPENER_LOCAL != 0;
            if opener == egress {
                ([flow.segments, 0], [u64::from(packet.header.l3_len), 0])
            } else {
                ([0, flow.segments], [0, u64::from(packet.header.l3_len)])
            }
        }
    };
    slot.write(FlowEvent {
        time_ns: flow.now_ns,
        packets,
        bytes,
        state: flow.state,
        endpoint: flow.endpoint,
        ifindex: flow.ifindex,
        identity: flow.identity,
        peer: details.peer,
        rule_id: details.rule_id,
        local: local.bytes(),
        remote: remote.bytes(),
        local_port_be,
        remote_port_be,
        kind: details.kind as u8,
        verdict: details.verdict as u8,
        reason: details.reason,
        direction: flow.direction as u8,
        protocol: packet.header.protocol,
        tcp_flags: packet.header.tcp_flags,
        ct_flags: details.ct_flags,
        family: packet.header.family,
        _pad: [0; 8],
    });
    slot.submit(0);
}

#[inline(always)]
fn lost(kind: EventKind) {
    if let Some(counter) = LOST_EVENTS.get_ptr_mut(kind as u32) {
        // SAFETY: this CPU's slot, as in `count`.
        unsafe { *counter += 1 };
    }
}
