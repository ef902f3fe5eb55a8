//! The dataplane once more, slow and obvious: what the BPF programs must do with each packet.
//!
//! Written from `docs/ARCHITECTURE.md`, the documentation of `dataplane-common` and the RFCs, on
//! ordinary collections, with policy answered by [`policy::evaluate`]. The differential test holds the
//! programs to it. The rules, in the order in which they are asked:
//!
//! 1. A frame that is not understood is refused ([`packet`]); ARP passes. *Refused* means dropped in
//!    protect, passed and recorded in monitor, passed in discover. A refused packet says nothing of
//!    who opened a flow, so its sender stands as an unsure opener.
//! 2. A later fragment has the ports of its first, or is refused.
//! 3. A packet of a flow that was judged under the state in force passes as the flow does, unless
//!    it carries SYN, FIN or RST, is an ICMP message other than echo, or is the first that the
//!    workload sends from an address nobody has checked.
//! 4. Control traffic passes (neighbour discovery, group membership, DHCP); what only routers send
//!    does not leave a workload.
//! 5. A multicast or loopback source is refused, a packet for somebody else is dropped without an
//!    event, and one from an address that is not the workload's is refused, unless the endpoint still
//!    learns its addresses or the address is link-local.
//! 6. An ICMP error passes if it is about a flow that passes and goes to the sender of the packet it
//!    is about. It is part of no flow and counted on none.
//! 7. Everything else belongs to a flow of its own, see `Reference::flow`.
//!
//! Time is no part of it: sequences are far shorter than every timeout.

pub mod packet;
mod passage;
pub mod rules;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use dataplane_common::conntrack::flags;
use dataplane_common::event::EventKind;
use dataplane_common::policy::rule_id;
use dataplane_common::stats::Verdict;
use dataplane_common::{Direction, DropReason, proto};
use policy::compile::IdentityInfo;
use policy::model::Mode;

use packet::{Fragment, Kind, Layer4, Packet, offending, parse};
pub use passage::{Entry, Key, Outcome, Told};
use passage::{Passage, account, builtin, datagram, key};
use rules::{Answer, Question, World};

/// The dataplane of one workload.
#[derive(Debug)]
pub struct Reference {
    /// What is in force.
    world: World,
    /// The state word in force.
    state: u64,
    /// Connectionless flows may be older than the hooks.
    unsure: bool,
    /// Conntrack.
    pub flows: HashMap<Key, Entry>,
    fragments: HashMap<(u32, IpAddr, IpAddr, u8), Layer4>,
    answers: HashMap<Question, Answer>,
    identities: HashMap<IpAddr, IdentityInfo>,
}

impl Reference {
    /// A workload nobody has seen a packet of. `unsure`: its connectionless flows may be older than
    /// the hooks.
    #[must_use]
    pub fn new(world: World, state: u64, unsure: bool) -> Self {
        Self {
            world,
            state,
            unsure,
            flows: HashMap::new(),
            fragments: HashMap::new(),
            answers: HashMap::new(),
            identities: HashMap::new(),
        }
    }

    /// Puts another world in force, under a new state word.
    pub fn change(&mut self, world: World, state: u64) {
        self.world = world;
        self.state = state;
        self.answers.clear();
        self.identities.clear();
    }

    /// What is in force.
    #[must_use]
    pub const fn world(&self) -> &World {
        &self.world
    }

    /// Judges a packet.
    pub fn judge(&mut self, direction: Direction, frame: &[u8]) -> Outcome {
        let (packet, kind) = parse(frame);
        let mut passage = Passage {
            direction,
            packet,
            key: None,
            events: Vec::new(),
        };
        match kind {
            Ok(Kind::Ip) => {}
            Ok(Kind::Arp) => return passage.done(Verdict::Forwarded, None),
            Err(reason) => return self.refuse(passage, reason),
        }
        if passage.packet.fragment == Some(Fragment::Later) {
            match self.fragments.get(&datagram(&passage.packet)) {
                // A flow's opening and end stand in its first fragment, and count once.
                Some(first) if passage.packet.protocol == proto::TCP => {
                    passage.packet.l4 = Layer4 {
                        tcp_flags: 16,
                        ..*first
                    };
                }
                Some(first) => passage.packet.l4 = *first,
                None => return self.refuse(passage, DropReason::FragmentWithoutFirst),
            }
        }
        let key = key(direction, &passage.packet);
        passage.key = Some(key);
        if self.is_established(&passage, &key) {
            return self.pass(passage, key);
        }
        if let Some(verdict) = self.control(&passage) {
            return match verdict {
                Ok(()) => {
                    self.remember(&passage.packet);
                    passage.done(Verdict::Forwarded, None)
                }
                Err(reason) => self.refuse(passage, reason),
            };
        }
        let checked = match self.check_addresses(&mut passage) {
            Ok(checked) => checked,
            Err(DropReason::NotForWorkload) => {
                return passage.done(self.objected(), Some(DropReason::NotForWorkload));
            }
            Err(reason) => return self.refuse(passage, reason),
        };
        if passage.packet.is_icmp_error() {
            return self.icmp_error(passage);
        }
        self.flow(passage, key, checked)
    }

