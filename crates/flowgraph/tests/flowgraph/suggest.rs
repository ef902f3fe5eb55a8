use std::collections::BTreeSet;

use flowgraph::aggregate::{EdgeStore, Limits};
use flowgraph::edge::{Edge, PeerKey};
use flowgraph::record::{Event, FlowRecord, Opener, Reporter, Verdict};
use flowgraph::suggest::{Options, Reason, Suggestion, suggest};
use policy::evaluate::{Evaluator, Flow};
use policy::model::{Estate, Mode, Modes, Protocol, Unselected};
use policy::netpol::PolicyType;
use policy::parse::{PolicySet, parse_documents};

use crate::build::{Talk, at, group, labels, peer, shop, workload, world};

fn edges(records: &[FlowRecord]) -> Vec<Edge> {
    let mut store = EdgeStore::new(Limits::default());
    for record in records {
        store.apply(record);
    }
    store.edges()
}

fn whole(talks: &[Talk]) -> Vec<Edge> {
    edges(&talks.iter().flat_map(Talk::whole).collect::<Vec<_>>())
}

fn learn(talks: &[Talk]) -> Suggestion {
    suggest(&whole(talks), &shop(), &Options::default())
}

pub(crate) fn policies(suggestion: &Suggestion) -> PolicySet {
    let policies = suggestion.policies.iter().map(|p| p.policy.clone());
    PolicySet::from_policies(policies, "suggested").unwrap()
}

/// Every group protected, and nothing for workloads that no policy selects.
pub(crate) fn protected() -> Modes {
    Modes {
        default: Mode::Protect,
        groups: Default::default(),
    }
}

/// Whether a flow passes with every group protected.
fn allows(estate: &Estate, policies: &PolicySet, flow: &Flow) -> bool {
    let modes = protected();
    passes(
        &Evaluator::new(estate, policies, &modes, Unselected::Deny),
        flow,
    )
}

pub(crate) fn passes(evaluator: &Evaluator<'_>, flow: &Flow) -> bool {
    evaluator.evaluate(flow).effective == dataplane_common::stats::Verdict::Forwarded
}

fn flow(source: &str, destination: &str, protocol: Protocol, port: u16) -> Flow {
    Flow {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol,
        destination_port: port,
    }
}

fn reasons(left_out: &[flowgraph::suggest::LeftOut]) -> Vec<Reason> {
    left_out.iter().map(|left_out| left_out.reason).collect()
}

fn shop_talks() -> Vec<Talk> {
    vec![
        Talk::tcp("198.51.100.9", "10.0.0.1", 443),
        Talk::tcp("2001:db8::9", "fd00::1", 443),
        Talk::tcp("10.0.0.1", "10.0.0.3", 8080),
        Talk::tcp("10.0.0.2", "10.0.0.3", 8080),
        Talk::tcp("10.0.0.3", "10.0.0.4", 5432),
        Talk::tcp("10.0.0.5", "10.0.0.3", 9100),
        Talk::udp("10.0.0.3", "10.0.0.6", 53),
        Talk::tcp("10.0.0.3", "203.0.113.5", 443),
        Talk::tcp("10.0.0.1", "10.0.0.2", 7946),
        Talk::tcp("10.0.0.254", "10.0.0.4", 5432),
        Talk::udp("10.0.0.4", "10.0.0.254", 514),
    ]
}

