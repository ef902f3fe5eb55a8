//! The compiled maps say what the evaluator says, on random estates, policies and flows.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common::{Scene, assert_agreement, ip};
use dataplane_common::Direction;
use dataplane_common::policy::Action;
use policy::compile::{Interner, compile, compile_after, identity_of, lookup};
use policy::evaluate::{Evaluator, Flow, Owner};
use policy::export::to_yaml;
use policy::model::{
    Estate, Labels, Mode, Modes, NamedPort, Namespace, Protocol, Unselected, Workload,
};
use policy::netpol::{
    EgressRule, IngressRule, IntOrString, IpBlock, LabelSelector, NetworkPolicy, NetworkPolicySpec,
    Operator, Peer, PolicyType, Port, Requirement,
};
use policy::parse::{PolicySet, parse_documents};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Addresses of workloads, of the host and of nobody, close enough together for blocks to cut
/// between them.
const ADDRESSES: [&str; 24] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.0.5",
    "10.0.1.2",
    "10.0.1.3",
    "10.0.1.130",
    "10.1.0.1",
    "192.0.2.1",
    "192.0.2.2",
    "198.51.100.7",
    "fd00::1",
    "fd00::2",
    "fd00::3",
    "fd00::4",
    "fd00::5",
    "fd00::1:2",
    "fd00::1:3",
    "fd01::1",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8:1::1",
    "::2",
];
/// Blocks and blocks strictly inside them.
const BLOCKS: [(&str, &[&str]); 10] = [
    (
        "0.0.0.0/0",
        &["10.0.0.0/8", "192.0.2.0/24", "10.0.0.2/32", "0.0.0.0/1"],
    ),
    (
        "::/0",
        &["fd00::/8", "fd00::2/128", "2001:db8::/32", "8000::/1"],
    ),
    (
        "10.0.0.0/8",
        &["10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/31", "10.0.0.3/32"],
    ),
    ("10.66.0.10/4", &["10.0.0.0/24", "0.0.0.0/5"]),
    (
        "10.0.0.0/24",
        &["10.0.0.0/30", "10.0.0.2/31", "10.0.0.4/32"],
    ),
    ("10.0.1.128/25", &[]),
    ("192.0.2.1/32", &[]),
    ("fd00::/64", &["fd00::/120", "fd00::1:0/112", "fd00::4/126"]),
    ("2001:db8::/32", &["2001:db8:1::/48", "2001:db8::1/128"]),
    ("fd00::2/127", &["fd00::3/128"]),
];
const NAMESPACES: [&str; 2] = ["x", "z"];
const KEYS: [&str; 3] = ["app", "tier", "team"];
const VALUES: [&str; 3] = ["a", "b", ""];
const PORT_NAMES: [&str; 2] = ["http", "dns"];
const PROTOCOLS: [Protocol; 5] = [
    Protocol::TCP,
    Protocol::UDP,
    Protocol::SCTP,
    Protocol::ICMP,
    Protocol::ICMPV6,
];
/// Close together, so that ranges end beside a flow's port.
const PORTS: [u16; 9] = [0, 53, 79, 80, 81, 82, 83, 8080, 65535];

fn labels() -> impl Strategy<Value = Labels> {
    btree_map(
        select(&KEYS[..]).prop_map(str::to_owned),
        select(&VALUES[..]).prop_map(str::to_owned),
        0..3,
    )
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    let values = || vec(select(&VALUES[..]).prop_map(str::to_owned), 1..3);
    let key = || select(&KEYS[..]).prop_map(str::to_owned);
    let requirement = prop_oneof![
        (key(), values()).prop_map(|(key, values)| (key, Operator::In, Some(values))),
        (key(), values()).prop_map(|(key, values)| (key, Operator::NotIn, Some(values))),
        key().prop_map(|key| (key, Operator::Exists, None)),
        key().prop_map(|key| (key, Operator::DoesNotExist, None)),
    ]
    .prop_map(|(key, operator, values)| Requirement {
        key,
        operator,
        values,
    });
    (
        option::weighted(0.4, labels()),
        option::weighted(0.4, vec(requirement, 0..2)),
    )
        .prop_map(|(match_labels, match_expressions)| LabelSelector {
            match_labels,
            match_expressions,
        })
}

