//! A packet on its way through the rules, the flow it belongs to, and what is told of it.

use std::net::IpAddr;

use dataplane_common::conntrack::flags;
use dataplane_common::event::EventKind;
use dataplane_common::policy::rule_id;
use dataplane_common::stats::Verdict;
use dataplane_common::{Direction, DropReason, proto};
use policy::compile::IdentityInfo;
use policy::evaluate::RuleRef;

use super::packet::Packet;

/// A flow from the workload's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Workload side.
    pub local: IpAddr,
    /// Other end.
    pub remote: IpAddr,
    /// Workload's port; echo identifier.
    pub local_port: u16,
    /// Other end's port.
    pub remote_port: u16,
    /// IANA protocol.
    pub protocol: u8,
}

/// What conntrack should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// State word of the last judgement.
    pub stamp: u64,
    /// From opener and responder.
    pub packets: [u64; 2],
    /// As above.
    pub bytes: [u64; 2],
    /// Rule of the last judgement.
    pub rule: RuleRef,
    /// Other end at the last judgement.
    pub peer: IdentityInfo,
    /// From opener and responder.
    pub tcp_flags: [u8; 2],
    /// Bits of [`flags`].
    pub flags: u8,
    /// Verdict of the last judgement.
    pub verdict: Verdict,
}

/// What an event should say, apart from its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What happened.
    pub kind: EventKind,
    /// Verdict.
    pub verdict: Verdict,
    /// Objection.
    pub reason: Option<DropReason>,
    /// Rule that decided.
    pub rule: RuleRef,
    /// Other end; `None` where nobody was asked.
    pub peer: Option<IdentityInfo>,
    /// Bits of [`flags`].
    pub ct_flags: u8,
    /// From opener and responder.
    pub packets: [u64; 2],
    /// As above.
    pub bytes: [u64; 2],
    /// Workload's and other end's address; `None` when no IP header was read.
    pub ends: Option<(IpAddr, IpAddr)>,
    /// Workload's port.
    pub local_port: u16,
    /// Other end's port; of ICMP, type and code.
    pub remote_port: u16,
    /// Protocol.
    pub protocol: u8,
    /// TCP flags of the packet.
    pub tcp_flags: u8,
    /// 4, 6 or 0.
    pub family: u8,
}

/// What should become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What is done.
    pub verdict: Verdict,
    /// The reason it is counted under.
    pub reason: Option<DropReason>,
    /// The bytes it is counted with.
    pub bytes: u64,
    /// What is told.
    pub events: Vec<Told>,
    /// The flow it belongs to, if it was read so far.
    pub key: Option<Key>,
    /// Whether that flow was seen now (`last_seen_ns`).
    pub seen: bool,
}

/// A packet on its way through the rules.
pub(super) struct Passage {
    pub(super) direction: Direction,
    pub(super) packet: Packet,
    pub(super) key: Option<Key>,
    pub(super) events: Vec<Told>,
}

impl Passage {
    pub(super) fn sender(&self) -> u8 {
        match self.direction {
            Direction::Egress => flags::OPENER_LOCAL,
            Direction::Ingress => 0,
        }
    }

    /// 0 if the sender is the opener, as flags say it, else 1.
    pub(super) fn side(&self, ct_flags: u8) -> usize {
        usize::from(ct_flags & flags::OPENER_LOCAL != self.sender())
    }

    pub(super) fn has_tcp(&self, wanted: u8) -> bool {
        self.packet.l4.tcp_flags & wanted != 0
    }

    pub(super) fn remote(&self) -> IpAddr {
        match self.direction {
            Direction::Egress => self.packet.destination(),
            Direction::Ingress => self.packet.source(),
        }
    }

    pub(super) fn told(&self, kind: EventKind, verdict: Verdict, ct_flags: u8) -> Told {
        let l4 = &self.packet.l4;
        let (mut local_port, mut remote_port) = (l4.source_port, l4.destination_port);
        if self.direction == Direction::Ingress {
            std::mem::swap(&mut local_port, &mut remote_port);
        }
        if let Some((kind, code)) = l4.icmp {
            local_port = l4.source_port;
            remote_port = u16::from_be_bytes([kind, code]);
        }
        let mut packets = [0, 0];
        let mut bytes = [0, 0];
        packets[self.side(ct_flags)] = 1;
        bytes[self.side(ct_flags)] = self.packet.l3_len;
        Told {
            kind,
            verdict,
            reason: None,
            rule: builtin(rule_id::NONE),
            peer: None,
            ct_flags,
            packets,
            bytes,
            ends: self
                .packet
                .addresses
                .map(|(source, destination)| match self.direction {
                    Direction::Egress => (source, destination),
                    Direction::Ingress => (destination, source),
                }),
            local_port,
            remote_port,
            protocol: self.packet.protocol,
            tcp_flags: l4.tcp_flags,
            family: self.packet.family(),
        }
    }

    pub(super) fn done(self, verdict: Verdict, reason: Option<DropReason>) -> Outcome {
        Outcome {
            verdict,
            reason,
            bytes: self.packet.l3_len,
            events: self.events,
            key: self.key,
            seen: false,
        }
    }

    pub(super) fn seen(self, verdict: Verdict, reason: Option<DropReason>) -> Outcome {
        Outcome {
            seen: true,
            ..self.done(verdict, reason)
        }
    }
}

pub(super) fn builtin(id: u32) -> RuleRef {
    RuleRef::builtin(id).expect("a fixed id")
}

/// Adds a packet to its flow; true when that ends the connection.
pub(super) fn account(entry: &mut Entry, passage: &Passage) -> bool {
    let side = passage.side(entry.flags);
    entry.packets[side] += 1;
    entry.bytes[side] += passage.packet.l3_len;
    entry.tcp_flags[side] |= passage.packet.l4.tcp_flags;
    let ends = passage.has_tcp(4)
        || (passage.has_tcp(1) && entry.tcp_flags[0] & entry.tcp_flags[1] & 1 != 0);
    if passage.packet.protocol != proto::TCP || !ends || entry.flags & flags::CLOSED != 0 {
        return false;
    }
    entry.flags |= flags::CLOSED;
    true
}

/// What names a fragmented datagram.
pub(super) fn datagram(packet: &Packet) -> (u32, IpAddr, IpAddr, u8) {
    (
        packet.fragment_id,
        packet.source(),
        packet.destination(),
        packet.protocol,
    )
}

/// The flow of a packet. Echoes are told apart by identifier; every other ICMP message by its type
/// and code, and by who sends it.
pub(super) fn key(direction: Direction, packet: &Packet) -> Key {
    let (mut local, mut remote) = (packet.source(), packet.destination());
    let (mut local_port, mut remote_port) = (packet.l4.source_port, packet.l4.destination_port);
    if direction == Direction::Ingress {
        std::mem::swap(&mut local, &mut remote);
        std::mem::swap(&mut local_port, &mut remote_port);
    }
    if packet.is_echo() {
        (local_port, remote_port) = (packet.l4.source_port, 0);
    } else if let Some((kind, code)) = packet.l4.icmp {
        local_port = u16::from(direction == Direction::Ingress);
        remote_port = u16::from_be_bytes([kind, code]);
    }
    Key {
        local,
        remote,
        local_port,
        remote_port,
        protocol: packet.protocol,
    }
}
