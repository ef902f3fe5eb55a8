//! Flow filters: `--from web --not-verdict forwarded --port 5432`, the same words in the CLI and in
//! the API's query string.
//!
//! Values of one filter are alternatives (repeated, or separated by commas), different filters must
//! all hold, and `not-` in front of a name (or the pair `not`, `name=value`) excludes what matches.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use policy::model::Protocol;

use crate::record::{Direction, Event, FlowRecord, Opener, Peer, Verdict};

/// Names of all filters, as error messages and help texts list them.
pub const FILTERS: &[(&str, &str)] = &[
    ("verdict", "forwarded, redirected, audit or dropped"),
    ("event", "new, closed, denied, rejudged or summary"),
    (
        "direction",
        "ingress, egress or unknown: whose policy judged",
    ),
    ("opener", "certain, inferred or unknown"),
    ("from", "source: a peer"),
    ("to", "destination: a peer"),
    ("workload", "either end: a peer"),
    ("group", "either end: a group"),
    ("namespace", "either end: a namespace"),
    ("ip", "either end: an address or CIDR"),
    (
        "port",
        "responder's port or range, e.g. 443, 8000-8080, 53/udp",
    ),
    ("protocol", "TCP, UDP, SCTP, ICMP, ICMPv6 or a number"),
    ("drop-reason", "name of a drop reason"),
    ("policy", "name or namespace/name of the deciding policy"),
    ("rule", "policy, policy:line or policy:ingress[0]"),
    ("reply", "true or false"),
    ("since", "at or after: a time or an age such as 15m, 2h, 7d"),
    ("until", "before: a time or an age"),
];

/// A filter that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No such filter.
    #[error("`{name}` is not a flow filter: use {valid}", valid = filter_names())]
    UnknownFilter {
        /// As given.
        name: String,
    },
    /// A value the filter cannot use.
    #[error("`{value}` is not a value of the filter `{name}`: use {expected}")]
    InvalidValue {
        /// Filter.
        name: String,
        /// As given.
        value: String,
        /// What would be understood.
        expected: String,
    },
    /// `not` without `name=value`.
    #[error("`not={value}` excludes nothing: write not=name=value or not-name=value")]
    IncompleteNot {
        /// As given.
        value: String,
    },
}

fn filter_names() -> String {
    let names: Vec<_> = FILTERS.iter().map(|(name, _)| *name).collect();
    format!("{} (with `not-` in front to exclude)", names.join(", "))
}

/// Which flow records to show. The default shows all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    clauses: Vec<Clause>,
}

/// One filter with its alternatives.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Clause {
    name: &'static str,
    negated: bool,
    any_of: Vec<Test>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Verdict(Verdict),
    Event(Event),
    Direction(Direction),
    Opener(Opener),
    From(PeerTest),
    To(PeerTest),
    Either(PeerTest),
    Port(PortTest),
    Protocol(Protocol),
    DropReason(String),
    Policy(String),
    Rule(String),
    Reply(bool),
    Since(Timestamp),
    Until(Timestamp),
}