fn namespace_selector() -> impl Strategy<Value = LabelSelector> {
    prop_oneof![
        selector(),
        select(&NAMESPACES[..]).prop_map(|name| LabelSelector {
            match_labels: Some(BTreeMap::from([(
                "kubernetes.io/metadata.name".to_owned(),
                name.to_owned(),
            )])),
            match_expressions: None,
        }),
    ]
}

fn peer() -> impl Strategy<Value = Peer> {
    let block = (select(&BLOCKS[..]), option::of(vec(any::<Index>(), 0..3))).prop_map(
        |((cidr, inner), except)| Peer {
            ip_block: Some(IpBlock {
                cidr: cidr.to_owned(),
                except: except.map(|picks| {
                    let picks = picks.iter().filter(|_| !inner.is_empty());
                    let chosen: BTreeSet<_> = picks.map(|pick| *pick.get(inner)).collect();
                    chosen.into_iter().map(str::to_owned).collect()
                }),
            }),
            ..Peer::default()
        },
    );
    prop_oneof![
        3 => block,
        1 => selector().prop_map(|selector| Peer {
            pod_selector: Some(selector),
            ..Peer::default()
        }),
        1 => namespace_selector().prop_map(|selector| Peer {
            namespace_selector: Some(selector),
            ..Peer::default()
        }),
        1 => (selector(), namespace_selector()).prop_map(|(pods, namespaces)| Peer {
            pod_selector: Some(pods),
            namespace_selector: Some(namespaces),
            ip_block: None,
        }),
    ]
}

fn port() -> impl Strategy<Value = Port> {
    let protocol = option::of(select(&["TCP", "UDP", "SCTP"][..]).prop_map(str::to_owned));
    let number = |first: u16| Some(IntOrString::Int(i64::from(first)));
    let range = prop_oneof![
        1 => Just((None, None)),
        4 => select(&PORTS[1..]).prop_map(move |first| (number(first), None)),
        4 => (select(&PORTS[1..]), select(&PORTS[1..])).prop_map(move |(a, b)| {
            (number(a.min(b)), Some(i64::from(a.max(b))))
        }),
        1 => (1_u16..=65535, 1_u16..=65535).prop_map(move |(a, b)| {
            (number(a.min(b)), Some(i64::from(a.max(b))))
        }),
        5 => select(&PORT_NAMES[..])
            .prop_map(|name| (Some(IntOrString::String(name.to_owned())), None)),
    ];
    (protocol, range).prop_map(|(protocol, (port, end_port))| Port {
        protocol,
        port,
        end_port,
    })
}

type RuleParts = (Option<Vec<Peer>>, Option<Vec<Port>>);

fn rule() -> impl Strategy<Value = RuleParts> {
    (
        option::weighted(0.8, vec(peer(), 0..3)),
        option::weighted(0.7, vec(port(), 0..3)),
    )
}

fn policy() -> impl Strategy<Value = NetworkPolicy> {
    let types = option::of(prop_oneof![
        Just(vec![]),
        Just(vec![PolicyType::Ingress]),
        Just(vec![PolicyType::Egress]),
        Just(vec![PolicyType::Ingress, PolicyType::Egress]),
    ]);
    (
        select(&NAMESPACES[..]),
        option::weighted(0.9, selector()),
        types,
        option::weighted(0.8, vec(rule(), 0..3)),
        option::weighted(0.8, vec(rule(), 0..3)),
    )
        .prop_map(|(namespace, pod_selector, policy_types, ingress, egress)| {
            let ingress = ingress.map(|rules| {
                let rules = rules.into_iter();
                rules
                    .map(|(from, ports)| IngressRule { from, ports })
                    .collect()
            });
            let egress = egress.map(|rules| {
                let rules = rules.into_iter();
                rules.map(|(to, ports)| EgressRule { to, ports }).collect()
            });
            let spec = NetworkPolicySpec {
                pod_selector,
                policy_types,
                ingress,
                egress,
            };
            NetworkPolicy::new(namespace, "p", spec)
        })
}

