//! State and rules -> verdict.
//!
//! The fast path is in [`judge`]: endpoint, state word, one conntrack lookup, account. Everything
//! else happens once per flow and policy generation.

use aya_ebpf::{helpers::generated::bpf_ktime_get_coarse_ns, programs::TcContext};
use dataplane_common::{
    Direction, DropReason,
    conntrack::{CtEntry, flags, tcp},
    endpoint::{self, EndpointState},
    event::EventKind,
    fragment::{FragmentKey, FragmentPorts},
    policy::{Action, Mode, rule_id},
    proto,
    stats::{SCRATCH_WORDS, Verdict},
};

use crate::{
    conntrack::{self, Key},
    event::{self, Details},
    maps::{CPU_STATE, ENDPOINT_STATES, ENDPOINTS, FRAGMENTS, POLICIES},
    parse::{self, Fragment, Frame, Packet},
    policy::{self, Query},
};

/// A packet in its context: everything the slow path needs, by value. It lives in per-CPU memory
/// (`cpu_state`): the BPF stack is too small for it, and the verifier, which knows nothing of what such
/// memory holds, has far fewer paths to tell apart.
pub struct Flow {
    pub packet: Packet,
    pub key: Key,
    fragment_key: FragmentKey,
    /// Packets this one stands for on the wire (GSO).
    pub segments: u64,
    pub now_ns: u64,
    pub state: u64,
    pub endpoint: u32,
    pub ifindex: u32,
    pub identity: u32,
    pub network: u32,
    pub endpoint_flags: u32,
    /// Number of the workload, see [`EndpointConfig`](dataplane_common::endpoint::EndpointConfig).
    pub owner: u32,
    /// Direction of the packet.
    pub direction: Direction,
    pub unsure_until_ns: u64,
}

impl Flow {
    /// The workload sends this packet.
    #[inline(always)]
    pub fn is_egress(&self) -> bool {
        self.direction as u8 == Direction::Egress as u8
    }

    #[inline(always)]
    fn l3_len(&self) -> u64 {
        u64::from(self.packet.header.l3_len)
    }

    #[inline(always)]
    fn count(&self, verdict: Verdict, reason: u8) {
        event::count(
            verdict,
            self.direction,
            reason,
            self.segments,
            self.l3_len(),
        );
    }
}

/// What policy says of a flow, before modes.
#[derive(Clone, Copy)]
struct Judgement {
    /// `None`: allowed.
    objection: Option<DropReason>,
    rule_id: u32,
    peer: u32,
}

#[inline(always)]
fn skb_ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the kernel passes a valid `__sk_buff`.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[inline(always)]
fn segments(ctx: &TcContext) -> u64 {
    // SAFETY: as above.
    let segments = unsafe { (*ctx.skb.skb).gso_segs };
    if segments == 0 {
        1
    } else {
        u64::from(segments)
    }
}