#[test]
fn the_exported_yaml_is_what_a_careful_person_would_write() {
    let suggestion = learn(&[
        Talk::tcp("10.0.0.1", "10.0.0.3", 8080),
        Talk::tcp("10.0.0.5", "10.0.0.3", 9100),
        Talk::tcp("10.0.0.3", "2001:db8::5", 443),
    ]);
    let api = suggestion
        .policies
        .iter()
        .find(|policy| policy.group == group("shop", "api"))
        .unwrap();
    let yaml = policy::export::to_yaml(&[api.annotated()]);
    for line in [
        "# Learned rules of shop/api.",
        "portcullis/selector: \"app=api selects exactly the 1 workload of shop/api and none of 3 workloads beside it in the namespace\"",
        "# from ops/prom 9100/TCP: 1 connection on 1 day from 1 source, first 2026-11-20T12:00:00Z, last 2026-11-20T12:00:20Z",
        "policyTypes:",
        "- Ingress",
        "- Egress",
        "kubernetes.io/metadata.name: ops",
        "cidr: \"2001:db8::5/128\"",
        "port: 8080",
    ] {
        assert!(
            yaml.lines()
                .any(|l| l.trim().trim_start_matches("- ") == line.trim_start_matches("- ")),
            "{line} is not in\n{yaml}"
        );
    }
    assert!(!yaml.contains("endPort") && !yaml.contains("/32"));
    let spec = &api.policy.spec;
    assert_eq!(
        spec.policy_types,
        Some(vec![PolicyType::Ingress, PolicyType::Egress])
    );
    // The peer of the policy's own namespace needs no namespace selector.
    let own = &spec.ingress.as_ref().unwrap()[1].from.as_ref().unwrap()[0];
    assert_eq!(own.namespace_selector, None);
    assert_eq!(
        own.pod_selector.as_ref().unwrap().match_labels,
        Some(labels("app=web"))
    );
    assert_eq!(api.policy.metadata.name, "learned-api");
    assert_eq!(api.policy.metadata.namespace.as_deref(), Some("shop"));
}

#[test]
fn suggested_policies_allow_every_learned_flow_and_no_other() {
    let estate = shop();
    let talks = shop_talks();
    let suggestion = learn(&talks);
    assert_eq!(reasons(&suggestion.undecided), []);
    assert_eq!(reasons(&suggestion.skipped), []);
    let written = policies(&suggestion);
    let annotated: Vec<_> = suggestion.policies.iter().map(|p| p.annotated()).collect();
    let yaml = policy::export::to_yaml(&annotated);
    let reread: PolicySet = parse_documents("export.yaml", &yaml)
        .unwrap()
        .policies
        .into_iter()
        .collect();
    assert_eq!(reread.len(), 5);

    let mut learned = BTreeSet::new();
    for talk in &talks {
        let source = PeerKey::of(&peer(&estate, &talk.source.0, 1)).unwrap();
        let destination = PeerKey::of(&peer(&estate, &talk.destination.0, 1)).unwrap();
        learned.insert((source, destination, talk.protocol.0, talk.destination.1));
    }
    // The one port that is added, by itself and with a warning.
    learned.insert((group("shop", "api"), group("kube", "dns"), 6, 53));
    let ips: Vec<String> = estate
        .workloads
        .iter()
        .flat_map(|w| w.addresses.iter().map(ToString::to_string))
        .chain(
            [
                "198.51.100.9",
                "198.51.100.10",
                "2001:db8::9",
                "2001:db8::a",
                "203.0.113.5",
                "10.0.0.254",
            ]
            .map(str::to_owned),
        )
        .collect();
    let modes = protected();
    let written = Evaluator::new(&estate, &written, &modes, Unselected::Deny);
    let reread = Evaluator::new(&estate, &reread, &modes, Unselected::Deny);
    let mut allowed = 0;
    for source in &ips {
        for destination in &ips {
            let (from, to) = (peer(&estate, source, 1), peer(&estate, destination, 1));
            let local = from.workload.is_some() || to.workload.is_some();
            // A workload always reaches itself, and the host its workloads.
            let fixed =
                (from.workload == to.workload && from.namespace == to.namespace) || from.is_host();
            if source.contains(':') != destination.contains(':') || !local || fixed {
                continue;
            }
            for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
                for port in [443, 8080, 5432, 9100, 53, 514, 7946, 40_000, 8081, 0] {
                    let key = (
                        PeerKey::of(&from).unwrap(),
                        PeerKey::of(&to).unwrap(),
                        protocol.0,
                        port,
                    );
                    let expected = learned.contains(&key);
                    let flow = flow(source, destination, protocol, port);
                    assert_eq!(passes(&written, &flow), expected, "{flow:?}");
                    assert_eq!(passes(&reread, &flow), expected, "reread: {flow:?}");
                    allowed += usize::from(expected);
                }
            }
        }
    }
    assert!(allowed >= talks.len(), "{allowed}");
}

