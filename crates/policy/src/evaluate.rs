//! The truth: what a set of policies says about one flow.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use dataplane_common::Direction;
use dataplane_common::policy::{Action, rule_id};
use dataplane_common::stats::Verdict;
use serde::{Deserialize, Serialize};

use crate::model::{Estate, Mode, Modes, Protocol, Unselected, Workload};
use crate::parse::PolicySet;
use crate::resolve::{
    NamespaceMatch, PeerMatch, Peers, Ports, ResolvedPolicy, ResolvedRule, resolve,
};

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

impl fmt::Display for RuleRef {
    /// `namespace/name ingress[0] (file:line)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.policy)?;
        if let Some(rule) = &self.rule {
            write!(f, " {rule}")?;
        }
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, " ({file}:{line})"),
            (Some(file), None) => write!(f, " ({file})"),
            (None, _) => Ok(()),
        }
    }
}

impl RuleRef {
    /// The reference for a fixed id of [`rule_id`]; `None` for ids of policy rules.
    #[must_use]
    pub fn builtin(id: u32) -> Option<Self> {
        let name = match id {
            rule_id::NONE => "none",
            rule_id::DEFAULT_DENY => "default",
            rule_id::UNSELECTED_DENY => "builtin/unselected-deny",
            rule_id::UNSELECTED_ALLOW => "builtin/unselected-allow",
            rule_id::SELF_TRAFFIC => "builtin/self",
            rule_id::HOST_INGRESS => "builtin/host-ingress",
            _ => return None,
        };
        Some(Self {
            policy: name.to_owned(),
            file: None,
            line: None,
            rule: None,
        })
    }
}

/// What policy says about one side of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// Allow or Deny.
    #[serde(serialize_with = "serialize_action")]
    pub action: Action,
    /// Mode of the workload's group, which decides whether the action has an effect.
    #[serde(serialize_with = "serialize_mode")]
    pub mode: Mode,
    /// The rule that decides: the first that allows, in the order of the policy set, or a built-in.
    pub rule: RuleRef,
    /// Effect of action and mode.
    #[serde(serialize_with = "serialize_verdict")]
    pub effective: Verdict,
}

fn serialize_action<S: serde::Serializer>(action: &Action, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(action_name(*action))
}

fn serialize_mode<S: serde::Serializer>(mode: &Mode, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(mode_name(*mode))
}

fn serialize_verdict<S: serde::Serializer>(verdict: &Verdict, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(verdict.as_str())
}

/// `allow`, `redirect` or `deny`.
#[must_use]
pub const fn action_name(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Redirect => "redirect",
        Action::Deny => "deny",
    }
}

/// `discover`, `monitor` or `protect`.
#[must_use]
pub const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Discover => "discover",
        Mode::Monitor => "monitor",
        Mode::Protect => "protect",
    }
}

/// What a mode makes of an action.
#[must_use]
pub const fn effective(action: Action, mode: Mode) -> Verdict {
    match (action, mode) {
        (_, Mode::Discover) | (Action::Allow, _) => Verdict::Forwarded,
        (Action::Redirect, _) => Verdict::Redirected,
        (Action::Deny, Mode::Monitor) => Verdict::Audit,
        (Action::Deny, Mode::Protect) => Verdict::Dropped,
    }
}

/// What a set of policies says about a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The source workload's egress; `None` when the source is no workload.
    pub egress: Option<Judgement>,
    /// The destination workload's ingress; `None` when the destination is no workload.
    pub ingress: Option<Judgement>,
    /// What happens to the flow: both sides must let it pass.
    #[serde(serialize_with = "serialize_verdict")]
    pub effective: Verdict,
}

impl Decision {
    fn new(egress: Option<Judgement>, ingress: Option<Judgement>) -> Self {
        let sides = [&egress, &ingress];
        let any = |verdict| {
            sides
                .iter()
                .any(|side| side.as_ref().is_some_and(|side| side.effective == verdict))
        };
        let effective = [Verdict::Dropped, Verdict::Audit, Verdict::Redirected]
            .into_iter()
            .find(|&verdict| any(verdict))
            .unwrap_or(Verdict::Forwarded);
        Self {
            egress,
            ingress,
            effective,
        }
    }

    /// Whether policy allows the flow on both sides, whatever the modes.
    #[must_use]
    pub fn allowed_by_policy(&self) -> bool {
        [&self.egress, &self.ingress]
            .into_iter()
            .flatten()
            .all(|side| side.action != Action::Deny)
    }

    /// The judgement of one direction.
    #[must_use]
    pub const fn side(&self, direction: Direction) -> Option<&Judgement> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

/// Judges one flow. For many flows against the same policies keep an [`Evaluator`].
#[must_use]
pub fn evaluate(
    estate: &Estate,
    policies: &PolicySet,
    modes: &Modes,
    unselected: Unselected,
    flow: &Flow,
) -> Decision {
    Evaluator::new(estate, policies, modes, unselected).evaluate(flow)
}

/// Who an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// The host itself. Workloads that share the host's address are the host.
    Host,
    /// A workload.
    Workload(&'a Workload),
    /// Nobody known.
    World,
}

/// The truth about flows between the workloads of an estate, at one moment.
#[derive(Clone, Debug)]
pub struct Evaluator<'a> {
    estate: &'a Estate,
    modes: &'a Modes,
    unselected: Unselected,
    policies: Vec<ResolvedPolicy>,
    owners: HashMap<IpAddr, &'a Workload>,
}

