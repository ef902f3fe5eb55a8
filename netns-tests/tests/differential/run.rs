//! Runs a case through the kernel and through the reference, and compares every trace.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use aya::maps::{Array, HashMap as BpfMap, Map, MapData, MapError, PerCpuArray};
use daemon::flow::clock::monotonic_ns;
use dataplane_common::event::{EventKind, FlowEvent};
use dataplane_common::stats::{CpuState, PACKET_STATS_LEN, Verdict, stats_index};
use dataplane_common::{Direction, DropReason};
use netns_tests::kernel::Kernel;
use netns_tests::reference::{Entry, Key, Outcome, Reference, Told};
use policy::compile::{IdentityInfo, Interner};
use policy::evaluate::RuleRef;

use crate::case::{Case, Step, WorldText};

/// Index of loopback, the workload's interface.
const LOOPBACK: u32 = 1;
/// How far the coarse clock lags behind (a tick at 100 Hz, doubled).
const TICK_NS: u64 = 20_000_000;

type Key4 = [u8; 20];
type Key6 = [u8; 44];
type Value = [u8; 64];
type CpuWords = [u64; size_of::<CpuState>() / 8];

/// A disagreement.
#[derive(Debug)]
pub struct Disagreement {
    /// The step at which it showed.
    pub step: usize,
    /// What differs.
    pub text: String,
}

/// The kernel side, with the maps that only this test reads.
pub struct Runner<'k> {
    kernel: &'k mut Kernel,
    ct4: BpfMap<MapData, Key4, Value>,
    ct6: BpfMap<MapData, Key6, Value>,
    endpoints: BpfMap<MapData, u32, [u8; 32]>,
    states: Array<MapData, u64>,
    stats: PerCpuArray<MapData, [u64; 2]>,
    /// Counters of established flows, then memory that only programs use.
    cpu_state: PerCpuArray<MapData, CpuWords>,
    lost: PerCpuArray<MapData, u64>,
    /// Packets and bytes by index, as they must be.
    counters: Vec<[u64; 2]>,
    attached: bool,
    /// Verdicts and reasons met, to see that nothing is left out.
    pub met: HashMap<(Verdict, Option<DropReason>), u64>,
}

/// An entry as the kernel holds it, with the parts that the reference does not predict exactly.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    entry: Entry,
    last_seen_ns: u64,
    created_ms: u32,
}

struct Endpoint {
    id: u32,
    state: u64,
}

impl<'k> Runner<'k> {
    pub fn new(kernel: &'k mut Kernel) -> Self {
        fn open<T: TryFrom<Map, Error = MapError>>(
            pins: &Path,
            name: &str,
            kind: impl FnOnce(MapData) -> Map,
        ) -> T {
            let data = MapData::from_pin(pins.join(name)).expect("the map is pinned");
            T::try_from(kind(data)).expect("the layout is as here")
        }
        let pins = kernel.pins();
        Self {
            ct4: open(&pins, "ct4", Map::LruHashMap),
            ct6: open(&pins, "ct6", Map::LruHashMap),
            endpoints: open(&pins, "endpoints", Map::HashMap),
            states: open(&pins, "endpoint_states", Map::Array),
            stats: open(&pins, "packet_stats", Map::PerCpuArray),
            cpu_state: open(&pins, "cpu_state", Map::PerCpuArray),
            lost: open(&pins, "lost_events", Map::PerCpuArray),
            kernel,
            counters: vec![[0; 2]; PACKET_STATS_LEN as usize],
            attached: false,
            met: HashMap::new(),
        }
    }

    /// Runs a case from an empty conntrack to an empty conntrack.
    pub fn run(&mut self, case: &Case) -> Result<(), Disagreement> {
        self.attached = false;
        for index in 0..PACKET_STATS_LEN {
            self.counters[index as usize] = self.counter(index);
        }
        let outcome = self.steps(case);
        self.clear_conntrack();
        outcome
    }

