//! What policy says, from [`policy::evaluate`], and who the other end is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_common::Direction;
use dataplane_common::policy::Action;
use ipnet::IpNet;
use policy::compile::IdentityInfo;
use policy::evaluate::{Evaluator, Flow, Owner, RuleRef};
use policy::model::{Estate, Mode, Modes, Protocol, Unselected, Workload};
use policy::parse::PolicySet;
use policy::resolve::{NamespaceMatch, PeerMatch, Peers, Ports, ResolvedRule, resolve};

/// Everything that decides about the first workload of the estate, the one under test.
#[derive(Clone, Debug)]
pub struct World {
    /// Workloads and the host. Without addresses the first workload learns them.
    pub estate: Estate,
    /// Policies.
    pub policies: PolicySet,
    /// Mode of every group.
    pub mode: Mode,
    /// For directions in which no policy selects.
    pub unselected: Unselected,
}

/// A question to policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The workload opens the flow, or the other end does.
    pub direction: Direction,
    /// The other end.
    pub remote: IpAddr,
    /// Protocol.
    pub protocol: u8,
    /// The responder's port.
    pub port: u16,
}

/// What policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether the flow may pass.
    pub allowed: bool,
    /// The rule that says so.
    pub rule: RuleRef,
}

/// Addresses of nobody, given to the workload so that policy can be asked about packets from or to
/// addresses that are not (yet) its own. Only the other end's address matters to policy.
const SEATS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 254)),
    IpAddr::V6(Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0xfe)),
];

impl World {
    /// Asks policy.
    ///
    /// # Panics
    /// When the evaluator does not judge the workload, or names a rule that does not match.
    #[must_use]
    pub fn ask(&self, question: &Question) -> Answer {
        let mut estate = self.estate.clone();
        estate.workloads[0].addresses.extend(SEATS);
        let modes = Modes {
            default: self.mode,
            groups: Default::default(),
        };
        let evaluator = Evaluator::new(&estate, &self.policies, &modes, self.unselected);
        let seat = SEATS[usize::from(question.remote.is_ipv6())];
        let (source, destination) = match question.direction {
            Direction::Egress => (seat, question.remote),
            Direction::Ingress => (question.remote, seat),
        };
        let flow = Flow {
            source,
            destination,
            protocol: Protocol(question.protocol),
            destination_port: question.port,
        };
        let decision = evaluator.evaluate(&flow);
        let judgement = decision
            .side(question.direction)
            .expect("the seat belongs to the workload");
        // Where several rules allow a flow the evaluator names the first, the dataplane the most
        // specific one.
        let rule = match most_specific(&self.policies, &estate, &evaluator, question, &flow) {
            Some(rule) if judgement.rule.rule.is_some() => rule,
            _ => judgement.rule.clone(),
        };
        Answer {
            allowed: judgement.action == Action::Allow,
            rule,
        }
    }

    /// Who an address is to policy: its owner, and the smallest block around it that policies name.
    #[must_use]
    pub fn identity(&self, address: IpAddr) -> IdentityInfo {
        let block = self.smallest_block(address);
        if self.estate.host_addresses.contains(&address) {
            return IdentityInfo::Host { block };
        }
        let owner = self
            .estate
            .workloads
            .iter()
            .find(|workload| workload.addresses.contains(&address));
        match (owner, block) {
            (Some(workload), block) => workload_identity(workload, block),
            (None, Some(cidr)) => IdentityInfo::Block { cidr },
            (None, None) => IdentityInfo::World,
        }
    }

    /// Who the workload is: its first address, or the workload alone while it has none.
    #[must_use]
    pub fn own_identity(&self) -> IdentityInfo {
        let workload = &self.estate.workloads[0];
        match workload.addresses.first() {
            Some(&address) => self.identity(address),
            None => workload_identity(workload, None),
        }
    }

    fn smallest_block(&self, address: IpAddr) -> Option<IpNet> {
        let policies = resolve(&self.policies);
        let rules = policies
            .iter()
            .flat_map(|policy| [&policy.ingress, &policy.egress])
            .flatten()
            .flatten();
        let mut smallest: Option<IpNet> = None;
        for rule in rules {
            let Peers::Of(peers) = &rule.peers else {
                continue;
            };
            for peer in peers {
                let PeerMatch::Block(block) = peer else {
                    continue;
                };
                for net in std::iter::once(&block.cidr).chain(&block.except) {
                    let net = net.trunc();
                    if net.contains(&address)
                        && smallest.is_none_or(|best| net.prefix_len() > best.prefix_len())
                    {
                        smallest = Some(net);
                    }
                }
            }
        }
        smallest
    }
}