    /// What becomes of a packet that something speaks against.
    fn objected(&self) -> Verdict {
        match self.world.mode {
            Mode::Discover => Verdict::Forwarded,
            Mode::Monitor => Verdict::Audit,
            Mode::Protect => Verdict::Dropped,
        }
    }

    fn refuse(&self, mut passage: Passage, reason: DropReason) -> Outcome {
        let verdict = self.objected();
        if verdict != Verdict::Forwarded {
            let unsure = passage.sender() | flags::OPENER_UNSURE;
            let told = passage.told(EventKind::Denied, verdict, unsure);
            passage.events.push(Told {
                reason: Some(reason),
                ..told
            });
        }
        passage.done(verdict, Some(reason))
    }

    fn is_established(&self, passage: &Passage, key: &Key) -> bool {
        let Some(entry) = self.flows.get(key) else {
            return false;
        };
        let unchecked = entry.flags & flags::LOCAL_UNCHECKED != 0;
        entry.stamp == self.state
            && entry.verdict != Verdict::Dropped
            && !passage.has_tcp(1 | 2 | 4)
            && (!passage.packet.is_icmp() || passage.packet.is_echo())
            && !(unchecked && passage.direction == Direction::Egress)
    }

    /// `Ok` for control traffic that passes, `Err` for what only routers may send, `None` for
    /// everything else.
    fn control(&self, passage: &Passage) -> Option<Result<(), DropReason>> {
        let packet = &passage.packet;
        let egress = passage.direction == Direction::Egress;
        let l4 = &packet.l4;
        let pass = match (packet.protocol, l4.icmp) {
            // RFC 4861 section 7.1: from this link only.
            (proto::ICMPV6, Some((133 | 135 | 136, _))) => packet.hop_limit == 255,
            (proto::ICMPV6, Some((134 | 137, _))) if packet.hop_limit == 255 => {
                if egress {
                    return Some(Err(DropReason::RouterMessageFromWorkload));
                }
                true
            }
            // RFC 2710, RFC 3810.
            (proto::ICMPV6, Some((130 | 131 | 132 | 143, _))) => packet.hop_limit == 1,
            (proto::ICMP, Some((5, _))) if egress => {
                return Some(Err(DropReason::RouterMessageFromWorkload));
            }
            // RFC 3376 section 4.
            (proto::IGMP, _) => packet.hop_limit == 1 && is_many(packet.destination()),
            (proto::UDP, _) => match (l4.source_port, l4.destination_port) {
                (68, 67) | (546, 547) => egress && is_many(packet.destination()),
                (67, 68) | (547, 546) => !egress,
                _ => false,
            },
            _ => false,
        };
        pass.then_some(Ok(()))
    }

    /// Whether the workload's side is known to be the workload's own, or the reason to refuse.
    fn check_addresses(&self, passage: &mut Passage) -> Result<bool, DropReason> {
        let source = passage.packet.source();
        if is_many(source) || source.is_loopback() {
            return Err(DropReason::MartianAddress);
        }
        let estate = &self.world.estate;
        let (own, others) = estate.workloads.split_first().expect("the workload");
        let is_taken = |address: &IpAddr| {
            estate.host_addresses.contains(address)
                || others.iter().any(|other| other.addresses.contains(address))
        };
        if passage.direction == Direction::Ingress {
            let destination = passage.packet.destination();
            return match own.addresses.contains(&destination) {
                false if is_taken(&destination) => Err(DropReason::NotForWorkload),
                is_own => Ok(is_own),
            };
        }
        if own.addresses.contains(&source) {
            return Ok(true);
        }
        if is_taken(&source) {
            return Err(DropReason::SourceSpoofed);
        }
        if own.addresses.is_empty() {
            let told = passage.told(EventKind::AddressSeen, Verdict::Forwarded, 0);
            passage.events.push(told);
            return Ok(true);
        }
        match source {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Ok(true),
            _ => Err(DropReason::SourceSpoofed),
        }
    }