#[test]
fn each_rule_carries_the_evidence_of_its_edge() {
    let mut talks = shop_talks();
    talks.push(
        Talk::tcp("10.0.0.1", "10.0.0.3", 8080)
            .client_port(41_000)
            .starting(86_400)
            .opener(Opener::Inferred),
    );
    let mut all = whole(&talks);
    for edge in &mut all {
        edge.lost_events = 3;
    }
    let suggestion = suggest(&all, &shop(), &Options::default());
    let api = suggestion
        .policies
        .iter()
        .find(|p| p.group == group("shop", "api"))
        .unwrap();
    let evidence: Vec<_> = api.evidence.iter().flat_map(|rule| &rule.ports).collect();
    let web = evidence
        .iter()
        .find(|e| e.peer == group("shop", "web"))
        .unwrap();
    assert_eq!(
        (
            web.direction,
            web.port,
            web.connections,
            web.sources,
            web.days
        ),
        (PolicyType::Ingress, 8080, 3, 2, 2)
    );
    assert_eq!(
        (web.first_seen, web.last_seen, web.lost_events),
        (at(0), at(86_420), 3)
    );
    assert_eq!((web.openers.certain, web.openers.inferred), (2, 1));
    // Rules and evidence correspond one to one, in order.
    for policy in &suggestion.policies {
        let spec = &policy.policy.spec;
        let rules = spec.ingress.as_ref().unwrap().len() + spec.egress.as_ref().unwrap().len();
        assert_eq!(policy.evidence.len(), rules);
        assert!(
            policy.policy.metadata.annotations.as_ref().unwrap()["portcullis/evidence"]
                .contains("3 events lost")
        );
    }
    assert!(
        suggestion.warnings.iter().any(|w| w
            == "shop/api: 3 events lost while its edges were learned, so rules may be missing")
    );
}

#[test]
fn what_becomes_no_rule_is_returned_with_its_reason() {
    let unknown = Talk::tcp("10.0.0.1", "10.0.0.3", 8080).opener(Opener::Unknown);
    let db = Talk::tcp("10.0.0.1", "10.0.0.4", 5432);
    let mut audit = db.record(Reporter::Source, Event::Summary, [5, 5]);
    audit.verdict = Verdict::Audit;
    audit.drop_reason = Some("policy_default_deny".to_owned());
    let mut sctp_zero = db.record(Reporter::Source, Event::Summary, [5, 5]);
    sctp_zero.l4.as_mut().unwrap().protocol = Protocol(47);
    let repeated: Vec<_> = [40_000, 40_001]
        .map(|port| {
            db.clone()
                .client_port(port)
                .record(Reporter::Source, Event::Summary, [3, 0])
        })
        .into();
    let cases: Vec<(Reason, Vec<FlowRecord>, Options)> = vec![
        (
            Reason::UnknownDirection,
            unknown.whole(),
            Options::default(),
        ),
        (
            Reason::Denied,
            vec![
                db.record(Reporter::Source, Event::Summary, [5, 5]),
                db.clone()
                    .starting(60)
                    .denied(Reporter::Destination, "policy_deny"),
            ],
            Options::default(),
        ),
        (
            Reason::NeverPassed,
            vec![db.denied(Reporter::Source, "policy_deny")],
            Options::default(),
        ),
        (
            Reason::AuditOnly,
            vec![audit],
            Options {
                learn_from_audit: true,
                ..Options::default()
            },
        ),
        (
            Reason::OneOff,
            vec![db.record(Reporter::Source, Event::New, [1, 0])],
            Options {
                learn_suspicious: true,
                learn_unanswered: true,
                ..Options::default()
            },
        ),
        (
            Reason::NeverAnswered,
            repeated,
            Options {
                learn_unanswered: true,
                ..Options::default()
            },
        ),
        (Reason::NotExpressible, vec![sctp_zero], Options::default()),
        (
            Reason::NoWorkload,
            Talk::tcp("10.0.0.254", "198.51.100.7", 80).whole(),
            Options::default(),
        ),
    ];
    for (reason, records, permissive) in cases {
        let all = edges(&records);
        let suggestion = suggest(&all, &shop(), &Options::default());
        let left_out: Vec<_> = suggestion
            .undecided
            .iter()
            .chain(&suggestion.skipped)
            .collect();
        assert_eq!(left_out.len(), 1, "{reason:?}");
        assert_eq!(left_out[0].reason, reason);
        assert_eq!(left_out[0].edge, all[0]);
        assert!(left_out[0].explanation.len() > 20);
        assert_eq!(suggestion.policies, [], "{reason:?}");
        assert_eq!(
            suggestion.undecided.len(),
            usize::from(reason == Reason::UnknownDirection)
        );
        let permitted = suggest(&all, &shop(), &permissive).policies.len();
        assert_eq!(
            permitted,
            if permissive == Options::default() {
                0
            } else {
                2
            },
            "{reason:?}"
        );
    }
}