    fn steps(&mut self, case: &Case) -> Result<(), Disagreement> {
        let mut reference: Option<Reference> = None;
        let mut prepared: Option<&WorldText> = None;
        let mut endpoint = Endpoint { id: 0, state: 0 };
        // Entries as last read, for what must not change.
        let mut held: HashMap<Key, Held> = HashMap::new();
        for (index, step) in case.steps.iter().enumerate() {
            let fail = |text| Disagreement { step: index, text };
            match step {
                Step::World(world) => {
                    prepared = Some(world);
                    self.prepare(world);
                    if let Some(reference) = &mut reference {
                        self.kernel.apply().expect("the world applies");
                        endpoint = self.endpoint();
                        reference.change(world.world(), endpoint.state);
                    }
                }
                Step::Attach { unsure } => {
                    let world = prepared.expect("a world comes first");
                    self.clear_conntrack();
                    held.clear();
                    self.kernel.unsure_for = Duration::from_secs(if *unsure { 3600 } else { 0 });
                    self.kernel.reattach();
                    endpoint = self.endpoint();
                    reference = Some(Reference::new(world.world(), endpoint.state, *unsure));
                }
                Step::Reopen => self.kernel.reopen(),
                Step::Packet { direction, frame } => {
                    let reference = reference.as_mut().expect("an endpoint comes first");
                    self.packet(reference, &endpoint, &mut held, *direction, frame)
                        .map_err(fail)?;
                }
            }
        }
        let end = case.steps.len().saturating_sub(1);
        if let Some(reference) = &reference {
            self.compare_rest(reference, &endpoint)
                .map_err(|text| Disagreement { step: end, text })?;
        }
        Ok(())
    }

    fn prepare(&mut self, world: &WorldText) {
        self.kernel.set_policies(&world.policies);
        self.kernel.set_mode(world.mode);
        self.kernel.set_unselected(world.unselected);
        *self.kernel.estate_mut() = world.estate.clone();
    }

    fn packet(
        &mut self,
        reference: &mut Reference,
        endpoint: &Endpoint,
        held: &mut HashMap<Key, Held>,
        direction: Direction,
        frame: &[u8],
    ) -> Result<(), String> {
        let expected = reference.judge(direction, frame);
        let before = monotonic_ns();
        let (passed, events) = self.kernel.judge(direction, frame);
        let time = before - TICK_NS..=monotonic_ns();
        *self
            .met
            .entry((expected.verdict, expected.reason))
            .or_default() += 1;

        let reason = expected.reason.map_or(0, |reason| reason as u8);
        let index = stats_index(expected.verdict, direction, reason);
        let counter = &mut self.counters[index as usize];
        counter[0] += 1;
        counter[1] += expected.bytes;
        let counter = *counter;
        if passed != (expected.verdict != Verdict::Dropped) || self.counter(index) != counter {
            let moved = self.moved_counters();
            return Err(format!(
                "the kernel lets it {}, counters: {moved}\n{}",
                if passed { "pass" } else { "drop" },
                describe(&expected, &events, self.kernel.interner()),
            ));
        }
        let own = reference.world().own_identity();
        self.compare_events(endpoint, direction, &own, &expected, &events)?;
        for event in &events {
            if !time.contains(&event.time_ns) {
                return Err(format!("event at {} outside of {time:?}", event.time_ns));
            }
        }
        let Some(key) = expected.key else {
            return Ok(());
        };
        let wanted = reference.flows.get(&key);
        let found = self.entry(endpoint.id, &key)?;
        if wanted != found.as_ref().map(|found| &found.entry) {
            return Err(format!(
                "conntrack at {key:?}\n  kernel    {:?}\n  reference {wanted:?}\n{}",
                found.map(|found| found.entry),
                describe(&expected, &events, self.kernel.interner()),
            ));
        }
        let old = held.get(&key);
        if let Some(found) = found {
            let fresh = old.is_none_or(|old| found.created_ms != old.created_ms);
            let created = u64::from(found.created_ms);
            let right_time = if expected.seen {
                time.contains(&found.last_seen_ns)
            } else {
                old.is_some_and(|old| old.last_seen_ns == found.last_seen_ns)
            };
            let start = (time.start() / 1_000_000) & 0xffff_ffff;
            let end = (time.end() / 1_000_000) & 0xffff_ffff;
            if !right_time || (fresh && !(start..=end).contains(&created)) {
                return Err(format!(
                    "times of {key:?}: {found:?}, before {old:?}, now {time:?}"
                ));
            }
            held.insert(key, found);
        }
        Ok(())
    }

    fn compare_events(
        &self,
        endpoint: &Endpoint,
        direction: Direction,
        own: &IdentityInfo,
        expected: &Outcome,
        events: &[FlowEvent],
    ) -> Result<(), String> {
        let interner = self.kernel.interner();
        let told: Vec<Option<Told>> = events.iter().map(|event| told(event, interner)).collect();
        let same = told.len() == expected.events.len()
            && told
                .iter()
                .zip(&expected.events)
                .all(|(found, wanted)| found.as_ref() == Some(wanted));
        if !same {
            return Err(describe(expected, events, interner));
        }
        for event in events {
            let context = (
                event.endpoint,
                event.state,
                event.ifindex,
                event.direction,
                interner.identity(event.identity),
            );
            let wanted = (
                endpoint.id,
                endpoint.state,
                LOOPBACK,
                direction as u8,
                Some(own.clone()),
            );
            if context != wanted {
                return Err(format!("event of {context:?} instead of {wanted:?}"));
            }
        }
        Ok(())
    }

