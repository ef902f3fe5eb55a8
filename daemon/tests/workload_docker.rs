//! The workload registry on a real Docker daemon that lives in the lab's host namespace.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use daemon::workload::docker::DockerConfig;
use daemon::workload::inventory::Inventory;
use daemon::workload::model::{EstateSnapshot, Source, Workload};
use daemon::workload::registry::{self, RegistryConfig, RegistryHandle, RegistryStartError};
use testbed::{Dockerd, Lab, require_root};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

async fn until(
    handle: &RegistryHandle,
    what: &str,
    condition: impl Fn(&EstateSnapshot) -> bool,
) -> Arc<EstateSnapshot> {
    let mut estate = handle.estate.clone();
    let waited = timeout(DEADLINE, estate.wait_for(|snapshot| condition(snapshot))).await;
    match waited {
        Ok(snapshot) => Arc::clone(&snapshot.unwrap()),
        Err(_) => panic!("no {what}: {:#?}", handle.estate.borrow()),
    }
}

fn addresses_on(dockerd: &Dockerd, container: &str, network: &str) -> Vec<IpAddr> {
    let field =
        |name: &str| format!("{{{{(index .NetworkSettings.Networks \"{network}\").{name}}}}}");
    let format = format!("{} {}", field("IPAddress"), field("GlobalIPv6Address"));
    let text = dockerd
        .docker(&["inspect", "--format", &format, container])
        .unwrap();
    text.split_ascii_whitespace()
        .map(|a| a.parse().unwrap())
        .collect()
}

fn owns(workload: &Workload, addresses: &[IpAddr]) -> bool {
    addresses
        .iter()
        .all(|a| workload.spec.addresses.contains(a))
}

/// What `docker compose up` puts on a container.
fn compose(service: &str, number: &str) -> Vec<String> {
    [
        ("project", "shop"),
        ("service", service),
        ("container-number", number),
        ("oneoff", "False"),
    ]
    .iter()
    .flat_map(|(key, value)| {
        [
            "--label".to_owned(),
            format!("com.docker.compose.{key}={value}"),
        ]
    })
    .collect()
}

#[test]
fn containers_are_named_grouped_and_keep_their_identity() {
    require_root!();
    let lab = Lab::new("wdock").unwrap();
    let mut dockerd = Dockerd::start(lab.host()).unwrap();
    for (network, number) in [("front", "1"), ("back", "2")] {
        let v4 = format!("172.31.{number}.0/24");
        let v6 = format!("fd31:{number}::/64");
        dockerd
            .docker(&[
                "network", "create", "--ipv6", "--subnet", &v4, "--subnet", &v6, network,
            ])
            .unwrap();
    }
    // Before the daemon: a compose service on two networks, and a plain container.
    let labels = compose("web", "1");
    let mut options: Vec<&str> = labels.iter().map(String::as_str).collect();
    options.extend(["--network", "front", "--label", "team=a"]);
    let web_id = dockerd.run_sleeping("shop-web-1", &options).unwrap();
    dockerd
        .docker(&["network", "connect", "back", "shop-web-1"])
        .unwrap();
    dockerd
        .run_sleeping("plain", &["--network", "back"])
        .unwrap();
    dockerd
        .run_sleeping("blind", &["--network", "host"])
        .unwrap();

    let dockerd = &mut dockerd;
    lab.host()
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let cancel = CancellationToken::new();
                let mut tasks = JoinSet::new();
                let config = RegistryConfig {
                    docker: DockerConfig::Socket(dockerd.socket()),
                    inventory: None,
                };
                let handle = registry::start(config, cancel.clone(), &mut tasks)
                    .await
                    .unwrap();
                story(dockerd, &handle, &web_id).await;
                cancel.cancel();
                let ended = async { while tasks.join_next().await.is_some() {} };
                timeout(DEADLINE, ended)
                    .await
                    .expect("the registry ends when cancelled");
            });
        })
        .unwrap();
}

