//! Edges: who talks to whom, on what, and the evidence for it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use jiff::civil::Date;
use policy::evaluate::RuleRef;
use policy::model::Protocol;
use serde::{Deserialize, Serialize};

use crate::record::{FlowRecord, Opener, Peer, Reporter, Verdict};

/// An end of an edge.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum PeerKey {
    /// A group of workloads.
    Group {
        /// Namespace of its workloads.
        namespace: String,
        /// [`policy::model::Workload::group`].
        name: String,
    },
    /// A workload in no group.
    Workload {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
    /// The host the daemon runs on.
    Host,
    /// Any other address, each by itself.
    World {
        /// Address.
        address: IpAddr,
    },
}

impl PeerKey {
    /// The key of a record's end; `None` when it has neither workload nor address.
    #[must_use]
    pub fn of(peer: &Peer) -> Option<Self> {
        if let Some(workload) = &peer.workload {
            let namespace = peer.namespace.clone().unwrap_or_default();
            return Some(match &peer.group {
                Some(group) if !group.is_empty() => Self::Group {
                    namespace,
                    name: group.clone(),
                },
                _ => Self::Workload {
                    namespace,
                    name: workload.clone(),
                },
            });
        }
        if peer.is_host() {
            return Some(Self::Host);
        }
        peer.ip.map(|address| Self::World { address })
    }

    /// How much the key says. A flow whose end was unknown at first gets the better key later.
    pub(crate) const fn rank(&self) -> u8 {
        match self {
            Self::World { .. } => 0,
            Self::Host => 1,
            Self::Workload { .. } => 2,
            Self::Group { .. } => 3,
        }
    }

    /// The end is made of workloads.
    #[must_use]
    pub const fn is_workload(&self) -> bool {
        matches!(self, Self::Group { .. } | Self::Workload { .. })
    }
}

impl fmt::Display for PeerKey {
    /// `namespace/name`, `host`, or the address. A group that already starts with its namespace is
    /// not given it twice.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Group { namespace, name } | Self::Workload { namespace, name } => {
                let qualified = name
                    .strip_prefix(namespace.as_str())
                    .is_some_and(|rest| rest.starts_with('/'));
                if qualified || namespace.is_empty() {
                    name.clone()
                } else {
                    format!("{namespace}/{name}")
                }
            }
            Self::Host => "host".to_owned(),
            Self::World { address } => address.to_string(),
        };
        f.pad(&text)
    }
}

/// What the responder offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// A port of the destination.
    Port(u16),
    /// An ICMP type.
    IcmpType(u8),
    /// A protocol without ports.
    Protocol,
    /// The opener is not known, so neither is the service. Source and destination are in [`PeerKey`]
    /// order and mean nothing.
    Undecided,
}

impl Service {
    /// The destination port.
    #[must_use]
    pub const fn port(self) -> Option<u16> {
        match self {
            Self::Port(port) => Some(port),
            Self::IcmpType(_) | Self::Protocol | Self::Undecided => None,
        }
    }
}

/// What makes two flows the same edge.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EdgeKey {
    /// The opener.
    pub source: PeerKey,
    /// The responder.
    pub destination: PeerKey,
    /// Protocol.
    pub protocol: Protocol,
    /// Service of the destination.
    pub service: Service,
}

impl EdgeKey {
    /// A stable, unique text form, for a database key or an address in an API.
    #[must_use]
    pub fn id(&self) -> String {
        serde_json::to_string(&(&self.source, &self.destination, self.protocol, self.service))
            .expect("strings, numbers and addresses always serialize")
    }

    /// The service in the form `8080/TCP`.
    #[must_use]
    pub fn service_name(&self) -> String {
        match self.service {
            Service::Port(port) => format!("{port}/{}", self.protocol),
            Service::IcmpType(icmp_type) => format!("{} type {icmp_type}", self.protocol),
            Service::Protocol => self.protocol.to_string(),
            Service::Undecided => format!("{}, direction unknown", self.protocol),
        }
    }
}

impl fmt::Display for EdgeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = match self.service {
            Service::Undecided => "<->",
            _ => "->",
        };
        write!(
            f,
            "{} {arrow} {} {}",
            self.source,
            self.destination,
            self.service_name()
        )
    }
}