/// A peer: `host`, `world`, an address, a CIDR, `key=value` (label), `ns:name` or `name/`
/// (namespace), `group:name`, `workload:name`, or a bare name, which is a workload or a group with
/// or without its namespace, or a DNS name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PeerTest {
    Host,
    World,
    Net(IpNet),
    Label(String, String),
    Namespace(String),
    Group(String),
    Workload(String),
    Name(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PortTest {
    first: u16,
    last: u16,
    protocol: Option<Protocol>,
}

impl FlowFilter {
    /// Reads name-value pairs. `now` is what ages count back from.
    ///
    /// # Errors
    ///
    /// A name that is no filter or a value that the filter does not understand; nothing is ignored.
    pub fn parse<N, V>(
        pairs: impl IntoIterator<Item = (N, V)>,
        now: Timestamp,
    ) -> Result<Self, FilterError>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        let mut filter = Self::default();
        for (name, value) in pairs {
            filter.add(name.as_ref(), value.as_ref(), now)?;
        }
        Ok(filter)
    }

    /// Adds one pair.
    ///
    /// # Errors
    ///
    /// As [`Self::parse`].
    pub fn add(&mut self, name: &str, value: &str, now: Timestamp) -> Result<(), FilterError> {
        if name == "not" {
            let (name, value) =
                value
                    .split_once('=')
                    .ok_or_else(|| FilterError::IncompleteNot {
                        value: value.to_owned(),
                    })?;
            return self.add_clause(name, true, value, now);
        }
        match name.strip_prefix("not-") {
            Some(name) => self.add_clause(name, true, value, now),
            None => self.add_clause(name, false, value, now),
        }
    }

    fn add_clause(
        &mut self,
        name: &str,
        negated: bool,
        value: &str,
        now: Timestamp,
    ) -> Result<(), FilterError> {
        let normalized = name.replace('_', "-");
        let known = FILTERS
            .iter()
            .find(|(known, _)| *known == normalized)
            .ok_or_else(|| FilterError::UnknownFilter {
                name: name.to_owned(),
            })?;
        for value in value.split(',').map(str::trim) {
            let test =
                Test::parse(known.0, value, now).ok_or_else(|| FilterError::InvalidValue {
                    name: known.0.to_owned(),
                    value: value.to_owned(),
                    expected: expected(known),
                })?;
            match self
                .clauses
                .iter_mut()
                .find(|clause| clause.name == known.0 && clause.negated == negated)
            {
                Some(clause) => clause.any_of.push(test),
                None => self.clauses.push(Clause {
                    name: known.0,
                    negated,
                    any_of: vec![test],
                }),
            }
        }
        Ok(())
    }

    /// Whether a record passes the filter.
    #[must_use]
    pub fn matches(&self, record: &FlowRecord) -> bool {
        self.clauses
            .iter()
            .all(|clause| clause.any_of.iter().any(|test| test.matches(record)) != clause.negated)
    }

    /// Whether every record passes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clauses.is_empty()
    }
}

fn expected((name, values): &(&str, &str)) -> String {
    match *name {
        "drop-reason" => dataplane_common::DropReason::ALL
            .iter()
            .map(|reason| reason.as_str())
            .collect::<Vec<_>>()
            .join(", "),
        "from" | "to" | "workload" => "a workload, group or DNS name, ns:NAME, group:NAME, \
             workload:NAME, LABEL=VALUE, an address, a CIDR, host or world"
            .to_owned(),
        _ => (*values).to_owned(),
    }
}

impl Test {
    fn parse(name: &str, value: &str, now: Timestamp) -> Option<Self> {
        if value.is_empty() {
            return None;
        }
        Some(match name {
            "verdict" => Self::Verdict(Verdict::from_name(value)?),
            "event" => Self::Event(Event::from_name(value)?),
            "direction" => Self::Direction(Direction::from_name(value)?),
            "opener" => Self::Opener(Opener::from_name(value)?),
            "from" => Self::From(PeerTest::parse(value)?),
            "to" => Self::To(PeerTest::parse(value)?),
            "workload" => Self::Either(PeerTest::parse(value)?),
            "group" => Self::Either(PeerTest::Group(value.to_owned())),
            "namespace" => Self::Either(PeerTest::Namespace(value.to_owned())),
            "ip" => Self::Either(PeerTest::Net(parse_net(value)?)),
            "port" => Self::Port(PortTest::parse(value)?),
            "protocol" => Self::Protocol(value.parse().ok()?),
            "drop-reason" => Self::DropReason(
                dataplane_common::DropReason::ALL
                    .iter()
                    .map(|reason| reason.as_str())
                    .find(|reason| *reason == value.replace('-', "_"))?
                    .to_owned(),
            ),
            "policy" => Self::Policy(value.to_owned()),
            "rule" => Self::Rule(value.to_owned()),
            "reply" => Self::Reply(value.parse().ok()?),
            "since" => Self::Since(parse_time(value, now)?),
            "until" => Self::Until(parse_time(value, now)?),
            _ => return None,
        })
    }

    fn matches(&self, record: &FlowRecord) -> bool {
        match self {
            Self::Verdict(verdict) => record.verdict == *verdict,
            Self::Event(event) => record.event == *event,
            Self::Direction(direction) => record.direction == *direction,
            Self::Opener(opener) => record.opener == *opener,
            Self::From(peer) => peer.matches(&record.source),
            Self::To(peer) => peer.matches(&record.destination),
            Self::Either(peer) => peer.matches(&record.source) || peer.matches(&record.destination),
            Self::Port(port) => port.matches(record),
            Self::Protocol(protocol) => record.protocol() == Some(*protocol),
            Self::DropReason(reason) => record.drop_reason.as_deref() == Some(reason),
            Self::Policy(policy) => record
                .rule
                .as_ref()
                .is_some_and(|rule| is_policy(&rule.policy, policy)),
            Self::Rule(wanted) => record.rule.as_ref().is_some_and(|rule| {
                is_policy(&rule.policy, wanted)
                    || wanted.rsplit_once(':').is_some_and(|(policy, place)| {
                        is_policy(&rule.policy, policy)
                            && (rule.rule.as_deref() == Some(place)
                                || place.parse().is_ok_and(|line| rule.line == Some(line)))
                    })
            }),
            Self::Reply(reply) => record.is_reply == Some(*reply),
            Self::Since(time) => record.time >= *time,
            Self::Until(time) => record.time < *time,
        }
    }
}