/// Judges one packet, counts it once, and returns what to do with it.
#[inline(always)]
pub fn judge(ctx: &TcContext, direction: Direction) -> Verdict {
    let ifindex = skb_ifindex(ctx);
    let segments = segments(ctx);
    let bytes = u64::from(ctx.len());
    // SAFETY: read at once below; control replaces values as a whole.
    let endpoint = unsafe { ENDPOINTS.get(ifindex) };
    let Some(endpoint) = endpoint else {
        // Attached but not configured: nothing is known about the workload. Fail closed.
        event::count(
            Verdict::Dropped,
            direction,
            DropReason::NoEndpoint as u8,
            segments,
            bytes,
        );
        return Verdict::Dropped;
    };
    let Some(state) = ENDPOINT_STATES.get_ptr(endpoint.slot) else {
        event::count(
            Verdict::Dropped,
            direction,
            DropReason::NoEndpoint as u8,
            segments,
            bytes,
        );
        return Verdict::Dropped;
    };
    // SAFETY: the pointer is valid for the program's run; control stores whole words.
    let state = EndpointState(unsafe { state.read_volatile() });

    let Some(cpu) = CPU_STATE.get_ptr_mut(0) else {
        // Index 0 of a one-element array exists; the verifier wants to hear it.
        event::count(
            Verdict::Dropped,
            direction,
            DropReason::NoEndpoint as u8,
            segments,
            bytes,
        );
        return Verdict::Dropped;
    };
    const { assert!(size_of::<Flow>() <= SCRATCH_WORDS * size_of::<u64>()) };
    // SAFETY: the element is this CPU's alone: TC programs run with bottom halves off and do not
    // nest. `Flow` fits into the scratch words, is aligned like them, and every field is written
    // below or by parsing before it is read.
    let (cpu, flow) = unsafe {
        (
            &raw mut *cpu,
            &mut *(&raw mut (*cpu).scratch).cast::<Flow>(),
        )
    };
    flow.packet.clear();
    flow.segments = segments;
    // SAFETY: the helper takes no argument and cannot fail.
    flow.now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    flow.state = state.0;
    flow.endpoint = endpoint.id;
    flow.ifindex = ifindex;
    flow.identity = endpoint.identity;
    flow.network = endpoint.network;
    flow.endpoint_flags = endpoint.flags;
    flow.owner = endpoint.owner;
    flow.direction = direction;
    flow.unsure_until_ns = endpoint.unsure_until_ns;
    match parse::parse(ctx, &mut flow.packet) {
        Ok(Frame::Ip) => {}
        Ok(Frame::Arp) => {
            flow.count(Verdict::Forwarded, 0);
            return Verdict::Forwarded;
        }
        Err(reason) => {
            flow.packet.clear_unknown_addresses();
            return refuse(flow, reason);
        }
    }
    if flow.packet.header.fragment == Fragment::Later && !recall_fragment(flow) {
        return refuse(flow, DropReason::FragmentWithoutFirst);
    }

    flow.key.set(flow.endpoint, flow.is_egress(), &flow.packet);
    if let Some(entry) = flow.key.entry() {
        // SAFETY: map values outlive the program run; another CPU may write counters meanwhile.
        let entry = unsafe { &mut *entry };
        if entry.stamp == state.0
            && flow.packet.header.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0
            && entry.verdict != Verdict::Dropped as u8
            && !flow.packet.is_icmp_but_no_echo()
            && (entry.flags & flags::LOCAL_UNCHECKED == 0 || !flow.is_egress())
            && !conntrack::expired(entry, flow.packet.header.protocol, flow.now_ns)
        {
            conntrack::account(entry, flow);
            let verdict = if entry.verdict == Verdict::Audit as u8 {
                Verdict::Audit
            } else {
                Verdict::Forwarded
            };
            if flow.packet.header.fragment == Fragment::First {
                remember_fragment(flow);
            }
            // SAFETY: as above; the counters lie beside the scratch words.
            let counters = unsafe {
                if verdict as u8 == Verdict::Audit as u8 {
                    &mut (*cpu).audited
                } else {
                    &mut (*cpu).forwarded
                }
            };
            let counter = &mut counters[direction as usize];
            counter.packets += segments;
            counter.bytes += flow.l3_len();
            return verdict;
        }
    }
    slow(ctx, flow)
}