fn policy_list() -> impl Strategy<Value = Vec<NetworkPolicy>> {
    vec(policy(), 0..5).prop_map(|mut policies| {
        for (index, policy) in policies.iter_mut().enumerate() {
            policy.metadata.name = format!("p{index}");
        }
        policies
    })
}

fn named_ports() -> impl Strategy<Value = Vec<NamedPort>> {
    let port = (
        select(&PORT_NAMES[..]),
        select(&PORTS[1..7]),
        select(&PROTOCOLS[..2]),
    )
        .prop_map(|(name, port, protocol)| NamedPort {
            name: name.to_owned(),
            port,
            protocol,
        });
    vec(port, 0..4)
}

fn estate() -> impl Strategy<Value = Estate> {
    let workload = (select(&NAMESPACES[..]), labels(), named_ports(), 0_usize..4);
    let owners = vec(0_usize..8, ADDRESSES.len());
    (
        vec(workload, 1..6),
        owners,
        btree_map(select(&NAMESPACES[..]), labels(), 0..3),
    )
        .prop_map(|(workloads, owners, namespaces)| {
            let mut estate = Estate {
                namespaces: namespaces
                    .into_iter()
                    .map(|(name, labels)| {
                        let namespace = Namespace {
                            name: name.to_owned(),
                            labels,
                        };
                        (name.to_owned(), namespace)
                    })
                    .collect(),
                workloads: workloads
                    .into_iter()
                    .enumerate()
                    .map(|(index, (namespace, labels, ports, group))| Workload {
                        name: format!("w{index}"),
                        namespace: namespace.to_owned(),
                        labels,
                        addresses: Vec::new(),
                        ports,
                        group: format!("g{group}"),
                    })
                    .collect(),
                host_addresses: Vec::new(),
            };
            // 0: the host. 1 to 5: a workload, if there is one. The rest: nobody.
            for (text, owner) in ADDRESSES.iter().zip(owners) {
                match owner {
                    0 => estate.host_addresses.push(ip(text)),
                    owner => {
                        if let Some(workload) = estate.workloads.get_mut(owner - 1) {
                            workload.addresses.push(ip(text));
                        }
                    }
                }
            }
            estate
        })
}

fn modes() -> impl Strategy<Value = Modes> {
    let mode = || select(&[Mode::Discover, Mode::Monitor, Mode::Protect][..]);
    (
        mode(),
        btree_map((0_usize..4).prop_map(|n| format!("g{n}")), mode(), 0..4),
    )
        .prop_map(|(default, groups)| Modes { default, groups })
}

fn flows() -> impl Strategy<Value = Vec<Flow>> {
    let flow = (
        select(&ADDRESSES[..]),
        any::<Index>(),
        prop_oneof![3 => Just(Protocol::TCP), 2 => select(&PROTOCOLS[..])],
        prop_oneof![6 => select(&PORTS[..]), 1 => any::<u16>()],
    )
        .prop_map(|(source, pick, protocol, destination_port)| {
            let source = ip(source);
            let same_family: Vec<IpAddr> = ADDRESSES
                .iter()
                .map(|text| ip(text))
                .filter(|address| address.is_ipv4() == source.is_ipv4())
                .collect();
            Flow {
                source,
                destination: *pick.get(&same_family),
                protocol,
                destination_port,
            }
        });
    vec(flow, 1..60)
}

fn unselected() -> impl Strategy<Value = Unselected> {
    select(&[Unselected::Deny, Unselected::Allow][..])
}

