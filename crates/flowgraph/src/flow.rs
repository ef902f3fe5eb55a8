//! Flows that may still report: what turns repeated totals of two reporters into one count.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use policy::model::Protocol;
use serde::{Deserialize, Serialize};

use crate::edge::{EdgeKey, Judgement, PeerKey, Service, Traffic, is_policy_judgement};
use crate::record::{Event, FlowRecord, Opener, Peer, Reporter, Verdict};

/// Two reports of one flow's first packet differ by less than this: clock resolution, and the time
/// between the hooks of two workloads. A tuple is not reused within it (RFC 9293 TIME-WAIT).
const SAME_START: SignedDuration = SignedDuration::from_secs(1);

/// Address and port of an end; 0 for protocols without ports.
type Socket = (IpAddr, u16);

/// A flow's addresses with the smaller end first, so that every reporter finds the same key. An
/// *end* is an index into `sockets`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Tuple {
    protocol: Protocol,
    sockets: [Socket; 2],
}

impl Tuple {
    /// The tuple of a record and the end that is its source; `None` without addresses.
    pub(crate) fn of(record: &FlowRecord) -> Option<(Self, usize)> {
        let l4 = record.l4.as_ref()?;
        let source = (record.source.ip?, record.source.port.unwrap_or(0));
        let port = record.destination.port.or(l4.port).unwrap_or(0);
        let destination = (record.destination.ip?, port);
        let (sockets, source_end) = if source <= destination {
            ([source, destination], 0)
        } else {
            ([destination, source], 1)
        };
        let tuple = Self {
            protocol: l4.protocol,
            sockets,
        };
        Some((tuple, source_end))
    }
}

/// An end and the best that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) key: PeerKey,
    /// `namespace/workload`, or the address.
    pub(crate) name: String,
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
    pub(crate) dns_names: Vec<String>,
}

impl End {
    fn new(peer: &Peer, socket: Socket) -> Option<Self> {
        let name = match (&peer.workload, &peer.namespace) {
            (Some(workload), Some(namespace)) => format!("{namespace}/{workload}"),
            (Some(workload), None) => workload.clone(),
            (None, _) => socket.0.to_string(),
        };
        Some(Self {
            key: PeerKey::of(peer)?,
            name,
            ip: socket.0,
            port: socket.1,
            dns_names: peer.names.clone(),
        })
    }

    /// Keeps the better key; of two equally good ones the smaller, whatever the order of arrival.
    fn improve(&mut self, other: Self) {
        let better = (
            other.key.rank(),
            std::cmp::Reverse((&other.key, &other.name)),
        ) > (self.key.rank(), std::cmp::Reverse((&self.key, &self.name)));
        let mut dns_names = std::mem::take(&mut self.dns_names);
        dns_names.extend(other.dns_names.iter().cloned());
        dns_names.sort_unstable();
        dns_names.dedup();
        if better {
            *self = other;
        }
        self.dns_names = dns_names;
    }
}

/// Verdicts a flow has had, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdicts(u8);

impl Verdicts {
    fn add(&mut self, verdict: Verdict) {
        self.0 |= 1 << verdict as u8;
    }

    pub(crate) const fn has(self, verdict: Verdict) -> bool {
        self.0 & (1 << verdict as u8) != 0
    }
}

/// One reporter's word on a flow. Everything in it only grows, so that records may repeat and
/// arrive in any order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// By sending end.
    packets: [u64; 2],
    bytes: [u64; 2],
    pub(crate) verdicts: Verdicts,
    pub(crate) last: Option<Judgement>,
    closed: bool,
    refused: bool,
}

impl Report {
    fn starts_before_end_of(&self, other: &Self) -> bool {
        !other.closed || self.first_seen.duration_since(other.last_seen) <= SAME_START
    }

    fn merge(&mut self, other: Self) {
        self.first_seen = self.first_seen.min(other.first_seen);
        self.last_seen = self.last_seen.max(other.last_seen);
        for end in 0..2 {
            self.packets[end] = self.packets[end].max(other.packets[end]);
            self.bytes[end] = self.bytes[end].max(other.bytes[end]);
        }
        self.verdicts.0 |= other.verdicts.0;
        self.last = self.last.take().max(other.last);
        self.closed |= other.closed;
        self.refused |= other.refused;
    }
}

