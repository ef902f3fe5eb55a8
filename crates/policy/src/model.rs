//! What policy is about: workloads, their namespaces, addresses and groups.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use dataplane_common::policy::Mode;

/// Label keys and values, ordered so that two equal sets have one form.
pub type Labels = BTreeMap<String, String>;

/// Label the Kubernetes API server puts on every namespace; an inventory without a server adds it.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace and the labels that `namespaceSelector` matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels, always including [`NAMESPACE_NAME_LABEL`].
    pub labels: Labels,
}

/// An IANA protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(pub u8);

impl Protocol {
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// SCTP.
    pub const SCTP: Self = Self(132);
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TCP => f.write_str("TCP"),
            Self::UDP => f.write_str("UDP"),
            Self::SCTP => f.write_str("SCTP"),
            Self::ICMP => f.write_str("ICMP"),
            Self::ICMPV6 => f.write_str("ICMPv6"),
            Self(number) => write!(f, "{number}"),
        }
    }
}

/// A protocol name or number that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a protocol: use TCP, UDP, SCTP, ICMP, ICMPv6 or a number from 1 to 255")]
pub struct UnknownProtocol(pub String);

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_uppercase().as_str() {
            "TCP" => Ok(Self::TCP),
            "UDP" => Ok(Self::UDP),
            "SCTP" => Ok(Self::SCTP),
            "ICMP" => Ok(Self::ICMP),
            "ICMPV6" => Ok(Self::ICMPV6),
            other => match other.parse::<u8>() {
                Ok(number) if number != 0 => Ok(Self(number)),
                _ => Err(UnknownProtocol(text.to_owned())),
            },
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A named port of a workload, resolved on the destination (NetworkPolicy `ports[].port` by name).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedPort {
    /// Name, unique per protocol within the workload.
    pub name: String,
    /// Number.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// A workload as policy sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Name, unique within the namespace.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Labels that `podSelector` matches.
    pub labels: Labels,
    /// Addresses that belong to it and to nothing else in its routing domain.
    pub addresses: Vec<IpAddr>,
    /// Named ports.
    pub ports: Vec<NamedPort>,
    /// Group: the unit of learning and of modes (compose service, Kubernetes workload, or
    /// `namespace/app`).
    pub group: String,
}

/// Everything policy is resolved against, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Estate {
    /// Namespaces by name. A workload's namespace that is missing here has only
    /// [`NAMESPACE_NAME_LABEL`].
    pub namespaces: BTreeMap<String, Namespace>,
    /// Workloads with an interface on this host or known from elsewhere, in a stable order.
    pub workloads: Vec<Workload>,
    /// Addresses of the host itself.
    pub host_addresses: Vec<IpAddr>,
}

impl Estate {
    /// Labels of a namespace, with [`NAMESPACE_NAME_LABEL`] set to its name.
    #[must_use]
    pub fn namespace_labels(&self, name: &str) -> Labels {
        let mut labels = self
            .namespaces
            .get(name)
            .map(|namespace| namespace.labels.clone())
            .unwrap_or_default();
        // As the API server does, whatever the namespace claims to be called.
        labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned());
        labels
    }
}

/// What a protected workload gets in a direction in which no policy selects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unselected {
    /// Zero trust: nothing passes.
    Deny,
    /// The Kubernetes meaning: everything passes.
    Allow,
}

/// Mode of every group; groups not listed have the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modes {
    /// Mode of groups without an entry.
    pub default: Mode,
    /// Mode by group.
    pub groups: BTreeMap<String, Mode>,
}

impl Modes {
    /// The mode of a group.
    #[must_use]
    pub fn of(&self, group: &str) -> Mode {
        self.groups.get(group).copied().unwrap_or(self.default)
    }
}
