//! The size one host may see. The time is printed, not asserted beyond a generous limit: a debug
//! build on a busy machine is no benchmark.

mod common;

use std::time::{Duration, Instant};

use common::{Scene, assert_agreement, ip, namespace, policies, workload};
use policy::compile::Interner;
use policy::evaluate::{Evaluator, Flow};
use policy::model::Protocol;

const NAMESPACES: usize = 100;
const APPS: usize = 10;
const REPLICAS: usize = 10;

/// 10,000 workloads of 1,000 applications and 2,000 policies: every application accepts its own
/// port from the one before it and from a block, and may reach the one after it and DNS.
fn scene() -> Scene {
    let mut workloads = Vec::new();
    let mut text = String::new();
    for ns in 0..NAMESPACES {
        for app in 0..APPS {
            for replica in 0..REPLICAS {
                let host = app * REPLICAS + replica + 1;
                workloads.push(workload(
                    &format!("ns{ns}/app{app}-{replica}"),
                    &format!("app=app{app},stage=prod"),
                    &[
                        &format!("10.1.{ns}.{host}"),
                        &format!("fd00:1::{ns}:{host}"),
                    ],
                ));
            }
            let (next, previous) = ((app + 1) % APPS, (app + APPS - 1) % APPS);
            text.push_str(&format!(
                "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: app{app}-in, namespace: ns{ns}}}
spec:
  podSelector: {{matchLabels: {{app: app{app}}}}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {{matchLabels: {{app: app{previous}}}}}
    - ipBlock: {{cidr: 172.16.{ns}.0/24, except: [172.16.{ns}.128/25]}}
    ports: [{{port: {}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: app{app}-out, namespace: ns{ns}}}
spec:
  podSelector: {{matchLabels: {{app: app{app}}}}}
  policyTypes: [Egress]
  egress:
  - to:
    - podSelector: {{matchLabels: {{app: app{next}}}}}
  - to:
    - namespaceSelector: {{matchLabels: {{dns: here}}}}
    ports: [{{port: 53, protocol: UDP}}, {{port: 53}}]
",
                8000 + app
            ));
        }
    }
    let namespaces = vec![namespace("ns0", "dns=here")];
    Scene::new(workloads, namespaces, policies(&text))
}

#[test]
fn ten_thousand_workloads_compile() {
    let started = Instant::now();
    let scene = scene();
    let parsed = started.elapsed();
    let started = Instant::now();
    let mut interner = Interner::new();
    let compiled = scene.compile(&mut interner);
    let first = started.elapsed();
    let started = Instant::now();
    assert_eq!(scene.compile(&mut interner), compiled);
    let again = started.elapsed();
    println!(
        "{} workloads, {} policies: parse {parsed:?}, compile {first:?}, again {again:?}, {} \
         programs, {} entries, {} addresses, {} prefixes",
        scene.estate.workloads.len(),
        scene.policies.len(),
        compiled.programs.len(),
        compiled.entry_count(),
        compiled.addresses.len(),
        compiled.prefixes.len(),
    );
    assert_eq!(scene.estate.workloads.len(), NAMESPACES * APPS * REPLICAS);
    assert_eq!(scene.policies.len(), 2 * NAMESPACES * APPS);
    // Replicas share programs, and entries count applications, not replicas.
    assert_eq!(compiled.programs.len(), NAMESPACES * APPS);
    assert!(
        compiled.entry_count() < 40 * NAMESPACES * APPS,
        "{}",
        compiled.entry_count()
    );
    assert!(first < Duration::from_secs(60), "{first:?}");

    let evaluator = Evaluator::new(
        &scene.estate,
        &scene.policies,
        &scene.modes,
        scene.unselected,
    );
    for (source, destination, port, expected) in [
        ("10.1.7.3", "10.1.7.12", 8001, true),
        ("10.1.7.3", "10.1.7.12", 8000, false),
        ("10.1.8.3", "10.1.7.12", 8001, false),
        ("172.16.7.5", "10.1.7.3", 8000, true),
        ("172.16.7.200", "10.1.7.3", 8000, false),
        ("10.1.7.3", "10.1.0.50", 53, false),
    ] {
        let flow = Flow {
            source: ip(source),
            destination: ip(destination),
            protocol: Protocol::TCP,
            destination_port: port,
        };
        let decision = assert_agreement(&scene, &evaluator, &compiled, &interner, &flow)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            decision.allowed_by_policy(),
            expected,
            "{flow:?} {decision:?}"
        );
    }
}
