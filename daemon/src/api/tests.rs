//! The API over a real Unix socket, with a kernel in memory.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::dto::*;
use super::*;
use crate::cli::client::Client;
use crate::cli::error::CliError;
use crate::controller::estate::EstateFollower;
use crate::controller::{self, Initial, test_kernel};
use crate::flow::test_flow as flow;
use crate::workload::docker::DockerConfig;
use crate::workload::registry::{self, RegistryConfig};
use flowgraph::record::FlowRecord;

struct Server {
    dir: TempDir,
    api: Api,
    cancel: CancellationToken,
    _tasks: JoinSet<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Server {
    fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    fn client(&self) -> Client {
        Client::new(&self.socket())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.client().get(path).await
    }

    async fn post(&self, path: &str, body: Value) -> Result<Change, CliError> {
        self.client().post(path, &body).await
    }
}

async fn serve_shop() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let cancel = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let store = Store::open(dir.path()).unwrap();
    let (controller, _) = controller::spawn(
        test_kernel(),
        store.clone(),
        Initial {
            persisted: store.load_state().unwrap(),
            default_mode: policy::model::Mode::Discover,
            unselected: policy::model::Unselected::Deny,
        },
    )
    .unwrap();
    let registry = registry::start(
        RegistryConfig {
            docker: DockerConfig::Off,
            inventory: None,
        },
        cancel.clone(),
        &mut tasks,
    )
    .await
    .unwrap();
    controller
        .set_estate(controller::test_shop())
        .await
        .unwrap();
    let (learning, learner) = Learning::open(store.clone()).await.unwrap();
    tasks.spawn(learner.run(cancel.clone()));
    let (_, addresses) = mpsc::channel(1);
    // The follower is not run: the shop of the test stays the estate.
    let (_, estate) = EstateFollower::new(registry.estate.clone(), addresses, controller.clone());
    let api = Api {
        controller,
        estate,
        registry,
        hub: Arc::new(FlowHub::new(100, learning.clone())),
        learning,
        store,
        places: Places {
            bpffs: dir.path().to_owned(),
            state_dir: dir.path().to_owned(),
            socket: dir.path().join("api.sock"),
            docker_socket: None,
        },
        started: Timestamp::now(),
        ready: watch::channel(true).1,
        cancel: cancel.clone(),
        inventory_lock: Arc::default(),
    };
    let socket = bind(&dir.path().join("api.sock")).unwrap();
    let router = router(api.clone());
    let token = cancel.clone();
    tasks.spawn(async move { serve(socket, router, token).await.unwrap() });
    Server {
        dir,
        api,
        cancel,
        _tasks: tasks,
    }
}

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  podSelector: {matchLabels: {app: api}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{protocol: TCP, port: 8080}]
";

