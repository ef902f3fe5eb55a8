//! What NetworkPolicy means, clause by clause, where implementations are known to differ. Every row
//! is judged by the evaluator and by compiled maps.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Scene, ip, namespace, policies, spec, with_port, workload};
use dataplane_common::Direction;
use dataplane_common::policy::Action;
use dataplane_common::stats::Verdict;
use policy::compile::{Interner, identity_of, lookup};
use policy::model::{Mode, Protocol, Unselected};
use policy::parse::PolicySet;

/// Namespaces `x` (policies live here) and `y`, each with `a`, `b` and `c`; `pod` is the name.
fn scene(policies: PolicySet) -> Scene {
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

#[test]
fn a_named_port_is_resolved_on_each_destination() {
    let mut scene = scene(policies(
        r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: x}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress:
  - ports: [{port: http}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: in, namespace: "y"}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
  - ports: [{port: http}, {port: dns, protocol: UDP}]
"#,
    ));
    let tcp = |workload: &policy::model::Workload, port| {
        with_port(workload.clone(), "http", port, Protocol::TCP)
    };
    let workloads = &mut scene.estate.workloads;
    workloads[1] = tcp(&workloads[1], 8080); // x/b
    workloads[3] = tcp(&workloads[3], 8081); // y/a
    // The name is there, for another protocol.
    workloads[4] = with_port(workloads[4].clone(), "dns", 53, Protocol::TCP); // y/b
    scene.table(&[
        ("x/a", "x/b", "8080/TCP", true),
        ("x/a", "x/b", "8081/TCP", false),
        ("x/a", "x/b", "8080/UDP", false),
        ("x/a", "y/a", "8081/TCP", true),
        ("x/a", "y/a", "8080/TCP", false),
        // c has no port of that name: nothing matches, not everything.
        ("x/a", "x/c", "8080/TCP", false),
        ("x/c", "y/b", "53/UDP", false),
        ("x/c", "y/b", "53/TCP", false),
        ("x/c", "y/a", "8081/TCP", true),
        // Addresses outside have no names.
        ("x/a", WORLD, "8080/TCP", false),
        ("x/a", "host", "8080/TCP", false),
    ]);
}

#[test]
fn replicas_may_give_one_name_different_numbers() {
    let mut scene = scene(spec(
        "podSelector: {matchLabels: {pod: b}}\ningress: [{ports: [{port: http}]}]",
    ));
    let b = scene.estate.workloads[1].clone();
    let mut twin = b.clone();
    twin.name = "twin".to_owned();
    twin.addresses = vec![ip("10.0.0.77")];
    scene.estate.workloads[1] = with_port(b, "http", 80, Protocol::TCP);
    scene
        .estate
        .workloads
        .push(with_port(twin, "http", 81, Protocol::TCP));
    scene.table(&[
        ("x/a", "x/b", "80/TCP", true),
        ("x/a", "x/b", "81/TCP", false),
        ("x/a", "x/twin", "80/TCP", false),
        ("x/a", "x/twin", "81/TCP", true),
    ]);
}

#[test]
fn port_ranges_are_inclusive_and_of_one_protocol() {
    scene(spec(
        "podSelector: {matchLabels: {pod: a}}\n\
         ingress: [{ports: [{port: 1000, endPort: 1002}, {protocol: UDP}, {port: 65535}]}]",
    ))
    .table(&[
        ("x/b", "x/a", "999/TCP", false),
        ("x/b", "x/a", "1000/TCP", true),
        ("x/b", "x/a", "1002/TCP", true),
        ("x/b", "x/a", "1003/TCP", false),
        ("x/b", "x/a", "1001/SCTP", false),
        ("x/b", "x/a", "1/UDP", true),
        ("x/b", "x/a", "65535/UDP", true),
        ("x/b", "x/a", "65535/TCP", true),
        ("x/b", "x/a", "65534/TCP", false),
    ]);
}

#[test]
fn an_sctp_rule_isolates_tcp_and_udp() {
    scene(spec(
        "podSelector: {matchLabels: {pod: a}}\ningress: [{ports: [{protocol: SCTP, port: 80}]}]",
    ))
    .table(&[
        ("x/b", "x/a", "80/SCTP", true),
        ("x/b", "x/a", "81/SCTP", false),
        ("x/b", "x/a", "80/TCP", false),
        ("x/b", "x/a", "80/UDP", false),
    ]);
}

