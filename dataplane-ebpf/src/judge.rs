//! The endpoint's policy about a flow, and what its word means in the endpoint's mode.

use dataplane_common::{
    Direction, DropReason,
    conntrack::flags,
    endpoint::EndpointState,
    policy::{Action, Mode, rule_id},
    proto,
    stats::Verdict,
};

use crate::{
    maps::POLICIES,
    parse::Packet,
    policy::{self, Query},
    verdict::Flow,
};

/// What policy says of a flow, before modes.
#[derive(Clone, Copy)]
pub struct Judgement {
    /// `None`: allowed.
    pub objection: Option<DropReason>,
    pub rule_id: u32,
    pub peer: u32,
}

/// Judges a flow by its opener. When the opener is a guess, the flow passes if policy allows it in
/// either orientation: its packets are then those of a connection policy allows.
#[inline(always)]
pub fn judge_flow(flow: &Flow, ct_flags: u8) -> Judgement {
    let opener_local = ct_flags & flags::OPENER_LOCAL != 0;
    let first = judge_orientation(flow, opener_local);
    if first.objection.is_none() || ct_flags & flags::OPENER_UNSURE == 0 {
        return first;
    }
    let other = judge_orientation(flow, !opener_local);
    if other.objection.is_none() {
        other
    } else {
        first
    }
}

/// Asks the endpoint's policy about the flow, opened by the workload (egress) or by the other end
/// (ingress).
#[inline(never)]
pub fn judge_orientation(flow: &Flow, opener_local: bool) -> Judgement {
    let packet = &flow.packet;
    let sender_is_local = flow.is_egress();
    let remote = if sender_is_local {
        &packet.destination
    } else {
        &packet.source
    };
    let peer = policy::identity_of(flow.network, remote);
    let allowed = |rule_id| Judgement {
        objection: None,
        rule_id,
        peer: peer.identity,
    };

    let state = EndpointState(flow.state);
    let Some(meta) = POLICIES.get(state.policy()) else {
        return Judgement {
            objection: Some(DropReason::NoPolicy),
            rule_id: rule_id::NONE,
            peer: peer.identity,
        };
    };
    if meta.ready == 0 {
        return Judgement {
            objection: Some(DropReason::NoPolicy),
            rule_id: rule_id::NONE,
            peer: peer.identity,
        };
    }
    if meta.mode == Mode::Discover as u8 {
        return allowed(rule_id::NONE);
    }
    if peer.owner == flow.owner {
        return allowed(rule_id::SELF_TRAFFIC);
    }
    let direction = if opener_local {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    let port_be = responder_port(packet, opener_local == sender_is_local);
    let query = Query::new(
        state.policy(),
        meta,
        direction,
        peer.identity,
        packet.header.protocol,
        port_be,
    );
    let best = query.answer();
    let (action, rule_id) = if best.precedence != 0 {
        (best.precedence & 3, best.rule_id)
    } else if opener_local {
        (u32::from(meta.egress_default), meta.egress_default_rule)
    } else {
        (u32::from(meta.ingress_default), meta.ingress_default_rule)
    };
    let objection = match Action::from_bits(action) {
        Some(Action::Allow) => None,
        Some(Action::Deny) if best.precedence != 0 => Some(DropReason::PolicyDeny),
        Some(Action::Deny | Action::Redirect) | None => Some(DropReason::PolicyDefaultDeny),
    };
    Judgement {
        objection,
        rule_id,
        peer: peer.identity,
    }
}

/// The port policy speaks of: the responder's. For ICMP the request's type and code.
#[inline(always)]
pub fn responder_port(packet: &Packet, sender_opened: bool) -> u16 {
    match packet.header.protocol {
        proto::ICMP | proto::ICMPV6 => {
            let kind = match (sender_opened, packet.header.icmp_type) {
                (false, 0) if packet.header.protocol == proto::ICMP => 8,
                (false, 129) => 128,
                (_, kind) => kind,
            };
            u16::from_ne_bytes([kind, packet.header.icmp_code])
        }
        _ if sender_opened => packet.header.destination_port_be,
        _ => packet.header.source_port_be,
    }
}

/// What policy's word means in the endpoint's mode.
#[inline(always)]
pub fn effective(state: u64, objection: bool) -> Verdict {
    if !objection {
        return Verdict::Forwarded;
    }
    let mode = match POLICIES.get(EndpointState(state).policy()) {
        Some(meta) if meta.ready != 0 => meta.mode,
        // Without a policy nobody has said that passing is right: fail closed.
        _ => Mode::Protect as u8,
    };
    match Mode::from_u8(mode) {
        Some(Mode::Discover) => Verdict::Forwarded,
        Some(Mode::Monitor) => Verdict::Audit,
        Some(Mode::Protect) | None => Verdict::Dropped,
    }
}