impl<'a> Evaluator<'a> {
    /// Resolves the policies once.
    #[must_use]
    pub fn new(
        estate: &'a Estate,
        policies: &PolicySet,
        modes: &'a Modes,
        unselected: Unselected,
    ) -> Self {
        let mut owners = HashMap::new();
        for workload in &estate.workloads {
            for &address in &workload.addresses {
                owners.entry(address).or_insert(workload);
            }
        }
        Self {
            estate,
            modes,
            unselected,
            policies: resolve(policies),
            owners,
        }
    }

    /// Who an address belongs to.
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Owner<'a> {
        if self.estate.host_addresses.contains(&address) {
            return Owner::Host;
        }
        self.owners
            .get(&address)
            .map_or(Owner::World, |workload| Owner::Workload(workload))
    }

    /// Judges one flow.
    #[must_use]
    pub fn evaluate(&self, flow: &Flow) -> Decision {
        Decision::new(
            self.judge(flow, Direction::Egress),
            self.judge(flow, Direction::Ingress),
        )
    }

    fn judge(&self, flow: &Flow, direction: Direction) -> Option<Judgement> {
        let Owner::Workload(local) = self.owner(local_address(flow, direction)) else {
            return None;
        };
        let peer = self.owner(peer_address(flow, direction));
        let (action, rule) = self.decide(flow, direction, local, peer);
        let mode = self.modes.of(&local.group);
        Some(Judgement {
            action,
            mode,
            rule,
            effective: effective(action, mode),
        })
    }

    fn decide(
        &self,
        flow: &Flow,
        direction: Direction,
        local: &Workload,
        peer: Owner<'_>,
    ) -> (Action, RuleRef) {
        let fixed = |action, id| (action, RuleRef::builtin(id).expect("the id is fixed"));
        match peer {
            Owner::Workload(other) if std::ptr::eq(local, other) => {
                return fixed(Action::Allow, rule_id::SELF_TRAFFIC);
            }
            Owner::Host if direction == Direction::Ingress => {
                return fixed(Action::Allow, rule_id::HOST_INGRESS);
            }
            Owner::Workload(_) | Owner::Host | Owner::World => {}
        }
        let mut isolated = false;
        for (_, rules) in self.selecting(local, direction) {
            isolated = true;
            if let Some(rule) = rules
                .iter()
                .find(|rule| self.rule_allows(rule, flow, direction))
            {
                return (Action::Allow, rule.reference.clone());
            }
        }
        match (isolated, self.unselected) {
            (true, _) => fixed(Action::Deny, rule_id::DEFAULT_DENY),
            (false, Unselected::Deny) => fixed(Action::Deny, rule_id::UNSELECTED_DENY),
            (false, Unselected::Allow) => fixed(Action::Allow, rule_id::UNSELECTED_ALLOW),
        }
    }

    /// The policies that isolate a workload in a direction, with their rules for it.
    pub(crate) fn selecting<'s>(
        &'s self,
        local: &'s Workload,
        direction: Direction,
    ) -> impl Iterator<Item = (&'s ResolvedPolicy, &'s [ResolvedRule])> {
        self.policies
            .iter()
            .filter(|policy| policy.selects(&local.namespace, &local.labels))
            .filter_map(move |policy| Some((policy, policy.rules(direction)?)))
    }

    /// Whether a rule of a selecting policy allows a flow.
    pub(crate) fn rule_allows(
        &self,
        rule: &ResolvedRule,
        flow: &Flow,
        direction: Direction,
    ) -> bool {
        self.peers_match(&rule.peers, peer_address(flow, direction))
            && self.ports_match(&rule.ports, flow)
    }

    pub(crate) fn peers_match(&self, peers: &Peers, address: IpAddr) -> bool {
        let Peers::Of(peers) = peers else {
            return true;
        };
        peers.iter().any(|peer| match peer {
            // Blocks match every address in them, workloads' and the host's own included.
            PeerMatch::Block(block) => block.contains(address),
            PeerMatch::Workloads { namespaces, labels } => match self.owner(address) {
                Owner::Workload(workload) => {
                    labels.matches(&workload.labels)
                        && match namespaces {
                            NamespaceMatch::Named(name) => *name == workload.namespace,
                            NamespaceMatch::Labelled(selector) => {
                                selector.matches(&self.estate.namespace_labels(&workload.namespace))
                            }
                        }
                }
                Owner::Host | Owner::World => false,
            },
        })
    }

    pub(crate) fn ports_match(&self, ports: &Ports, flow: &Flow) -> bool {
        let Ports::Of(ports) = ports else {
            return true;
        };
        let named = match self.owner(flow.destination) {
            Owner::Workload(workload) => workload.ports.as_slice(),
            Owner::Host | Owner::World => &[],
        };
        ports
            .iter()
            .any(|port| port.matches(flow.protocol, flow.destination_port, named))
    }
}

pub(crate) const fn local_address(flow: &Flow, direction: Direction) -> IpAddr {
    match direction {
        Direction::Ingress => flow.destination,
        Direction::Egress => flow.source,
    }
}

pub(crate) const fn peer_address(flow: &Flow, direction: Direction) -> IpAddr {
    match direction {
        Direction::Ingress => flow.source,
        Direction::Egress => flow.destination,
    }
}
