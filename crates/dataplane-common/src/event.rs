//! Flow events: what the kernel tells userspace through the ring buffer.
//!
//! Established packets send nothing; their counts live in conntrack. An event that finds the ring
//! full is counted in `lost_events[kind]`, exactly.

use crate::{Addr16, Identity, assert_layout};

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum EventKind {
    /// First packet of a flow that passes; `packets`/`bytes` are those of this packet.
    New = 1,
    /// TCP connection closed (FIN both ways, or RST); `packets`/`bytes` are the flow's totals.
    Closed = 2,
    /// A packet was dropped; `packets`/`bytes` are those of this packet.
    Denied = 3,
    /// An existing flow was judged again with another outcome or rule; totals so far.
    Rejudged = 4,
    /// A source address without owner on an endpoint that learns its addresses.
    AddressSeen = 5,
}

impl EventKind {
    /// Number of slots in `lost_events` (kinds start at 1).
    pub const SLOTS: u32 = 8;

    /// The kind for a wire byte; `None` for an unknown one.
    #[must_use]
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::New),
            2 => Some(Self::Closed),
            3 => Some(Self::Denied),
            4 => Some(Self::Rejudged),
            5 => Some(Self::AddressSeen),
            _ => None,
        }
    }
}

/// A flow event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct FlowEvent {
    /// Monotonic nanoseconds (coarse clock, resolution one scheduler tick).
    pub time_ns: u64,
    /// Packets from opener and responder, see [`EventKind`].
    pub packets: [u64; 2],
    /// Bytes of layer 3, as above.
    pub bytes: [u64; 2],
    /// [`crate::endpoint::EndpointState`] at judgement: compiled policy and generation.
    pub state: u64,
    /// [`crate::endpoint::EndpointConfig::id`] whose policy judged; 0 when there is none.
    pub endpoint: u32,
    /// Interface index the packet was seen on.
    pub ifindex: u32,
    /// Identity of the endpoint's workload.
    pub identity: Identity,
    /// Identity of the other end.
    pub peer: Identity,
    /// Deciding rule.
    pub rule_id: u32,
    /// Address on the workload's side.
    pub local: Addr16,
    /// Address of the other end.
    pub remote: Addr16,
    /// Port on the workload's side. ICMP echo: the identifier. Other ICMP: 0.
    pub local_port_be: u16,
    /// Port of the other end. ICMP: type in the high byte, code in the low byte (network order).
    pub remote_port_be: u16,
    /// [`EventKind`].
    pub kind: u8,
    /// [`crate::stats::Verdict`].
    pub verdict: u8,
    /// [`crate::DropReason`] number; 0 when policy has no objection.
    pub reason: u8,
    /// [`crate::Direction`] of this packet.
    pub direction: u8,
    /// IANA protocol; 0 when the packet could not be parsed that far.
    pub protocol: u8,
    /// TCP flags of this packet.
    pub tcp_flags: u8,
    /// Bits of [`crate::conntrack::flags`] of the flow.
    pub ct_flags: u8,
    /// EtherType family: 4, 6, or 0 when the packet is neither.
    pub family: u8,
    /// Zero.
    pub _pad: [u8; 8],
}
assert_layout!(FlowEvent, size = 120, align = 8, {
    time_ns @ 0, packets @ 8, bytes @ 24, state @ 40, endpoint @ 48, ifindex @ 52, identity @ 56,
    peer @ 60, rule_id @ 64, local @ 68, remote @ 84, local_port_be @ 100, remote_port_be @ 102,
    kind @ 104, verdict @ 105, reason @ 106, direction @ 107, protocol @ 108, tcp_flags @ 109,
    ct_flags @ 110, family @ 111,
});
