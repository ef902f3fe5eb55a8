//! `explain` names what selects, what decides, why the rest does not match, and the way out.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Scene, policies, with_port, workload};
use policy::evaluate::Flow;
use policy::explain::{Explanation, explain};
use policy::model::{Protocol, Unselected};
use policy::parse::parse_documents;

fn scene() -> Scene {
    let workloads = vec![
        workload("shop/web-1", "app=web,pod-template-hash=5d", &["10.1.0.2"]),
        with_port(
            workload("shop/db-1", "app=db", &["10.1.0.3"]),
            "sql",
            5432,
            Protocol::TCP,
        ),
        workload("ops/prom", "app=prom", &["10.1.1.2"]),
    ];
    let text = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {matchLabels: {app: web}}
    ports:
    - port: sql
    - port: 9000
      endPort: 9010
  - from:
    - podSelector: {matchLabels: {app: admin}}
";
    Scene::new(workloads, vec![], policies(text))
}

fn explain_flow(scene: &Scene, from: &str, to: &str, port: u16, protocol: Protocol) -> Explanation {
    let flow = Flow {
        source: scene.address(from, false),
        destination: scene.address(to, false),
        protocol,
        destination_port: port,
    };
    explain(
        &scene.estate,
        &scene.policies,
        &scene.modes,
        scene.unselected,
        &flow,
    )
}

#[test]
fn an_allowed_flow_names_the_rule_and_needs_no_remedy() {
    let text = explain_flow(&scene(), "shop/web-1", "shop/db-1", 5432, Protocol::TCP).to_string();
    assert_eq!(
        text,
        "shop/web-1 (10.1.0.2) -> shop/db-1 (10.1.0.3) 5432/TCP: forwarded\n  \
           egress of shop/web-1 (protect): allow by builtin/unselected-allow\n    \
             selected by no policy\n  \
           ingress of shop/db-1 (protect): allow by shop/db ingress[0] (test.yaml:8)\n    \
             selected by shop/db (test.yaml:1)\n"
    );
}

#[test]
fn a_wrong_port_is_named_with_the_ports_allowed() {
    let explanation = explain_flow(&scene(), "shop/web-1", "shop/db-1", 22, Protocol::TCP);
    let side = explanation.ingress.unwrap();
    assert_eq!(side.judgement.rule.policy, "default");
    assert_eq!(
        side.rejected[0].reason,
        "22/TCP is not among its ports: `sql`/TCP, 9000-9010/TCP"
    );
    assert_eq!(
        side.remedy.unwrap().text,
        "add port 22/TCP to `ports` of shop/db ingress[0] (test.yaml:8)"
    );
}

#[test]
fn a_wrong_peer_is_named_and_the_proposal_is_minimal() {
    let scene = scene();
    let explanation = explain_flow(&scene, "ops/prom", "shop/db-1", 5432, Protocol::TCP);
    let side = explanation.ingress.unwrap();
    assert_eq!(
        side.rejected[0].reason,
        "the source ops/prom (10.1.1.2) is not among its peers"
    );
    let remedy = side.remedy.unwrap();
    assert_eq!(
        remedy.text,
        "add ops/prom (10.1.1.2) to `from` of shop/db ingress[0] (test.yaml:8)"
    );
    assert_eq!(
        remedy.yaml,
        "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: db-1-from-prom
  namespace: shop
spec:
  podSelector:
    matchLabels:
      app: db
  policyTypes:
  - Ingress
  ingress:
  - from:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: ops
      podSelector:
        matchLabels:
          app: prom
    ports:
    - protocol: TCP
      port: 5432
"
    );
    let mut repaired = scene;
    repaired
        .policies
        .extend(parse_documents("fix", &remedy.yaml).unwrap().policies);
    assert!(repaired.allows("ops/prom", "shop/db-1", "5432/TCP"));
    assert!(!repaired.allows("ops/prom", "shop/db-1", "5433/TCP"));
    assert!(!repaired.allows("ops/prom", "shop/db-1", "5432/UDP"));
    assert!(!repaired.allows("198.51.100.1", "shop/db-1", "5432/TCP"));
}

#[test]
fn an_unselected_workload_under_zero_trust_needs_a_policy() {
    let mut scene = scene();
    scene.unselected = Unselected::Deny;
    let explanation = explain_flow(&scene, "shop/web-1", "198.51.100.1", 443, Protocol::TCP);
    assert_eq!(explanation.ingress, None);
    let side = explanation.egress.unwrap();
    assert_eq!(side.judgement.rule.policy, "builtin/unselected-deny");
    let remedy = side.remedy.unwrap();
    assert_eq!(
        remedy.text,
        "no policy selects shop/web-1 for egress; add one that allows 198.51.100.1 on 443/TCP"
    );
    assert!(
        remedy.yaml.contains("cidr: 198.51.100.1/32"),
        "{}",
        remedy.yaml
    );
    assert!(
        !remedy.yaml.contains("pod-template-hash"),
        "{}",
        remedy.yaml
    );
}

#[test]
fn an_unknown_port_name_and_a_nameless_protocol_are_said_so() {
    let mut scene = scene();
    scene.estate.workloads[1].ports.clear();
    let side = explain_flow(&scene, "shop/web-1", "shop/db-1", 5432, Protocol::TCP)
        .ingress
        .unwrap();
    assert!(
        side.rejected[0]
            .reason
            .contains("`sql`/TCP (unknown there)"),
        "{side:?}"
    );
    let side = explain_flow(&scene, "shop/web-1", "shop/db-1", 0x0800, Protocol::ICMP)
        .ingress
        .unwrap();
    assert!(
        side.rejected[0]
            .reason
            .starts_with("ICMP type 8 code 0 is not among"),
        "{side:?}"
    );
    let remedy = side.remedy.unwrap();
    assert!(
        remedy.text.contains("NetworkPolicy cannot name ICMP"),
        "{}",
        remedy.text
    );
    scene
        .policies
        .extend(parse_documents("fix", &remedy.yaml).unwrap().policies);
    assert!(scene.allows("shop/web-1", "shop/db-1", "2048/ICMP"));
}