/// What a record says about its flow.
pub(crate) struct Statement {
    pub(crate) tuple: Tuple,
    source_end: usize,
    pub(crate) reporter_end: usize,
    ends: [End; 2],
    report: Report,
    opener: Opener,
    icmp_type: Option<u8>,
    /// The record of a flow's first packet.
    is_first: bool,
}

impl Statement {
    /// Reads a record; `None` when it names no two ends.
    pub(crate) fn of(record: &FlowRecord) -> Option<Self> {
        let (tuple, source_end) = Tuple::of(record)?;
        let destination_end = 1 - source_end;
        let source = End::new(&record.source, tuple.sockets[source_end])?;
        let destination = End::new(&record.destination, tuple.sockets[destination_end])?;
        let ends = if source_end == 0 {
            [source, destination]
        } else {
            [destination, source]
        };
        let reporter_end = match record.reporter() {
            Some(Reporter::Destination) => destination_end,
            Some(Reporter::Source) | None => source_end,
        };
        let mut packets = [0; 2];
        packets[source_end] = record.packets.saturating_sub(record.reply_packets);
        packets[destination_end] = record.reply_packets;
        let mut bytes = [0; 2];
        bytes[source_end] = record.bytes.saturating_sub(record.reply_bytes);
        bytes[destination_end] = record.reply_bytes;
        let l4 = record.l4.as_ref()?;
        let reset = l4
            .tcp_flags
            .is_some_and(|flags| flags.contains(dataplane_common::conntrack::tcp::RST));
        let mut verdicts = Verdicts::default();
        verdicts.add(record.verdict);
        let last = is_policy_judgement(record).then(|| Judgement {
            time: record.time,
            verdict: record.verdict,
            rule: record.rule.clone(),
            drop_reason: record.drop_reason.clone(),
        });
        Some(Self {
            source_end,
            reporter_end,
            ends,
            report: Report {
                first_seen: record.first_seen,
                last_seen: record.last_seen,
                packets,
                bytes,
                verdicts,
                last,
                closed: record.event == Event::Closed,
                refused: record.event == Event::Closed
                    && reset
                    && record.is_reply == Some(true)
                    && record.reply_packets <= 1,
            },
            opener: record.opener,
            icmp_type: l4.icmp_type,
            is_first: record.event == Event::New,
            tuple,
        })
    }
}

/// A flow, from whatever its reporters said so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Flow {
    protocol: Protocol,
    pub(crate) ends: [End; 2],
    /// By the end that reports.
    pub(crate) reports: [Option<Report>; 2],
    /// Which ends were called the opener for certain and by inference.
    certain: [bool; 2],
    inferred: [bool; 2],
    icmp_type: Option<u8>,
    /// What the flow has added to an edge.
    pub(crate) counted: Option<Counted>,
    /// The flow was folded into its source's scan count instead.
    pub(crate) folded: bool,
}

/// What a flow adds to an edge's counters, so that it can be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) key: EdgeKey,
    /// The end that is the edge's source.
    pub(crate) source_end: usize,
    pub(crate) opener: Opener,
    pub(crate) answered: bool,
    pub(crate) traffic: Traffic,
    /// Of the egress and the ingress side.
    pub(crate) verdicts: [Verdicts; 2],
}

impl Flow {
    pub(crate) fn new(statement: &Statement) -> Self {
        Self {
            protocol: statement.tuple.protocol,
            ends: statement.ends.clone(),
            reports: [None, None],
            certain: [false; 2],
            inferred: [false; 2],
            icmp_type: statement.icmp_type,
            counted: None,
            folded: false,
        }
    }

    /// How well a statement about the same tuple fits this flow, and not an earlier or later one;
    /// `None` when it cannot be about it. Better fits are greater.
    ///
    /// A reporter's own start decides. Totals may come with a later start, when the reader did not
    /// see the flow begin; they then belong to the latest flow that has not ended. Of the other
    /// reporter the interval must overlap.
    pub(crate) fn fits(&self, statement: &Statement) -> Option<(u8, Timestamp)> {
        let report = &statement.report;
        let fit = match (
            &self.reports[statement.reporter_end],
            &self.reports[1 - statement.reporter_end],
        ) {
            (Some(own), _) => {
                let apart = report.first_seen.duration_since(own.first_seen);
                let grows = (0..2).all(|end| report.packets[end] >= own.packets[end]);
                if apart.abs() <= SAME_START {
                    2
                } else if !statement.is_first && !own.closed && apart.is_positive() && grows {
                    0
                } else {
                    return None;
                }
            }
            (None, Some(other))
                if report.starts_before_end_of(other) && other.starts_before_end_of(report) =>
            {
                1
            }
            (None, Some(_)) => return None,
            (None, None) => 1,
        };
        Some((fit, self.first_seen()))
    }

