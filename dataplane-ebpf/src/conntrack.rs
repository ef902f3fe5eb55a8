//! Flow state: keys, accounting, and the life of a TCP connection as far as policy needs it.

use dataplane_common::{
    conntrack::{CtEntry, CtKey4, CtKey6, flags, tcp, timeout},
    proto,
};

use crate::{
    addr::Addr,
    maps::{CT4, CT6},
    parse::{InnerPacket, Packet},
    verdict::Flow,
};

/// Key of the flow at hand; the family says which.
pub struct Key {
    pub family: u8,
    v4: CtKey4,
    v6: CtKey6,
}

impl Key {
    /// Becomes the key of the flow the packet belongs to, seen from the endpoint.
    #[inline(always)]
    pub fn set(&mut self, endpoint: u32, egress: bool, packet: &Packet) {
        let (mut source_port_be, mut destination_port_be) = (
            packet.header.source_port_be,
            packet.header.destination_port_be,
        );
        if matches!(packet.header.protocol, proto::ICMP | proto::ICMPV6) {
            // The workload's port, then the other end's.
            let (local, remote) = if packet.is_icmp_but_no_echo() {
                // Told apart from echoes by a type in the other end's port, and by who sends it:
                // nothing answers such a message as part of the same flow.
                (
                    u16::from(!egress).to_be(),
                    packet.header.destination_port_be,
                )
            } else {
                // An echo has one identifier for both directions.
                (packet.header.source_port_be, 0)
            };
            (source_port_be, destination_port_be) = if egress {
                (local, remote)
            } else {
                (remote, local)
            };
        }
        self.family = packet.header.family;
        if egress {
            self.fill(
                endpoint,
                packet.header.protocol,
                &packet.source,
                &packet.destination,
                source_port_be,
                destination_port_be,
            );
        } else {
            self.fill(
                endpoint,
                packet.header.protocol,
                &packet.destination,
                &packet.source,
                destination_port_be,
                source_port_be,
            );
        }
    }

    /// Becomes the key of the flow an ICMP error is about: the sender of the offending packet
    /// receives the error.
    #[inline(always)]
    pub fn set_inner(&mut self, endpoint: u32, egress: bool, inner: &InnerPacket) {
        let icmp = matches!(inner.protocol, proto::ICMP | proto::ICMPV6);
        let (source_port_be, destination_port_be) = if icmp && egress {
            (0, inner.source_port_be)
        } else {
            (inner.source_port_be, inner.destination_port_be)
        };
        if egress {
            self.fill(
                endpoint,
                inner.protocol,
                &inner.destination,
                &inner.source,
                destination_port_be,
                source_port_be,
            );
        } else {
            self.fill(
                endpoint,
                inner.protocol,
                &inner.source,
                &inner.destination,
                source_port_be,
                destination_port_be,
            );
        }
    }

    #[inline(always)]
    fn fill(
        &mut self,
        endpoint: u32,
        protocol: u8,
        local: &Addr,
        remote: &Addr,
        local_port_be: u16,
        remote_port_be: u16,
    ) {
        if self.family == 4 {
            self.v4 = CtKey4 {
                endpoint,
                local: local.v4_word().to_ne_bytes(),
                remote: remote.v4_word().to_ne_bytes(),
                local_port_be,
                remote_port_be,
                protocol,
                _pad: [0; 3],
            };
        } else {
            self.v6 = CtKey6 {
                endpoint,
                local: local.bytes(),
                remote: remote.bytes(),
                local_port_be,
                remote_port_be,
                protocol,
                _pad: [0; 3],
            };
        }
    }

    /// The live entry, for reading and writing in place.
    #[inline(always)]
    pub fn entry(&self) -> Option<*mut CtEntry> {
        if self.family == 4 {
            CT4.get_ptr_mut(&self.v4)
        } else {
            CT6.get_ptr_mut(&self.v6)
        }
    }

    /// Inserts or replaces the entry.
    #[inline(always)]
    pub fn insert(&self, entry: &CtEntry) -> Result<(), i32> {
        if self.family == 4 {
            CT4.insert(&self.v4, entry, 0)
        } else {
            CT6.insert(&self.v6, entry, 0)
        }
    }
}

/// Whether the entry is too old to say anything about the packet.
#[inline(always)]
pub fn expired(entry: &CtEntry, protocol: u8, now_ns: u64) -> bool {
    let idle = now_ns.wrapping_sub(entry.last_seen_ns);
    // `last_seen_ns` of another CPU may be a tick ahead: a huge idle time is a small negative one.
    idle > timeout::SHORTEST_NS && idle < 1 << 63 && idle > entry.timeout_ns(protocol)
}

/// Index of the packet's sender in the entry's counters: 0 for the opener.
#[inline(always)]
fn side(entry_flags: u8, egress: bool) -> usize {
    let opener_sends = (entry_flags & flags::OPENER_LOCAL != 0) == egress;
    if opener_sends { 0 } else { 1 }
}

/// Adds the packet to the flow. Returns true when it ends a TCP connection.
///
/// Plain additions: packets of one direction of a flow are handled by one CPU at a time but for
/// migrations, and an atomic addition would cost more than the lookup (docs/adr/0002-conntrack.md).
#[inline(always)]
pub fn account(entry: &mut CtEntry, flow: &Flow) -> bool {
    let tcp_flags = flow.packet.header.tcp_flags;
    let mut closed = false;
    // Written out for each side: an index into a map value costs the verifier bounds it cannot see.
    if side(entry.flags, flow.is_egress()) == 0 {
        entry.packets[0] += flow.segments;
        entry.bytes[0] += u64::from(flow.packet.header.l3_len);
        if entry.tcp_flags[0] | tcp_flags != entry.tcp_flags[0] {
            entry.tcp_flags[0] |= tcp_flags;
        }
    } else {
        entry.packets[1] += flow.segments;
        entry.bytes[1] += u64::from(flow.packet.header.l3_len);
        if entry.tcp_flags[1] | tcp_flags != entry.tcp_flags[1] {
            entry.tcp_flags[1] |= tcp_flags;
        }
    }
    entry.last_seen_ns = flow.now_ns;
    if flow.packet.header.protocol == proto::TCP && tcp_flags & (tcp::FIN | tcp::RST) != 0 {
        let both_fin = entry.tcp_flags[0] & entry.tcp_flags[1] & tcp::FIN != 0;
        if (both_fin || tcp_flags & tcp::RST != 0) && entry.flags & flags::CLOSED == 0 {
            entry.flags |= flags::CLOSED;
            closed = true;
        }
    }
    closed
}
