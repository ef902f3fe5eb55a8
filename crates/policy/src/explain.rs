//! Why a flow passes or not, and the least that would let it pass.

use std::fmt;
use std::net::IpAddr;

use dataplane_common::Direction;
use dataplane_common::policy::Action;
use ipnet::IpNet;
use serde::Serialize;

use crate::evaluate::{
    Decision, Evaluator, Flow, Judgement, Owner, RuleRef, action_name, local_address, mode_name,
    peer_address,
};
use crate::export;
use crate::model::{Estate, Labels, Modes, NAMESPACE_NAME_LABEL, Protocol, Unselected, Workload};
use crate::netpol::{
    EgressRule, IngressRule, IntOrString, IpBlock, LabelSelector, NetworkPolicy, NetworkPolicySpec,
    Peer, PolicyType, Port,
};
use crate::parse::PolicySet;
use crate::resolve::{PortMatch, PortRange, Ports, ResolvedRule};
use crate::syntax;

/// What policy says about a flow and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The flow in words.
    pub flow: String,
    /// The decision, as [`crate::evaluate::evaluate`] gives it.
    pub decision: Decision,
    /// The source workload's side; absent when the source is no workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<SideExplanation>,
    /// The destination workload's side; absent when the destination is no workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<SideExplanation>,
}

/// One side of an [`Explanation`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SideExplanation {
    /// `namespace/name` of the workload whose policy this is.
    pub workload: String,
    /// The other end.
    pub peer: String,
    /// The judgement of this side.
    pub judgement: Judgement,
    /// Policies that select the workload and isolate this direction.
    pub selected_by: Vec<RuleRef>,
    /// Every rule that allows the flow.
    pub allowed_by: Vec<RuleRef>,
    /// Every rule of a selecting policy that does not, with the reason.
    pub rejected: Vec<RejectedRule>,
    /// What would allow the flow on this side; absent when it is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<Remedy>,
}

/// A rule that does not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RejectedRule {
    /// The rule.
    pub rule: RuleRef,
    /// Why.
    pub reason: String,
}

/// The smallest change that would allow a flow on one side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// The change in words.
    pub text: String,
    /// The same as a policy of its own, to be applied beside those in force.
    pub policy: NetworkPolicy,
    /// `policy` as YAML.
    pub yaml: String,
}

/// Explains one flow.
#[must_use]
pub fn explain(
    estate: &Estate,
    policies: &PolicySet,
    modes: &Modes,
    unselected: Unselected,
    flow: &Flow,
) -> Explanation {
    let evaluator = Evaluator::new(estate, policies, modes, unselected);
    let decision = evaluator.evaluate(flow);
    let side = |direction| {
        let judgement = decision.side(direction)?.clone();
        let Owner::Workload(local) = evaluator.owner(local_address(flow, direction)) else {
            return None;
        };
        Some(explain_side(&evaluator, flow, direction, local, judgement))
    };
    Explanation {
        flow: format!(
            "{} -> {} {}",
            name_of(&evaluator, flow.source),
            name_of(&evaluator, flow.destination),
            port_text(flow)
        ),
        egress: side(Direction::Egress),
        ingress: side(Direction::Ingress),
        decision,
    }
}

fn explain_side(
    evaluator: &Evaluator<'_>,
    flow: &Flow,
    direction: Direction,
    local: &Workload,
    judgement: Judgement,
) -> SideExplanation {
    let peer = peer_address(flow, direction);
    let mut selected_by = Vec::new();
    let mut allowed_by = Vec::new();
    let mut rejected = Vec::new();
    let mut near = Vec::new();
    let mut isolated_by = None;
    for (policy, rules) in evaluator.selecting(local, direction) {
        selected_by.push(policy.reference.clone());
        isolated_by.get_or_insert_with(|| policy.pod_selector.clone());
        for rule in rules {
            let peer_matches = evaluator.peers_match(&rule.peers, peer);
            let port_matches = evaluator.ports_match(&rule.ports, flow);
            if peer_matches && port_matches {
                allowed_by.push(rule.reference.clone());
                continue;
            }
            near.push((peer_matches, port_matches, &rule.reference));
            rejected.push(RejectedRule {
                rule: rule.reference.clone(),
                reason: rejection(evaluator, rule, flow, direction, peer_matches, port_matches),
            });
        }
    }
    let remedy = (judgement.action == Action::Deny).then(|| {
        remedy(
            evaluator,
            flow,
            direction,
            local,
            &near,
            isolated_by.as_ref(),
        )
    });
    SideExplanation {
        workload: full_name(local),
        peer: name_of(evaluator, peer),
        judgement,
        selected_by,
        allowed_by,
        rejected,
        remedy,
    }
}