/// `wanted` is the policy's `namespace/name` or only its name.
fn is_policy(policy: &str, wanted: &str) -> bool {
    policy == wanted
        || policy
            .rsplit_once('/')
            .is_some_and(|(_, name)| name == wanted)
}

impl PeerTest {
    fn parse(value: &str) -> Option<Self> {
        if let Some(net) = parse_net(value) {
            return Some(Self::Net(net));
        }
        if let Some((key, value)) = value.split_once('=') {
            return (!key.is_empty()).then(|| Self::Label(key.to_owned(), value.to_owned()));
        }
        if let Some((form, name)) = value.split_once(':') {
            let name = name.to_owned();
            return (!name.is_empty()).then_some(()).and(match form {
                "ns" | "namespace" => Some(Self::Namespace(name)),
                "group" => Some(Self::Group(name)),
                "workload" => Some(Self::Workload(name)),
                _ => None,
            });
        }
        if let Some(namespace) = value.strip_suffix('/') {
            return (!namespace.is_empty()).then(|| Self::Namespace(namespace.to_owned()));
        }
        Some(match value {
            "host" => Self::Host,
            "world" => Self::World,
            name => Self::Name(name.to_owned()),
        })
    }

    fn matches(&self, peer: &Peer) -> bool {
        let is_namespace = |name: &str| peer.namespace.as_deref() == Some(name);
        let is = |own: &Option<String>, wanted: &str| {
            own.as_deref().is_some_and(|own| {
                own == wanted
                    || wanted
                        .split_once('/')
                        .is_some_and(|(namespace, name)| is_namespace(namespace) && name == own)
            })
        };
        match self {
            Self::Host => peer.is_host(),
            Self::World => peer.is_world(),
            Self::Net(net) => peer.ip.is_some_and(|ip| net.contains(&ip)),
            Self::Label(key, value) => peer.labels.get(key) == Some(value),
            Self::Namespace(name) => is_namespace(name),
            Self::Group(name) => is(&peer.group, name),
            Self::Workload(name) => is(&peer.workload, name),
            Self::Name(name) => {
                is(&peer.workload, name)
                    || is(&peer.group, name)
                    || peer.names.iter().any(|own| own.eq_ignore_ascii_case(name))
            }
        }
    }
}

impl PortTest {
    fn parse(value: &str) -> Option<Self> {
        let (ports, protocol) = match value.split_once('/') {
            Some((ports, protocol)) => (ports, Some(Protocol::from_str(protocol).ok()?)),
            None => (value, None),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some(Self {
            first,
            last,
            protocol,
        })
    }

    /// The responder's port; with an unknown opener either end may be the responder.
    fn matches(&self, record: &FlowRecord) -> bool {
        let Some(l4) = &record.l4 else {
            return false;
        };
        let in_range =
            |port: Option<u16>| port.is_some_and(|port| (self.first..=self.last).contains(&port));
        self.protocol.is_none_or(|protocol| protocol == l4.protocol)
            && (in_range(l4.port.or(record.destination.port))
                || record.opener == Opener::Unknown && in_range(record.source.port))
    }
}

fn parse_net(value: &str) -> Option<IpNet> {
    value
        .parse::<IpAddr>()
        .map(IpNet::from)
        .or_else(|_| value.parse::<IpNet>())
        .ok()
}

/// An RFC 3339 time, or an age: a number with one of `s m h d w`.
fn parse_time(value: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(time) = value.parse() {
        return Some(time);
    }
    let unit = value.chars().next_back()?;
    let number: i64 = value.strip_suffix(unit)?.parse().ok()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return None,
    };
    let age = number.checked_mul(seconds).filter(|age| *age >= 0)?;
    now.checked_sub(SignedDuration::from_secs(age)).ok()
}
