//! What NetworkPolicy rules and selectors mean, clause by clause, where implementations are known
//! to differ. Every row is judged by the evaluator and by compiled maps.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{policies, scene, spec, workload};

const WORLD: &str = "203.0.113.9";

#[test]
fn isolation_is_per_direction() {
    scene(spec(
        "podSelector: {matchLabels: {pod: a}}\npolicyTypes: [Ingress]",
    ))
    .table(&[
        ("x/b", "x/a", "80/TCP", false),
        (WORLD, "x/a", "80/TCP", false),
        ("x/a", "x/b", "80/TCP", true),
        ("x/a", WORLD, "80/TCP", true),
        ("x/b", "x/c", "80/TCP", true),
        ("x/b", "y/a", "80/TCP", true),
    ]);
    scene(spec(
        "podSelector: {matchLabels: {pod: a}}\npolicyTypes: [Egress]",
    ))
    .table(&[
        ("x/b", "x/a", "80/TCP", true),
        ("x/a", "x/b", "80/TCP", false),
        ("x/a", WORLD, "80/TCP", false),
    ]);
}

#[test]
fn absent_policy_types_default_by_the_rules_present() {
    let into_a_and_out = |text: &str| {
        let scene = scene(spec(text));
        [
            scene.allows("x/b", "x/a", "80/TCP"),
            scene.allows("x/a", "x/b", "80/TCP"),
        ]
    };
    let pod_a = "podSelector: {matchLabels: {pod: a}}\n";
    for (rest, expected) in [
        ("", [false, true]),
        ("ingress: []", [false, true]),
        ("egress: []", [false, true]),
        ("egress: null", [false, true]),
        ("policyTypes: []", [false, true]),
        ("policyTypes: []\negress: [{}]", [false, true]),
        ("ingress: [{}]", [true, true]),
        // Ingress is isolated too, by a policy that speaks of egress only.
        ("egress: [{}]", [false, true]),
        ("egress: [{ports: [{port: 1}]}]", [false, false]),
        ("policyTypes: [Egress]\negress: [{}]", [true, true]),
        // Rules of a direction that is not listed have no effect.
        (
            "policyTypes: [Ingress]\negress: [{ports: [{port: 1}]}]",
            [false, true],
        ),
        ("policyTypes: [Ingress, Egress]", [false, false]),
    ] {
        assert_eq!(
            into_a_and_out(&format!("{pod_a}{rest}")),
            expected,
            "{rest}"
        );
    }
}

#[test]
fn empty_rules_allow_everything_and_empty_lists_of_rules_nothing() {
    for (ingress, tcp, udp, world) in [
        ("[{}]", true, true, true),
        ("[]", false, false, false),
        ("[{from: []}]", true, true, true),
        ("[{ports: []}]", true, true, true),
        ("[{from: [], ports: []}]", true, true, true),
        ("[{ports: [{}]}]", true, false, true),
        ("[{from: [{namespaceSelector: {}}]}]", true, true, false),
        ("[{from: [{podSelector: {}}]}]", true, true, false),
    ] {
        let text = format!("podSelector: {{matchLabels: {{pod: a}}}}\ningress: {ingress}");
        let scene = scene(spec(&text));
        assert_eq!(scene.allows("x/b", "x/a", "80/TCP"), tcp, "{ingress}");
        assert_eq!(scene.allows("x/b", "x/a", "80/UDP"), udp, "{ingress}");
        assert_eq!(scene.allows(WORLD, "x/a", "80/TCP"), world, "{ingress}");
    }
}

#[test]
fn policies_are_a_union_and_except_shapes_only_its_own_block() {
    scene(policies(
        r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: x}
spec: {podSelector: {}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: block, namespace: x}
spec:
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.8/29]}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: one, namespace: x}
spec:
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from: [{ipBlock: {cidr: 203.0.113.10/32}}]
",
    ))
    .table(&[
        ("203.0.113.1", "x/a", "80/TCP", true),
        ("203.0.113.9", "x/a", "80/TCP", false),
        ("203.0.113.10", "x/a", "80/TCP", true),
        ("203.0.113.16", "x/a", "80/TCP", true),
        ("203.0.114.1", "x/a", "80/TCP", false),
        ("203.0.113.1", "x/b", "80/TCP", false),
        ("x/a", "x/b", "80/TCP", false),
    ]);
}

#[test]
fn one_entry_with_both_selectors_is_and_two_entries_are_or() {
    let rule = |from: &str| {
        scene(spec(&format!(
            "podSelector: {{matchLabels: {{pod: a}}}}\ningress: [{{from: {from}}}]"
        )))
    };
    rule("[{namespaceSelector: {matchLabels: {team: two}}, podSelector: {matchLabels: {pod: b}}}]")
        .table(&[
            ("y/b", "x/a", "80/TCP", true),
            ("y/c", "x/a", "80/TCP", false),
            ("x/b", "x/a", "80/TCP", false),
        ]);
    rule(
        "[{namespaceSelector: {matchLabels: {team: two}}}, {podSelector: {matchLabels: {pod: b}}}]",
    )
    .table(&[
        ("y/b", "x/a", "80/TCP", true),
        ("y/c", "x/a", "80/TCP", true),
        ("x/b", "x/a", "80/TCP", true),
        ("x/c", "x/a", "80/TCP", false),
    ]);
    // A podSelector alone looks in the policy's namespace only.
    rule("[{podSelector: {matchLabels: {pod: b}}}]").table(&[
        ("x/b", "x/a", "80/TCP", true),
        ("y/b", "x/a", "80/TCP", false),
    ]);
    rule("[{namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}]").table(&[
        ("x/b", "x/a", "80/TCP", true),
        ("y/b", "x/a", "80/TCP", true),
        (WORLD, "x/a", "80/TCP", false),
    ]);
}

