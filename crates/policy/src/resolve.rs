//! Policies with their selectors, ports and blocks in a form that can be asked questions.
//!
//! Both the evaluator and the compiler start from here; everything the API leaves to defaults is
//! settled, and nothing is yet known about workloads.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane_common::Direction;
use ipnet::IpNet;

use crate::evaluate::RuleRef;
use crate::model::{Labels, NamedPort, Protocol};
use crate::netpol::{
    IntOrString, IpBlock, LabelSelector, NetworkPolicySpec, Operator, Peer, PolicyType, Port,
};
use crate::parse::{PolicyDocument, PolicySet};
use crate::syntax;

/// The directions a policy isolates: as written, or by the API's default (Ingress always, Egress
/// if there is an egress rule). An empty list is an absent one.
#[must_use]
pub fn effective_policy_types(spec: &NetworkPolicySpec) -> Vec<PolicyType> {
    match spec.policy_types.as_deref() {
        Some(types) if !types.is_empty() => types.to_vec(),
        _ if spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()) => {
            vec![PolicyType::Ingress, PolicyType::Egress]
        }
        _ => vec![PolicyType::Ingress],
    }
}

/// A label selector: every requirement must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Test {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
}

impl Selector {
    /// The meaning of an API selector.
    #[must_use]
    pub fn new(selector: &LabelSelector) -> Self {
        let labels = selector.match_labels.iter().flatten();
        let mut requirements: Vec<_> = labels
            .map(|(key, value)| Requirement {
                key: key.clone(),
                test: Test::In(BTreeSet::from([value.clone()])),
            })
            .collect();
        for requirement in selector.match_expressions.iter().flatten() {
            let values = || requirement.values.iter().flatten().cloned().collect();
            requirements.push(Requirement {
                key: requirement.key.clone(),
                test: match requirement.operator {
                    Operator::In => Test::In(values()),
                    Operator::NotIn => Test::NotIn(values()),
                    Operator::Exists => Test::Exists,
                    Operator::DoesNotExist => Test::DoesNotExist,
                },
            });
        }
        requirements.sort();
        requirements.dedup();
        Self { requirements }
    }

    /// Whether the labels meet every requirement. `NotIn` and `DoesNotExist` hold when the key is
    /// absent.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.test {
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Test::Exists => value.is_some(),
                Test::DoesNotExist => value.is_none(),
            }
        })
    }

    /// Whether it has no requirement and so matches everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Label pairs of which one must be present, for the requirement with the fewest; `None` when
    /// no requirement names values.
    pub(crate) fn required_pairs(&self) -> Option<impl Iterator<Item = (&str, &str)>> {
        self.requirements
            .iter()
            .filter_map(|requirement| match &requirement.test {
                Test::In(values) => Some((requirement.key.as_str(), values)),
                Test::NotIn(_) | Test::Exists | Test::DoesNotExist => None,
            })
            .min_by_key(|(_, values)| values.len())
            .map(|(key, values)| values.iter().map(move |value| (key, value.as_str())))
    }
}

/// A policy whose defaults are settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPolicy {
    /// The policy as a whole.
    pub reference: RuleRef,
    /// Its namespace, the only one it selects in.
    pub namespace: String,
    /// `podSelector` as written; empty when it was left out.
    pub pod_selector: LabelSelector,
    /// Workloads of the namespace it selects: the meaning of `pod_selector`.
    pub selector: Selector,
    /// What it says about traffic towards them; `None` when it does not isolate that direction.
    pub ingress: Option<Vec<ResolvedRule>>,
    /// What it says about traffic from them.
    pub egress: Option<Vec<ResolvedRule>>,
}

impl ResolvedPolicy {
    /// The meaning of a document.
    #[must_use]
    pub fn new(document: &PolicyDocument) -> Self {
        let spec = &document.policy().spec;
        let types = effective_policy_types(spec);
        let namespace = &document.name().namespace;
        let pod_selector = spec.pod_selector.clone().unwrap_or_default();
        let ingress = types.contains(&PolicyType::Ingress).then(|| {
            let rules = spec.ingress.iter().flatten().enumerate();
            rules
                .map(|(index, rule)| ResolvedRule {
                    reference: document.ingress_rule(index),
                    peers: Peers::new(rule.from.as_deref(), namespace),
                    ports: Ports::new(rule.ports.as_deref()),
                })
                .collect()
        });
        let egress = types.contains(&PolicyType::Egress).then(|| {
            let rules = spec.egress.iter().flatten().enumerate();
            rules
                .map(|(index, rule)| ResolvedRule {
                    reference: document.egress_rule(index),
                    peers: Peers::new(rule.to.as_deref(), namespace),
                    ports: Ports::new(rule.ports.as_deref()),
                })
                .collect()
        });
        Self {
            reference: document.reference(),
            namespace: namespace.clone(),
            selector: Selector::new(&pod_selector),
            pod_selector,
            ingress,
            egress,
        }
    }

    /// Whether the policy selects a workload.
    #[must_use]
    pub fn selects(&self, namespace: &str, labels: &Labels) -> bool {
        self.namespace == namespace && self.selector.matches(labels)
    }

