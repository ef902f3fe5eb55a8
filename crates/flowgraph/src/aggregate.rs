//! The edge store: records in, edges out. One task owns it; readers get snapshots.
//!
//! A flow between two local workloads is reported by both: by the source's egress policy and by the
//! destination's ingress policy, and by each several times (new, totals, closed). The store keeps
//! the flows that may still report, takes the largest total either side has named, and adds only
//! what is new to the edge. So a flow counts once, and repeated, late or reordered records change
//! nothing.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub use crate::edge::{Edge, EdgeKey, EdgeRow, PeerKey, Service};
use crate::edge::{Judgement, Sample, SideEvidence, Suspicion};
use crate::flow::{Counted, Flow, Statement, Tuple, Verdicts};
use crate::record::{Event, FlowRecord, Reporter, Verdict};

/// Bounds of an [`EdgeStore`]. What does not fit is counted, never silently dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows remembered for counting. Past it the longest silent are forgotten
    /// ([`Stats::evicted_flows`]); should one report again, it counts as a new connection.
    pub flows: usize,
    /// Edges. Past it flows of new edges are folded ([`Folded`]).
    pub edges: usize,
    /// Unanswered edges of one source. Past it further unanswered attempts of that source are
    /// folded, so that a port scan cannot fill the store.
    pub unanswered_per_source: usize,
    /// Unanswered edges from which a source is suspected of scanning.
    pub scan_threshold: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 131_072,
            edges: 65_536,
            unanswered_per_source: 256,
            scan_threshold: 20,
        }
    }
}

/// Attempts of a source that have no edge of their own, see [`Limits`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folded {
    /// The source; absent for the sum over sources that have no entry of their own either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<PeerKey>,
    /// Flows and denied packets.
    pub attempts: u64,
    /// First of them.
    pub first_seen: Timestamp,
    /// Last of them.
    pub last_seen: Timestamp,
}

/// Counters of an [`EdgeStore`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Edges.
    pub edges: usize,
    /// Flows remembered for counting.
    pub flows: usize,
    /// Records without two addresses, which belong to no edge.
    pub unattributed: u64,
    /// Flows forgotten for want of room.
    pub evicted_flows: u64,
    /// Events lost before or between the records.
    pub lost_events: u64,
}

/// A flow as it is stored, so that totals after a restart add only what is new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRow {
    tuple: Tuple,
    flow: Flow,
}

/// Everything a store must have to go on after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Edges, in order of their keys.
    pub edges: Vec<EdgeRow>,
    /// Flows that may still report.
    pub flows: Vec<FlowRow>,
    /// Attempts without an edge.
    pub folded: Vec<Folded>,
    /// Lost events by hour since the epoch.
    pub lost_events: Vec<(i64, u64)>,
}

/// What changed since the last [`EdgeStore::take_changes`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Rows to write.
    pub changed: Vec<EdgeRow>,
    /// [`EdgeRow::id`]s to delete.
    pub removed: Vec<String>,
}

/// Aggregates flow records into edges.
#[derive(Debug, Default)]
pub struct EdgeStore {
    limits: Limits,
    edges: BTreeMap<EdgeKey, Edge>,
    /// More than one flow per tuple when the tuple was reused.
    flows: BTreeMap<Tuple, Vec<Flow>>,
    flow_count: usize,
    unanswered: BTreeMap<PeerKey, usize>,
    folded: BTreeMap<Option<PeerKey>, Folded>,
    lost_by_hour: BTreeMap<i64, u64>,
    changed: BTreeSet<EdgeKey>,
    unattributed: u64,
    evicted_flows: u64,
}

/// How long a closed flow is remembered for the other side's last word.
const CLOSED_FOR: SignedDuration = SignedDuration::from_secs(120);
/// How long a silent flow is remembered: past the kernel's longest timeout it cannot report again.
const SILENT_FOR: SignedDuration = SignedDuration::from_secs(
    (dataplane_common::conntrack::timeout::TCP_ESTABLISHED_NS / 1_000_000_000) as i64 + 600,
);
/// Hours of loss kept apart; older ones are added to the oldest kept.
const LOSS_HOURS: usize = 24 * 400;
/// Sources with a [`Folded`] entry of their own.
const FOLDED_SOURCES: usize = 1_024;

impl EdgeStore {
    /// An empty store.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// A store that goes on where `snapshot` was taken.
    #[must_use]
    pub fn restore(limits: Limits, snapshot: Snapshot) -> Self {
        let mut store = Self::new(limits);
        for EdgeRow { edge, .. } in snapshot.edges {
            if edge.is_unanswered() {
                *store.unanswered.entry(edge.key.source.clone()).or_default() += 1;
            }
            store.edges.insert(edge.key.clone(), edge);
        }
        for FlowRow { tuple, flow } in snapshot.flows {
            store.flows.entry(tuple).or_default().push(flow);
            store.flow_count += 1;
        }
        for folded in snapshot.folded {
            store.folded.insert(folded.source.clone(), folded);
        }
        store.lost_by_hour = snapshot.lost_events.into_iter().collect();
        store
    }

