use bollard::models::{
    ContainerConfig, ContainerState, EndpointSettings, EventActor, HostConfig, NetworkSettings,
};

use super::*;

fn inspect(labels: &[(&str, &str)], mode: &str) -> ContainerInspectResponse {
    let network = |v4: &str, v6: &str| EndpointSettings {
        ip_address: Some(v4.to_owned()),
        global_ipv6_address: Some(v6.to_owned()),
        ..EndpointSettings::default()
    };
    ContainerInspectResponse {
        id: Some("0123".to_owned()),
        name: Some("/shop-web-1".to_owned()),
        state: Some(ContainerState {
            running: Some(true),
            pid: Some(42),
            ..ContainerState::default()
        }),
        host_config: Some(HostConfig {
            network_mode: Some(mode.to_owned()),
            ..HostConfig::default()
        }),
        config: Some(ContainerConfig {
            image: Some("nginx:1".to_owned()),
            labels: Some(
                labels
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
            ),
            ..ContainerConfig::default()
        }),
        network_settings: Some(NetworkSettings {
            sandbox_key: Some("/var/run/docker/netns/abc".to_owned()),
            networks: Some(HashMap::from([
                ("front".to_owned(), network("172.18.0.2", "fd00::2")),
                ("back".to_owned(), network("172.19.0.2", "")),
            ])),
            ..NetworkSettings::default()
        }),
        ..ContainerInspectResponse::default()
    }
}

const COMPOSE: [(&str, &str); 3] = [
    (COMPOSE_PROJECT, "shop"),
    (COMPOSE_SERVICE, "web"),
    (COMPOSE_NUMBER, "1"),
];

#[test]
fn labels_become_identity_group_and_namespace() {
    let with = |extra: &[(&str, &str)]| {
        let labels: Vec<_> = COMPOSE.iter().chain(extra).copied().collect();
        Container::from_inspect(inspect(&labels, "shop_front")).unwrap()
    };
    let plain = Container::from_inspect(inspect(&[], "bridge")).unwrap();
    for (container, id, namespace, group, app) in [
        (
            plain,
            "docker:shop-web-1",
            "docker",
            "docker/shop-web-1",
            "shop-web-1",
        ),
        (with(&[]), "docker:shop/web/1", "shop", "shop/web", "web"),
        (
            with(&[(APP_LABEL, "x")]),
            "docker:shop/web/1",
            "shop",
            "shop/web",
            "x",
        ),
        (
            with(&[(GROUP_LABEL, "g")]),
            "docker:shop/web/1",
            "shop",
            "g",
            "web",
        ),
        (
            with(&[(COMPOSE_ONEOFF, "True")]),
            "docker:shop-web-1",
            "shop",
            "shop/web",
            "web",
        ),
    ] {
        let spec = container.spec();
        assert_eq!(container.workload_id().0, id);
        assert_eq!(
            (spec.namespace.as_str(), spec.group.as_str()),
            (namespace, group),
            "{id}"
        );
        assert_eq!(spec.labels[APP_LABEL], app);
        assert_eq!(spec.name, "shop-web-1");
        for (key, value) in &container.labels {
            let kept = spec.labels.get(key);
            if is_bookkeeping(key) {
                assert_eq!(
                    kept, None,
                    "compose's bookkeeping is no part of an identity"
                );
            } else {
                assert_eq!(kept, Some(value), "the container's own labels stay");
            }
        }
    }
    let replica = |number| with(&[(COMPOSE_NUMBER, number)]).spec().labels;
    assert_eq!(replica("1"), replica("2"), "replicas are the same somebody");
}

#[test]
fn a_project_becomes_a_namespace_kubernetes_accepts() {
    for (project, namespace) in [
        ("shop", "shop"),
        ("my_shop", "my-shop"),
        ("_x_", "x"),
        ("__", DOCKER_NAMESPACE),
    ] {
        assert_eq!(namespace_name(project), namespace);
    }
}