#[test]
fn undecided_edges_warn_about_the_groups_they_would_break() {
    let suggestion = learn(&[Talk::tcp("10.0.0.1", "10.0.0.3", 8080).opener(Opener::Unknown)]);
    assert_eq!(
        suggestion.warnings,
        [
            "shop/api has 1 undecided edge, which its policy would deny",
            "shop/web has 1 undecided edge, which its policy would deny",
        ]
    );
}

#[test]
fn a_group_that_labels_cannot_tell_apart_gets_no_rule_on_either_side() {
    let mut estate = shop();
    estate.workloads.push(workload(
        "shop/api-canary",
        "shop/canary",
        "app=api",
        &["10.0.0.9"],
    ));
    let talks = [
        Talk::tcp("10.0.0.1", "10.0.0.3", 8080),
        Talk::tcp("10.0.0.1", "10.0.0.4", 5432),
    ];
    let suggestion = suggest(&whole(&talks), &estate, &Options::default());
    assert_eq!(reasons(&suggestion.undecided), [Reason::NoExactSelector]);
    assert!(
        suggestion.undecided[0]
            .explanation
            .contains("shop/api: every label")
    );
    assert!(suggestion.undecided[0].explanation.contains("api-canary"));
    let groups: Vec<_> = suggestion.policies.iter().map(|p| &p.group).collect();
    assert_eq!(groups, [&group("shop", "db"), &group("shop", "web")]);
    let to_canary = flow("10.0.0.1", "10.0.0.9", Protocol::TCP, 8080);
    assert!(!allows(&estate, &policies(&suggestion), &to_canary));
}

#[test]
fn dns_over_tcp_is_added_only_where_udp_was_seen_and_can_be_switched_off() {
    let talks = [
        Talk::udp("10.0.0.3", "10.0.0.6", 53),
        Talk::udp("10.0.0.3", "198.51.100.53", 53),
    ];
    let tcp = |destination| flow("10.0.0.3", destination, Protocol::TCP, 53);
    let with = learn(&talks);
    assert_eq!(with.warnings.len(), 2, "{:?}", with.warnings);
    let without = suggest(
        &whole(&talks),
        &shop(),
        &Options {
            dns_over_tcp: false,
            ..Options::default()
        },
    );
    assert_eq!(without.warnings.len(), 0);
    for destination in ["10.0.0.6", "198.51.100.53"] {
        assert!(allows(&shop(), &policies(&with), &tcp(destination)));
        assert!(!allows(&shop(), &policies(&without), &tcp(destination)));
    }
    assert!(!allows(
        &shop(),
        &policies(&with),
        &flow("10.0.0.3", "198.51.100.54", Protocol::TCP, 53)
    ));
    assert!(!allows(
        &shop(),
        &policies(&with),
        &flow("10.0.0.1", "10.0.0.6", Protocol::TCP, 53)
    ));
    let added: Vec<_> = with
        .policies
        .iter()
        .flat_map(|p| &p.evidence)
        .flat_map(|rule| &rule.ports)
        .filter(|port| port.protocol == Protocol::TCP)
        .collect();
    assert_eq!(added.len(), 3);
    assert!(
        added.iter().all(
            |port| port.connections == 0 && port.note.as_ref().unwrap().starts_with("not seen")
        )
    );
}

#[test]
fn silent_groups_are_listed_and_closed_only_when_asked() {
    let talks = [Talk::tcp("10.0.0.1", "10.0.0.3", 8080)];
    let plain = learn(&talks);
    let silent = [
        group("kube", "dns"),
        group("ops", "prom"),
        group("shop", "db"),
    ];
    assert_eq!(plain.silent, silent);
    assert_eq!(plain.policies.len(), 2);
    let closed = suggest(
        &whole(&talks),
        &shop(),
        &Options {
            include_silent: true,
            ..Options::default()
        },
    );
    assert_eq!(closed.silent, silent);
    assert_eq!(closed.policies.len(), 5);
    let db = closed
        .policies
        .iter()
        .find(|p| p.group == group("shop", "db"))
        .unwrap();
    assert_eq!(db.policy.spec.ingress, Some(vec![]));
    assert_eq!(db.policy.spec.egress, Some(vec![]));
    assert_eq!(
        db.policy.spec.policy_types,
        Some(vec![PolicyType::Ingress, PolicyType::Egress])
    );
}