#[test]
fn icmp_follows_rules_without_ports() {
    // ICMP echo request is type 8 code 0: 0x0800 is 2048.
    let echo = "2048/ICMP";
    scene(spec("podSelector: {matchLabels: {pod: a}}\ningress: [{}]"))
        .table(&[("x/b", "x/a", echo, true), ("x/b", "x/a", "7/47", true)]);
    scene(spec(
        "podSelector: {matchLabels: {pod: a}}\ningress: [{ports: [{}, {protocol: UDP}]}]",
    ))
    .table(&[("x/b", "x/a", echo, false), ("x/b", "x/a", "7/47", false)]);
    scene(spec("podSelector: {matchLabels: {pod: a}}"))
        .table(&[("x/b", "x/a", echo, false), ("x/b", "x/c", echo, true)]);
}

#[test]
fn blocks_match_workload_and_host_addresses() {
    let scene = scene(spec(
        "podSelector: {matchLabels: {pod: a}}\npolicyTypes: [Ingress, Egress]\n\
         ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.4/32]}}]}]\n\
         egress: [{to: [{ipBlock: {cidr: 10.0.0.0/30}}], ports: [{port: 80}]}]",
    ));
    scene.table(&[
        ("x/b", "x/a", "80/TCP", true),
        ("x/c", "x/a", "80/TCP", false),
        ("y/a", "x/a", "80/TCP", false),
        ("10.0.0.200", "x/a", "80/TCP", true),
        ("x/a", "x/b", "80/TCP", true),
        ("x/a", "x/b", "81/TCP", false),
        ("x/a", "x/c", "80/TCP", false),
        // 10.0.0.1 is the host: towards it policy decides, and the block contains it.
        ("x/a", "host", "80/TCP", true),
        ("x/a", "host", "81/TCP", false),
    ]);
    // The same workload is outside the block by its IPv6 address.
    assert!(
        !scene
            .judge_family("x/b", "x/a", "80/TCP", true)
            .allowed_by_policy()
    );
    let compiled = scene.compile(&mut Interner::new());
    let b = &scene.estate.workloads[1].addresses;
    assert_ne!(identity_of(&compiled, b[0]), identity_of(&compiled, b[1]));
}

#[test]
fn blocks_resolve_named_ports_of_the_workloads_inside() {
    let mut scene = scene(spec(
        "podSelector: {matchLabels: {pod: a}}\npolicyTypes: [Egress]\n\
         egress: [{to: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{port: http}]}]",
    ));
    for (index, port) in [(1, 8080), (3, 8080)] {
        let workload = scene.estate.workloads[index].clone();
        scene.estate.workloads[index] = with_port(workload, "http", port, Protocol::TCP);
    }
    scene.table(&[
        ("x/a", "x/b", "8080/TCP", true),
        ("x/a", "x/b", "80/TCP", false),
        ("x/a", "y/a", "8080/TCP", false),
        ("x/a", "10.0.0.99", "8080/TCP", false),
    ]);
}

#[test]
fn host_bits_in_a_block_mean_the_network() {
    scene(spec(
        "podSelector: {matchLabels: {pod: a}}\n\
         ingress: [{from: [{ipBlock: {cidr: 10.66.0.10/4, except: [10.0.1.9/24]}}]}]",
    ))
    .table(&[
        ("x/b", "x/a", "80/TCP", true),
        ("15.255.255.255", "x/a", "80/TCP", true),
        ("16.0.0.0", "x/a", "80/TCP", false),
        ("y/a", "x/a", "80/TCP", false),
    ]);
}

#[test]
fn the_ipv4_default_route_never_matches_ipv6() {
    let scene = scene(spec(
        "podSelector: {matchLabels: {pod: a}}\ningress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]",
    ));
    assert!(scene.judge("x/b", "x/a", "80/TCP").allowed_by_policy());
    assert!(scene.judge(WORLD, "x/a", "80/TCP").allowed_by_policy());
    assert!(
        !scene
            .judge_family("x/b", "x/a", "80/TCP", true)
            .allowed_by_policy()
    );
    assert!(
        !scene
            .judge_family("2001:db8::9", "x/a", "80/TCP", true)
            .allowed_by_policy()
    );
}

#[test]
fn overlapping_exceptions() {
    scene(spec(
        "podSelector: {matchLabels: {pod: a}}\n\
         ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24, \
         except: [203.0.113.0/25, 203.0.113.0/26, 203.0.113.64/26]}}]}]",
    ))
    .table(&[
        ("203.0.113.1", "x/a", "80/TCP", false),
        ("203.0.113.127", "x/a", "80/TCP", false),
        ("203.0.113.128", "x/a", "80/TCP", true),
    ]);
}

