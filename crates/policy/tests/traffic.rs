//! Ports, addresses, the host and modes: what decides beside rules and selectors. Every row is
//! judged by the evaluator and by compiled maps.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{ip, policies, scene, spec, with_port, workload};
use dataplane_common::Direction;
use dataplane_common::policy::Action;
use dataplane_common::stats::Verdict;
use policy::compile::{Interner, identity_of, lookup};
use policy::model::{Mode, Protocol, Unselected};

const WORLD: &str = "203.0.113.9";

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