/// The policies without their blocks, and without the rules that have no other peer.
fn without_blocks(policies: &[NetworkPolicy]) -> Vec<NetworkPolicy> {
    let strip = |peers: &mut Option<Vec<Peer>>| match peers {
        Some(list) if !list.is_empty() => {
            list.retain(|peer| peer.ip_block.is_none());
            !list.is_empty()
        }
        _ => true,
    };
    let mut policies = policies.to_vec();
    for policy in &mut policies {
        // What isolates must not change with the rules.
        policy.spec.policy_types = Some(policy::resolve::effective_policy_types(&policy.spec));
        if let Some(rules) = &mut policy.spec.ingress {
            rules.retain_mut(|rule| strip(&mut rule.from));
        }
        if let Some(rules) = &mut policy.spec.egress {
            rules.retain_mut(|rule| strip(&mut rule.to));
        }
    }
    policies
}

proptest! {
    #[test]
    fn compiled_maps_agree_with_the_evaluator(
        estate in estate(),
        policies in policy_list(),
        modes in modes(),
        unselected in unselected(),
        flows in flows(),
    ) {
        let policies = PolicySet::from_policies(policies, "random").map_err(|errors| {
            TestCaseError::fail(errors.to_string())
        })?;
        let scene = Scene { estate, policies, modes, unselected };
        let mut interner = Interner::new();
        let compiled = scene.compile(&mut interner);
        let evaluator =
            Evaluator::new(&scene.estate, &scene.policies, &scene.modes, scene.unselected);
        for flow in &flows {
            assert_agreement(&scene, &evaluator, &compiled, &interner, flow)
                .map_err(TestCaseError::fail)?;
        }
    }

    #[test]
    fn an_interner_that_has_seen_other_policies_changes_no_verdict(
        estate in estate(),
        before in policy_list(),
        after in policy_list(),
        modes in modes(),
        flows in flows(),
    ) {
        let set = |policies| PolicySet::from_policies(policies, "random").unwrap();
        let unselected = Unselected::Deny;
        let mut scene = Scene { estate, policies: set(before), modes, unselected };
        let mut interner = Interner::new();
        let first = scene.compile(&mut interner);
        scene.policies = set(after);
        let second = scene.compile(&mut interner);
        let evaluator =
            Evaluator::new(&scene.estate, &scene.policies, &scene.modes, scene.unselected);
        for flow in &flows {
            assert_agreement(&scene, &evaluator, &second, &interner, flow)
                .map_err(TestCaseError::fail)?;
        }
        // Compiling what was compiled before gives the same numbers, also after a restart.
        let stored = serde_json::to_string(&interner).unwrap();
        let mut restored: Interner = serde_json::from_str(&stored).unwrap();
        prop_assert_eq!(&restored, &interner);
        prop_assert_eq!(&scene.compile(&mut restored), &second);
        prop_assert_eq!(&restored, &interner);
        prop_assert!(first.workloads.len() == second.workloads.len());
    }

    #[test]
    fn exported_policies_mean_the_same(
        estate in estate(),
        policies in policy_list(),
        modes in modes(),
        unselected in unselected(),
        flows in flows(),
    ) {
        let original = PolicySet::from_policies(policies.clone(), "original").unwrap();
        let annotated: Vec<_> = policies.into_iter().map(Into::into).collect();
        let text = to_yaml(&annotated);
        let parsed = parse_documents("exported", &text)
            .map_err(|errors| TestCaseError::fail(format!("{errors}\n{text}")))?;
        let exported: PolicySet = parsed.policies.into();
        prop_assert_eq!(original.len(), exported.len());
        let left = Evaluator::new(&estate, &original, &modes, unselected);
        let right = Evaluator::new(&estate, &exported, &modes, unselected);
        for flow in &flows {
            let (left, right) = (left.evaluate(flow), right.evaluate(flow));
            prop_assert_eq!(left.effective, right.effective, "{:?}\n{}", flow, text);
            for (left, right) in [(left.egress, right.egress), (left.ingress, right.ingress)] {
                prop_assert_eq!(
                    left.map(|side| (side.action, side.rule.policy, side.rule.rule)),
                    right.map(|side| (side.action, side.rule.policy, side.rule.rule))
                );
            }
        }
    }

    #[test]
    fn what_explain_proposes_allows_the_flow_and_denies_no_other(
        estate in estate(),
        policies in policy_list(),
        unselected in unselected(),
        flows in flows(),
    ) {
        let modes = Modes { default: Mode::Protect, groups: BTreeMap::new() };
        let set = PolicySet::from_policies(policies, "random").unwrap();
        for flow in flows.iter().take(10) {
            let explanation = policy::explain::explain(&estate, &set, &modes, unselected, flow);
            let mut repaired = set.clone();
            for side in [&explanation.egress, &explanation.ingress].into_iter().flatten() {
                if let Some(remedy) = &side.remedy {
                    let parsed = parse_documents("remedy", &remedy.yaml)
                        .map_err(|errors| TestCaseError::fail(format!("{errors}\n{}", remedy.yaml)))?;
                    repaired.extend(parsed.policies);
                }
            }
            let before = Evaluator::new(&estate, &set, &modes, unselected);
            let after = Evaluator::new(&estate, &repaired, &modes, unselected);
            let decision = after.evaluate(flow);
            prop_assert!(decision.allowed_by_policy(), "{explanation}\n{decision:?}");
            prop_assert_eq!(
                before.evaluate(flow).allowed_by_policy(),
                explanation.egress.iter().chain(&explanation.ingress).all(|s| s.remedy.is_none())
            );
            for other in &flows {
                if before.evaluate(other).allowed_by_policy() {
                    let decision = after.evaluate(other);
                    prop_assert!(decision.allowed_by_policy(), "{other:?}\n{explanation}");
                }
            }
        }
    }

    /// Between the flip of the programs and the move of the addresses.
    #[test]
    fn programs_in_force_before_their_addresses(
        estate in estate(),
        blocks in policy_list(),
        unselected in unselected(),
        flows in flows(),
    ) {
        let modes = Modes { default: Mode::Protect, groups: BTreeMap::new() };
        let set = |policies| PolicySet::from_policies(policies, "random").unwrap();
        let plain = set(without_blocks(&blocks));
        let blocks = set(blocks);
        let between = |before: &PolicySet, after: &PolicySet| {
            let mut interner = Interner::new();
            let in_force = compile(&estate, before, &modes, unselected, &mut interner).unwrap();
            let mut next =
                compile_after(&in_force, &estate, after, &modes, unselected, &mut interner).unwrap();
            next.addresses = in_force.addresses;
            next.prefixes = in_force.prefixes;
            (next, interner)
        };
        let scene =
            |policies| Scene { estate: estate.clone(), policies, modes: modes.clone(), unselected };

        // Identities that lose their block are judged as without it.
        let (next, interner) = between(&blocks, &plain);
        let after = scene(plain.clone());
        let evaluator = Evaluator::new(&after.estate, &after.policies, &modes, unselected);
        for flow in &flows {
            assert_agreement(&after, &evaluator, &next, &interner, flow)
                .map_err(TestCaseError::fail)?;
        }

        // Identities that gain one keep what the rest of the policies allow them and gain nothing.
        let (next, _) = between(&plain, &blocks);
        let most = Evaluator::new(&estate, &blocks, &modes, unselected);
        let least = Evaluator::new(&estate, &plain, &modes, unselected);
        for flow in &flows {
            for (index, workload) in estate.workloads.iter().enumerate() {
                let local = |address| most.owner(address) == Owner::Workload(workload);
                if local(flow.source) || !local(flow.destination) {
                    continue;
                }
                let peer = identity_of(&next, flow.source);
                let (action, _) = lookup(
                    &next,
                    next.workloads[index].program,
                    Direction::Ingress,
                    peer,
                    flow.protocol,
                    flow.destination_port,
                );
                let action_of = |evaluator: &Evaluator<'_>| {
                    evaluator.evaluate(flow).ingress.map(|side| side.action)
                };
                if action_of(&least) == Some(Action::Allow) {
                    prop_assert_eq!(action, Action::Allow, "{:?}", flow);
                }
                if action_of(&most) == Some(Action::Deny) {
                    prop_assert_eq!(action, Action::Deny, "{:?}", flow);
                }
            }
        }
    }
}