fn full_name(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

fn name_of(evaluator: &Evaluator<'_>, address: IpAddr) -> String {
    match evaluator.owner(address) {
        Owner::Workload(workload) => format!("{} ({address})", full_name(workload)),
        Owner::Host => format!("host ({address})"),
        Owner::World => address.to_string(),
    }
}

fn has_ports(protocol: Protocol) -> bool {
    [Protocol::TCP, Protocol::UDP, Protocol::SCTP].contains(&protocol)
}

fn port_text(flow: &Flow) -> String {
    let Flow {
        protocol,
        destination_port: port,
        ..
    } = *flow;
    match protocol {
        Protocol::ICMP | Protocol::ICMPV6 => {
            format!("{protocol} type {} code {}", port >> 8, port & 0xff)
        }
        _ if has_ports(protocol) => format!("{port}/{protocol}"),
        _ => format!("protocol {protocol}"),
    }
}

fn rejection(
    evaluator: &Evaluator<'_>,
    rule: &ResolvedRule,
    flow: &Flow,
    direction: Direction,
    peer_matches: bool,
    port_matches: bool,
) -> String {
    let end = match direction {
        Direction::Ingress => "source",
        Direction::Egress => "destination",
    };
    let peer = format!(
        "the {end} {} is not among its peers",
        name_of(evaluator, peer_address(flow, direction))
    );
    let ports = || {
        let Ports::Of(ports) = &rule.ports else {
            return String::new();
        };
        let named: &[_] = match evaluator.owner(flow.destination) {
            Owner::Workload(workload) => &workload.ports,
            Owner::Host | Owner::World => &[],
        };
        let allowed: Vec<_> = ports
            .iter()
            .map(|port| {
                let unresolved = port.ranges(named).next().is_none();
                let note = if unresolved { " (unknown there)" } else { "" };
                format!("{}{note}", range_text(port))
            })
            .collect();
        format!(
            "{} is not among its ports: {}",
            port_text(flow),
            allowed.join(", ")
        )
    };
    match (peer_matches, port_matches) {
        (false, true) => peer,
        (true, false) => ports(),
        _ => format!("{peer}, and {}", ports()),
    }
}

fn range_text(port: &PortMatch) -> String {
    let protocol = port.protocol;
    match &port.port {
        PortRange::All => format!("every {protocol} port"),
        PortRange::Numbers(first, last) if first == last => format!("{first}/{protocol}"),
        PortRange::Numbers(first, last) => format!("{first}-{last}/{protocol}"),
        PortRange::Named(name) => format!("`{name}`/{protocol}"),
    }
}

fn remedy(
    evaluator: &Evaluator<'_>,
    flow: &Flow,
    direction: Direction,
    local: &Workload,
    near: &[(bool, bool, &RuleRef)],
    isolated_by: Option<&LabelSelector>,
) -> Remedy {
    let peer_address = peer_address(flow, direction);
    let list = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let peer = name_of(evaluator, peer_address);
    let port = port_text(flow);
    let only_port = near.iter().find(|(peer, port, _)| *peer && !port);
    let only_peer = near.iter().find(|(peer, port, _)| !peer && *port);
    let text = match (only_port, only_peer) {
        (Some((_, _, rule)), _) if has_ports(flow.protocol) => {
            format!("add port {port} to `ports` of {rule}")
        }
        (_, Some((_, _, rule))) => format!("add {peer} to `{list}` of {rule}"),
        _ if isolated_by.is_none() => format!(
            "no policy selects {} for {}; add one that allows {peer} on {port}",
            full_name(local),
            direction.as_str()
        ),
        _ => format!(
            "add a rule that allows {} {list} {peer} on {port}",
            direction.as_str()
        ),
    };
    let text = if has_ports(flow.protocol) {
        text
    } else {
        format!(
            "{text}; NetworkPolicy cannot name {}, so the rule must have no `ports` and allows \
             every protocol",
            flow.protocol
        )
    };
    let selected = match isolated_by {
        Some(isolated) => both(selector(local), isolated),
        None => selector(local),
    };
    let policy = allowing_policy(evaluator, flow, direction, local, selected);
    Remedy {
        text,
        yaml: export::to_yaml(&[policy.clone().into()]),
        policy,
    }
}

fn allowing_policy(
    evaluator: &Evaluator<'_>,
    flow: &Flow,
    direction: Direction,
    local: &Workload,
    selected: LabelSelector,
) -> NetworkPolicy {
    let peer = peer_address(flow, direction);
    let owner = evaluator.owner(peer);
    let peers = Some(vec![match owner {
        Owner::Workload(other) => Peer {
            pod_selector: Some(selector(other)),
            namespace_selector: (other.namespace != local.namespace)
                .then(|| namespace_selector(&other.namespace)),
            ip_block: None,
        },
        Owner::Host | Owner::World => Peer {
            ip_block: Some(IpBlock {
                cidr: IpNet::from(peer).to_string(),
                except: None,
            }),
            ..Peer::default()
        },
    }]);
    let ports = has_ports(flow.protocol).then(|| {
        vec![Port {
            protocol: Some(flow.protocol.to_string()),
            // Port 0 cannot be written; it needs every port.
            port: (flow.destination_port != 0)
                .then(|| IntOrString::Int(i64::from(flow.destination_port))),
            end_port: None,
        }]
    });
    let mut spec = NetworkPolicySpec {
        pod_selector: Some(selected),
        ..NetworkPolicySpec::default()
    };
    let preposition = match direction {
        Direction::Ingress => {
            spec.policy_types = Some(vec![PolicyType::Ingress]);
            spec.ingress = Some(vec![IngressRule { from: peers, ports }]);
            "from"
        }
        Direction::Egress => {
            spec.policy_types = Some(vec![PolicyType::Egress]);
            spec.egress = Some(vec![EgressRule { to: peers, ports }]);
            "to"
        }
    };
    let other = match owner {
        Owner::Workload(other) => other.name.clone(),
        Owner::Host => "host".to_owned(),
        Owner::World => peer.to_string(),
    };
    let name = object_name(&format!("{}-{preposition}-{other}", local.name));
    NetworkPolicy::new(&local.namespace, name, spec)
}

/// The nearest thing to `text` that is an object name.
fn object_name(text: &str) -> String {
    let name: String = text
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(253)
        .collect();
    name.trim_matches('-').to_owned()
}

/// The selector that people would write for a workload: by its application label if it has one,
/// else by all labels that Kubernetes can spell.
fn selector(workload: &Workload) -> LabelSelector {
    const APPLICATION: [&[&str]; 5] = [
        &["app.kubernetes.io/name", "app.kubernetes.io/component"],
        &["app.kubernetes.io/name"],
        &["app"],
        &["k8s-app"],
        &["com.docker.compose.project", "com.docker.compose.service"],
    ];
    let usable: Labels = workload
        .labels
        .iter()
        .filter(|(key, value)| syntax::label_key(key).is_ok() && syntax::label_value(value).is_ok())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let chosen = APPLICATION
        .iter()
        .find(|keys| keys.iter().all(|key| usable.contains_key(*key)))
        .map(|keys| {
            keys.iter()
                .map(|key| ((*key).to_owned(), usable[*key].clone()))
                .collect()
        })
        .unwrap_or(usable);
    LabelSelector {
        match_labels: (!chosen.is_empty()).then_some(chosen),
        match_expressions: None,
    }
}

/// A selector of what both select. A remedy selects only workloads that are isolated already: it
/// must not isolate others by selecting them first.
fn both(mut selector: LabelSelector, other: &LabelSelector) -> LabelSelector {
    if let Some(labels) = &other.match_labels {
        let all = selector.match_labels.get_or_insert_default();
        all.extend(labels.clone());
    }
    if let Some(requirements) = &other.match_expressions {
        let all = selector.match_expressions.get_or_insert_default();
        all.extend(requirements.iter().cloned());
    }
    selector
}

fn namespace_selector(name: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some(Labels::from([(
            NAMESPACE_NAME_LABEL.to_owned(),
            name.to_owned(),
        )])),
        match_expressions: None,
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.flow, self.decision.effective.as_str())?;
        for (name, side) in [("egress", &self.egress), ("ingress", &self.ingress)] {
            if let Some(side) = side {
                side.describe(f, name)?;
            }
        }
        Ok(())
    }
}

impl SideExplanation {
    fn describe(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        let Judgement {
            action, mode, rule, ..
        } = &self.judgement;
        writeln!(
            f,
            "  {name} of {} ({}): {} by {rule}",
            self.workload,
            mode_name(*mode),
            action_name(*action),
        )?;
        if self.selected_by.is_empty() {
            writeln!(f, "    selected by no policy")?;
        }
        for policy in &self.selected_by {
            writeln!(f, "    selected by {policy}")?;
        }
        for other in self.allowed_by.iter().filter(|other| *other != rule) {
            writeln!(f, "    also allowed by {other}")?;
        }
        if *action == Action::Deny {
            for rejected in &self.rejected {
                writeln!(f, "    {}: {}", rejected.rule, rejected.reason)?;
            }
        }
        if let Some(remedy) = &self.remedy {
            writeln!(f, "    to allow it: {}", remedy.text)?;
            for line in remedy.yaml.lines() {
                writeln!(f, "      {line}")?;
            }
        }
        Ok(())
    }
}
