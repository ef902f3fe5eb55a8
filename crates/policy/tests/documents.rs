//! What is read from good files, how it is stored, and how it is written again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use dataplane_common::Direction;
use dataplane_common::policy::Action;
use policy::compile::{Compiled, Interner, compile_after, lookup};
use policy::export::{AnnotatedPolicy, to_yaml};
use policy::model::Protocol;
use policy::netpol::{LabelSelector, NetworkPolicy, NetworkPolicySpec};
use policy::parse::{ParsedDocuments, PolicyDocument, PolicyName, PolicySet, parse_documents};

fn parse(text: &str) -> ParsedDocuments {
    parse_documents("good.yaml", text).unwrap_or_else(|errors| panic!("{errors}"))
}

const SERVED: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: web
  namespace: shop
  uid: 9f7c2a04-0000-4000-8000-000000000000
  resourceVersion: "812"
  generation: 3
  creationTimestamp: "2026-11-20T10:00:00Z"
  managedFields:
  - {manager: kubectl, operation: Update, fieldsV1: {"f:spec": {}}}
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {"kind": "NetworkPolicy",
       "note": "--- not a document marker"}
  labels: {app: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
status: {}
"#;

#[test]
fn what_the_api_server_adds_is_accepted() {
    let parsed = parse(SERVED);
    assert_eq!(parsed.warnings, []);
    let document = &parsed.policies[0];
    assert_eq!(document.name().to_string(), "shop/web");
    assert_eq!(document.line(), 2);
    let metadata = &document.policy().metadata;
    assert_eq!(metadata.labels.as_ref().unwrap()["app"], "web");
    assert_eq!(metadata.annotations.as_ref().unwrap().len(), 1);
}

#[test]
fn documents_keep_their_text_and_lines() {
    let text = "\
# about the first
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: one}
spec:
  podSelector: {matchLabels: {a: b}}
  ingress:
  - ports: [{port: 80}]   # web
  -
    ports: [{port: 81}]
---
# nothing here
---

apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: two}
spec: {podSelector: {}, egress: [], policyTypes: [Egress]}
...
";
    let parsed = parse(text);
    let [one, two] = &parsed.policies[..] else {
        panic!("{parsed:?}")
    };
    assert_eq!((one.line(), two.line()), (2, 15));
    assert!(one.text().starts_with("# about the first\n"));
    assert!(
        one.text().ends_with("    ports: [{port: 81}]\n"),
        "{}",
        one.text()
    );
    assert!(two.text().starts_with("apiVersion") && two.text().ends_with("[Egress]}\n"));
    assert_eq!(one.ingress_rule(0).line, Some(8));
    assert_eq!(one.ingress_rule(1).line, Some(10));
    assert_eq!(one.ingress_rule(1).rule.as_deref(), Some("ingress[1]"));
}

#[test]
fn lists_are_read_item_by_item() {
    let text = r"
apiVersion: v1
kind: List
metadata: {resourceVersion: ''}
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: one}
  spec:
    podSelector: {matchLabels: {a: b}}
    ingress:
    - {}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: two}
  spec: {podSelector: {}, policyTypes: [Ingress]}
";
    let parsed = parse(text);
    let [one, two] = &parsed.policies[..] else {
        panic!("{parsed:?}")
    };
    assert_eq!((one.line(), two.line()), (6, 13));
    assert_eq!(one.ingress_rule(0).line, Some(12));
    assert!(one.text().contains("name: one") && !one.text().contains("name: two"));
    assert!(two.text().contains("name: two") && !two.text().contains("name: one"));

    let json = r#"{"kind":"NetworkPolicyList","apiVersion":"networking.k8s.io/v1","items":[{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"j"},"spec":{"podSelector":{},"policyTypes":["Ingress"]}},{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"k"},"spec":{"podSelector":{},"policyTypes":["Ingress"]}}]}"#;
    let parsed = parse(json);
    assert_eq!(parsed.policies.len(), 2);
    assert!(parsed.policies[0].text().contains("name: j"));
    assert!(!parsed.policies[0].text().contains("name: k"));
    assert!(parsed.policies[1].text().contains("name: k"));
    assert!(!parsed.policies[1].text().contains("\"items\""));

    let aliased = format!("{}- *one\n", text.replace("- apiVersion: networking.k8s.io/v1\n  kind: NetworkPolicy\n  metadata: {name: one}", "- &one\n  apiVersion: networking.k8s.io/v1\n  kind: NetworkPolicy\n  metadata: {name: one}"));
    let errors = parse_documents("good.yaml", &aliased).unwrap_err();
    assert!(
        errors
            .to_string()
            .contains("`default/one` is already defined"),
        "{errors}"
    );

    let broken = text.replace("- {}", "- {form: []}");
    let errors = parse_documents("good.yaml", &broken).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "good.yaml:12:8: items[0].spec.ingress[0]: unknown field `form`; did you mean `from`?"
    );
}

