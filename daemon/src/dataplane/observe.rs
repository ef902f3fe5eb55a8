//! What the kernel tells: events, conntrack, counters.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{HashMap, MapData, MapError, RingBuf};
use dataplane_common::conntrack::{CtEntry, CtKey4, CtKey6};
use dataplane_common::event::{EventKind, FlowEvent};
use dataplane_common::stats::{Counter, Verdict, stats_index};
use dataplane_common::{Direction, DropReason};
use serde::Serialize;

use super::load::Maps;
use super::wire::{Wire, WireLayout, event_from_bytes};
use super::{CtSnapshot, DataplaneError};

/// The consumer of the event ring. Readable when events wait.
pub struct EventReader {
    ring: RingBuf<MapData>,
}

impl std::fmt::Debug for EventReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventReader").finish_non_exhaustive()
    }
}

impl EventReader {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// Hands every waiting event to `handle` and returns their number. At most `limit` are taken, so
    /// that a flood cannot starve the caller's other work.
    pub fn drain(&mut self, limit: usize, mut handle: impl FnMut(&FlowEvent)) -> usize {
        let mut taken = 0;
        while taken < limit {
            let Some(item) = self.ring.next() else { break };
            if let Some(event) = event_from_bytes(&item) {
                handle(&event);
            }
            taken += 1;
        }
        taken
    }
}

impl AsRawFd for EventReader {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// One non-zero packet counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatRow {
    /// `forwarded`, `dropped`, `audit` or `redirected`.
    pub verdict: &'static str,
    /// The workload's direction.
    pub direction: &'static str,
    /// Drop reason; absent when policy had no objection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Packets.
    pub packets: u64,
    /// Bytes of layer 3.
    pub bytes: u64,
}

/// Counters of the whole dataplane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Packets by verdict, direction and reason.
    pub packets: Vec<StatRow>,
    /// Events that found the ring full, all kinds.
    pub lost_events: u64,
    /// The same by kind: new, closed, denied, rejudged, address_seen.
    pub lost_by_kind: Vec<(&'static str, u64)>,
    /// Policy map entries in use.
    pub policy_entries_used: u32,
    /// Policy map capacity.
    pub policy_entries_max: u32,
}

impl Counters {
    /// Packets with this verdict, all directions and reasons.
    #[must_use]
    pub fn packets_with(&self, verdict: Verdict) -> u64 {
        self.packets
            .iter()
            .filter(|row| row.verdict == verdict.as_str())
            .map(|row| row.packets)
            .sum()
    }

    /// Packets dropped (or audited) for a reason.
    #[must_use]
    pub fn packets_for(&self, reason: DropReason) -> u64 {
        self.packets
            .iter()
            .filter(|row| row.reason == Some(reason.as_str()))
            .map(|row| row.packets)
            .sum()
    }
}

pub(super) fn counters(maps: &Maps) -> Result<Counters, DataplaneError> {
    let read = |map: &'static str| {
        move |source| DataplaneError::Map {
            operation: "read",
            map,
            source,
        }
    };
    let cpus = maps.cpu_state.get(&0, 0).map_err(read("cpu_state"))?;
    // What the fast path counts beside `packet_stats`.
    let fast = |verdict: Verdict, direction: Direction| {
        cpus.iter()
            .fold(Counter::default(), |total, Wire(cpu)| match verdict {
                Verdict::Forwarded => add(total, cpu.forwarded[direction as usize]),
                Verdict::Audit => add(total, cpu.audited[direction as usize]),
                Verdict::Dropped | Verdict::Redirected => total,
            })
    };
    let mut packets = Vec::new();
    for verdict in [
        Verdict::Forwarded,
        Verdict::Dropped,
        Verdict::Audit,
        Verdict::Redirected,
    ] {
        for direction in [Direction::Ingress, Direction::Egress] {
            let reasons = std::iter::once(None).chain(DropReason::ALL.iter().copied().map(Some));
            for reason in reasons {
                let index =
                    stats_index(verdict, direction, reason.map_or(0, |reason| reason as u8));
                let values = maps
                    .packet_stats
                    .get(&index, 0)
                    .map_err(read("packet_stats"))?;
                let fast = if reason.is_none() {
                    fast(verdict, direction)
                } else {
                    Counter::default()
                };
                let sum = values
                    .iter()
                    .fold(fast, |total, Wire(value)| add(total, *value));
                if sum.packets != 0 {
                    packets.push(StatRow {
                        verdict: verdict.as_str(),
                        direction: direction.as_str(),
                        reason: reason.map(DropReason::as_str),
                        packets: sum.packets,
                        bytes: sum.bytes,
                    });
                }
            }
        }
    }
    let mut lost_by_kind = Vec::new();
    for (kind, name) in [
        (EventKind::New, "new"),
        (EventKind::Closed, "closed"),
        (EventKind::Denied, "denied"),
        (EventKind::Rejudged, "rejudged"),
        (EventKind::AddressSeen, "address_seen"),
    ] {
        let values = maps
            .lost_events
            .get(&(kind as u32), 0)
            .map_err(read("lost_events"))?;
        lost_by_kind.push((name, values.iter().sum()));
    }
    Ok(Counters {
        packets,
        lost_events: lost_by_kind.iter().map(|(_, count)| count).sum(),
        lost_by_kind,
        ..Counters::default()
    })
}

fn add(a: Counter, b: Counter) -> Counter {
    Counter {
        packets: a.packets + b.packets,
        bytes: a.bytes + b.bytes,
    }
}

