//! Suggested policies and why each of their rules exists.

use std::fmt;

use jiff::Timestamp;
use policy::export::AnnotatedPolicy;
use policy::model::Protocol;
use policy::netpol::{NetworkPolicy, PolicyType};
use serde::Serialize;

use crate::edge::{OpenerCounts, PeerKey};
use crate::text::{count, visible};

/// One group's policy and the evidence for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SuggestedPolicy {
    /// The group (or single workload) it protects.
    pub group: PeerKey,
    /// The policy; its annotations carry a digest of the evidence.
    pub policy: NetworkPolicy,
    /// Why its `podSelector` is what it is.
    pub selector_reason: String,
    /// Evidence for each rule, ingress first, in the order of the policy.
    pub evidence: Vec<RuleEvidence>,
}

impl SuggestedPolicy {
    /// The policy with its evidence as comments, for [`policy::export::to_yaml`].
    #[must_use]
    pub fn annotated(&self) -> AnnotatedPolicy {
        let comments_of = |direction| {
            self.evidence
                .iter()
                .filter(|rule| rule.direction == direction)
                .map(RuleEvidence::comments)
                .collect()
        };
        AnnotatedPolicy {
            policy: self.policy.clone(),
            comments: vec![visible(&format!("Learned rules of {}.", self.group))],
            ingress_comments: comments_of(PolicyType::Ingress),
            egress_comments: comments_of(PolicyType::Egress),
        }
    }
}

impl RuleEvidence {
    /// A line for each port.
    #[must_use]
    pub fn comments(&self) -> Vec<String> {
        self.ports
            .iter()
            .map(|port| visible(&port.to_string()))
            .collect()
    }
}

impl fmt::Display for PortEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = match self.direction {
            PolicyType::Ingress => "from",
            PolicyType::Egress => "to",
        };
        write!(f, "{arrow} {} {}/{}: ", self.peer, self.port, self.protocol)?;
        if self.connections > 0 {
            write!(
                f,
                "{} on {} from {}, first {:.0}, last {:.0}",
                count(self.connections, "connection"),
                count(self.days as u64, "day"),
                count(self.sources as u64, "source"),
                self.first_seen,
                self.last_seen,
            )?;
            if self.openers.inferred > 0 {
                write!(
                    f,
                    ", direction of {} told by listening sockets",
                    self.openers.inferred
                )?;
            }
            if self.lost_events > 0 {
                write!(f, ", {} lost meanwhile", count(self.lost_events, "event"))?;
            }
        }
        match &self.note {
            Some(note) if self.connections > 0 => write!(f, "; {note}"),
            Some(note) => f.write_str(note),
            None => Ok(()),
        }
    }
}

/// Why a rule exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleEvidence {
    /// `ingress` or `egress` rule.
    pub direction: PolicyType,
    /// Index in the policy's list of that direction.
    pub index: usize,
    /// Evidence by peer and port.
    pub ports: Vec<PortEvidence>,
}

/// Why a port of a rule exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortEvidence {
    /// Direction of the rule.
    pub direction: PolicyType,
    /// The other end.
    pub peer: PeerKey,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
    /// [`crate::edge::EdgeKey::id`] of the edge.
    pub edge: String,
    /// Connections seen.
    pub connections: u64,
    /// First packet.
    pub first_seen: Timestamp,
    /// Last packet.
    pub last_seen: Timestamp,
    /// Days on which it was used.
    pub days: usize,
    /// Distinct sources.
    pub sources: usize,
    /// Distinct destinations.
    pub destinations: usize,
    /// How well the openers are known.
    pub openers: OpenerCounts,
    /// Events lost while the edge was watched.
    pub lost_events: u64,
    /// Anything the reviewer should know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