/// Everything that is not an established flow under the state in force.
#[inline(never)]
fn slow(ctx: &TcContext, flow: &mut Flow) -> Verdict {
    if let Some(verdict) = control_traffic(flow) {
        return verdict;
    }
    let local_checked = match check_addresses(flow) {
        Ok(checked) => checked,
        Err(DropReason::NotForWorkload) => {
            let verdict = effective(flow.state, true);
            flow.count(verdict, DropReason::NotForWorkload as u8);
            return verdict;
        }
        Err(reason) => return refuse(flow, reason),
    };
    if flow.packet.is_icmp_error() {
        return icmp_error(ctx, flow);
    }

    let packet = &flow.packet;
    let syn = packet.header.protocol == proto::TCP
        && packet.header.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    let entry = flow.key.entry();
    let mut question = Question::New;
    let mut ct_flags = 0;
    if let Some(entry) = entry {
        // SAFETY: map values outlive the program run; another CPU may write counters meanwhile.
        let entry = unsafe { &*entry };
        question = classify(flow, entry, syn);
        ct_flags = entry.flags;
    }
    match question {
        Question::New => ct_flags = opener(flow, syn),
        Question::Reverse => {
            ct_flags = if flow.is_egress() {
                flags::OPENER_LOCAL
            } else {
                0
            };
        }
        Question::Stale | Question::Settled => {}
    }
    if matches!(question, Question::New | Question::Stale) && !local_checked {
        ct_flags |= flags::LOCAL_UNCHECKED;
    } else if flow.is_egress() {
        ct_flags &= !flags::LOCAL_UNCHECKED;
    }
    let mut judgement = Judgement {
        objection: None,
        rule_id: rule_id::NONE,
        peer: 0,
    };
    if question != Question::Settled {
        judgement = judge_flow(flow, ct_flags);
    }
    let Some(entry) = entry else {
        return new_flow(flow, ct_flags, &judgement);
    };
    // SAFETY: as above; only counters are shared with other CPUs.
    let entry = unsafe { &mut *entry };
    match question {
        Question::New => new_flow(flow, ct_flags, &judgement),
        Question::Reverse => open_in_reverse(flow, entry, ct_flags, &judgement),
        Question::Stale => {
            entry.flags = ct_flags;
            restamp(flow, entry, &judgement);
            pass(flow, entry)
        }
        Question::Settled => {
            entry.flags = ct_flags;
            pass(flow, entry)
        }
    }
}

/// What the packet of a flow with an entry asks of policy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Question {
    /// There is no living flow: judge the packet as the first of one.
    New,
    /// The flow was judged under another state: judge it again.
    Stale,
    /// A connection attempt against the direction of the living flow is a question of its own,
    /// answered without touching the flow (simultaneous open).
    Reverse,
    /// Nothing: the entry says it all.
    Settled,
}

#[inline(always)]
fn classify(flow: &Flow, entry: &CtEntry, syn: bool) -> Question {
    if conntrack::expired(entry, flow.packet.header.protocol, flow.now_ns) {
        return Question::New;
    }
    if syn {
        let over = entry.flags & (flags::CLOSED | flags::OPENER_UNSURE) != 0
            || entry.verdict == Verdict::Dropped as u8;
        if over {
            return Question::New;
        }
        if (entry.flags & flags::OPENER_LOCAL != 0) != flow.is_egress() {
            return Question::Reverse;
        }
    }
    if entry.stamp != flow.state {
        Question::Stale
    } else {
        Question::Settled
    }
}

/// Records a new judgement in the entry, and reports it when it changes anything.
#[inline(always)]
fn restamp(flow: &Flow, entry: &mut CtEntry, judgement: &Judgement) {
    let verdict = effective(flow.state, judgement.objection.is_some());
    let changed = entry.verdict != verdict as u8 || entry.rule_id != judgement.rule_id;
    entry.verdict = verdict as u8;
    entry.rule_id = judgement.rule_id;
    entry.peer = judgement.peer;
    entry.stamp = flow.state;
    if changed {
        let details = Details {
            kind: EventKind::Rejudged,
            verdict,
            reason: objection_number(judgement.objection),
            ct_flags: entry.flags,
            rule_id: entry.rule_id,
            peer: entry.peer,
        };
        event::emit(flow, &details, Some(entry));
    }
}

/// A SYN against the direction of a living connection: policy's answer is about this packet alone.
#[inline(always)]
fn open_in_reverse(
    flow: &mut Flow,
    entry: &mut CtEntry,
    ct_flags: u8,
    judgement: &Judgement,
) -> Verdict {
    let verdict = effective(flow.state, judgement.objection.is_some());
    if verdict != Verdict::Forwarded {
        let details = Details {
            kind: EventKind::Denied,
            verdict,
            reason: DropReason::ReverseOpen as u8,
            ct_flags,
            rule_id: judgement.rule_id,
            peer: judgement.peer,
        };
        report(flow, &details);
        return verdict;
    }
    conntrack::account(entry, flow);
    if flow.packet.header.fragment == Fragment::First {
        remember_fragment(flow);
    }
    flow.count(verdict, 0);
    verdict
}