fn documents(text: &str) -> Value {
    json!({"documents": [{"source": "p.yaml", "text": text}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_private_replaces_a_dead_one_and_is_removed() {
    let server = serve_shop().await;
    let socket = server.socket();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let second = bind(&socket).unwrap_err();
    assert_eq!(second.kind(), std::io::ErrorKind::AddrInUse);
    assert!(socket.exists(), "the first one was left alone");

    let other = server.dir.path().join("other.sock");
    drop(std::os::unix::net::UnixListener::bind(&other).unwrap());
    assert!(other.exists(), "a dead daemon leaves its socket");
    let bound = bind(&other).unwrap();
    drop(bound);
    assert!(!other.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_applied_listed_shown_explained_exported_and_deleted() {
    let server = serve_shop().await;
    let change = server
        .post("/api/v1/policies/apply", documents(POLICY))
        .await
        .unwrap();
    assert_eq!(change.added, ["shop/api"]);
    let list: Vec<PolicyInfo> = server.get("/api/v1/policies").await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].selects, ["shop/api"]);
    assert_eq!(list[0].types, ["Ingress"]);
    let shown: PolicyText = server.get("/api/v1/policies/shop/api").await.unwrap();
    assert_eq!(shown.text, POLICY);

    let allowed: Explanation = server
        .get("/api/v1/policies/explain?from=web&to=shop/api&port=8080/tcp&as_protect=true")
        .await
        .unwrap();
    let ingress = &allowed.steps[1];
    assert_eq!(ingress.verdict, "forwarded");
    assert_eq!(ingress.rule.line, Some(8));
    assert_eq!(allowed.verdict, "dropped", "nothing allows web's egress");
    let discover: Explanation = server
        .get("/api/v1/policies/explain?from=web&to=shop/api&port=9/udp")
        .await
        .unwrap();
    assert_eq!(discover.verdict, "forwarded", "discover lets all pass");

    let yaml = server
        .client()
        .get_text("/api/v1/policies/export?format=networkpolicy&group=shop/api")
        .await
        .unwrap();
    assert!(yaml.contains("policyTypes"), "{yaml}");
    assert_eq!(
        check_documents(&[Document {
            source: "x".into(),
            text: yaml
        }])
        .policies,
        ["shop/api"]
    );
    let none = server
        .client()
        .get_text("/api/v1/policies/export?group=shop/web")
        .await
        .unwrap();
    assert_eq!(none, "");

    let change = server
        .post("/api/v1/policies/delete", json!({"names": ["shop/api"]}))
        .await
        .unwrap();
    assert_eq!(change.removed, ["shop/api"]);
    let history: Vec<HistoryEntry> = server.get("/api/v1/history?limit=2").await.unwrap();
    assert_eq!(history[0].what, "policy delete");
    let me = nix::unistd::geteuid().as_raw();
    assert_eq!(history[0].uid, Some(me), "from the socket's credentials");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_an_error_a_way_out_and_change_nothing() {
    let server = serve_shop().await;
    let before = server.api.controller.state().generation;
    let unknown_field = POLICY.replace("policyTypes", "policyTipes");
    let cases: Vec<(&str, Value, &str)> = vec![
        ("/api/v1/policies/apply", json!([]), "invalid"),
        (
            "/api/v1/policies/apply",
            json!({"documents": [], "x": 1}),
            "unknown field",
        ),
        (
            "/api/v1/policies/apply",
            documents(""),
            "no policy document",
        ),
        (
            "/api/v1/policies/replace",
            documents(&unknown_field),
            "mistake",
        ),
        ("/api/v1/policies/delete", json!({}), "nothing to delete"),
        (
            "/api/v1/policies/delete",
            json!({"names": ["shop/no"]}),
            "`shop/no`",
        ),
        (
            "/api/v1/modes",
            json!({"mode": "strict"}),
            "`strict` is no mode",
        ),
        (
            "/api/v1/modes",
            json!({"group": "nope", "mode": "protect"}),
            "no group `nope`",
        ),
        (
            "/api/v1/modes",
            json!({"mode": "protect", "confirm_within_seconds": 0}),
            "confirm_within_seconds",
        ),
        ("/api/v1/modes/confirm", json!({}), "no mode change"),
        ("/api/v1/nope", json!({}), "there is no"),
        ("/api/v1/status", json!({}), "does not take POST"),
        (
            "/api/v1/inventory/apply",
            json!({"document": {"source": "i.yaml", "text": "kind: Nope"}}),
            "inventory has a mistake",
        ),
    ];
    for (path, body, expected) in cases {
        let error = server.post(path, body.clone()).await.unwrap_err();
        assert!(error.message.contains(expected), "{path} {body}: {error:?}");
    }
    let named = server
        .post("/api/v1/policies/apply", documents(&unknown_field))
        .await
        .unwrap_err();
    assert!(named.details[0].starts_with("p.yaml:6:"), "{named:?}");
    assert!(named.hint.is_some());
    for path in [
        "/api/v1/flows?frm=web",
        "/api/v1/flows?verdict=denied",
        "/api/v1/flows?last=x",
        "/api/v1/graph?format=png",
        "/api/v1/history?lmit=1",
        "/api/v1/policies/export?format=cilium",
        "/api/v1/policies/suggest?group=nope",
        "/api/v1/policies/explain?from=web&to=api",
        "/api/v1/policies/explain?from=web&to=nobody&port=80",
        "/api/v1/policies/explain?from=192.0.2.1&to=192.0.2.2&port=80",
        "/api/v1/policies/shop/nope",
    ] {
        let error = server.get::<Value>(path).await.unwrap_err();
        assert!(!error.message.is_empty(), "{path}");
        assert!(
            !error.message.contains("the daemon answered"),
            "{path}: {error:?}"
        );
    }
    assert_eq!(server.api.controller.state().generation, before);
    assert!(server.api.controller.state().policies.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn status_groups_and_workloads_agree() {
    let server = serve_shop().await;
    server
        .post(
            "/api/v1/modes",
            json!({"group": "shop/web", "mode": "protect"}),
        )
        .await
        .unwrap();
    let status: Status = server.get("/api/v1/status").await.unwrap();
    assert!(status.ready);
    assert_eq!((status.workloads, status.enforced), (2, 2));
    assert_eq!(
        status.groups,
        [("discover".to_owned(), 1), ("protect".to_owned(), 1)].into()
    );
    let workloads: Vec<WorkloadInfo> = server.get("/api/v1/workloads").await.unwrap();
    assert_eq!(workloads[1].name, "web");
    assert_eq!(workloads[1].mode, policy::model::Mode::Protect);
    assert_eq!(workloads[1].interface.as_deref(), Some("veth3"));
    let groups: Vec<GroupInfo> = server.get("/api/v1/groups").await.unwrap();
    assert_eq!(groups[1].group, "shop/web");
    assert!(groups[1].explicit && !groups[0].explicit);
    let modes: ModesInfo = server.get("/api/v1/modes").await.unwrap();
    assert_eq!(modes.groups.len(), 2);
    let live = server.client().get_text("/livez").await.unwrap();
    assert_eq!(live, "ok\n");
    let ready = server.client().get_text("/readyz").await.unwrap();
    assert_eq!(ready, "ok\n");
    let doctor: DoctorInfo = server.get("/api/v1/doctor").await.unwrap();
    let daemon: Vec<_> = doctor
        .findings
        .iter()
        .filter(|finding| finding.subject == "daemon")
        .collect();
    assert_eq!(daemon.len(), 1, "it does not take itself for another one");
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_filtered_followed_and_learned() {
    let server = serve_shop().await;
    for port in [8080, 9090, 8080] {
        server.api.hub.publish(flow(port));
    }
    let all: Vec<FlowRecord> = server.get("/api/v1/flows").await.unwrap();
    assert_eq!(all.len(), 3);
    let some: Vec<FlowRecord> = server.get("/api/v1/flows?port=8080&last=1").await.unwrap();
    assert_eq!(some, [flow(8080)]);

    let (seen, mut lines) = mpsc::unbounded_channel();
    let client = server.client();
    let follower = tokio::spawn(async move {
        client
            .lines("/api/v1/flows?follow=true&last=1&port=9090", |line| {
                seen.send(line.to_owned()).unwrap();
                Ok(())
            })
            .await
    });
    let first: FlowRecord = serde_json::from_str(&lines.recv().await.unwrap()).unwrap();
    assert_eq!(first, flow(9090), "the past that was asked for");
    server.api.hub.publish(flow(8080));
    server.api.hub.publish(flow(9090));
    let next: FlowRecord = serde_json::from_str(&lines.recv().await.unwrap()).unwrap();
    assert_eq!(next, flow(9090), "and only what matches of the rest");
    server.cancel.cancel();
    follower.await.unwrap().unwrap();
    assert_eq!(lines.recv().await, None, "the stream ends with the daemon");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_graph_and_the_suggestion_come_from_learned_flows() {
    let server = serve_shop().await;
    let mut closed = flow(8080);
    closed.event = flowgraph::record::Event::Closed;
    closed.packets = 20;
    closed.reply_packets = 10;
    closed.bytes = 20_000;
    closed.reply_bytes = 10_000;
    server.api.hub.publish(flow(8080));
    server.api.hub.publish(closed);
    let graph: Value = server.get("/api/v1/graph").await.unwrap();
    assert_eq!(graph["edges"][0]["label"], "8080/TCP");
    for (format, needle) in [
        ("dot", "digraph"),
        ("mermaid", "flowchart"),
        ("svg", "<svg"),
    ] {
        let path = format!("/api/v1/graph?format={format}");
        let text = server.client().get_text(&path).await.unwrap();
        assert!(text.contains(needle), "{format}: {text}");
    }
    let suggestion: SuggestionInfo = server.get("/api/v1/policies/suggest").await.unwrap();
    let check = check_documents(&[Document {
        source: "suggestion".into(),
        text: suggestion.yaml.clone(),
    }]);
    assert_eq!(check.errors, Vec::<String>::new());
    assert_eq!(check.policies.len(), 2, "{}", suggestion.yaml);
    assert!(suggestion.yaml.contains("port: 8080"));
    assert!(!suggestion.yaml.contains("40000"), "never a client's port");
    assert_eq!(suggestion.rules.len(), 2);

    // Applied, it allows what was seen and nothing else, in protect mode.
    server
        .post("/api/v1/policies/apply", documents(&suggestion.yaml))
        .await
        .unwrap();
    server
        .post("/api/v1/modes", json!({"mode": "protect"}))
        .await
        .unwrap();
    for (port, verdict) in [("8080/tcp", "forwarded"), ("8081/tcp", "dropped")] {
        let path = format!("/api/v1/policies/explain?from=web&to=api&port={port}");
        let answer: Explanation = server.get(&path).await.unwrap();
        assert_eq!(answer.verdict, verdict, "{port}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_monitor_mode_let_pass_is_suggested_when_asked_for() {
    let server = serve_shop().await;
    let mut opened = flow(8080);
    opened.verdict = flowgraph::record::Verdict::Audit;
    let mut closed = opened.clone();
    closed.event = flowgraph::record::Event::Closed;
    (closed.packets, closed.reply_packets) = (20, 10);
    (closed.bytes, closed.reply_bytes) = (20_000, 10_000);
    server.api.hub.publish(opened);
    server.api.hub.publish(closed);
    let path = "/api/v1/policies/suggest";
    let plain: SuggestionInfo = server.get(path).await.unwrap();
    assert!(plain.rules.is_empty(), "{}", plain.yaml);
    let way_out = |note: &String| note.contains("--include-audited");
    assert!(plain.left_out.iter().any(way_out), "{:?}", plain.left_out);
    let path = format!("{path}?audited=true");
    let asked: SuggestionInfo = server.get(&path).await.unwrap();
    assert_eq!(asked.rules.len(), 2, "{}", asked.yaml);
    assert!(!asked.left_out.iter().any(way_out), "{:?}", asked.left_out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_daemon_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(&dir.path().join("none.sock"));
    let error = client.get::<Value>("/api/v1/status").await.unwrap_err();
    assert!(error.message.contains("none.sock"));
    assert!(error.hint.unwrap().contains("portcullis run"));
}