    /// The rules of one direction; `None` when the policy does not isolate it.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> Option<&[ResolvedRule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Resolves a set, in its order.
#[must_use]
pub fn resolve(policies: &PolicySet) -> Vec<ResolvedPolicy> {
    policies.iter().map(ResolvedPolicy::new).collect()
}

/// A rule: one of the peers and one of the ports must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedRule {
    /// Where it stands.
    pub reference: RuleRef,
    /// The other end.
    pub peers: Peers,
    /// The destination's port.
    pub ports: Ports,
}

/// The peers of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Anything, inside or outside.
    Any,
    /// One of these.
    Of(Vec<PeerMatch>),
}

impl Peers {
    fn new(peers: Option<&[Peer]>, namespace: &str) -> Self {
        match peers {
            None | Some([]) => Self::Any,
            Some(peers) => Self::Of(
                peers
                    .iter()
                    .map(|peer| PeerMatch::new(peer, namespace))
                    .collect(),
            ),
        }
    }
}

/// One peer of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMatch {
    /// Workloads whose namespace and labels both match.
    Workloads {
        /// Namespaces.
        namespaces: NamespaceMatch,
        /// Labels.
        labels: Selector,
    },
    /// Addresses, whoever they belong to.
    Block(Block),
}

/// Namespaces of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NamespaceMatch {
    /// The policy's own.
    Named(String),
    /// Those with matching labels.
    Labelled(Selector),
}

/// A CIDR block with exceptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The block.
    pub cidr: IpNet,
    /// What is left out of it.
    pub except: Vec<IpNet>,
}

impl Block {
    fn new(block: &IpBlock) -> Self {
        const VALID: &str = "a PolicyDocument holds valid blocks only";
        Self {
            cidr: syntax::cidr(&block.cidr).expect(VALID),
            except: block
                .except
                .iter()
                .flatten()
                .map(|text| syntax::cidr(text).expect(VALID))
                .collect(),
        }
    }

    /// Whether the address lies in the block and in no exception.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|net| net.contains(&address))
    }
}

impl PeerMatch {
    fn new(peer: &Peer, namespace: &str) -> Self {
        if let Some(block) = &peer.ip_block {
            return Self::Block(Block::new(block));
        }
        Self::Workloads {
            namespaces: match &peer.namespace_selector {
                Some(selector) => NamespaceMatch::Labelled(Selector::new(selector)),
                None => NamespaceMatch::Named(namespace.to_owned()),
            },
            labels: peer
                .pod_selector
                .as_ref()
                .map(Selector::new)
                .unwrap_or_default(),
        }
    }
}

/// The ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Any protocol and port.
    Any,
    /// One of these.
    Of(Vec<PortMatch>),
}

impl Ports {
    fn new(ports: Option<&[Port]>) -> Self {
        match ports {
            None | Some([]) => Self::Any,
            Some(ports) => Self::Of(ports.iter().map(PortMatch::new).collect()),
        }
    }
}

/// One port of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMatch {
    /// Protocol.
    pub protocol: Protocol,
    /// Ports of the protocol.
    pub port: PortRange,
}

/// Ports of one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRange {
    /// Every port.
    All,
    /// From the first to the last, inclusive.
    Numbers(u16, u16),
    /// What the destination workload calls so; nothing on a destination without that name.
    Named(String),
}

impl PortMatch {
    fn new(port: &Port) -> Self {
        const VALID: &str = "a PolicyDocument holds valid ports only";
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        Self {
            protocol: protocol.parse().expect(VALID),
            port: match &port.port {
                None => PortRange::All,
                Some(IntOrString::String(name)) => PortRange::Named(name.clone()),
                Some(IntOrString::Int(first)) => {
                    let last = port.end_port.unwrap_or(*first);
                    PortRange::Numbers(
                        u16::try_from(*first).expect(VALID),
                        u16::try_from(last).expect(VALID),
                    )
                }
            },
        }
    }

    /// The ranges of this port on a destination with these named ports, all of
    /// [`PortMatch::protocol`].
    pub fn ranges<'a>(
        &'a self,
        destination: &'a [NamedPort],
    ) -> impl Iterator<Item = (u16, u16)> + 'a {
        let fixed = match &self.port {
            PortRange::All => Some((0, u16::MAX)),
            PortRange::Numbers(first, last) => Some((*first, *last)),
            PortRange::Named(_) => None,
        };
        let named = destination
            .iter()
            .filter_map(move |named| match &self.port {
                PortRange::Named(name)
                    if *name == named.name && self.protocol == named.protocol =>
                {
                    Some((named.port, named.port))
                }
                PortRange::Named(_) | PortRange::All | PortRange::Numbers(..) => None,
            });
        fixed.into_iter().chain(named)
    }

    /// Whether a flow of this protocol and port matches on a destination with these named ports.
    #[must_use]
    pub fn matches(&self, protocol: Protocol, port: u16, destination: &[NamedPort]) -> bool {
        self.protocol == protocol
            && self
                .ranges(destination)
                .any(|(first, last)| (first..=last).contains(&port))
    }
}