/// A set that keeps its smallest `CAP` members and remembers that there were more, so that its
/// content does not depend on the order of insertion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "T: Ord + Serialize + for<'a> Deserialize<'a>")]
pub struct Bounded<T: Ord, const CAP: usize> {
    /// The members kept.
    pub members: BTreeSet<T>,
    /// There were more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

impl<T: Ord, const CAP: usize> Default for Bounded<T, CAP> {
    fn default() -> Self {
        Self {
            members: BTreeSet::new(),
            more: false,
        }
    }
}

impl<T: Ord, const CAP: usize> Bounded<T, CAP> {
    /// Adds a member.
    pub fn insert(&mut self, member: T) {
        self.members.insert(member);
        if self.members.len() > CAP {
            self.members.pop_last();
            self.more = true;
        }
    }

    /// Number of members; a lower bound when [`Self::more`] is set.
    #[must_use]
    pub fn count(&self) -> usize {
        self.members.len() + usize::from(self.more)
    }
}

/// What one side's policy said about the flows of an edge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideEvidence {
    /// Flows that were forwarded at some time.
    pub forwarded: u64,
    /// Flows that were redirected to the proxy at some time.
    pub redirected: u64,
    /// Flows that passed in monitor mode although policy denied them.
    pub audit: u64,
    /// Packets dropped, for whatever reason.
    pub dropped: u64,
    /// The latest judgement by policy. Drops for other reasons (malformed, spoofed, table full) do
    /// not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Judgement>,
}

/// One judgement by policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Judgement {
    /// When.
    pub time: Timestamp,
    /// Outcome.
    pub verdict: Verdict,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleRef>,
    /// Why it was (or, in monitor mode, would be) dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_reason: Option<String>,
}

/// A flow of an edge, as an example.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sample {
    /// First packet.
    pub first_seen: Timestamp,
    /// Opener's workload or address.
    pub source: String,
    /// Opener's address.
    pub source_ip: IpAddr,
    /// Opener's port.
    pub source_port: u16,
    /// Responder's workload or address.
    pub destination: String,
    /// Responder's address.
    pub destination_ip: IpAddr,
    /// Responder's port.
    pub destination_port: u16,
}

/// Flows by how well their opener is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenerCounts {
    /// The kernel saw them begin.
    pub certain: u64,
    /// From the listening-socket table.
    pub inferred: u64,
    /// Not known.
    pub unknown: u64,
}

impl OpenerCounts {
    pub(crate) fn slot(&mut self, opener: Opener) -> &mut u64 {
        match opener {
            Opener::Certain => &mut self.certain,
            Opener::Inferred => &mut self.inferred,
            Opener::Unknown => &mut self.unknown,
        }
    }
}

/// Packets and bytes from the opener (`[0]`) and from the responder (`[1]`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: [u64; 2],
    /// Layer 3 bytes.
    pub bytes: [u64; 2],
}

/// Why an edge looks like something that should not be learned without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suspicion {
    /// Its source tries many destinations and ports that do not answer, and this edge is one of
    /// those attempts or carried no data.
    SuspectedScan,
    /// One connection, and no answer.
    OneOff,
}

/// An edge with its evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// What it connects.
    #[serde(flatten)]
    pub key: EdgeKey,
    /// First packet of its first flow.
    pub first_seen: Timestamp,
    /// Last packet so far.
    pub last_seen: Timestamp,
    /// Flows that passed at least one of the two policies. Each is counted once, whoever reports it.
    pub connections: u64,
    /// Connections with an answer from the responder.
    pub answered: u64,
    /// Packets and bytes, counted once.
    pub traffic: Traffic,
    /// Workloads (`namespace/name`) and addresses that opened flows.
    pub sources: Bounded<String, 64>,
    /// Workloads and addresses that answered for the destination.
    pub destinations: Bounded<String, 64>,
    /// Addresses of the source.
    pub source_ips: Bounded<IpAddr, 64>,
    /// Addresses of the destination.
    pub destination_ips: Bounded<IpAddr, 64>,
    /// DNS names the destination was resolved from.
    pub names: Bounded<String, 16>,
    /// Days (UTC) on which it was used.
    pub days: Bounded<Date, 400>,
    /// Judged by the source's egress policy.
    pub egress: SideEvidence,
    /// Judged by the destination's ingress policy.
    pub ingress: SideEvidence,
    /// How well the openers are known.
    pub openers: OpenerCounts,
    /// A few of its flows.
    pub samples: Bounded<Sample, 3>,
    /// Events lost between `first_seen` and `last_seen`; set by
    /// [`crate::aggregate::EdgeStore::edges`].
    #[serde(default)]
    pub lost_events: u64,
    /// Set by [`crate::aggregate::EdgeStore::edges`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspicion: Option<Suspicion>,
}

