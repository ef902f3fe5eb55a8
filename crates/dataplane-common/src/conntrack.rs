//! Connection tracking: one entry per flow **per endpoint**.
//!
//! An entry is one endpoint's view of a flow and is judged only by that endpoint's policy: the
//! source's entry by the source's egress policy, the destination's entry by its ingress policy. Two
//! local endpoints therefore hold one entry each, and both must approve. Keys are oriented from the
//! endpoint (local, remote), so both directions of a flow find the same entry without sorting, and
//! because endpoint ids are never reused an entry cannot outlive its workload's address.

use crate::{Identity, assert_layout};

/// Key of `ct4`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct CtKey4 {
    /// [`crate::endpoint::EndpointConfig::id`].
    pub endpoint: u32,
    /// Address on the workload's side.
    pub local: [u8; 4],
    /// Address of the other end.
    pub remote: [u8; 4],
    /// Port on the workload's side; for ICMP echo the identifier, for other ICMP 0 in messages that
    /// the workload sends and 1 in those it receives.
    pub local_port_be: u16,
    /// Port of the other end; for ICMP echo 0, for other ICMP type (high byte) and code.
    pub remote_port_be: u16,
    /// IANA protocol.
    pub protocol: u8,
    /// Zero.
    pub _pad: [u8; 3],
}
assert_layout!(CtKey4, size = 20, align = 4, {
    endpoint @ 0, local @ 4, remote @ 8, local_port_be @ 12, remote_port_be @ 14, protocol @ 16,
});

/// Key of `ct6`; fields as in [`CtKey4`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct CtKey6 {
    /// [`crate::endpoint::EndpointConfig::id`].
    pub endpoint: u32,
    /// Address on the workload's side.
    pub local: [u8; 16],
    /// Address of the other end.
    pub remote: [u8; 16],
    /// Port on the workload's side, as in [`CtKey4`].
    pub local_port_be: u16,
    /// Port of the other end, as in [`CtKey4`].
    pub remote_port_be: u16,
    /// IANA protocol.
    pub protocol: u8,
    /// Zero.
    pub _pad: [u8; 3],
}
assert_layout!(CtKey6, size = 44, align = 4, {
    endpoint @ 0, local @ 4, remote @ 20, local_port_be @ 36, remote_port_be @ 38, protocol @ 40,
});

/// Value of `ct4` and `ct6`: exactly one cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct CtEntry {
    /// [`crate::endpoint::EndpointState`] the flow was last judged under.
    pub stamp: u64,
    /// Packets from the opener (`[0]`) and from the responder (`[1]`). GSO super-packets count as
    /// the segments they become.
    pub packets: [u64; 2],
    /// Bytes of layer 3 (IP header included), as above.
    pub bytes: [u64; 2],
    /// Monotonic nanoseconds (coarse clock) of the last packet.
    pub last_seen_ns: u64,
    /// Monotonic milliseconds of the first packet, modulo 2^32.
    pub created_ms: u32,
    /// Rule that decided at the last judgement.
    pub rule_id: u32,
    /// Identity of the other end at the last judgement.
    pub peer: Identity,
    /// TCP flags seen from opener and responder, or-ed together.
    pub tcp_flags: [u8; 2],
    /// Bits of [`flags`].
    pub flags: u8,
    /// [`crate::stats::Verdict`] of the last judgement.
    pub verdict: u8,
}
assert_layout!(CtEntry, size = 64, align = 8, {
    stamp @ 0, packets @ 8, bytes @ 24, last_seen_ns @ 40, created_ms @ 48, rule_id @ 52,
    peer @ 56, tcp_flags @ 60, flags @ 62, verdict @ 63,
});

/// Bits of [`CtEntry::flags`].
pub mod flags {
    /// The workload opened the flow (policy direction egress); otherwise the remote end did.
    pub const OPENER_LOCAL: u8 = 0x01;
    /// The opener is a guess: the first packet seen was no SYN, or came too soon after attaching
    /// to prove that nothing came before it. Policy then accepts the flow in either orientation,
    /// and learning asks the listening-socket table instead.
    pub const OPENER_UNSURE: u8 = 0x02;
    /// Both ends closed (FIN) or one reset the connection; the close event was sent.
    pub const CLOSED: u8 = 0x04;
    /// The workload's side is an address of nobody (multicast, or unknown), and no packet with it as
    /// its source has been checked since the last judgement. What the workload sends then goes
    /// through the source check before it counts as part of the flow.
    pub const LOCAL_UNCHECKED: u8 = 0x08;
}

/// TCP flag bits as they stand in byte 13 of the header (RFC 9293 section 3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
}

/// Idle times after which an entry is dead, in nanoseconds. The kernel treats an older entry as
/// absent; userspace removes it and reports the flow's totals.
pub mod timeout {
    const SECOND: u64 = 1_000_000_000;
    /// TCP before the handshake is complete.
    pub const TCP_OPENING_NS: u64 = 60 * SECOND;
    /// TCP with traffic both ways.
    pub const TCP_ESTABLISHED_NS: u64 = 21_600 * SECOND;
    /// TCP after FIN from both sides or RST.
    pub const TCP_CLOSED_NS: u64 = 10 * SECOND;
    /// UDP with traffic one way only.
    pub const UDP_ONE_WAY_NS: u64 = 60 * SECOND;
    /// UDP with a reply seen.
    pub const UDP_REPLIED_NS: u64 = 180 * SECOND;
    /// ICMP echo.
    pub const ICMP_NS: u64 = 30 * SECOND;
    /// Every other protocol.
    pub const OTHER_NS: u64 = 600 * SECOND;
    /// No timeout is shorter: an entry idle for less is alive whatever its state.
    pub const SHORTEST_NS: u64 = TCP_CLOSED_NS;
}

impl CtEntry {
    /// Idle time after which this entry is dead.
    #[must_use]
    #[inline(always)]
    pub const fn timeout_ns(&self, protocol: u8) -> u64 {
        match protocol {
            crate::proto::TCP => {
                if self.flags & flags::CLOSED != 0 {
                    timeout::TCP_CLOSED_NS
                } else if self.packets[0] != 0 && self.packets[1] != 0 {
                    timeout::TCP_ESTABLISHED_NS
                } else {
                    timeout::TCP_OPENING_NS
                }
            }
            crate::proto::UDP => {
                if self.packets[0] != 0 && self.packets[1] != 0 {
                    timeout::UDP_REPLIED_NS
                } else {
                    timeout::UDP_ONE_WAY_NS
                }
            }
            crate::proto::ICMP | crate::proto::ICMPV6 => timeout::ICMP_NS,
            _ => timeout::OTHER_NS,
        }
    }
}