async fn story(dockerd: &mut Dockerd, handle: &RegistryHandle, web_id: &str) {
    let first = Arc::clone(&handle.estate.borrow());
    let ids: Vec<_> = first.workloads.iter().map(|w| w.id.0.as_str()).collect();
    assert_eq!(
        ids,
        ["docker:plain", "docker:shop/web/1"],
        "complete at once"
    );
    let web = first.by_id("docker:shop/web/1").unwrap();
    assert_eq!(web.source, Source::Docker);
    assert_eq!(
        (web.spec.namespace.as_str(), web.spec.group.as_str()),
        ("shop", "shop/web")
    );
    assert_eq!(
        (
            web.spec.labels["app"].as_str(),
            web.spec.labels["team"].as_str()
        ),
        ("web", "a")
    );
    assert_eq!(web.image.as_deref(), Some(Dockerd::IMAGE));
    assert_eq!(web.container_id.as_deref(), Some(web_id));
    assert_eq!(web.interfaces.len(), 2, "one per network: {web:#?}");
    let inode = dockerd.netns_of("shop-web-1").unwrap().inode().unwrap();
    assert!(
        web.interfaces
            .iter()
            .all(|i| i.netns == Some(inode) && i.mac.is_some())
    );
    for network in ["front", "back"] {
        let addresses = addresses_on(dockerd, "shop-web-1", network);
        assert_eq!(addresses.len(), 2, "v4 and v6");
        assert!(owns(web, &addresses), "{addresses:?} of {web:#?}");
    }
    assert_eq!(
        first.by_id("docker:plain").unwrap().spec.group,
        "docker/plain"
    );
    let subjects: BTreeSet<_> = first.problems.iter().map(|p| p.subject.as_str()).collect();
    assert_eq!(subjects, BTreeSet::from(["container blind"]));

    // After the daemon.
    let labels = compose("web", "2");
    let mut options: Vec<&str> = labels.iter().map(String::as_str).collect();
    options.extend(["--network", "front"]);
    dockerd.run_sleeping("shop-web-2", &options).unwrap();
    let second = until(handle, "second replica", |s| {
        s.by_id("docker:shop/web/2").is_some()
    })
    .await;
    assert_eq!(
        second.by_id("docker:shop/web/2").unwrap().spec.group,
        "shop/web"
    );
    assert_eq!(
        second.by_id("docker:shop/web/1"),
        Some(web),
        "the first is as it was"
    );

    // Back with another address: somebody else takes the old one in between.
    let old = addresses_on(dockerd, "plain", "back");
    dockerd.docker(&["stop", "--time", "0", "plain"]).unwrap();
    until(handle, "stop", |s| s.by_id("docker:plain").is_none()).await;
    dockerd
        .run_sleeping(
            "squatter",
            &["--network", "back", "--ip", &old[0].to_string()],
        )
        .unwrap();
    let taken = until(handle, "squatter", |s| s.by_address(old[0]).is_some()).await;
    assert_eq!(taken.by_address(old[0]).unwrap().id.0, "docker:squatter");
    dockerd.docker(&["start", "plain"]).unwrap();
    let new = addresses_on(dockerd, "plain", "back");
    assert_ne!(new[0], old[0]);
    let back = until(handle, "restart", |s| {
        s.by_id("docker:plain")
            .is_some_and(|plain| owns(plain, &new))
    })
    .await;
    assert_eq!(back.by_address(old[0]).unwrap().id.0, "docker:squatter");

    // Networks and names change while it runs.
    dockerd
        .docker(&["network", "disconnect", "back", "shop-web-1"])
        .unwrap();
    until(handle, "disconnect", |s| {
        s.by_id("docker:shop/web/1")
            .is_some_and(|w| w.interfaces.len() == 1)
    })
    .await;
    dockerd.docker(&["rename", "squatter", "renamed"]).unwrap();
    until(handle, "rename", |s| {
        s.by_id("docker:renamed").is_some() && s.by_id("docker:squatter").is_none()
    })
    .await;

    // Docker goes and comes back.
    dockerd.suspend().unwrap();
    let gone = until(handle, "loss of Docker", |s| {
        s.problems.iter().any(|p| p.subject == "docker")
    })
    .await;
    assert!(
        gone.workloads.is_empty(),
        "dockerd took its containers along: {gone:#?}"
    );
    dockerd.resume().unwrap();
    dockerd.docker(&["start", "shop-web-1"]).unwrap();
    until(handle, "return of Docker", |s| {
        s.by_id("docker:shop/web/1").is_some() && s.problems.iter().all(|p| p.subject != "docker")
    })
    .await;
}

#[test]
fn a_socket_asked_for_and_missing_is_an_error_an_optional_one_a_problem() {
    require_root!();
    let lab = Lab::new("wdock").unwrap();
    lab.host()
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let config = RegistryConfig {
                    docker: DockerConfig::Socket("/nonexistent/docker.sock".into()),
                    inventory: None,
                };
                let cancel = CancellationToken::new();
                let mut tasks = JoinSet::new();
                let error = registry::start(config, cancel.clone(), &mut tasks)
                    .await
                    .unwrap_err();
                assert!(matches!(error, RegistryStartError::Docker(_)), "{error}");
                assert!(
                    error.to_string().contains("/nonexistent/docker.sock"),
                    "{error}"
                );
                assert!(tasks.is_empty(), "nothing goes on after a failed start");
                let nowhere = "kind: Inventory\nworkloads: [{name: a, interface: nothere}]\n";
                let config = RegistryConfig {
                    docker: DockerConfig::Auto,
                    inventory: Some(Inventory::parse(nowhere, "inv.yaml").unwrap()),
                };
                let error = registry::start(config, cancel.clone(), &mut tasks)
                    .await
                    .unwrap_err();
                assert!(
                    error.to_string().starts_with("inv.yaml:2:34: interface"),
                    "{error}"
                );
                let ended = async { while tasks.join_next().await.is_some() {} };
                timeout(DEADLINE, ended)
                    .await
                    .expect("nothing goes on after a failed start");
                if daemon::workload::docker::DEFAULT_SOCKETS
                    .iter()
                    .any(|socket| std::path::Path::new(socket).exists())
                {
                    return;
                }
                let config = RegistryConfig {
                    docker: DockerConfig::Auto,
                    inventory: None,
                };
                let handle = registry::start(config, cancel.clone(), &mut tasks)
                    .await
                    .unwrap();
                let problems = handle.estate.borrow().problems.clone();
                assert_eq!(problems.len(), 1, "{problems:?}");
                assert!(
                    problems[0].cause.contains("there is no socket"),
                    "{problems:?}"
                );
                cancel.cancel();
                let ended = async { while tasks.join_next().await.is_some() {} };
                timeout(DEADLINE, ended)
                    .await
                    .expect("the registry ends when cancelled");
            });
        })
        .unwrap();
}
