//! What policy does not judge: control traffic of the link, ICMP errors about known flows, and
//! addresses that cannot be the workload's.

use aya_ebpf::programs::TcContext;
use dataplane_common::{
    DropReason, endpoint, event::EventKind, policy::rule_id, proto, stats::Verdict,
};

use crate::{
    conntrack,
    event::{self, Details},
    fragment::remember_fragment,
    judge::effective,
    parse::{self, Fragment},
    policy,
    verdict::{Flow, refuse},
};

/// Address resolution, router solicitation, multicast listener reports and DHCP: what a workload
/// needs to have a network at all. Returns `None` for everything that policy judges.
#[inline(always)]
pub fn control_traffic(flow: &mut Flow) -> Option<Verdict> {
    let packet = &flow.packet;
    let egress = flow.is_egress();
    let pass = match packet.header.protocol {
        proto::ICMPV6 => match packet.header.icmp_type {
            // Neighbour discovery is valid only from the same link (RFC 4861 section 7.1).
            133 | 135 | 136 => packet.header.hop_limit == 255,
            // Router advertisement and redirect.
            134 | 137 if packet.header.hop_limit == 255 => {
                if egress {
                    return Some(refuse(flow, DropReason::RouterMessageFromWorkload));
                }
                true
            }
            // Multicast listener discovery (RFC 2710, RFC 3810).
            130..=132 | 143 => packet.header.hop_limit == 1,
            _ => false,
        },
        // IGMP never leaves the link (RFC 3376 section 4).
        proto::IGMP => {
            packet.header.hop_limit == 1 && packet.destination.is_multicast_or_broadcast()
        }
        // ICMP redirect (RFC 792): only routers send it.
        proto::ICMP if packet.header.icmp_type == 5 && egress => {
            return Some(refuse(flow, DropReason::RouterMessageFromWorkload));
        }
        // DHCP (RFC 2131) and DHCPv6 (RFC 8415), between client and server ports only.
        proto::UDP => {
            let source = u16::from_be(packet.header.source_port_be);
            let destination = u16::from_be(packet.header.destination_port_be);
            let to_server =
                (source, destination) == (68, 67) || (source, destination) == (546, 547);
            let to_client =
                (source, destination) == (67, 68) || (source, destination) == (547, 546);
            (egress && to_server && packet.destination.is_multicast_or_broadcast())
                || (!egress && to_client)
        }
        _ => false,
    };
    if !pass {
        return None;
    }
    if flow.packet.header.fragment == Fragment::First {
        remember_fragment(flow);
    }
    flow.count(Verdict::Forwarded, 0);
    Some(Verdict::Forwarded)
}

/// An ICMP error passes if it is about a flow of this workload that passes (RFC 5927 section 4.1:
/// check the inner packet against known state).
#[inline(always)]
pub fn icmp_error(ctx: &TcContext, flow: &mut Flow) -> Verdict {
    let inner = match parse::parse_inner(ctx, &flow.packet) {
        Ok(inner) => inner,
        Err(reason) => return refuse(flow, reason),
    };
    flow.key.set_inner(flow.endpoint, flow.is_egress(), &inner);
    // It tells the sender of the packet it is about, and nobody else: whoever may send errors to
    // anyone may send anything to anyone.
    if !flow.packet.destination.equals(&inner.source) {
        return refuse(flow, DropReason::IcmpErrorUnrelated);
    }
    let Some(entry) = flow.key.entry() else {
        return refuse(flow, DropReason::IcmpErrorUnrelated);
    };
    // SAFETY: as in `judge`; only read here.
    let entry = unsafe { &*entry };
    if entry.verdict == Verdict::Dropped as u8
        || conntrack::expired(entry, inner.protocol, flow.now_ns)
    {
        return refuse(flow, DropReason::IcmpErrorUnrelated);
    }
    // A flow not judged since the last change says nothing about the policy in force; its next
    // packet will. Until then the error waits for the sender's retransmission.
    if entry.stamp != flow.state && effective(flow.state, true) == Verdict::Dropped {
        return refuse(flow, DropReason::IcmpErrorUnrelated);
    }
    flow.count(Verdict::Forwarded, 0);
    Verdict::Forwarded
}

/// Whether the workload's side of the packet is known to be this workload (it may be nobody, in a
/// packet to it), or why it cannot be.
#[inline(always)]
pub fn check_addresses(flow: &Flow) -> Result<bool, DropReason> {
    let packet = &flow.packet;
    if packet.source.is_no_source() {
        return Err(DropReason::MartianAddress);
    }
    if !flow.is_egress() {
        return match policy::owner(flow.network, &packet.destination) {
            Some(owner) if owner.owner != flow.owner => Err(DropReason::NotForWorkload),
            owner => Ok(owner.is_some()),
        };
    }
    match policy::owner(flow.network, &packet.source) {
        Some(owner) if owner.owner == flow.owner => Ok(true),
        Some(_) => Err(DropReason::SourceSpoofed),
        None if flow.endpoint_flags & endpoint::flags::LEARN_ADDRESSES != 0 => {
            let details = Details {
                kind: EventKind::AddressSeen,
                verdict: Verdict::Forwarded,
                reason: 0,
                ct_flags: 0,
                rule_id: rule_id::NONE,
                peer: 0,
            };
            event::emit(flow, &details, None);
            Ok(true)
        }
        // The kernel makes link-local addresses by itself, after the daemon looked.
        None if packet.source.is_v6_link_local() => Ok(true),
        None => Err(DropReason::SourceSpoofed),
    }
}