    /// What no single packet shows: entries nobody expects, counters nobody should have moved.
    fn compare_rest(&mut self, reference: &Reference, endpoint: &Endpoint) -> Result<(), String> {
        let keys = self
            .ct4
            .keys()
            .map(|key| unkey4(&key.expect("a readable map")))
            .chain(
                self.ct6
                    .keys()
                    .map(|key| unkey6(&key.expect("a readable map"))),
            );
        for (id, key) in keys {
            if id != endpoint.id || !reference.flows.contains_key(&key) {
                return Err(format!("an entry nobody expects: endpoint {id}, {key:?}"));
            }
        }
        for (key, wanted) in &reference.flows {
            let found = self.entry(endpoint.id, key)?.map(|found| found.entry);
            if found.as_ref() != Some(wanted) {
                return Err(format!(
                    "at the end {key:?}\n  kernel    {found:?}\n  reference {wanted:?}"
                ));
            }
        }
        let moved = self.moved_counters();
        if !moved.is_empty() {
            return Err(format!(
                "counters moved besides those of the packets: {moved}"
            ));
        }
        for kind in 0..self.lost.len() {
            let values = self.lost.get(&kind, 0).expect("a readable map");
            if values.iter().any(|value| *value != 0) {
                return Err(format!("events of kind {kind} are lost"));
            }
        }
        Ok(())
    }

    /// Counters that are not as predicted, by name.
    fn moved_counters(&self) -> String {
        let mut rows = Vec::new();
        for verdict in [
            Verdict::Forwarded,
            Verdict::Dropped,
            Verdict::Audit,
            Verdict::Redirected,
        ] {
            for direction in [Direction::Ingress, Direction::Egress] {
                for reason in 0..dataplane_common::stats::REASONS as u8 {
                    let index = stats_index(verdict, direction, reason);
                    let (found, wanted) = (self.counter(index), self.counters[index as usize]);
                    if found != wanted {
                        let reason = DropReason::from_u8(reason).map_or("-", DropReason::as_str);
                        rows.push(format!(
                            "{}/{}/{reason} is {found:?}, should be {wanted:?}",
                            verdict.as_str(),
                            direction.as_str()
                        ));
                    }
                }
            }
        }
        rows.join("; ")
    }

    fn counter(&self, index: u32) -> [u64; 2] {
        let values = self.stats.get(&index, 0).expect("a readable map");
        let mut sum = values
            .iter()
            .fold([0; 2], |sum, value| [sum[0] + value[0], sum[1] + value[1]]);
        // Established flows are counted apart, by direction: those forwarded, then those audited.
        for (at, verdict) in [(0, Verdict::Forwarded), (4, Verdict::Audit)] {
            for direction in [Direction::Ingress, Direction::Egress] {
                if index == stats_index(verdict, direction, 0) {
                    let at = at + 2 * direction as usize;
                    for words in self.cpu_state.get(&0, 0).expect("a readable map").iter() {
                        sum = [sum[0] + words[at], sum[1] + words[at + 1]];
                    }
                }
            }
        }
        sum
    }

    fn endpoint(&self) -> Endpoint {
        let config = self.endpoints.get(&LOOPBACK, 0).expect("web is attached");
        let word = |at: usize| u32::from_ne_bytes(config[at..at + 4].try_into().expect("four"));
        let (id, slot) = (word(0), word(4));
        let state = self.states.get(&slot, 0).expect("the slot exists");
        Endpoint { id, state }
    }

    fn entry(&self, endpoint: u32, key: &Key) -> Result<Option<Held>, String> {
        let value = match (key.local, key.remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                let mut bytes: Key4 = [0; 20];
                bytes[4..8].copy_from_slice(&local.octets());
                bytes[8..12].copy_from_slice(&remote.octets());
                fill_key(&mut bytes, 12, endpoint, key);
                self.ct4.get(&bytes, 0)
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                let mut bytes: Key6 = [0; 44];
                bytes[4..20].copy_from_slice(&local.octets());
                bytes[20..36].copy_from_slice(&remote.octets());
                fill_key(&mut bytes, 36, endpoint, key);
                self.ct6.get(&bytes, 0)
            }
            _ => return Err(format!("{key:?} is of two families")),
        };
        match value {
            Ok(value) => held(&value, self.kernel.interner()).map(Some),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => panic!("conntrack cannot be read: {error}"),
        }
    }

    fn clear_conntrack(&mut self) {
        for key in self
            .ct4
            .keys()
            .collect::<Result<Vec<_>, _>>()
            .expect("keys")
        {
            self.ct4.remove(&key).expect("an entry can be removed");
        }
        for key in self
            .ct6
            .keys()
            .collect::<Result<Vec<_>, _>>()
            .expect("keys")
        {
            self.ct6.remove(&key).expect("an entry can be removed");
        }
    }
}