    /// RFC 5927 section 4.1: an error must be about something that was sent.
    fn icmp_error(&self, mut passage: Passage) -> Outcome {
        let about = match offending(&passage.packet) {
            Ok(about) => about,
            Err(reason) => return self.refuse(passage, reason),
        };
        let mut key = Key {
            local: about.source,
            remote: about.destination,
            local_port: about.source_port,
            remote_port: about.destination_port,
            protocol: about.protocol,
        };
        if passage.direction == Direction::Egress {
            std::mem::swap(&mut key.local, &mut key.remote);
            // An echo has its identifier on both sides.
            if !matches!(key.protocol, proto::ICMP | proto::ICMPV6) {
                std::mem::swap(&mut key.local_port, &mut key.remote_port);
            }
        }
        passage.key = Some(key);
        let about_passing = self.flows.get(&key).is_some_and(|entry| {
            // An entry judged under another state says nothing about the policy in force.
            entry.verdict != Verdict::Dropped
                && (entry.stamp == self.state || self.objected() != Verdict::Dropped)
        });
        if !about_passing || passage.packet.destination() != about.source {
            return self.refuse(passage, DropReason::IcmpErrorUnrelated);
        }
        passage.done(Verdict::Forwarded, None)
    }

    /// A packet of a flow, with the first one of it.
    ///
    /// - Without an entry the packet begins a flow. So does a SYN where the entry is of a closed
    ///   connection, of one whose opener is a guess, or of one that policy stopped.
    /// - A SYN against the direction of a living connection is a question of its own. A no is
    ///   `reverse_open` and leaves the flow alone.
    /// - An entry of another state is judged again first. A change is told.
    fn flow(&mut self, mut passage: Passage, key: Key, checked: bool) -> Outcome {
        let opening =
            passage.packet.protocol == proto::TCP && passage.has_tcp(2) && !passage.has_tcp(16);
        let sender = passage.sender();
        let Some(entry) = self.flows.get(&key).cloned() else {
            return self.begin(passage, key, checked);
        };
        if opening {
            if entry.flags & (flags::CLOSED | flags::OPENER_UNSURE) != 0
                || entry.verdict == Verdict::Dropped
            {
                return self.begin(passage, key, checked);
            }
            if entry.flags & flags::OPENER_LOCAL != sender {
                return self.open_in_reverse(passage, key);
            }
        }
        let mut entry = entry;
        if passage.direction == Direction::Egress {
            entry.flags &= !flags::LOCAL_UNCHECKED;
        }
        if entry.stamp != self.state {
            let judgement = self.ask(&passage, entry.flags);
            let verdict = self.verdict_of(&judgement);
            let changed = entry.verdict != verdict || entry.rule != judgement.rule;
            entry.verdict = verdict;
            entry.rule = judgement.rule;
            entry.peer = self.identity(passage.remote());
            entry.stamp = self.state;
            if !checked {
                entry.flags |= flags::LOCAL_UNCHECKED;
            }
            if changed {
                let told = passage.told(EventKind::Rejudged, verdict, entry.flags);
                passage.events.push(Told {
                    reason: (!judgement.allowed).then_some(DropReason::PolicyDefaultDeny),
                    rule: entry.rule.clone(),
                    peer: Some(entry.peer.clone()),
                    packets: entry.packets,
                    bytes: entry.bytes,
                    ..told
                });
            }
        }
        self.flows.insert(key, entry);
        self.pass(passage, key)
    }

    /// A packet of a flow whose entry is up to date.
    fn pass(&mut self, mut passage: Passage, key: Key) -> Outcome {
        let entry = self.flows.get_mut(&key).expect("the caller found it");
        let verdict = entry.verdict;
        if verdict == Verdict::Dropped {
            let told = passage.told(EventKind::Denied, verdict, entry.flags);
            passage.events.push(Told {
                reason: Some(DropReason::PolicyRevoked),
                rule: entry.rule.clone(),
                peer: Some(entry.peer.clone()),
                ..told
            });
            return passage.seen(verdict, Some(DropReason::PolicyRevoked));
        }
        if account(entry, &passage) {
            let told = passage.told(EventKind::Closed, verdict, entry.flags);
            passage.events.push(Told {
                rule: entry.rule.clone(),
                peer: Some(entry.peer.clone()),
                packets: entry.packets,
                bytes: entry.bytes,
                ..told
            });
        }
        self.remember(&passage.packet);
        passage.seen(verdict, None)
    }

