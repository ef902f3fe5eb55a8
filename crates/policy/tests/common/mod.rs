//! A small estate to judge flows in. Every judgement is made twice, by the evaluator and by
//! compiled maps, and must be the same.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

pub mod random;

use std::collections::BTreeMap;
use std::net::IpAddr;

use dataplane_common::Direction;
use dataplane_common::policy::{Action, rule_id};
use policy::compile::{Compiled, Interner, compile, identity_of, lookup};
use policy::evaluate::{Decision, Evaluator, Flow, Owner, RuleRef};
use policy::explain::explain;
use policy::model::{
    Estate, Labels, Mode, Modes, NamedPort, Namespace, Protocol, Unselected, Workload,
};
use policy::parse::{PolicySet, parse_documents};

pub fn labels(text: &str) -> Labels {
    text.split(',')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap();
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `namespace/name`, `k=v,k=v` labels, addresses.
pub fn workload(name: &str, label_text: &str, addresses: &[&str]) -> Workload {
    let (namespace, name) = name.split_once('/').unwrap();
    Workload {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        labels: labels(label_text),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        ports: Vec::new(),
        group: format!("{namespace}/{name}"),
    }
}

pub fn with_port(mut workload: Workload, name: &str, port: u16, protocol: Protocol) -> Workload {
    workload.ports.push(NamedPort {
        name: name.to_owned(),
        port,
        protocol,
    });
    workload
}

pub fn namespace(name: &str, label_text: &str) -> Namespace {
    Namespace {
        name: name.to_owned(),
        labels: labels(label_text),
    }
}

pub fn policies(text: &str) -> PolicySet {
    match parse_documents("test.yaml", text) {
        Ok(parsed) => parsed.policies.into(),
        Err(errors) => panic!("{errors}"),
    }
}

/// A policy in namespace `x`, from the lines of its spec.
pub fn spec(text: &str) -> PolicySet {
    let spec: String = text.lines().map(|line| format!("  {line}\n")).collect();
    policies(&format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: p, namespace: x}}\nspec:\n{spec}"
    ))
}

pub struct Scene {
    pub estate: Estate,
    pub policies: PolicySet,
    pub modes: Modes,
    pub unselected: Unselected,
}

impl Scene {
    pub fn new(workloads: Vec<Workload>, namespaces: Vec<Namespace>, policies: PolicySet) -> Self {
        Self {
            estate: Estate {
                namespaces: namespaces
                    .into_iter()
                    .map(|namespace| (namespace.name.clone(), namespace))
                    .collect(),
                workloads,
                host_addresses: vec![ip("10.0.0.1"), ip("fd00::1")],
            },
            policies,
            modes: Modes {
                default: Mode::Protect,
                groups: BTreeMap::new(),
            },
            unselected: Unselected::Allow,
        }
    }

    pub fn compile(&self, interner: &mut Interner) -> Compiled {
        compile(
            &self.estate,
            &self.policies,
            &self.modes,
            self.unselected,
            interner,
        )
        .unwrap()
    }

    /// An address by workload name (its first of the family), by `host`, or as text.
    pub fn address(&self, name: &str, v6: bool) -> IpAddr {
        if name == "host" {
            return ip(if v6 { "fd00::1" } else { "10.0.0.1" });
        }
        self.estate
            .workloads
            .iter()
            .find(|workload| format!("{}/{}", workload.namespace, workload.name) == name)
            .map_or_else(
                || ip(name),
                |workload| {
                    *workload
                        .addresses
                        .iter()
                        .find(|address| address.is_ipv6() == v6)
                        .unwrap_or_else(|| panic!("{name} has no such address"))
                },
            )
    }

    /// Judges `port/PROTOCOL` between two names, IPv4.
    pub fn judge(&self, from: &str, to: &str, port: &str) -> Decision {
        self.judge_family(from, to, port, false)
    }