#[test]
fn empty_input_holds_nothing() {
    for text in [
        "",
        "\n",
        "# only a comment\n",
        "---\n---\n",
        "kind: List\nitems: []\n",
    ] {
        assert_eq!(parse(text), ParsedDocuments::default(), "{text:?}");
    }
}

#[test]
fn a_stored_set_names_the_same_lines() {
    let set: PolicySet = parse(SERVED).policies.into();
    let stored = serde_json::to_string(&set).unwrap();
    let restored: PolicySet = serde_json::from_str(&stored).unwrap();
    assert_eq!(restored, set);
    let document = restored.get(&PolicyName::parse("shop/web")).unwrap();
    assert_eq!(document.source(), "good.yaml");
    assert!(document.text().contains("managedFields"));
    // What is stored is checked again: a damaged store gives an error, not a panic later.
    let damaged = stored
        .replace("\"Ingress\"", "\"Ingress\",\"Egress\"")
        .replace("shop", "s_op");
    let error = serde_json::from_str::<PolicySet>(&damaged).unwrap_err();
    assert!(
        error.to_string().contains("not a namespace name"),
        "{error}"
    );
}

#[test]
fn a_set_is_changed_by_name() {
    let one = |text: &str| parse(text).policies.remove(0);
    let mut set = PolicySet::new();
    assert!(set.insert(one(SERVED)).is_none());
    let changed = SERVED.replace("policyTypes: [Ingress]", "policyTypes: [Egress]");
    assert!(set.insert(one(&changed)).is_some());
    assert_eq!(set.len(), 1);
    let name = PolicyName::parse("shop/web");
    assert!(set.get(&name).unwrap().text().contains("[Egress]"));
    assert!(set.remove(&name).is_some() && set.is_empty());
    assert_eq!(PolicyName::parse("web").to_string(), "default/web");
}

#[test]
fn export_is_this_text() {
    let policy = parse(
        r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: api
  namespace: shop
  annotations: {note: "two\nlines: \"quoted\" \\ \u00e9"}
spec:
  podSelector:
    matchLabels: {app: api, version: "1.10", enabled: "yes", empty: ""}
    matchExpressions:
    - {key: tier, operator: NotIn, values: [web, "2"]}
    - {key: quarantine, operator: DoesNotExist}
  ingress:
  - from:
    - namespaceSelector: {}
      podSelector: {matchLabels: {app: web}}
    - ipBlock: {cidr: "2001:db8::/32", except: ["2001:db8:1::/48"]}
    - ipBlock: {cidr: 192.0.2.0/24}
    ports:
    - {port: 8080}
    - {protocol: UDP, port: 5000, endPort: 5010}
    - {port: metrics}
    - {}
  - {}
  - {from: [], ports: []}
  egress: []
"#,
    )
    .policies
    .remove(0);
    let annotated = AnnotatedPolicy {
        policy: policy.policy().clone(),
        comments: vec!["Learned from 3 days of traffic.".to_owned()],
        ingress_comments: vec![
            vec!["1,204 flows, first 2026-11-01, last 2026-11-20".to_owned()],
            vec!["two\nlines".to_owned(), "bell \u{7}".to_owned()],
        ],
        egress_comments: vec![],
    };
    let text = to_yaml(&[annotated]);
    assert_eq!(
        text,
        r#"# Learned from 3 days of traffic.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: api
  namespace: shop
  annotations:
    note: "two\nlines: \"quoted\" \\ \U000000e9"
spec:
  podSelector:
    matchLabels:
      app: api
      empty: ""
      enabled: "yes"
      version: "1.10"
    matchExpressions:
    - key: tier
      operator: NotIn
      values:
      - web
      - "2"
    - key: quarantine
      operator: DoesNotExist
  policyTypes:
  - Ingress
  ingress:
  # 1,204 flows, first 2026-11-01, last 2026-11-20
  - from:
    - namespaceSelector: {}
      podSelector:
        matchLabels:
          app: web
    - ipBlock:
        cidr: "2001:db8::/32"
        except:
        - "2001:db8:1::/48"
    - ipBlock:
        cidr: 192.0.2.0/24
    ports:
    - port: 8080
    - protocol: UDP
      port: 5000
      endPort: 5010
    - port: metrics
    - {}
  # two
  # lines
  # bell
  - {}
  - from: []
    ports: []
  egress: []
"#
    );
    let again = parse(&text).policies.remove(0);
    let mut expected = policy.policy().clone();
    expected.spec.policy_types = Some(vec![policy::netpol::PolicyType::Ingress]);
    assert_eq!(again.policy(), &expected);
    // Written again it is the same text, without the comments that are not part of the policy.
    let bare = to_yaml(&[expected.into()]);
    assert_eq!(to_yaml(&[again.policy().clone().into()]), bare);
}

