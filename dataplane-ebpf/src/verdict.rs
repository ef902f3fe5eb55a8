//! State and rules -> verdict.
//!
//! The fast path is in [`judge`]: endpoint, state word, one conntrack lookup, account. Everything
//! else happens once per flow and policy generation.

use aya_ebpf::{helpers::generated::bpf_ktime_get_coarse_ns, programs::TcContext};
use dataplane_common::{
    Direction, DropReason,
    conntrack::{CtEntry, flags, tcp},
    endpoint::EndpointState,
    event::EventKind,
    fragment::FragmentKey,
    policy::rule_id,
    proto,
    stats::{SCRATCH_WORDS, Verdict},
};

use crate::{
    conntrack::{self, Key},
    control::{check_addresses, control_traffic, icmp_error},
    event::{self, Details},
    fragment::{recall_fragment, remember_fragment},
    judge::{Judgement, effective, judge_flow},
    maps::{CPU_STATE, ENDPOINT_STATES, ENDPOINTS},
    parse::{self, Fragment, Frame, Packet},
};

/// A packet in its context: everything the slow path needs, by value. It lives in per-CPU memory
/// (`cpu_state`): the BPF stack is too small for it, and the verifier, which knows nothing of what such
/// memory holds, has far fewer paths to tell apart.
pub struct Flow {
    pub packet: Packet,
    pub key: Key,
    pub fragment_key: FragmentKey,
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
    pub fn count(&self, verdict: Verdict, reason: u8) {
        event::count(
            verdict,
            self.direction,
            reason,
            self.segments,
            self.l3_len(),
        );
    }
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

/// A packet refused for what it is, not for what policy says: dropped in protect, recorded and
/// passed in monitor, passed in discover.
#[inline(always)]
pub fn refuse(flow: &Flow, reason: DropReason) -> Verdict {
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