#[test]
fn an_exception_of_one_block_may_be_another_block() {
    scene(spec(
        "podSelector: {matchLabels: {pod: a}}\n\
         ingress:\n\
         - from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.0/25]}}]\n\
         - from: [{ipBlock: {cidr: 203.0.113.0/25, except: [203.0.113.8/32]}}]\n\
         \x20 ports: [{port: 80}]",
    ))
    .table(&[
        ("203.0.113.200", "x/a", "22/TCP", true),
        ("203.0.113.1", "x/a", "22/TCP", false),
        ("203.0.113.1", "x/a", "80/TCP", true),
        ("203.0.113.8", "x/a", "80/TCP", false),
    ]);
}

#[test]
fn a_workload_reaches_itself_but_not_its_sibling() {
    let mut scene = scene(spec("podSelector: {}\npolicyTypes: [Ingress, Egress]"));
    let mut twin = scene.estate.workloads[0].clone();
    twin.name = "twin".to_owned();
    twin.addresses = vec![ip("10.0.0.77")];
    scene.estate.workloads.push(twin);
    let itself = scene.judge("x/a", "x/a", "80/TCP");
    assert!(itself.allowed_by_policy());
    assert_eq!(itself.ingress.unwrap().rule.policy, "builtin/self");
    assert!(!scene.allows("x/a", "x/twin", "80/TCP"));
}

#[test]
fn the_host_reaches_its_workloads_and_policy_decides_the_other_way() {
    let scene = scene(spec("podSelector: {}\npolicyTypes: [Ingress, Egress]"));
    for v6 in [false, true] {
        let probe = scene.judge_family("host", "x/a", "80/TCP", v6);
        assert_eq!(probe.effective, Verdict::Forwarded);
        assert_eq!(probe.egress, None);
        assert_eq!(probe.ingress.unwrap().rule.policy, "builtin/host-ingress");
        let out = scene.judge_family("x/a", "host", "80/TCP", v6);
        assert_eq!(out.effective, Verdict::Dropped);
        assert_eq!(out.ingress, None);
    }
}

#[test]
fn a_host_address_inside_an_exception_is_still_the_host() {
    scene(spec(
        "podSelector: {}\ningress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.1/32]}}]}]",
    ))
    .table(&[("host", "x/a", "80/TCP", true), ("x/b", "x/a", "80/TCP", true)]);
}

#[test]
fn workloads_on_the_host_network_are_the_host() {
    let mut scene = scene(spec(
        "podSelector: {matchLabels: {pod: a}}\npolicyTypes: [Ingress, Egress]\n\
         egress: [{to: [{podSelector: {matchLabels: {pod: agent}}}]}]",
    ));
    scene
        .estate
        .workloads
        .push(workload("x/agent", "pod=agent", &["10.0.0.1"]));
    let scene = scene;
    // Never matched by a selector, reaches its workloads like the host.
    assert!(!scene.allows("x/a", "10.0.0.1", "80/TCP"));
    let probe = scene.judge("10.0.0.1", "x/a", "80/TCP");
    assert_eq!(probe.ingress.unwrap().rule.policy, "builtin/host-ingress");
    assert_eq!(probe.egress, None);
}

#[test]
fn unselected_directions_follow_the_setting() {
    let mut scene = scene(spec(
        "podSelector: {matchLabels: {pod: a}}\npolicyTypes: [Ingress]",
    ));
    for (unselected, out, rule) in [
        (Unselected::Allow, Action::Allow, "builtin/unselected-allow"),
        (Unselected::Deny, Action::Deny, "builtin/unselected-deny"),
    ] {
        scene.unselected = unselected;
        let decision = scene.judge("x/a", WORLD, "80/TCP");
        let side = decision.egress.unwrap();
        assert_eq!((side.action, side.rule.policy.as_str()), (out, rule));
        // Isolated directions do not care.
        let side = scene.judge(WORLD, "x/a", "80/TCP").ingress.unwrap();
        assert_eq!(
            (side.action, side.rule.policy.as_str()),
            (Action::Deny, "default")
        );
    }
}