    pub fn judge_family(&self, from: &str, to: &str, port: &str, v6: bool) -> Decision {
        let (number, protocol) = port.split_once('/').unwrap();
        let flow = Flow {
            source: self.address(from, v6),
            destination: self.address(to, v6),
            protocol: protocol.parse().unwrap(),
            destination_port: number.parse().unwrap(),
        };
        let mut interner = Interner::new();
        let compiled = self.compile(&mut interner);
        let evaluator = Evaluator::new(&self.estate, &self.policies, &self.modes, self.unselected);
        assert_agreement(self, &evaluator, &compiled, &interner, &flow)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Whether policy allows the flow.
    pub fn allows(&self, from: &str, to: &str, port: &str) -> bool {
        self.judge(from, to, port).allowed_by_policy()
    }

    /// Asserts a table of (from, to, port, allowed) for IPv4.
    pub fn table(&self, rows: &[(&str, &str, &str, bool)]) {
        for (from, to, port, expected) in rows {
            let decision = self.judge(from, to, port);
            assert_eq!(
                decision.allowed_by_policy(),
                *expected,
                "{from} -> {to} {port}: {decision:?}"
            );
        }
    }
}

/// The evaluator's decision, or how the compiled maps differ from it.
pub fn assert_agreement(
    scene: &Scene,
    evaluator: &Evaluator<'_>,
    compiled: &Compiled,
    interner: &Interner,
    flow: &Flow,
) -> Result<Decision, String> {
    let decision = evaluator.evaluate(flow);
    for direction in [Direction::Egress, Direction::Ingress] {
        let (local, peer) = match direction {
            Direction::Egress => (flow.source, flow.destination),
            Direction::Ingress => (flow.destination, flow.source),
        };
        let side = decision.side(direction);
        let Owner::Workload(owner) = evaluator.owner(local) else {
            if side.is_some() {
                return Err(format!("{flow:?}: {direction:?} judged without a workload"));
            }
            continue;
        };
        let side = side.ok_or_else(|| format!("{flow:?}: {direction:?} not judged"))?;
        let index = scene
            .estate
            .workloads
            .iter()
            .position(|workload| std::ptr::eq(workload, owner))
            .unwrap();
        let program = compiled.workloads[index].program;
        let is_self =
            matches!(evaluator.owner(peer), Owner::Workload(other) if std::ptr::eq(owner, other));
        let (action, id) = if is_self {
            (Action::Allow, rule_id::SELF_TRAFFIC)
        } else {
            let identity = identity_of(compiled, peer);
            let port = flow.destination_port;
            lookup(compiled, program, direction, identity, flow.protocol, port)
        };
        let rule = interner
            .rule(id)
            .ok_or_else(|| format!("{flow:?}: rule {id} has no reference"))?;
        if action != side.action || compiled.programs[program].mode != side.mode {
            return Err(format!(
                "{flow:?} {direction:?}: evaluate {side:?}, compiled {action:?} by {rule}"
            ));
        }
        if rule != side.rule {
            // Several rules may allow one flow; the compiled form names one of them. A built-in is
            // above them all.
            let matching = matching_rules(scene, flow, direction);
            if !matching.contains(&side.rule) || !matching.contains(&rule) {
                return Err(format!(
                    "{flow:?} {direction:?}: evaluate names {}, compiled {rule}",
                    side.rule
                ));
            }
        }
    }
    Ok(decision)
}

fn matching_rules(scene: &Scene, flow: &Flow, direction: Direction) -> Vec<RuleRef> {
    let explanation = explain(
        &scene.estate,
        &scene.policies,
        &scene.modes,
        scene.unselected,
        flow,
    );
    let side = match direction {
        Direction::Egress => explanation.egress,
        Direction::Ingress => explanation.ingress,
    };
    side.map(|side| side.allowed_by).unwrap_or_default()
}

/// Namespaces `x` (policies live here) and `y`, each with `a`, `b` and `c`; `pod` is the name.
pub fn scene(policies: PolicySet) -> Scene {
    let mut workloads = Vec::new();
    for (third, ns) in ["x", "y"].into_iter().enumerate() {
        for (last, name) in ["a", "b", "c"].into_iter().enumerate() {
            workloads.push(workload(
                &format!("{ns}/{name}"),
                &format!("pod={name}"),
                &[
                    &format!("10.0.{third}.{}", last + 2),
                    &format!("fd00::{third}:{}", last + 2),
                ],
            ));
        }
    }
    let namespaces = vec![namespace("x", "team=one"), namespace("y", "team=two")];
    Scene::new(workloads, namespaces, policies)
}