#[test]
fn a_policy_selects_in_its_own_namespace_only() {
    scene(spec("podSelector: {}\npolicyTypes: [Ingress, Egress]")).table(&[
        ("y/a", "x/a", "80/TCP", false),
        ("y/a", "y/b", "80/TCP", true),
        ("x/a", "y/a", "80/TCP", false),
    ]);
}

#[test]
fn both_ends_must_allow() {
    let both = |from: &str, to: &str| {
        scene(policies(&format!(
            r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: out, namespace: x}}
spec:
  podSelector: {{matchLabels: {{pod: a}}}}
  policyTypes: [Egress]
  egress: {to}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: in, namespace: "y"}}
spec:
  podSelector: {{matchLabels: {{pod: a}}}}
  policyTypes: [Ingress]
  ingress: {from}
"#
        )))
    };
    for (from, to, expected) in [
        ("[{}]", "[{}]", true),
        ("[{}]", "[]", false),
        ("[]", "[{}]", false),
        ("[]", "[]", false),
        ("[{ports: [{port: 80}]}]", "[{ports: [{port: 81}]}]", false),
        ("[{ports: [{port: 80}]}]", "[{ports: [{port: 80}]}]", true),
    ] {
        assert_eq!(
            both(from, to).allows("x/a", "y/a", "80/TCP"),
            expected,
            "{from} {to}"
        );
    }
}

#[test]
fn negative_operators_match_when_the_key_is_absent() {
    let with = |requirement: &str| {
        let mut scene = scene(spec(&format!(
            "podSelector: {{matchLabels: {{pod: a}}}}\n\
             ingress: [{{from: [{{podSelector: {{matchExpressions: [{requirement}]}}}}]}}]"
        )));
        // b has the key with a value, c has it empty, d has no such key.
        scene.estate.workloads[1].labels = common::labels("role=web");
        scene.estate.workloads[2].labels = common::labels("role=");
        scene
            .estate
            .workloads
            .push(workload("x/d", "pod=d", &["10.0.0.9"]));
        ["x/b", "x/c", "x/d"].map(|from| scene.allows(from, "x/a", "80/TCP"))
    };
    for (requirement, expected) in [
        (
            "{key: role, operator: In, values: [web]}",
            [true, false, false],
        ),
        (
            "{key: role, operator: In, values: [web, '']}",
            [true, true, false],
        ),
        (
            "{key: role, operator: NotIn, values: [web]}",
            [false, true, true],
        ),
        (
            "{key: role, operator: NotIn, values: [web, '']}",
            [false, false, true],
        ),
        ("{key: role, operator: Exists}", [true, true, false]),
        ("{key: role, operator: DoesNotExist}", [false, false, true]),
    ] {
        assert_eq!(with(requirement), expected, "{requirement}");
    }
}

#[test]
fn an_empty_label_value_needs_the_key() {
    let mut scene = scene(spec(
        "podSelector: {matchLabels: {pod: a}}\n\
         ingress: [{from: [{podSelector: {matchLabels: {role: ''}}}]}]",
    ));
    scene.estate.workloads[1].labels = common::labels("role=");
    scene.table(&[
        ("x/b", "x/a", "80/TCP", true),
        ("x/c", "x/a", "80/TCP", false),
    ]);
}

#[test]
fn null_selectors_are_empty_selectors() {
    for selector in [
        "podSelector: null",
        "podSelector: {matchLabels: null}",
        "podSelector:",
        "",
    ] {
        scene(spec(&format!("{selector}\npolicyTypes: [Ingress]"))).table(&[
            ("x/b", "x/a", "80/TCP", false),
            ("x/a", "x/c", "80/TCP", false),
            ("x/a", "y/a", "80/TCP", true),
        ]);
    }
}

#[test]
fn namespaces_carry_their_name_as_a_label() {
    let by_name = "podSelector: {matchLabels: {pod: a}}\ningress: [{from: [{namespaceSelector: \
                   {matchLabels: {kubernetes.io/metadata.name: 'y'}}}]}]";
    let rows = [
        ("y/b", "x/a", "80/TCP", true),
        ("x/b", "x/a", "80/TCP", false),
    ];
    scene(spec(by_name)).table(&rows);
    // Also for a namespace that nobody declared.
    let mut undeclared = scene(spec(by_name));
    undeclared.estate.namespaces.clear();
    undeclared.table(&rows);
}

#[test]
fn labels_that_change_change_the_verdict() {
    let mut scene = scene(spec(
        "podSelector: {matchLabels: {pod: a}}\n\
         ingress: [{from: [{namespaceSelector: {matchLabels: {team: two}}}]}]",
    ));
    assert!(scene.allows("y/b", "x/a", "80/TCP"));
    scene.estate.namespaces.get_mut("y").unwrap().labels = common::labels("team=three");
    assert!(!scene.allows("y/b", "x/a", "80/TCP"));
    scene.estate.namespaces.get_mut("y").unwrap().labels = common::labels("team=two");
    scene.estate.workloads[0].labels = common::labels("pod=z");
    assert!(scene.allows("x/b", "x/a", "80/TCP"), "no longer selected");
}