    fn begin(&mut self, mut passage: Passage, key: Key, checked: bool) -> Outcome {
        let mut opener = self.opener(&passage);
        if !checked {
            opener |= flags::LOCAL_UNCHECKED;
        }
        let judgement = self.ask(&passage, opener);
        let verdict = self.verdict_of(&judgement);
        let reason = (!judgement.allowed).then_some(DropReason::PolicyDefaultDeny);
        let peer = self.identity(passage.remote());
        let mut entry = Entry {
            stamp: self.state,
            packets: [0; 2],
            bytes: [0; 2],
            rule: judgement.rule.clone(),
            peer: peer.clone(),
            tcp_flags: [0; 2],
            flags: opener,
            verdict,
        };
        let kind = if verdict == Verdict::Dropped {
            EventKind::Denied
        } else {
            EventKind::New
        };
        if verdict != Verdict::Dropped && account(&mut entry, &passage) {
            // A reset of a flow nobody knows needs no state: nothing follows.
            return passage.done(verdict, reason);
        }
        let told = passage.told(kind, verdict, opener);
        passage.events.push(Told {
            reason,
            rule: judgement.rule,
            peer: Some(peer),
            ..told
        });
        if verdict == Verdict::Dropped {
            return passage.done(verdict, reason);
        }
        self.flows.insert(key, entry);
        self.remember(&passage.packet);
        passage.seen(verdict, reason)
    }

    fn open_in_reverse(&mut self, mut passage: Passage, key: Key) -> Outcome {
        let sender = passage.sender();
        let judgement = self.ask(&passage, sender);
        let verdict = self.verdict_of(&judgement);
        if verdict == Verdict::Forwarded {
            let entry = self.flows.get_mut(&key).expect("the caller found it");
            account(entry, &passage);
            self.remember(&passage.packet);
            return passage.seen(verdict, None);
        }
        let told = passage.told(EventKind::Denied, verdict, sender);
        passage.events.push(Told {
            reason: Some(DropReason::ReverseOpen),
            rule: judgement.rule,
            peer: Some(self.identity(passage.remote())),
            ..told
        });
        passage.done(verdict, Some(DropReason::ReverseOpen))
    }

    /// Who opened the flow that this packet is the first seen of.
    fn opener(&self, passage: &Passage) -> u8 {
        let packet = &passage.packet;
        let sender = passage.sender();
        let receiver = sender ^ flags::OPENER_LOCAL;
        let (syn, ack) = (passage.has_tcp(2), passage.has_tcp(16));
        match packet.protocol {
            proto::TCP if syn && ack => receiver,
            proto::TCP if syn => sender,
            proto::TCP => sender | flags::OPENER_UNSURE,
            _ if packet.is_echo_reply() => receiver | flags::OPENER_UNSURE,
            _ if packet.is_icmp() => sender,
            _ if self.unsure => sender | flags::OPENER_UNSURE,
            _ => sender,
        }
    }

    /// Policy's answer for a flow opened so. A guessed opener passes if either end may have opened it.
    fn ask(&mut self, passage: &Passage, opener: u8) -> Answer {
        if self.world.mode == Mode::Discover {
            return Answer {
                allowed: true,
                rule: builtin(rule_id::NONE),
            };
        }
        let guess = self.ask_one(passage, opener & flags::OPENER_LOCAL != 0);
        if guess.allowed || opener & flags::OPENER_UNSURE == 0 {
            return guess;
        }
        let other = self.ask_one(passage, opener & flags::OPENER_LOCAL == 0);
        if other.allowed { other } else { guess }
    }

    fn ask_one(&mut self, passage: &Passage, workload_opened: bool) -> Answer {
        let packet = &passage.packet;
        let workload_sends = passage.direction == Direction::Egress;
        let port = match packet.l4.icmp {
            // NetworkPolicy has no word for ICMP types.
            Some(_) => 0,
            None if workload_opened == workload_sends => packet.l4.destination_port,
            None => packet.l4.source_port,
        };
        let question = Question {
            direction: if workload_opened {
                Direction::Egress
            } else {
                Direction::Ingress
            },
            remote: passage.remote(),
            protocol: packet.protocol,
            port,
        };
        let world = &self.world;
        self.answers
            .entry(question)
            .or_insert_with(|| world.ask(&question))
            .clone()
    }

    fn verdict_of(&self, answer: &Answer) -> Verdict {
        if answer.allowed {
            Verdict::Forwarded
        } else {
            self.objected()
        }
    }

    fn identity(&mut self, address: IpAddr) -> IdentityInfo {
        let world = &self.world;
        self.identities
            .entry(address)
            .or_insert_with(|| world.identity(address))
            .clone()
    }

    /// Later fragments follow the verdict of their first.
    fn remember(&mut self, packet: &Packet) {
        if packet.fragment == Some(Fragment::First) {
            self.fragments.insert(datagram(packet), packet.l4);
        }
    }
}

/// Multicast, broadcast, or reserved next to them (224.0.0.0/3, ff00::/8).
fn is_many(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4 >= Ipv4Addr::new(224, 0, 0, 0),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}
