//! The files of `policies/` do what their comments say.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Scene, namespace, with_port, workload};
use policy::model::Protocol;
use policy::parse::{PolicySet, parse_files};

fn example(name: &str) -> PolicySet {
    let path = format!("{}/../../policies/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    let parsed = parse_files([(name, text.as_str())]).unwrap_or_else(|errors| panic!("{errors}"));
    parsed.policies.into()
}

const WORLD: &str = "203.0.113.9";

#[test]
fn default_deny() {
    let workloads = vec![
        workload("shop/web", "app=web", &["10.1.0.2"]),
        workload("shop/db", "app=db", &["10.1.0.3"]),
        workload("other/web", "app=web", &["10.1.1.2"]),
        workload("other/db", "app=db", &["10.1.1.3"]),
    ];
    Scene::new(workloads, vec![], example("default-deny")).table(&[
        ("shop/web", "shop/db", "5432/TCP", false),
        ("shop/web", WORLD, "443/TCP", false),
        (WORLD, "shop/web", "443/TCP", false),
        ("other/web", "shop/web", "80/TCP", false),
        ("shop/web", "other/web", "80/TCP", false),
        ("shop/web", "shop/web", "80/TCP", true),
        ("host", "shop/web", "80/TCP", true),
        ("other/web", "other/db", "5432/TCP", true),
    ]);
}

#[test]
fn database_isolation() {
    let workloads = vec![
        workload("database/mysql", "app=mysql", &["10.1.0.2"]),
        workload("database/api-gateway", "app=api-gateway", &["10.1.0.3"]),
        workload("database/backup", "app=backup", &["10.1.0.4"]),
        workload("application/orders", "app=orders", &["10.1.1.2"]),
        workload("other/api-gateway", "app=api-gateway", &["10.1.2.2"]),
    ];
    Scene::new(workloads, vec![], example("database-isolation")).table(&[
        ("application/orders", "database/mysql", "3306/TCP", true),
        ("database/api-gateway", "database/mysql", "3306/TCP", true),
        ("database/backup", "database/mysql", "3306/TCP", false),
        ("other/api-gateway", "database/mysql", "3306/TCP", false),
        (WORLD, "database/mysql", "3306/TCP", false),
        ("application/orders", "database/mysql", "22/TCP", false),
        ("application/orders", "database/mysql", "3306/UDP", false),
        ("application/orders", "database/backup", "22/TCP", true),
        ("database/mysql", WORLD, "443/TCP", true),
    ]);
}

#[test]
fn frontend_to_backend() {
    let workloads = vec![
        workload("shop/frontend", "app=frontend", &["10.1.0.2"]),
        workload("shop/backend", "app=backend", &["10.1.0.3"]),
        workload("shop/db", "app=db", &["10.1.0.4"]),
        workload("kube-system/dns", "k8s-app=kube-dns", &["10.1.1.2"]),
        workload("other/frontend", "app=frontend", &["10.1.2.2"]),
    ];
    Scene::new(workloads, vec![], example("frontend-to-backend")).table(&[
        ("shop/frontend", "shop/backend", "8080/TCP", true),
        ("shop/frontend", "shop/backend", "8081/TCP", false),
        ("shop/frontend", "kube-system/dns", "53/UDP", true),
        ("shop/frontend", "kube-system/dns", "53/TCP", true),
        ("shop/frontend", "kube-system/dns", "853/TCP", false),
        ("shop/frontend", "8.8.8.8", "53/UDP", false),
        ("shop/frontend", "shop/db", "5432/TCP", false),
        ("shop/frontend", WORLD, "443/TCP", false),
        ("other/frontend", "shop/backend", "8080/TCP", false),
        ("shop/db", "shop/backend", "8080/TCP", false),
        ("shop/backend", "shop/db", "5432/TCP", true),
    ]);
}

#[test]
fn monitoring_scrape() {
    let web = workload("shop/web", "app=web,metrics=true", &["10.1.0.2"]);
    let api = workload("shop/api", "app=api,metrics=true", &["10.1.0.3"]);
    let workloads = vec![
        with_port(web, "metrics", 9090, Protocol::TCP),
        with_port(api, "metrics", 9100, Protocol::TCP),
        workload("shop/old", "app=old,metrics=true", &["10.1.0.4"]),
        workload("observability/prometheus", "app=prometheus", &["10.1.1.2"]),
        workload("observability/grafana", "app=grafana", &["10.1.1.3"]),
        workload("shop/prometheus", "app=prometheus", &["10.1.0.5"]),
    ];
    let namespaces = vec![namespace("observability", "purpose=monitoring")];
    Scene::new(workloads, namespaces, example("monitoring-scrape")).table(&[
        ("observability/prometheus", "shop/web", "9090/TCP", true),
        ("observability/prometheus", "shop/web", "9100/TCP", false),
        ("observability/prometheus", "shop/api", "9100/TCP", true),
        ("observability/prometheus", "shop/old", "9090/TCP", false),
        ("observability/grafana", "shop/web", "9090/TCP", false),
        ("shop/prometheus", "shop/web", "9090/TCP", false),
    ]);
}

#[test]
fn quarantine() {
    let workloads = vec![
        workload("shop/web", "app=web", &["10.1.0.2"]),
        workload("shop/db", "app=db", &["10.1.0.3"]),
        workload("shop/suspect", "app=web,quarantine=yes", &["10.1.0.4"]),
    ];
    let mut scene = Scene::new(workloads, vec![], example("quarantine"));
    scene.table(&[
        ("shop/web", "shop/db", "5432/TCP", true),
        ("shop/suspect", "shop/db", "5432/TCP", false),
        ("shop/suspect", WORLD, "443/TCP", false),
        ("shop/web", "shop/suspect", "80/TCP", false),
        ("host", "shop/suspect", "80/TCP", true),
    ]);
    scene.estate.workloads[0].labels = common::labels("app=web,quarantine=");
    scene.table(&[("shop/web", "shop/db", "5432/TCP", false)]);
}

#[test]
fn every_example_is_explained_and_free_of_warnings() {
    let directory = format!("{}/../../policies", env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let parsed = parse_files([(name.as_str(), text.as_str())])
                .unwrap_or_else(|errors| panic!("{errors}"));
            assert_eq!(parsed.warnings, [], "{name}");
            assert!(text.starts_with("# "), "{name} begins with what it means");
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen} examples");
}