#[test]
fn modes_turn_denials_into_effects() {
    let mut scene = scene(spec("podSelector: {}\npolicyTypes: [Ingress, Egress]"));
    let modes = [Mode::Discover, Mode::Monitor, Mode::Protect];
    let effects = [Verdict::Forwarded, Verdict::Audit, Verdict::Dropped];
    for (i, egress) in modes.into_iter().enumerate() {
        for (j, ingress) in modes.into_iter().enumerate() {
            scene.modes.groups.insert("x/a".to_owned(), egress);
            scene.modes.groups.insert("x/b".to_owned(), ingress);
            let decision = scene.judge("x/a", "x/b", "80/TCP");
            assert_eq!(
                decision.effective,
                effects[i.max(j)],
                "{egress:?} {ingress:?}"
            );
            assert!(
                !decision.allowed_by_policy(),
                "the mode does not change the verdict"
            );
        }
    }
    // A group without an entry has the default mode.
    scene.modes.default = Mode::Monitor;
    assert_eq!(
        scene.judge("x/c", WORLD, "80/TCP").effective,
        Verdict::Audit
    );
}

#[test]
fn modes_differ_in_nothing_but_the_mode() {
    let mut scene = scene(spec("podSelector: {}\ningress: [{ports: [{port: 80}]}]"));
    let mut interner = Interner::new();
    let mut programs = Vec::new();
    for mode in [Mode::Discover, Mode::Monitor, Mode::Protect] {
        scene.modes.default = mode;
        let mut compiled = scene.compile(&mut interner);
        assert!(compiled.programs.iter().all(|program| program.mode == mode));
        compiled
            .programs
            .iter_mut()
            .for_each(|program| program.mode = Mode::Protect);
        programs.push(compiled);
    }
    assert_eq!(programs[0], programs[1]);
    assert_eq!(programs[1], programs[2]);
}

#[test]
fn verdicts_name_policy_file_and_line() {
    let scene = scene(policies(
        "# a comment\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: p\n  \
         namespace: x\nspec:\n  podSelector: {}\n  ingress:\n  - ports:\n    - port: 80\n  # two\n  \
         - from:\n    - podSelector: {}\n",
    ));
    let rule = scene.judge(WORLD, "x/a", "80/TCP").ingress.unwrap().rule;
    assert_eq!(rule.to_string(), "x/p ingress[0] (test.yaml:10)");
    let rule = scene.judge("x/b", "x/a", "81/TCP").ingress.unwrap().rule;
    assert_eq!(rule.to_string(), "x/p ingress[1] (test.yaml:13)");
}

#[test]
fn of_equal_rules_the_first_is_named() {
    let scene = scene(spec(
        "podSelector: {}\ningress:\n- ports: [{port: 80}, {port: 80}]\n- ports: [{port: 80}]",
    ));
    let mut interner = Interner::new();
    let compiled = scene.compile(&mut interner);
    let peer = identity_of(&compiled, ip(WORLD));
    let program = compiled.workloads[0].program;
    let (action, id) = lookup(
        &compiled,
        program,
        Direction::Ingress,
        peer,
        Protocol::TCP,
        80,
    );
    assert_eq!(action, Action::Allow);
    let named = interner.rule(id).unwrap();
    assert_eq!(named.rule.as_deref(), Some("ingress[0]"));
    assert_eq!(
        scene.judge(WORLD, "x/a", "80/TCP").ingress.unwrap().rule,
        named
    );
}

#[test]
fn the_most_specific_of_several_rules_is_named() {
    let scene = scene(spec(
        "podSelector: {}\ningress:\n- {}\n- ports: [{port: 80, endPort: 90}]\n\
         - ports: [{port: 80}]\n- from: [{podSelector: {matchLabels: {pod: b}}}]",
    ));
    let mut interner = Interner::new();
    let compiled = scene.compile(&mut interner);
    let named = |from: &str, port| {
        let peer = identity_of(&compiled, scene.address(from, false));
        let program = compiled.workloads[0].program;
        let (_, id) = lookup(
            &compiled,
            program,
            Direction::Ingress,
            peer,
            Protocol::TCP,
            port,
        );
        interner.rule(id).unwrap().rule.unwrap()
    };
    assert_eq!(named(WORLD, 22), "ingress[0]");
    assert_eq!(named(WORLD, 81), "ingress[1]");
    assert_eq!(named(WORLD, 80), "ingress[2]");
    assert_eq!(named("x/b", 80), "ingress[3]");
}

#[test]
fn addresses_that_change_owner_follow_it() {
    let mut scene = scene(spec(
        "podSelector: {matchLabels: {pod: a}}\n\
         ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]",
    ));
    assert!(scene.allows("10.0.0.3", "x/a", "80/TCP"));
    let freed = scene.estate.workloads[1].addresses.remove(0);
    assert!(!scene.allows("10.0.0.3", "x/a", "80/TCP"), "nobody's now");
    scene.estate.workloads[2].addresses.push(freed);
    assert!(!scene.allows("10.0.0.3", "x/a", "80/TCP"), "c's now");
}