#[test]
fn one_group_may_be_asked_for() {
    let options = Options {
        group: Some("shop/api".to_owned()),
        ..Options::default()
    };
    let suggestion = suggest(&whole(&shop_talks()), &shop(), &options);
    assert_eq!(suggestion.policies.len(), 1);
    let all = learn(&shop_talks());
    let api = all
        .policies
        .iter()
        .find(|p| p.group == group("shop", "api"))
        .unwrap();
    assert_eq!(&suggestion.policies[0], api);
    assert_eq!(suggestion.silent, []);
}

#[test]
fn addresses_with_the_same_ports_share_a_rule_and_many_are_warned_about() {
    let mut talks: Vec<_> = (1..=30)
        .map(|n| Talk::tcp(&format!("198.51.100.{n}"), "10.0.0.1", 443))
        .collect();
    talks.push(Talk::tcp("198.51.100.99", "10.0.0.1", 8443));
    let suggestion = learn(&talks);
    let web = &suggestion.policies[0];
    let ingress = web.policy.spec.ingress.as_ref().unwrap();
    assert_eq!(
        ingress
            .iter()
            .map(|rule| rule.from.as_ref().unwrap().len())
            .collect::<Vec<_>>(),
        [30, 1]
    );
    assert!(
        suggestion.warnings[0].contains("reached from 31 single addresses"),
        "{:?}",
        suggestion.warnings
    );
    let blocks = ingress.iter().flat_map(|rule| rule.from.iter().flatten());
    assert!(
        blocks
            .map(|peer| peer.ip_block.as_ref().unwrap())
            .all(|block| block.cidr.ends_with("/32"))
    );
    assert!(!allows(
        &shop(),
        &policies(&suggestion),
        &flow("198.51.100.99", "10.0.0.1", Protocol::TCP, 443)
    ));
    assert_eq!(world("198.51.100.99").to_string(), "198.51.100.99");
}

#[test]
fn hostile_names_make_valid_policies_with_distinct_names() {
    let mut estate = shop();
    estate.workloads.clear();
    let hostile = [
        "a: b",
        "A b",
        "../../x",
        "\u{202e}\n# evil",
        "ü",
        &"n".repeat(300),
    ];
    for (n, name) in hostile.iter().enumerate() {
        let ip = format!("10.1.0.{n}");
        let mut own = workload("shop/x", name, &format!("app=a{n}"), &[&ip]);
        own.name = format!("{name}{n}");
        estate.workloads.push(own);
    }
    let talks: Vec<_> = (0..hostile.len())
        .map(|n| Talk {
            estate: estate.clone(),
            ..Talk::tcp(
                &format!("10.1.0.{n}"),
                &format!("10.1.0.{}", (n + 1) % hostile.len()),
                80,
            )
        })
        .collect();
    let suggestion = suggest(&whole(&talks), &estate, &Options::default());
    assert_eq!(suggestion.policies.len(), hostile.len());
    let names: BTreeSet<_> = suggestion
        .policies
        .iter()
        .map(|p| &p.policy.metadata.name)
        .collect();
    assert_eq!(names.len(), hostile.len());
    let annotated: Vec<_> = suggestion.policies.iter().map(|p| p.annotated()).collect();
    let parsed = parse_documents("x", &policy::export::to_yaml(&annotated)).unwrap();
    assert_eq!(parsed.policies.len(), hostile.len());
    let reread: PolicySet = parsed.policies.into_iter().collect();
    for n in 0..hostile.len() {
        let next = flow(
            &format!("10.1.0.{n}"),
            &format!("10.1.0.{}", (n + 1) % hostile.len()),
            Protocol::TCP,
            80,
        );
        assert!(allows(&estate, &reread, &next));
        assert!(!allows(
            &estate,
            &reread,
            &Flow {
                destination_port: 81,
                ..next
            }
        ));
    }
}
