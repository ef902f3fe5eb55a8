//! The compiled maps say what the evaluator says, on random estates, policies and flows.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;

use common::random::{estate, flows, modes, policy_list, unselected};
use common::{Scene, assert_agreement};
use dataplane_common::Direction;
use dataplane_common::policy::Action;
use policy::compile::{Interner, compile, compile_after, identity_of, lookup};
use policy::evaluate::{Evaluator, Owner};
use policy::export::to_yaml;
use policy::model::{Mode, Modes, Unselected};
use policy::netpol::{NetworkPolicy, Peer};
use policy::parse::{PolicySet, parse_documents};
use proptest::prelude::*;

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