#[test]
fn inspect_gives_pid_networks_and_mode() {
    let container = Container::from_inspect(inspect(&[], "front")).unwrap();
    let addresses: Vec<_> = container
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(addresses, ["172.18.0.2", "172.19.0.2", "fd00::2"]);
    let paths = ["/proc/42/ns/net", "/var/run/docker/netns/abc"].map(PathBuf::from);
    assert_eq!(container.netns_paths(), paths);
    for (mode, expected) in [
        ("host", NetworkMode::Host),
        ("none", NetworkMode::None),
        ("container:ff", NetworkMode::Container),
        ("bridge", NetworkMode::Own),
        ("default", NetworkMode::Own),
    ] {
        let container = Container::from_inspect(inspect(&[], mode)).unwrap();
        assert_eq!(container.network, expected, "{mode}");
    }
}

#[test]
fn a_container_that_does_not_run_is_none() {
    let mut stopped = inspect(&[], "bridge");
    stopped.state = Some(ContainerState {
        running: Some(false),
        pid: Some(0),
        ..ContainerState::default()
    });
    assert_eq!(Container::from_inspect(stopped), None);
    assert_eq!(
        Container::from_inspect(ContainerInspectResponse::default()),
        None
    );
}

#[test]
fn ports_are_named_by_label() {
    let ports = named_ports("http=8080/tcp, dns=53/udp,plain=9,bad,zero=0/tcp,x=1/none");
    let text: Vec<_> = ports
        .iter()
        .map(|p| format!("{}={}/{}", p.name, p.port, p.protocol))
        .collect();
    assert_eq!(text, ["http=8080/TCP", "dns=53/UDP", "plain=9/TCP"]);
}

#[test]
fn only_events_that_matter_lead_to_a_look() {
    let event = |typ, action: &str| EventMessage {
        typ: Some(typ),
        action: Some(action.to_owned()),
        actor: Some(EventActor {
            id: Some("actor".to_owned()),
            attributes: Some(HashMap::from([("container".to_owned(), "c1".to_owned())])),
        }),
        ..EventMessage::default()
    };
    use EventMessageTypeEnum::{CONTAINER, IMAGE, NETWORK};
    for (typ, action, expected) in [
        (CONTAINER, "start", Some("actor")),
        (CONTAINER, "die", Some("actor")),
        (CONTAINER, "rename", Some("actor")),
        (CONTAINER, "exec_create: sh", None),
        (CONTAINER, "health_status: healthy", None),
        (NETWORK, "connect", Some("c1")),
        (NETWORK, "disconnect", Some("c1")),
        (NETWORK, "create", None),
        (IMAGE, "pull", None),
    ] {
        assert_eq!(
            concerned(event(typ, action)).as_deref(),
            expected,
            "{action}"
        );
    }
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_an_error_with_a_way_out() {
    let error = check(Path::new("/nonexistent/docker.sock"))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("/nonexistent/docker.sock") && text.contains("check that"),
        "{text}"
    );
}

#[tokio::test]
async fn a_missing_socket_is_reported_and_found_when_it_appears() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let (sender, mut state) = watch::channel(DockerState::default());
    let cancel = CancellationToken::new();
    let config = DockerConfig::Socket(socket.clone());
    let task = tokio::spawn(follow(config, sender, cancel.clone()));
    let seen = state
        .wait_for(|state| state.attempted)
        .await
        .unwrap()
        .clone();
    assert!(seen.problem.unwrap().cause.contains("no socket"));
    // Somebody listens, but hangs up: still no Docker, and a different problem.
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let hang_up = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let wrong = |state: &DockerState| {
        let problem = state.problem.as_ref();
        problem.is_some_and(|problem| problem.cause.contains("no connection"))
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), state.wait_for(wrong)).await;
    assert!(!waited.unwrap().unwrap().connected);
    hang_up.abort();
    cancel.cancel();
    task.await.unwrap();
}