/// A packet of a flow whose entry is up to date.
#[inline(always)]
fn pass(flow: &mut Flow, entry: &mut CtEntry) -> Verdict {
    let verdict = verdict_of(entry.verdict);
    if verdict == Verdict::Dropped {
        let judgement = Judgement {
            objection: None,
            rule_id: entry.rule_id,
            peer: entry.peer,
        };
        entry.last_seen_ns = flow.now_ns;
        return deny(flow, &judgement, DropReason::PolicyRevoked, entry.flags);
    }
    if conntrack::account(entry, flow) {
        let details = Details {
            kind: EventKind::Closed,
            verdict,
            reason: 0,
            ct_flags: entry.flags,
            rule_id: entry.rule_id,
            peer: entry.peer,
        };
        event::emit(flow, &details, Some(entry));
    }
    if flow.packet.header.fragment == Fragment::First {
        remember_fragment(flow);
    }
    flow.count(verdict, 0);
    verdict
}

/// First packet of a flow.
#[inline(always)]
fn new_flow(flow: &mut Flow, ct_flags: u8, judgement: &Judgement) -> Verdict {
    let verdict = effective(flow.state, judgement.objection.is_some());
    let reason = objection_number(judgement.objection);
    if verdict == Verdict::Dropped {
        let reason = judgement.objection.unwrap_or(DropReason::PolicyDefaultDeny);
        return deny(flow, judgement, reason, ct_flags);
    }
    let mut entry = CtEntry {
        stamp: flow.state,
        packets: [0; 2],
        bytes: [0; 2],
        last_seen_ns: flow.now_ns,
        created_ms: (flow.now_ns / 1_000_000) as u32,
        rule_id: judgement.rule_id,
        peer: judgement.peer,
        tcp_flags: [0; 2],
        flags: ct_flags,
        verdict: verdict as u8,
    };
    if conntrack::account(&mut entry, flow) {
        // A reset of a flow nobody knows: nothing will follow, so it needs no state and no event.
        flow.count(verdict, reason);
        return verdict;
    }
    if flow.key.insert(&entry).is_err() && effective(flow.state, true) == Verdict::Dropped {
        return refuse(flow, DropReason::ConntrackFull);
    }
    if flow.packet.header.fragment == Fragment::First {
        remember_fragment(flow);
    }
    let details = Details {
        kind: EventKind::New,
        verdict,
        reason,
        ct_flags,
        rule_id: judgement.rule_id,
        peer: judgement.peer,
    };
    event::emit(flow, &details, None);
    flow.count(verdict, reason);
    verdict
}

/// Who opened the flow whose first packet this is.
#[inline(always)]
fn opener(flow: &Flow, syn: bool) -> u8 {
    let packet = &flow.packet;
    let sender = if flow.is_egress() {
        flags::OPENER_LOCAL
    } else {
        0
    };
    let receiver = sender ^ flags::OPENER_LOCAL;
    match packet.header.protocol {
        proto::TCP if syn => sender,
        // Only a responder sends SYN with ACK.
        proto::TCP if packet.header.tcp_flags & tcp::SYN != 0 => receiver,
        proto::TCP => sender | flags::OPENER_UNSURE,
        proto::ICMP | proto::ICMPV6 if packet.is_icmp_echo_reply() => {
            receiver | flags::OPENER_UNSURE
        }
        proto::ICMP | proto::ICMPV6 => sender,
        _ if flow.now_ns < flow.unsure_until_ns => sender | flags::OPENER_UNSURE,
        _ => sender,
    }
}