/// What is known of an edge's permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Passage {
    /// Every side that judged let it pass, last time it judged.
    Passed,
    /// It passed, but only because a side is in monitor mode.
    Audited,
    /// A side denied it, last time it judged.
    Denied,
    /// No side's policy has judged it.
    Unjudged,
}

impl Edge {
    pub(crate) fn new(key: EdgeKey, first_seen: Timestamp, last_seen: Timestamp) -> Self {
        Self {
            key,
            first_seen,
            last_seen,
            connections: 0,
            answered: 0,
            traffic: Traffic::default(),
            sources: Bounded::default(),
            destinations: Bounded::default(),
            source_ips: Bounded::default(),
            destination_ips: Bounded::default(),
            names: Bounded::default(),
            days: Bounded::default(),
            egress: SideEvidence::default(),
            ingress: SideEvidence::default(),
            openers: OpenerCounts::default(),
            samples: Bounded::default(),
            lost_events: 0,
            suspicion: None,
        }
    }

    pub(crate) fn side_mut(&mut self, reporter: Reporter) -> &mut SideEvidence {
        match reporter {
            Reporter::Source => &mut self.egress,
            Reporter::Destination => &mut self.ingress,
        }
    }

    /// What the latest judgements of both sides come to: an edge passed only if both passed it.
    #[must_use]
    pub fn passage(&self) -> Passage {
        let last = [&self.egress, &self.ingress].map(|side| side.last.as_ref());
        last.into_iter()
            .flatten()
            .map(|judgement| match judgement.verdict {
                Verdict::Dropped => Passage::Denied,
                Verdict::Audit => Passage::Audited,
                Verdict::Forwarded | Verdict::Redirected => Passage::Passed,
            })
            .max_by_key(|passage| match passage {
                Passage::Unjudged | Passage::Passed => 0,
                Passage::Audited => 1,
                Passage::Denied => 2,
            })
            .unwrap_or(Passage::Unjudged)
    }

    /// No flow of this edge was ever answered.
    #[must_use]
    pub const fn is_unanswered(&self) -> bool {
        self.answered == 0
    }

    /// What a port scanner's touch looks like: unanswered or refused, or a few TCP connections
    /// without data.
    #[must_use]
    pub fn looks_like_probe(&self) -> bool {
        /// Connections a scanner makes to one port.
        const TRIES: u64 = 3;
        /// Packets each way in a connection that carries nothing: handshake, close, a retry.
        const EMPTY_PACKETS: u64 = 5;
        /// Bytes of a packet without data: IPv6 header, TCP header with options.
        const EMPTY_BYTES: u64 = 40 + 40;
        if self.is_unanswered() {
            return true;
        }
        self.key.protocol == Protocol::TCP
            && self.connections <= TRIES
            && (0..2).all(|way| {
                let packets = self.traffic.packets[way];
                packets <= EMPTY_PACKETS * self.connections
                    && self.traffic.bytes[way] <= packets * EMPTY_BYTES
            })
    }

    /// The row under which the edge is stored.
    #[must_use]
    pub fn row(&self) -> EdgeRow {
        EdgeRow {
            id: self.key.id(),
            edge: self.clone(),
        }
    }
}

/// An edge as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeRow {
    /// [`EdgeKey::id`].
    pub id: String,
    /// The edge.
    pub edge: Edge,
}

/// Whether a record's verdict is policy's word, and not that of the parser or a full table.
pub(crate) fn is_policy_judgement(record: &FlowRecord) -> bool {
    use dataplane_common::DropReason;
    const POLICY: [&str; 3] = [
        DropReason::PolicyDeny.as_str(),
        DropReason::PolicyDefaultDeny.as_str(),
        DropReason::PolicyRevoked.as_str(),
    ];
    match &record.drop_reason {
        Some(reason) => POLICY.contains(&reason.as_str()),
        None => true,
    }
}