/// Everything after the addresses; `at` is where the ports begin.
fn fill_key(bytes: &mut [u8], at: usize, endpoint: u32, key: &Key) {
    bytes[..4].copy_from_slice(&endpoint.to_ne_bytes());
    bytes[at..at + 2].copy_from_slice(&key.local_port.to_be_bytes());
    bytes[at + 2..at + 4].copy_from_slice(&key.remote_port.to_be_bytes());
    bytes[at + 4] = key.protocol;
}

fn unkey(bytes: &[u8], at: usize, local: IpAddr, remote: IpAddr) -> (u32, Key) {
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let endpoint = u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes"));
    let key = Key {
        local,
        remote,
        local_port: port(at),
        remote_port: port(at + 2),
        protocol: bytes[at + 4],
    };
    (endpoint, key)
}

fn unkey4(bytes: &Key4) -> (u32, Key) {
    let address = |at: usize| -> IpAddr {
        let octets: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
        Ipv4Addr::from(octets).into()
    };
    unkey(bytes, 12, address(4), address(8))
}

fn unkey6(bytes: &Key6) -> (u32, Key) {
    let address = |at: usize| -> IpAddr {
        let octets: [u8; 16] = bytes[at..at + 16].try_into().expect("sixteen bytes");
        Ipv6Addr::from(octets).into()
    };
    unkey(bytes, 36, address(4), address(20))
}

fn held(value: &Value, interner: &Interner) -> Result<Held, String> {
    let long = |at: usize| u64::from_ne_bytes(value[at..at + 8].try_into().expect("eight bytes"));
    let word = |at: usize| u32::from_ne_bytes(value[at..at + 4].try_into().expect("four bytes"));
    let (rule, peer, verdict) = (word(52), word(56), value[63]);
    Ok(Held {
        entry: Entry {
            stamp: long(0),
            packets: [long(8), long(16)],
            bytes: [long(24), long(32)],
            rule: interner
                .rule(rule)
                .ok_or_else(|| format!("rule {rule} in conntrack means nothing"))?,
            peer: interner
                .identity(peer)
                .ok_or_else(|| format!("identity {peer} in conntrack means nothing"))?,
            tcp_flags: [value[60], value[61]],
            flags: value[62],
            verdict: Verdict::from_u8(verdict)
                .ok_or_else(|| format!("verdict {verdict} in conntrack means nothing"))?,
        },
        last_seen_ns: long(40),
        created_ms: word(48),
    })
}

/// What an event says; `None` if it says something that means nothing.
fn told(event: &FlowEvent, interner: &Interner) -> Option<Told> {
    let address = |wire: [u8; 16]| {
        let v6 = Ipv6Addr::from(wire);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    };
    let peer: Option<IdentityInfo> = match event.peer {
        0 => None,
        peer => Some(interner.identity(peer)?),
    };
    let rule: RuleRef = interner.rule(event.rule_id)?;
    let reason = match event.reason {
        0 => None,
        reason => Some(DropReason::from_u8(reason)?),
    };
    if event._pad != [0; 8] {
        return None;
    }
    Some(Told {
        kind: EventKind::from_u8(event.kind)?,
        verdict: Verdict::from_u8(event.verdict)?,
        reason,
        rule,
        peer,
        ct_flags: event.ct_flags,
        packets: event.packets,
        bytes: event.bytes,
        ends: match event.family {
            0 if event.local == [0; 16] && event.remote == [0; 16] => None,
            4 if event.local[..12] != event.remote[..12] || event.local[11] != 0xff => return None,
            4 | 6 => Some(match event.family {
                4 => (address(event.local), address(event.remote)),
                _ => (
                    Ipv6Addr::from(event.local).into(),
                    Ipv6Addr::from(event.remote).into(),
                ),
            }),
            _ => return None,
        },
        local_port: u16::from_be(event.local_port_be),
        remote_port: u16::from_be(event.remote_port_be),
        protocol: event.protocol,
        tcp_flags: event.tcp_flags,
        family: event.family,
    })
}

fn describe(expected: &Outcome, events: &[FlowEvent], interner: &Interner) -> String {
    let mut text = format!(
        "reference: {:?} {:?}, {} bytes, flow {:?}",
        expected.verdict, expected.reason, expected.bytes, expected.key
    );
    for event in &expected.events {
        text.push_str(&format!("\n  tells {event:?}"));
    }
    text.push_str("\nkernel:");
    for event in events {
        match told(event, interner) {
            Some(told) => text.push_str(&format!("\n  tells {told:?}")),
            None => text.push_str(&format!("\n  tells {event:?}, which means nothing")),
        }
    }
    text
}