    pub(crate) fn hear(&mut self, statement: Statement) {
        let [first, second] = statement.ends;
        self.ends[0].improve(first);
        self.ends[1].improve(second);
        match statement.opener {
            Opener::Certain => self.certain[statement.source_end] = true,
            Opener::Inferred => self.inferred[statement.source_end] = true,
            Opener::Unknown => {}
        }
        self.icmp_type = self.icmp_type.max(statement.icmp_type);
        match &mut self.reports[statement.reporter_end] {
            Some(report) => report.merge(statement.report),
            empty => *empty = Some(statement.report),
        }
    }

    /// The opener's end by the best evidence. Evidence that contradicts itself is none.
    fn opener(&self) -> (Opener, Option<usize>) {
        for (opener, said) in [
            (Opener::Certain, self.certain),
            (Opener::Inferred, self.inferred),
        ] {
            match said {
                [true, false] => return (opener, Some(0)),
                [false, true] => return (opener, Some(1)),
                [true, true] => return (Opener::Unknown, None),
                [false, false] => {}
            }
        }
        (Opener::Unknown, None)
    }

    /// What the flow amounts to now.
    pub(crate) fn count(&self) -> Counted {
        let (opener, opener_end) = self.opener();
        let source_end = opener_end
            .unwrap_or_else(|| usize::from((&self.ends[1].key, 1) < (&self.ends[0].key, 0)));
        let destination_end = 1 - source_end;
        let service = match opener_end {
            None => Service::Undecided,
            Some(_) => service(
                self.protocol,
                self.ends[destination_end].port,
                self.icmp_type,
            ),
        };
        let most = |of: fn(&Report) -> [u64; 2], end: usize| {
            self.reports()
                .map(|report| of(report)[end])
                .max()
                .unwrap_or(0)
        };
        let packets = [source_end, destination_end].map(|end| most(|r| r.packets, end));
        let bytes = [source_end, destination_end].map(|end| most(|r| r.bytes, end));
        let refused = self.reports().any(|report| report.refused);
        // A refused connection is SYN and RST; an accepted one has the opener's ACK as well.
        let opener_needs = if self.protocol == Protocol::TCP { 2 } else { 1 };
        Counted {
            key: EdgeKey {
                source: self.ends[source_end].key.clone(),
                destination: self.ends[destination_end].key.clone(),
                protocol: self.protocol,
                service,
            },
            source_end,
            opener,
            answered: !refused && packets[0] >= opener_needs && packets[1] >= 1,
            traffic: Traffic { packets, bytes },
            verdicts: [source_end, destination_end].map(|end| {
                self.reports[end]
                    .as_ref()
                    .map_or(Verdicts::default(), |report| report.verdicts)
            }),
        }
    }

    fn reports(&self) -> impl Iterator<Item = &Report> {
        self.reports.iter().flatten()
    }

    pub(crate) fn first_seen(&self) -> Timestamp {
        self.reports()
            .map(|report| report.first_seen)
            .min()
            .unwrap_or(Timestamp::MAX)
    }

    pub(crate) fn last_seen(&self) -> Timestamp {
        self.reports()
            .map(|report| report.last_seen)
            .max()
            .unwrap_or(Timestamp::MIN)
    }

    /// Every reporter said that the flow is over.
    pub(crate) fn is_closed(&self) -> bool {
        self.reports().all(|report| report.closed)
    }
}

/// The service a responder offers at `port`. An echo reply belongs to the request's service.
pub(crate) fn service(protocol: Protocol, port: u16, icmp_type: Option<u8>) -> Service {
    match (protocol, icmp_type) {
        (Protocol::TCP | Protocol::UDP | Protocol::SCTP, _) => Service::Port(port),
        (Protocol::ICMP, Some(0)) => Service::IcmpType(8),
        (Protocol::ICMPV6, Some(129)) => Service::IcmpType(128),
        (Protocol::ICMP | Protocol::ICMPV6, Some(icmp_type)) => Service::IcmpType(icmp_type),
        _ => Service::Protocol,
    }
}