fn workload_identity(workload: &Workload, block: Option<IpNet>) -> IdentityInfo {
    let mut ports = workload.ports.clone();
    ports.sort();
    ports.dedup();
    IdentityInfo::Workload {
        namespace: workload.namespace.clone(),
        labels: workload.labels.clone(),
        ports,
        block,
    }
}

/// How closely a rule describes a flow, greater is closer: whether it names its peers, then how many
/// leading bits of the port it fixes (none: any protocol).
type Specificity = (bool, Option<u32>);

/// The rule that describes the flow most closely, the first among equals.
fn most_specific(
    policies: &PolicySet,
    estate: &Estate,
    evaluator: &Evaluator<'_>,
    question: &Question,
    flow: &Flow,
) -> Option<RuleRef> {
    let workload = &estate.workloads[0];
    let mut best: Option<(Specificity, RuleRef)> = None;
    for policy in resolve(policies) {
        if !policy.selects(&workload.namespace, &workload.labels) {
            continue;
        }
        for rule in policy.rules(question.direction).unwrap_or_default() {
            if !peers_match(rule, estate, evaluator, question.remote) {
                continue;
            }
            let named = match evaluator.owner(flow.destination) {
                Owner::Workload(workload) => &workload.ports[..],
                Owner::Host | Owner::World => &[],
            };
            for specificity in matches(rule, question.direction, flow, named) {
                if best.as_ref().is_none_or(|(found, _)| specificity > *found) {
                    best = Some((specificity, rule.reference.clone()));
                }
            }
        }
    }
    best.map(|(_, rule)| rule)
}

fn peers_match(
    rule: &ResolvedRule,
    estate: &Estate,
    evaluator: &Evaluator<'_>,
    address: IpAddr,
) -> bool {
    let Peers::Of(peers) = &rule.peers else {
        return true;
    };
    peers
        .iter()
        .any(|peer| match (peer, evaluator.owner(address)) {
            (PeerMatch::Block(block), _) => block.contains(address),
            (PeerMatch::Workloads { namespaces, labels }, Owner::Workload(workload)) => {
                let namespace = match namespaces {
                    NamespaceMatch::Named(name) => *name == workload.namespace,
                    NamespaceMatch::Labelled(selector) => {
                        selector.matches(&estate.namespace_labels(&workload.namespace))
                    }
                };
                namespace && labels.matches(&workload.labels)
            }
            (PeerMatch::Workloads { .. }, Owner::Host | Owner::World) => false,
        })
}

/// Each way in which the rule's ports match the flow.
fn matches(
    rule: &ResolvedRule,
    direction: Direction,
    flow: &Flow,
    named: &[policy::model::NamedPort],
) -> Vec<Specificity> {
    let names_peers = matches!(rule.peers, Peers::Of(_));
    let Ports::Of(ports) = &rule.ports else {
        return vec![(names_peers, None)];
    };
    let mut found = Vec::new();
    for port in ports {
        if port.protocol != flow.protocol {
            continue;
        }
        // A name means another number at every destination, so it names destinations too.
        let is_name = matches!(port.port, policy::resolve::PortRange::Named(_));
        let names_peers = names_peers || (is_name && direction == Direction::Egress);
        for (first, last) in port.ranges(named) {
            if (first..=last).contains(&flow.destination_port) {
                found.push((
                    names_peers,
                    Some(fixed_bits(first, last, flow.destination_port)),
                ));
            }
        }
    }
    found
}

/// Leading bits that the ports around `port` share in the largest aligned power of two of ports that
/// lies in the range.
fn fixed_bits(first: u16, last: u16, port: u16) -> u32 {
    (0..=16)
        .find(|bits| {
            let size = 1_u32 << (16 - bits);
            let start = u32::from(port) / size * size;
            start >= u32::from(first) && start + size - 1 <= u32::from(last)
        })
        .expect("one port is a block of its own")
}
