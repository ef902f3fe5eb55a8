//! The truth: what a set of policies says about one flow.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::Protocol;

/// A flow in its opener's orientation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Opener's address.
    pub source: IpAddr,
    /// Responder's address.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Responder's port; for ICMP type in the high byte and code in the low byte.
    pub destination_port: u16,
}

/// Where a rule stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleRef {
    /// `namespace/name` of the policy, or the name of a built-in rule such as `default`.
    pub policy: String,
    /// File or other source the policy came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line of the rule in it, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Human reading, e.g. `ingress[0]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}