/// Judges a flow by its opener. When the opener is a guess, the flow passes if policy allows it in
/// either orientation: its packets are then those of a connection policy allows.
#[inline(always)]
fn judge_flow(flow: &Flow, ct_flags: u8) -> Judgement {
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
fn judge_orientation(flow: &Flow, opener_local: bool) -> Judgement {
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
fn responder_port(packet: &Packet, sender_opened: bool) -> u16 {
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
fn effective(state: u64, objection: bool) -> Verdict {
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

/// A packet refused for what it is, not for what policy says: dropped in protect, recorded and
/// passed in monitor, passed in discover.
#[inline(always)]
fn refuse(flow: &Flow, reason: DropReason) -> Verdict {
    let verdict = effective(flow.state, true);
    let details = Details {
        kind: EventKind::Denied,
        verdict,
        reason: reason as u8,
        // Nothing is known about who opened what; of the packet, who sent it.
        ct_flags: if flow.is_egress() {
            flags::OPENER_LOCAL | flags::OPENER_UNSURE
        } else {
            flags::OPENER_UNSURE
        },
        rule_id: rule_id::NONE,
        peer: 0,
    };
    report(flow, &details);
    verdict
}

/// A packet of a flow that policy does not allow.
#[inline(always)]
fn deny(flow: &Flow, judgement: &Judgement, reason: DropReason, ct_flags: u8) -> Verdict {
    let details = Details {
        kind: EventKind::Denied,
        verdict: Verdict::Dropped,
        reason: reason as u8,
        ct_flags,
        rule_id: judgement.rule_id,
        peer: judgement.peer,
    };
    report(flow, &details);
    Verdict::Dropped
}

/// Counts the packet and, unless discover mode lets it pass unremarked, sends the event.
#[inline(never)]
fn report(flow: &Flow, details: &Details) {
    if details.verdict as u8 != Verdict::Forwarded as u8 {
        event::emit(flow, details, None);
    }
    flow.count(details.verdict, details.reason);
}

/// Address resolution, router solicitation, multicast listener reports and DHCP: what a workload
/// needs to have a network at all. Returns `None` for everything that policy judges.
#[inline(always)]
fn control_traffic(flow: &mut Flow) -> Option<Verdict> {
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
fn icmp_error(ctx: &TcContext, flow: &mut Flow) -> Verdict {
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
fn check_addresses(flow: &Flow) -> Result<bool, DropReason> {
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

#[inline(always)]
fn set_fragment_key(flow: &mut Flow) {
    flow.fragment_key = FragmentKey {
        endpoint: flow.endpoint,
        id: flow.packet.header.fragment_id,
        source: flow.packet.source.bytes(),
        destination: flow.packet.destination.bytes(),
        protocol: flow.packet.header.protocol,
        _pad: [0; 3],
    };
}

/// Notes the ports of a first fragment that passed.
#[inline(always)]
fn remember_fragment(flow: &mut Flow) {
    set_fragment_key(flow);
    let ports = FragmentPorts {
        source_port_be: flow.packet.header.source_port_be,
        destination_port_be: flow.packet.header.destination_port_be,
    };
    // A full map costs later fragments their verdict, never the reverse: LRU evicts, and a fragment
    // without its first is refused.
    let _ = FRAGMENTS.insert(&flow.fragment_key, ports, 0);
}

/// Fills in the ports of a later fragment; false when its first was not seen passing.
#[inline(always)]
fn recall_fragment(flow: &mut Flow) -> bool {
    set_fragment_key(flow);
    // SAFETY: copied at once.
    let Some(ports) = (unsafe { FRAGMENTS.get(&flow.fragment_key) }) else {
        return false;
    };
    flow.packet.header.source_port_be = ports.source_port_be;
    flow.packet.header.destination_port_be = ports.destination_port_be;
    if flow.packet.header.protocol == proto::TCP {
        flow.packet.header.tcp_flags = tcp::ACK;
    } else if matches!(flow.packet.header.protocol, proto::ICMP | proto::ICMPV6) {
        let [kind, code] = ports.destination_port_be.to_ne_bytes();
        flow.packet.header.icmp_type = kind;
        flow.packet.header.icmp_code = code;
    }
    true
}

#[inline(always)]
fn objection_number(objection: Option<DropReason>) -> u8 {
    match objection {
        Some(reason) => reason as u8,
        None => 0,
    }
}

#[inline(always)]
fn verdict_of(byte: u8) -> Verdict {
    match Verdict::from_u8(byte) {
        Some(verdict) => verdict,
        // Only this program writes entries; an unknown byte means a damaged map. Fail closed.
        None => Verdict::Dropped,
    }
}