    /// Everything the store knows.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let flows = self.flows.iter().flat_map(|(tuple, flows)| {
            flows.iter().map(|flow| FlowRow {
                tuple: tuple.clone(),
                flow: flow.clone(),
            })
        });
        Snapshot {
            edges: self.edges.values().map(Edge::row).collect(),
            flows: flows.collect(),
            folded: self.folded.values().cloned().collect(),
            lost_events: self
                .lost_by_hour
                .iter()
                .map(|(&hour, &n)| (hour, n))
                .collect(),
        }
    }

    /// Rows to write and delete since the last call.
    pub fn take_changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        for key in std::mem::take(&mut self.changed) {
            match self.edges.get(&key) {
                Some(edge) => changes.changed.push(edge.row()),
                None => changes.removed.push(key.id()),
            }
        }
        changes
    }

    /// Takes a record in and returns the edge it belongs to.
    ///
    /// Totals (`new`, `summary`, `rejudged`, `closed`) are idempotent: the same record twice, or an
    /// older one after a newer one, changes nothing. A `denied` record is one packet and counts each
    /// time. `None`: the record names no two addresses, or was folded ([`Self::folded`]).
    pub fn apply(&mut self, record: &FlowRecord) -> Option<EdgeKey> {
        if record.observation.lost_events > 0 {
            self.note_loss(record.time, record.observation.lost_events);
        }
        let Some(statement) = Statement::of(record) else {
            self.unattributed += 1;
            return None;
        };
        if record.event == Event::Denied {
            return self.apply_denied(record, statement);
        }
        let tuple = statement.tuple.clone();
        if self.flow_count >= self.limits.flows && !self.flows.contains_key(&tuple) {
            self.evict_flows();
        }
        let flows = self.flows.entry(tuple.clone()).or_default();
        let best = flows
            .iter()
            .enumerate()
            .filter_map(|(index, flow)| Some((flow.fits(&statement)?, index)))
            .max();
        let index = match best {
            Some((_, index)) => index,
            None => {
                flows.push(Flow::new(&statement));
                self.flow_count += 1;
                flows.len() - 1
            }
        };
        let mut flow = flows.swap_remove(index);
        flow.hear(statement);
        let key = self.recount(&mut flow);
        self.flows.entry(tuple).or_default().push(flow);
        key
    }

    /// Events were lost at about `time`.
    pub fn note_loss(&mut self, time: Timestamp, events: u64) {
        *self.lost_by_hour.entry(hour(time)).or_default() += events;
        while self.lost_by_hour.len() > LOSS_HOURS {
            if let Some((_, events)) = self.lost_by_hour.pop_first()
                && let Some(mut oldest) = self.lost_by_hour.first_entry()
            {
                *oldest.get_mut() += events;
            }
        }
    }

    /// Events lost between two times, to the hour.
    #[must_use]
    pub fn lost_events(&self, since: Timestamp, until: Timestamp) -> u64 {
        if since > until {
            return 0;
        }
        self.lost_by_hour
            .range(hour(since)..=hour(until))
            .map(|(_, events)| events)
            .sum()
    }

    /// Forgets flows that cannot report any more. Call it now and then with the current time.
    pub fn expire(&mut self, now: Timestamp) {
        self.retain_flows(|flow| {
            let silent = now.duration_since(flow.last_seen());
            silent <= SILENT_FOR && !(flow.is_closed() && silent > CLOSED_FOR)
        });
    }

    /// Forgets an edge, as when a user decides that it should not have been learned. A flow of it
    /// that still reports makes it appear again.
    pub fn remove(&mut self, key: &EdgeKey) -> Option<Edge> {
        let edge = self.edges.remove(key)?;
        if edge.is_unanswered() {
            self.forget_unanswered(&key.source);
        }
        self.changed.insert(key.clone());
        Some(edge)
    }

    /// One edge, as [`Self::edges`] gives it except for its suspicion.
    #[must_use]
    pub fn get(&self, key: &EdgeKey) -> Option<&Edge> {
        self.edges.get(key)
    }

    /// All edges in order of their keys, with the events lost meanwhile and with suspicions.
    #[must_use]
    pub fn edges(&self) -> Vec<Edge> {
        let mut failed: BTreeMap<&PeerKey, u64> = BTreeMap::new();
        for edge in self.edges.values() {
            if edge.is_unanswered() && edge.looks_like_probe() {
                *failed.entry(&edge.key.source).or_default() += 1;
            }
        }
        for folded in self.folded.values() {
            if let Some(source) = &folded.source {
                *failed.entry(source).or_default() += folded.attempts;
            }
        }
        let scans = |source: &PeerKey| {
            failed
                .get(source)
                .is_some_and(|&edges| edges > self.limits.scan_threshold as u64)
        };
        let edge_with_findings = |edge: &Edge| {
            let mut edge = edge.clone();
            edge.lost_events = self.lost_events(edge.first_seen, edge.last_seen);
            edge.suspicion = if edge.looks_like_probe() && scans(&edge.key.source) {
                Some(Suspicion::SuspectedScan)
            } else if edge.connections == 1 && edge.is_unanswered() {
                Some(Suspicion::OneOff)
            } else {
                None
            };
            edge
        };
        self.edges.values().map(edge_with_findings).collect()
    }

    /// Attempts that have no edge of their own.
    pub fn folded(&self) -> impl Iterator<Item = &Folded> {
        self.folded.values()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            edges: self.edges.len(),
            flows: self.flow_count,
            unattributed: self.unattributed,
            evicted_flows: self.evicted_flows,
            lost_events: self.lost_by_hour.values().sum(),
        }
    }

    /// Brings the edge of a flow up to date with it.
    fn recount(&mut self, flow: &mut Flow) -> Option<EdgeKey> {
        let now = flow.count();
        if let Some(before) = flow.counted.take() {
            self.take_back(&before, before.key != now.key);
        }
        let first = flow.first_seen();
        let last = flow.last_seen();
        if !self.has_room_for(&now.key, now.answered) {
            self.fold(&now.key.source, first, last, u64::from(!flow.folded));
            flow.folded = true;
            return None;
        }
        let edge = self.edge(&now.key, first, last);
        let unanswered_before = edge.is_unanswered();
        edge.connections += 1;
        edge.answered += u64::from(now.answered);
        *edge.openers.slot(now.opener) += 1;
        for way in 0..2 {
            edge.traffic.packets[way] += now.traffic.packets[way];
            edge.traffic.bytes[way] += now.traffic.bytes[way];
        }
        let source = &flow.ends[now.source_end];
        let destination = &flow.ends[1 - now.source_end];
        edge.sources.insert(source.name.clone());
        edge.source_ips.insert(source.ip);
        edge.destinations.insert(destination.name.clone());
        edge.destination_ips.insert(destination.ip);
        for name in &destination.dns_names {
            edge.names.insert(name.clone());
        }
        edge.samples.insert(Sample {
            first_seen: first,
            source: source.name.clone(),
            source_ip: source.ip,
            source_port: source.port,
            destination: destination.name.clone(),
            destination_ip: destination.ip,
            destination_port: destination.port,
        });
        for (side, end) in [
            (Reporter::Source, now.source_end),
            (Reporter::Destination, 1 - now.source_end),
        ] {
            let Some(report) = &flow.reports[end] else {
                continue;
            };
            let evidence = edge.side_mut(side);
            count_verdicts(evidence, report.verdicts, u64::wrapping_add);
            remember(evidence, report.last.as_ref());
        }
        if unanswered_before && now.answered {
            self.forget_unanswered(&now.key.source);
        }
        let key = now.key.clone();
        flow.counted = Some(now);
        self.changed.insert(key.clone());
        Some(key)
    }

    /// Takes a flow's counts out of its edge, and the edge away if that leaves nothing and the flow
    /// goes elsewhere.
    fn take_back(&mut self, counted: &Counted, goes_elsewhere: bool) {
        let Some(edge) = self.edges.get_mut(&counted.key) else {
            return;
        };
        let unanswered_before = edge.is_unanswered();
        // An edge that was removed and made anew has less than the flow once added.
        edge.connections = edge.connections.saturating_sub(1);
        edge.answered = edge.answered.saturating_sub(u64::from(counted.answered));
        let opener = edge.openers.slot(counted.opener);
        *opener = opener.saturating_sub(1);
        for way in 0..2 {
            let packets = &mut edge.traffic.packets[way];
            *packets = packets.saturating_sub(counted.traffic.packets[way]);
            let bytes = &mut edge.traffic.bytes[way];
            *bytes = bytes.saturating_sub(counted.traffic.bytes[way]);
        }
        count_verdicts(&mut edge.egress, counted.verdicts[0], u64::saturating_sub);
        count_verdicts(&mut edge.ingress, counted.verdicts[1], u64::saturating_sub);
        let unanswered = edge.is_unanswered();
        let empty = edge.connections == 0 && edge.egress.dropped + edge.ingress.dropped == 0;
        if unanswered && !unanswered_before {
            *self
                .unanswered
                .entry(counted.key.source.clone())
                .or_default() += 1;
        }
        if goes_elsewhere {
            self.changed.insert(counted.key.clone());
            if empty {
                self.remove(&counted.key);
            }
        }
    }

    /// Counts a dropped packet. Denials make no flow: the kernel keeps no state for them either.
    fn apply_denied(&mut self, record: &FlowRecord, statement: Statement) -> Option<EdgeKey> {
        let mut flow = Flow::new(&statement);
        flow.hear(statement);
        let counted = flow.count();
        let (first, last) = (record.time, record.time);
        if !self.has_room_for(&counted.key, false) {
            self.fold(&counted.key.source, first, last, record.packets);
            return None;
        }
        let edge = self.edge(&counted.key, first, last);
        let source = &flow.ends[counted.source_end];
        let destination = &flow.ends[1 - counted.source_end];
        edge.sources.insert(source.name.clone());
        edge.source_ips.insert(source.ip);
        edge.destinations.insert(destination.name.clone());
        edge.destination_ips.insert(destination.ip);
        let side = if flow.reports[counted.source_end].is_some() {
            &mut edge.egress
        } else {
            &mut edge.ingress
        };
        side.dropped += record.packets;
        let last = flow.reports.iter().flatten().next();
        remember(side, last.and_then(|report| report.last.as_ref()));
        self.changed.insert(counted.key.clone());
        Some(counted.key)
    }

    fn has_room_for(&self, key: &EdgeKey, answered: bool) -> bool {
        self.edges.contains_key(key)
            || (self.edges.len() < self.limits.edges
                && (answered
                    || self.unanswered.get(&key.source).copied().unwrap_or(0)
                        < self.limits.unanswered_per_source))
    }

    /// The edge, made if need be, seen from `first` to `last`.
    fn edge(&mut self, key: &EdgeKey, first: Timestamp, last: Timestamp) -> &mut Edge {
        let edge = self.edges.entry(key.clone()).or_insert_with(|| {
            *self.unanswered.entry(key.source.clone()).or_default() += 1;
            Edge::new(key.clone(), first, last)
        });
        edge.first_seen = edge.first_seen.min(first);
        edge.last_seen = edge.last_seen.max(last);
        for time in [first, last] {
            edge.days.insert(time.to_zoned(TimeZone::UTC).date());
        }
        edge
    }

    fn fold(&mut self, source: &PeerKey, first: Timestamp, last: Timestamp, attempts: u64) {
        let known = self.folded.contains_key(&Some(source.clone()));
        let source = (known || self.folded.len() < FOLDED_SOURCES).then(|| source.clone());
        let folded = self.folded.entry(source.clone()).or_insert(Folded {
            source,
            attempts: 0,
            first_seen: first,
            last_seen: last,
        });
        folded.attempts += attempts;
        folded.first_seen = folded.first_seen.min(first);
        folded.last_seen = folded.last_seen.max(last);
    }

    fn forget_unanswered(&mut self, source: &PeerKey) {
        if let Some(edges) = self.unanswered.get_mut(source) {
            *edges -= 1;
            if *edges == 0 {
                self.unanswered.remove(source);
            }
        }
    }

    /// Forgets the eighth of the flows that has been silent longest.
    fn evict_flows(&mut self) {
        let mut ages: Vec<_> = self.flows.values().flatten().map(Flow::last_seen).collect();
        ages.sort_unstable();
        let Some(&limit) = ages.get(ages.len() / 8) else {
            return;
        };
        let before = self.flow_count;
        self.retain_flows(|flow| flow.last_seen() > limit);
        self.evicted_flows += (before - self.flow_count) as u64;
    }

    fn retain_flows(&mut self, keep: impl Fn(&Flow) -> bool) {
        self.flows.retain(|_, flows| {
            flows.retain(&keep);
            !flows.is_empty()
        });
        self.flow_count = self.flows.values().map(Vec::len).sum();
    }
}

fn hour(time: Timestamp) -> i64 {
    time.as_second().div_euclid(3_600)
}

fn count_verdicts(side: &mut SideEvidence, verdicts: Verdicts, by: fn(u64, u64) -> u64) {
    for (verdict, counter) in [
        (Verdict::Forwarded, &mut side.forwarded),
        (Verdict::Redirected, &mut side.redirected),
        (Verdict::Audit, &mut side.audit),
    ] {
        *counter = by(*counter, u64::from(verdicts.has(verdict)));
    }
}

fn remember(side: &mut SideEvidence, judgement: Option<&Judgement>) {
    if judgement > side.last.as_ref() {
        side.last = judgement.cloned();
    }
}