pub(super) fn conntrack(maps: &Maps) -> Result<Vec<CtSnapshot>, DataplaneError> {
    let mut flows = Vec::new();
    collect(&maps.ct4, "ct4", &mut flows)?;
    collect(&maps.ct6, "ct6", &mut flows)?;
    Ok(flows)
}

pub(super) fn expire(
    maps: &mut Maps,
    now_ns: u64,
    live: &BTreeSet<u32>,
) -> Result<Vec<CtSnapshot>, DataplaneError> {
    let mut dead = Vec::new();
    remove_dead(&mut maps.ct4, "ct4", now_ns, live, &mut dead)?;
    remove_dead(&mut maps.ct6, "ct6", now_ns, live, &mut dead)?;
    Ok(dead)
}

/// Removes conntrack entries of endpoints for which `keep` is false.
pub(super) fn purge(maps: &mut Maps, keep: impl Fn(u32) -> bool) -> Result<(), DataplaneError> {
    purge_map(&mut maps.ct4, "ct4", &keep)?;
    purge_map(&mut maps.ct6, "ct6", &keep)
}

/// A conntrack key of either family.
trait FlowKey: WireLayout {
    fn endpoint(&self) -> u32;
    fn snapshot(&self, entry: CtEntry) -> CtSnapshot;
    fn protocol(&self) -> u8;
}

impl FlowKey for CtKey4 {
    fn endpoint(&self) -> u32 {
        self.endpoint
    }

    fn protocol(&self) -> u8 {
        self.protocol
    }

    fn snapshot(&self, entry: CtEntry) -> CtSnapshot {
        CtSnapshot {
            endpoint: self.endpoint,
            local: Ipv4Addr::from(self.local).into(),
            remote: Ipv4Addr::from(self.remote).into(),
            protocol: self.protocol,
            local_port: u16::from_be(self.local_port_be),
            remote_port: u16::from_be(self.remote_port_be),
            entry,
        }
    }
}

impl FlowKey for CtKey6 {
    fn endpoint(&self) -> u32 {
        self.endpoint
    }

    fn protocol(&self) -> u8 {
        self.protocol
    }

    fn snapshot(&self, entry: CtEntry) -> CtSnapshot {
        CtSnapshot {
            endpoint: self.endpoint,
            local: IpAddr::V6(Ipv6Addr::from(self.local)),
            remote: IpAddr::V6(Ipv6Addr::from(self.remote)),
            protocol: self.protocol,
            local_port: u16::from_be(self.local_port_be),
            remote_port: u16::from_be(self.remote_port_be),
            entry,
        }
    }
}

type FlowMap<K> = HashMap<MapData, Wire<K>, Wire<CtEntry>>;

fn collect<K: FlowKey>(
    map: &FlowMap<K>,
    name: &'static str,
    flows: &mut Vec<CtSnapshot>,
) -> Result<(), DataplaneError> {
    for row in map.iter() {
        match row {
            Ok((Wire(key), Wire(entry))) => flows.push(key.snapshot(entry)),
            // The entry was evicted between finding its key and reading it.
            Err(MapError::KeyNotFound) => {}
            Err(source) => {
                return Err(DataplaneError::Map {
                    operation: "read",
                    map: name,
                    source,
                });
            }
        }
    }
    Ok(())
}

fn remove_dead<K: FlowKey>(
    map: &mut FlowMap<K>,
    name: &'static str,
    now_ns: u64,
    live: &BTreeSet<u32>,
    dead: &mut Vec<CtSnapshot>,
) -> Result<(), DataplaneError> {
    let is_dead = |key: &K, entry: &CtEntry| {
        !live.contains(&key.endpoint())
            || now_ns.saturating_sub(entry.last_seen_ns) > entry.timeout_ns(key.protocol())
    };
    let mut keys = Vec::new();
    for row in map.iter() {
        match row {
            Ok((Wire(key), Wire(entry))) if is_dead(&key, &entry) => keys.push(key),
            Ok(_) | Err(MapError::KeyNotFound) => {}
            Err(source) => {
                return Err(DataplaneError::Map {
                    operation: "read",
                    map: name,
                    source,
                });
            }
        }
    }
    for key in keys {
        // Read again: a packet may have revived the flow since.
        match map.get(&Wire(key), 0) {
            Ok(Wire(entry)) if is_dead(&key, &entry) => dead.push(key.snapshot(entry)),
            Ok(_) | Err(MapError::KeyNotFound) => continue,
            Err(source) => {
                return Err(DataplaneError::Map {
                    operation: "read",
                    map: name,
                    source,
                });
            }
        }
        remove(map, name, key)?;
    }
    Ok(())
}

fn purge_map<K: FlowKey>(
    map: &mut FlowMap<K>,
    name: &'static str,
    keep: &impl Fn(u32) -> bool,
) -> Result<(), DataplaneError> {
    let mut keys = Vec::new();
    for key in map.keys() {
        match key {
            Ok(Wire(key)) if !keep(key.endpoint()) => keys.push(key),
            Ok(_) | Err(MapError::KeyNotFound) => {}
            Err(source) => {
                return Err(DataplaneError::Map {
                    operation: "read",
                    map: name,
                    source,
                });
            }
        }
    }
    keys.into_iter().try_for_each(|key| remove(map, name, key))
}

fn remove<K: FlowKey>(
    map: &mut FlowMap<K>,
    name: &'static str,
    key: K,
) -> Result<(), DataplaneError> {
    match map.remove(&Wire(key)) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(source) => Err(DataplaneError::Map {
            operation: "delete from",
            map: name,
            source,
        }),
    }
}
