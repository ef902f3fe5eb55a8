//! The flow record: one JSON object a line, for people, scripts and the edge store alike.
//!
//! Field names follow Hubble's `flow.proto` and the Kubernetes API. What is not known is absent.

use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use policy::evaluate::RuleRef;
use policy::model::{Labels, Protocol};
use serde::{Deserialize, Serialize};

pub use crate::filter::{FilterError, FlowFilter};

/// One flow as one workload's policy judged or counted it.
///
/// `source` is the end that opened the flow whenever that is known ([`Opener`]); `is_reply` tells
/// whether the packet that caused the record went the other way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// When it happened.
    pub time: Timestamp,
    /// What caused the record.
    pub event: Event,
    /// What was done with the packet or flow.
    pub verdict: Verdict,
    /// Name of a [`dataplane_common::DropReason`] (or the number of one this version does not
    /// know); present for `dropped` and `audit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_reason: Option<String>,
    /// Whose policy judged: `egress` the source's, `ingress` the destination's.
    pub direction: Direction,
    /// How well it is known that `source` opened the flow.
    pub opener: Opener,
    /// The packet went from destination to source. Absent when the opener is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_reply: Option<bool>,
    /// The opener; with an unknown opener, the sender of the packet.
    pub source: Peer,
    /// The responder; with an unknown opener, the receiver of the packet.
    pub destination: Peer,
    /// Layer 4. Absent when the packet could not be parsed that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l4: Option<L4>,
    /// Layer 7, from the proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l7: Option<L7>,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleRef>,
    /// What a staged (not yet enforced) policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged_verdict: Option<Verdict>,
    /// Generation of the policy in force at judgement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Packets in both directions: of this packet for `new` and `denied`, of the flow so far
    /// otherwise.
    pub packets: u64,
    /// Layer 3 bytes, likewise.
    pub bytes: u64,
    /// How many of `packets` went from destination to source.
    #[serde(default)]
    pub reply_packets: u64,
    /// How many of `bytes` went from destination to source.
    #[serde(default)]
    pub reply_bytes: u64,
    /// First packet of the flow on this workload's interface.
    pub first_seen: Timestamp,
    /// Last packet so far.
    pub last_seen: Timestamp,
    /// How complete the observation is.
    pub observation: Observation,
}

impl FlowRecord {
    /// The end whose workload made the observation; `None` when nothing tells.
    #[must_use]
    pub fn reporter(&self) -> Option<Reporter> {
        match self.direction {
            Direction::Egress => Some(Reporter::Source),
            Direction::Ingress => Some(Reporter::Destination),
            Direction::Unknown => self.observation.reporter,
        }
    }

    /// The layer 4 protocol.
    #[must_use]
    pub fn protocol(&self) -> Option<Protocol> {
        self.l4.as_ref().map(|l4| l4.protocol)
    }
}

macro_rules! names {
    ($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $variant_doc:literal])+ $variant:ident = $text:literal,)+ }) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[doc = $variant_doc])+ $variant,)+
        }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name used in every output.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The value with this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

names! {
    /// What was done with a packet or flow.
    Verdict {
        /// Passed.
        Forwarded = "forwarded",
        /// Passed to the userspace proxy.
        Redirected = "redirected",
        /// Passed although policy denies it (monitor mode).
        Audit = "audit",
        /// Dropped.
        Dropped = "dropped",
    }
}

impl Verdict {
    /// The packet went on.
    #[must_use]
    pub const fn passed(self) -> bool {
        !matches!(self, Self::Dropped)
    }
}

impl From<dataplane_common::stats::Verdict> for Verdict {
    fn from(verdict: dataplane_common::stats::Verdict) -> Self {
        use dataplane_common::stats::Verdict as Wire;
        match verdict {
            Wire::Forwarded => Self::Forwarded,
            Wire::Redirected => Self::Redirected,
            Wire::Audit => Self::Audit,
            Wire::Dropped => Self::Dropped,
        }
    }
}

names! {
    /// Whose policy judged.
    Direction {
        /// The destination's.
        Ingress = "ingress",
        /// The source's.
        Egress = "egress",
        /// Not known, because the opener is not.
        Unknown = "unknown",
    }
}

names! {
    /// How well the opener of a flow is known. Later is better.
    Opener {
        /// Not known: `source` and `destination` are only the ends of a packet.
        Unknown = "unknown",
        /// From the listening-socket table.
        Inferred = "inferred",
        /// The kernel saw the flow begin.
        Certain = "certain",
    }
}

names! {
    /// What caused a record.
    Event {
        /// First packet of a flow that passes.
        New = "new",
        /// The flow ended; totals.
        Closed = "closed",
        /// A packet was dropped.
        Denied = "denied",
        /// A flow was judged again with another outcome or rule; totals so far.
        Rejudged = "rejudged",
        /// Totals so far of a flow that goes on.
        Summary = "summary",
    }
}

names! {
    /// The end whose workload made an observation.
    Reporter {
        /// The source.
        Source = "source",
        /// The destination.
        Destination = "destination",
    }
}

/// One end of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Workload, unless the address belongs to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Numeric identity; numbers below [`dataplane_common::identity::FIRST_DYNAMIC`] are reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<u32>,
    /// Address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Port, for protocols that have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Names the address was resolved from, as seen in DNS answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

impl Peer {
    /// The address is the host's own.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.workload.is_none() && self.identity == Some(dataplane_common::identity::HOST)
    }

    /// The address belongs neither to a workload nor to the host.
    #[must_use]
    pub fn is_world(&self) -> bool {
        self.workload.is_none() && !self.is_host()
    }
}

/// Layer 4.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct L4 {
    /// Protocol.
    pub protocol: Protocol,
    /// Responder's port. Absent for protocols without ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// TCP flags of the packet that caused the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<TcpFlags>,
    /// ICMP or ICMPv6 type of the flow's first packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP or ICMPv6 code of the flow's first packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
}

/// TCP flags, written as a list of names: `["SYN","ACK"]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// Names by bit, lowest bit first (RFC 9293 section 3.1, RFC 3168).
    const NAMES: [&'static str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];

    /// Whether every flag of `mask` is set.
    #[must_use]
    pub const fn contains(self, mask: u8) -> bool {
        self.0 & mask == mask
    }
}

impl Serialize for TcpFlags {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(
            Self::NAMES
                .iter()
                .enumerate()
                .filter(|(bit, _)| self.0 & (1 << bit) != 0)
                .map(|(_, name)| name),
        )
    }
}

impl<'de> Deserialize<'de> for TcpFlags {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        names.iter().try_fold(Self(0), |flags, name| {
            let bit = Self::NAMES
                .iter()
                .position(|known| known == name)
                .ok_or_else(|| {
                    serde::de::Error::custom(format!(
                        "`{name}` is not a TCP flag: use {}",
                        Self::NAMES.join(", ")
                    ))
                })?;
            Ok(Self(flags.0 | (1 << bit)))
        })
    }
}

/// Layer 7.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct L7 {
    /// Protocol name, e.g. `http`.
    pub protocol: String,
    /// HTTP request and response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
}

/// An HTTP exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Http {
    /// Request method.
    pub method: String,
    /// Request path.
    pub path: String,
    /// `Host` or `:authority`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Response status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// How complete the observation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Events the daemon lost between the record before this one and this one. 0 means that the two
    /// follow each other without a gap.
    #[serde(default)]
    pub lost_events: u64,
    /// The end whose workload made the observation, needed when the direction is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reporter: Option<Reporter>,
}