#[test]
fn every_string_survives_export() {
    let odd = [
        "",
        " ",
        "y",
        "No",
        "null",
        "~",
        "0x1f",
        "1e3",
        "1_000",
        "0755",
        ".inf",
        "-",
        "- a",
        "a: b",
        "a #b",
        "#",
        "&a",
        "*a",
        "!a",
        "|",
        ">",
        "%",
        "@",
        "`",
        "'",
        "\"",
        "\\",
        "[",
        "{}",
        "a\tb",
        "a\r\nb",
        "\u{85}",
        "\u{2028}",
        "\u{feff}",
        "\u{0}",
        "\u{7f}",
        "\u{1F600}",
        "=",
        "<<",
        "true ",
        "2026-11-20",
        "12:30:45",
        "10.0.0.0/8",
        "::1",
    ];
    let mut policy = NetworkPolicy::new(
        "x",
        "p",
        NetworkPolicySpec {
            pod_selector: Some(LabelSelector::default()),
            policy_types: Some(vec![policy::netpol::PolicyType::Ingress]),
            ..NetworkPolicySpec::default()
        },
    );
    let annotations = odd.iter().enumerate();
    policy.metadata.annotations = Some(
        annotations
            .map(|(n, text)| (format!("k{n}"), (*text).to_owned()))
            .collect(),
    );
    let document = PolicyDocument::new(policy.clone(), "made").unwrap();
    assert_eq!(document.policy(), &policy);
}

#[test]
fn numbers_are_stable_and_never_reused() {
    let rule = |block: &str| {
        common::spec(&format!(
            "podSelector: {{}}\npolicyTypes: [Ingress]\ningress: [{{from: [{{ipBlock: {{cidr: {block}}}}}]}}]"
        ))
    };
    let workloads = vec![common::workload("x/a", "app=a", &["10.9.0.2"])];
    let mut scene = common::Scene::new(workloads, vec![], rule("192.0.2.0/24"));
    let mut interner = Interner::new();
    let first = scene.compile(&mut interner);
    let block =
        |compiled: &Compiled, text: &str| compiled.prefixes[&text.parse::<ipnet::IpNet>().unwrap()];
    let old = block(&first, "192.0.2.0/24");
    scene.policies = rule("198.51.100.0/24");
    let second = scene.compile(&mut interner);
    let new = block(&second, "198.51.100.0/24");
    assert_ne!(old, new);
    assert_eq!(first.workloads[0].identity, second.workloads[0].identity);
    // A block that comes back has its old number.
    scene.policies = rule("192.0.2.0/24");
    assert_eq!(scene.compile(&mut interner), first);
    assert!(interner.identity(old).is_some() && interner.identity(new).is_some());
    assert_eq!(interner.identity(0), None);
    assert_eq!(interner.identity(u32::MAX), None);
    assert_eq!(interner.rule(u32::MAX), None);
}

#[test]
fn a_relabelled_workload_is_known_until_its_address_moves() {
    let rule = "podSelector: {matchLabels: {app: a}}\ningress: [{from: [{podSelector: \
                {matchExpressions: [{key: app, operator: In, values: [b, c]}]}}]}]";
    let workloads = vec![
        common::workload("x/a", "app=a", &["10.9.0.2"]),
        common::workload("x/b", "app=b", &["10.9.0.3"]),
    ];
    let mut scene = common::Scene::new(workloads, vec![], common::spec(rule));
    let mut interner = Interner::new();
    let in_force = scene.compile(&mut interner);
    let old = in_force.addresses[&common::ip("10.9.0.3")];
    scene.estate.workloads[1].labels = common::labels("app=c");
    let plain = scene.compile(&mut interner);
    let next = compile_after(
        &in_force,
        &scene.estate,
        &scene.policies,
        &scene.modes,
        scene.unselected,
        &mut interner,
    )
    .unwrap();
    let new = next.addresses[&common::ip("10.9.0.3")];
    assert_ne!(old, new);
    let action = |compiled: &Compiled, peer| {
        let program = compiled.workloads[0].program;
        lookup(
            compiled,
            program,
            Direction::Ingress,
            peer,
            Protocol::TCP,
            80,
        )
        .0
    };
    assert_eq!([action(&next, old), action(&next, new)], [Action::Allow; 2]);
    assert_eq!(
        [action(&plain, old), action(&plain, new)],
        [Action::Deny, Action::Allow]
    );
    assert_eq!(
        (&next.addresses, &next.prefixes),
        (&plain.addresses, &plain.prefixes)
    );
    // Nothing goes out of use: nothing is kept.
    let again = compile_after(
        &next,
        &scene.estate,
        &scene.policies,
        &scene.modes,
        scene.unselected,
        &mut interner,
    )
    .unwrap();
    assert_eq!(again, plain);
}
