use std::sync::Mutex;

use super::*;
use crate::dataplane::{Applied, AppliedEndpoint, Counters, CtSnapshot};
use crate::workload::model::{Source, WorkloadId, WorkloadState};

/// A kernel in memory: what was applied last, and what it should refuse.
#[derive(Default)]
struct Kernel {
    applied: Vec<Desired>,
    refuse: bool,
    /// Refuse every apply after this many.
    refuse_after: Option<usize>,
    broken_interfaces: BTreeSet<u32>,
}

#[derive(Clone, Default)]
struct FakeDataplane(Arc<Mutex<Kernel>>);

impl FakeDataplane {
    fn kernel(&self) -> std::sync::MutexGuard<'_, Kernel> {
        self.0.lock().unwrap()
    }

    fn applies(&self) -> usize {
        self.kernel().applied.len()
    }

    fn last(&self) -> Desired {
        self.kernel().applied.last().unwrap().clone()
    }
}

impl Enforcement for FakeDataplane {
    fn apply(&mut self, desired: &Desired) -> Result<Applied, EnforcementError> {
        let mut kernel = self.kernel();
        if kernel.refuse
            || kernel
                .refuse_after
                .is_some_and(|n| kernel.applied.len() >= n)
        {
            return Err("map full".into());
        }
        kernel.applied.push(desired.clone());
        Ok(Applied {
            generation: kernel.applied.len() as u32,
            endpoints: desired
                .endpoints
                .iter()
                .map(|endpoint| AppliedEndpoint {
                    ifindex: endpoint.ifindex,
                    endpoint_id: 1000 + endpoint.ifindex,
                    result: if kernel.broken_interfaces.contains(&endpoint.ifindex) {
                        Err("no such device".into())
                    } else {
                        Ok(())
                    },
                })
                .collect(),
            entries_used: desired.compiled.entry_count() as u32,
            entries_max: 100,
        })
    }

    fn conntrack(&self) -> Result<Vec<CtSnapshot>, EnforcementError> {
        Ok(Vec::new())
    }

    fn expire(&mut self, _: u64) -> Result<Vec<CtSnapshot>, EnforcementError> {
        Ok(Vec::new())
    }

    fn counters(&self) -> Result<Counters, EnforcementError> {
        Ok(Counters::default())
    }
}

/// A kernel in memory that takes everything.
pub(crate) fn test_kernel() -> impl Enforcement {
    FakeDataplane::default()
}

fn workload(name: &str, ifindex: u32) -> Workload {
    Workload {
        id: WorkloadId(format!("inventory:shop/{name}")),
        source: Source::Inventory,
        spec: ::policy::model::Workload {
            name: name.into(),
            namespace: "shop".into(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            addresses: vec![format!("10.0.0.{ifindex}").parse().unwrap()],
            ports: Vec::new(),
            group: format!("shop/{name}"),
        },
        image: None,
        container_id: None,
        interfaces: vec![WorkloadInterface {
            ifindex,
            name: format!("veth{ifindex}"),
            mac: None,
            network: 0,
            netns: None,
        }],
        netns_path: None,
        learn_addresses: false,
        state: WorkloadState::Present,
    }
}

fn snapshot(workloads: Vec<Workload>) -> Arc<EstateSnapshot> {
    Arc::new(EstateSnapshot {
        revision: 1,
        workloads,
        ..EstateSnapshot::default()
    })
}

/// Two workloads, `api` and `web`.
pub(crate) fn shop() -> Arc<EstateSnapshot> {
    snapshot(vec![workload("api", 2), workload("web", 3)])
}

const API: &str = "\
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

fn documents(text: &str) -> Vec<Document> {
    vec![Document {
        source: "api.yaml".into(),
        text: text.into(),
    }]
}

const ROOT: Caller = Caller { uid: Some(0) };

struct Bench {
    controller: Controller,
    dataplane: FakeDataplane,
    store: Store,
}

fn start(store: Store, default_mode: Mode) -> Bench {
    let dataplane = FakeDataplane::default();
    let initial = Initial {
        persisted: store.load_state().unwrap(),
        default_mode,
        unselected: Unselected::Deny,
    };
    let (controller, _) = spawn(dataplane.clone(), store.clone(), initial).unwrap();
    Bench {
        controller,
        dataplane,
        store,
    }
}

async fn shop_in_force() -> Bench {
    let bench = start(Store::in_memory().unwrap(), Mode::Discover);
    bench.controller.set_estate(shop()).await.unwrap();
    bench
}

/// Everything that must not change when a command fails.
fn in_force(bench: &Bench) -> (u32, PolicySet, Modes, Arc<EstateSnapshot>, PersistedState) {
    let state = bench.controller.state();
    (
        state.generation,
        state.policies.clone(),
        state.modes.clone(),
        state.snapshot.clone(),
        bench.store.load_state().unwrap(),
    )
}

#[tokio::test]
async fn nothing_reaches_the_kernel_before_the_first_estate() {
    let bench = start(Store::in_memory().unwrap(), Mode::Discover);
    assert_eq!(bench.controller.state().generation, 0);
    assert_eq!(bench.dataplane.applies(), 0);
    let change = bench.controller.set_estate(shop()).await.unwrap();
    assert_eq!(change.generation, 1);
    assert_eq!(change.added, ["shop/api", "shop/web"]);
    let desired = bench.dataplane.last();
    assert_eq!(desired.endpoints.len(), 2);
    assert_eq!(desired.endpoints[0].unsure_for, OLD_UNSURE);
}

#[tokio::test]
async fn a_policy_is_in_force_stored_and_published_when_apply_returns() {
    let bench = shop_in_force().await;
    let change = bench
        .controller
        .edit_policies(PolicyEdit::Apply(documents(API)), ROOT)
        .await
        .unwrap();
    assert_eq!(change.added, ["shop/api"]);
    assert_eq!(change.generation, 2);
    assert_eq!(bench.dataplane.applies(), 2);
    assert!(bench.dataplane.last().compiled.entry_count() > 0);
    let state = bench.controller.state();
    assert_eq!((state.generation, state.policies.len()), (2, 1));
    let stored = bench.store.load_state().unwrap();
    assert_eq!(stored.policies, state.policies);
    assert_eq!(stored.interner.as_ref(), Some(&*state.interner));
    let history = bench.store.history(1).await.unwrap();
    assert_eq!(
        (history[0].generation, history[0].uid, &*history[0].what),
        (2, Some(0), "policy apply")
    );

    let again = bench
        .controller
        .edit_policies(PolicyEdit::Apply(documents(API)), ROOT)
        .await
        .unwrap();
    assert_eq!(again.unchanged, ["shop/api"]);
    assert!(again.added.is_empty() && again.changed.is_empty());
}

#[tokio::test]
async fn replace_and_delete_name_what_they_did() {
    let bench = shop_in_force().await;
    let edit = |edit| bench.controller.edit_policies(edit, ROOT);
    edit(PolicyEdit::Apply(documents(API))).await.unwrap();
    let other = API.replace("name: api,", "name: other,");
    let change = edit(PolicyEdit::Replace(documents(&other))).await.unwrap();
    assert_eq!(change.added, ["shop/other"]);
    assert_eq!(change.removed, ["shop/api"]);

    let missing = edit(PolicyEdit::Delete(
        vec![
            policy::parse::PolicyName::parse("shop/other"),
            policy::parse::PolicyName::parse("shop/nope"),
        ],
        Vec::new(),
    ))
    .await
    .unwrap_err();
    assert!(missing.to_string().contains("`shop/nope`"), "{missing}");
    assert_eq!(bench.controller.state().policies.len(), 1, "all or nothing");

    let change = edit(PolicyEdit::Delete(Vec::new(), documents(&other)))
        .await
        .unwrap();
    assert_eq!(change.removed, ["shop/other"]);
    assert!(bench.controller.state().policies.is_empty());
    assert!(bench.store.load_state().unwrap().policies.is_empty());
}

#[tokio::test]
async fn a_mistake_in_one_document_leaves_everything_as_it_was() {
    let bench = shop_in_force().await;
    let before = in_force(&bench);
    let text = format!(
        "{API}---\n{}",
        API.replace("ingress:", "ingres:").replace("api,", "x,")
    );
    let error = bench
        .controller
        .edit_policies(PolicyEdit::Apply(documents(&text)), ROOT)
        .await
        .unwrap_err();
    assert!(matches!(error, ControlError::Parse(_)), "{error}");
    assert!(
        error.details()[0].starts_with("api.yaml:"),
        "{:?}",
        error.details()
    );
    let empty = bench
        .controller
        .edit_policies(PolicyEdit::Replace(documents("")), ROOT)
        .await
        .unwrap_err();
    assert!(matches!(empty, ControlError::Empty), "{empty}");
    assert_eq!(in_force(&bench), before);
    assert_eq!(bench.dataplane.applies(), 1);
}

#[tokio::test]
async fn what_the_kernel_refuses_is_not_in_force_stored_or_published() {
    let bench = shop_in_force().await;
    let before = in_force(&bench);
    bench.dataplane.kernel().refuse = true;
    let apply = bench
        .controller
        .edit_policies(PolicyEdit::Apply(documents(API)), ROOT)
        .await;
    assert!(matches!(apply, Err(ControlError::Enforce(_))));
    let mode = bench
        .controller
        .set_mode(
            ModeChange {
                group: None,
                mode: Mode::Protect,
                confirm_within: Some(Duration::from_secs(60)),
            },
            ROOT,
        )
        .await;
    assert!(matches!(mode, Err(ControlError::Enforce(_))));
    let estate = bench.controller.set_estate(snapshot(Vec::new())).await;
    assert!(matches!(estate, Err(ControlError::Enforce(_))));
    assert_eq!(in_force(&bench), before);
    assert!(bench.controller.state().pending.is_none());

    bench.dataplane.kernel().refuse = false;
    bench
        .controller
        .edit_policies(PolicyEdit::Apply(documents(API)), ROOT)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_cannot_be_stored_is_taken_back_from_the_kernel() {
    let bench = shop_in_force().await;
    let former = bench.dataplane.last();
    let before = in_force(&bench);
    bench
        .store
        .call(|connection| {
            connection.execute_batch("ALTER TABLE policies RENAME TO elsewhere")?;
            Ok(())
        })
        .unwrap();
    let error = bench
        .controller
        .edit_policies(PolicyEdit::Apply(documents(API)), ROOT)
        .await
        .unwrap_err();
    assert!(matches!(error, ControlError::Store(_)), "{error}");
    assert_eq!(bench.dataplane.applies(), 3, "applied, then taken back");
    assert_eq!(bench.dataplane.last().compiled, former.compiled);
    assert_eq!(
        bench.dataplane.last().endpoints.len(),
        former.endpoints.len()
    );
    let state = bench.controller.state();
    assert_eq!(state.policies, before.1);
    assert_eq!(state.generation, 3, "the generation the kernel is at");
}

#[tokio::test]
async fn a_change_that_cannot_be_taken_back_says_so() {
    let bench = shop_in_force().await;
    bench
        .store
        .call(|connection| {
            connection.execute_batch("ALTER TABLE policies RENAME TO elsewhere")?;
            Ok(())
        })
        .unwrap();
    bench.dataplane.kernel().refuse_after = Some(2);
    let error = bench
        .controller
        .edit_policies(PolicyEdit::Apply(documents(API)), ROOT)
        .await
        .unwrap_err();
    assert!(matches!(error, ControlError::Torn { .. }), "{error}");
}

fn protect(group: Option<&str>, confirm_within: Option<Duration>) -> ModeChange {
    ModeChange {
        group: group.map(str::to_owned),
        mode: Mode::Protect,
        confirm_within,
    }
}

#[tokio::test]
async fn modes_are_set_by_group_and_for_all_and_survive_a_restart() {
    let bench = shop_in_force().await;
    let controller = &bench.controller;
    controller
        .set_mode(protect(Some("shop/api"), None), ROOT)
        .await
        .unwrap();
    let mode = |group: &str| controller.state().modes.of(group);
    assert_eq!(mode("shop/api"), Mode::Protect);
    assert_eq!(mode("shop/web"), Mode::Discover);
    let programs = bench.dataplane.last().compiled;
    assert_eq!(
        programs.programs[programs.workloads[0].program].mode,
        Mode::Protect
    );

    let unknown = controller
        .set_mode(protect(Some("shop/wbe"), None), ROOT)
        .await
        .unwrap_err();
    assert!(unknown.hint().unwrap().contains("shop/web"), "{unknown}");

    controller
        .set_mode(protect(None, None), ROOT)
        .await
        .unwrap();
    assert_eq!(mode("shop/web"), Mode::Protect);

    // What was set by hand outlives the flag the daemon is started with.
    let again = start(bench.store.clone(), Mode::Discover);
    again.controller.set_estate(shop()).await.unwrap();
    assert_eq!(
        again.controller.state().modes,
        Modes {
            default: Mode::Protect,
            groups: [].into()
        }
    );
}

#[tokio::test]
async fn an_unconfirmed_mode_is_taken_back() {
    let bench = shop_in_force().await;
    let before = bench.controller.state().modes.clone();
    let within = Some(Duration::from_millis(150));
    bench
        .controller
        .set_mode(protect(None, within), ROOT)
        .await
        .unwrap();
    let state = bench.controller.state();
    assert_eq!(state.modes.default, Mode::Protect);
    assert_eq!(state.pending.as_ref().unwrap().mode, Mode::Protect);
    assert_eq!(
        bench.store.load_state().unwrap().modes,
        PersistedModes::default(),
        "a restart would take it back too"
    );
    let second = bench.controller.set_mode(protect(None, None), ROOT).await;
    assert!(matches!(second, Err(ControlError::Pending)));

    let mut watch = bench.controller.watch();
    watch
        .wait_for(|state| state.pending.is_none())
        .await
        .unwrap();
    assert_eq!(bench.controller.state().modes, before);
    let compiled = bench.dataplane.last().compiled;
    assert!(
        compiled
            .programs
            .iter()
            .all(|program| program.mode == Mode::Discover)
    );
    let confirm = bench.controller.confirm_mode(ROOT).await;
    assert!(matches!(confirm, Err(ControlError::NothingPending)));
}

#[tokio::test]
async fn a_confirmed_mode_stays_and_a_reverted_one_goes_at_once() {
    let bench = shop_in_force().await;
    let within = Some(Duration::from_secs(3600));
    let controller = &bench.controller;
    controller
        .set_mode(protect(Some("shop/api"), within), ROOT)
        .await
        .unwrap();
    controller.revert_mode(ROOT).await.unwrap();
    assert_eq!(controller.state().modes.of("shop/api"), Mode::Discover);
    assert!(controller.state().pending.is_none());

    controller
        .set_mode(protect(Some("shop/api"), within), ROOT)
        .await
        .unwrap();
    controller.confirm_mode(ROOT).await.unwrap();
    assert!(controller.state().pending.is_none());
    let stored = bench.store.load_state().unwrap().modes;
    assert_eq!(stored.groups.get("shop/api"), Some(&Mode::Protect));
}

#[tokio::test]
async fn a_new_workload_is_attached_when_the_estate_is_in_force() {
    let bench = shop_in_force().await;
    let mut workloads = shop().workloads.clone();
    workloads.push(workload("worker", 4));
    let change = bench
        .controller
        .set_estate(snapshot(workloads))
        .await
        .unwrap();
    assert_eq!(change.added, ["shop/worker"]);
    let endpoint = bench.dataplane.last().endpoints[2].clone();
    assert_eq!((endpoint.ifindex, endpoint.unsure_for), (4, FRESH_UNSURE));
    let state = bench.controller.state();
    assert_eq!(state.workload_of_endpoint(1004).unwrap().name, "worker");
    assert_eq!(
        state
            .workload_of_address("10.0.0.4".parse().unwrap())
            .unwrap()
            .name,
        "worker"
    );
}

#[tokio::test]
async fn a_snapshot_without_news_for_the_kernel_is_not_applied() {
    let bench = shop_in_force().await;
    let mut same = EstateSnapshot::clone(&shop());
    same.revision = 2;
    same.inventory_revision = 7;
    bench.controller.set_estate(Arc::new(same)).await.unwrap();
    assert_eq!(bench.dataplane.applies(), 1);
    assert_eq!(bench.controller.state().snapshot.inventory_revision, 7);
}

#[tokio::test]
async fn one_bad_interface_does_not_stop_the_others_and_is_reported() {
    let bench = start(Store::in_memory().unwrap(), Mode::Discover);
    bench.dataplane.kernel().broken_interfaces.insert(3);
    let change = bench.controller.set_estate(shop()).await.unwrap();
    assert_eq!(change.failed, ["shop/web on veth3: no such device"]);
    let state = bench.controller.state();
    assert_eq!(state.endpoints[0].result, Ok(()));
    assert_eq!(state.generation, 1);
}

#[tokio::test]
async fn rules_of_a_former_daemon_are_named_only_if_their_numbers_are_known() {
    let bench = shop_in_force().await;
    bench
        .controller
        .edit_policies(PolicyEdit::Apply(documents(API)), ROOT)
        .await
        .unwrap();
    let state = bench.controller.state();
    let id = dataplane_common::policy::FIRST_RULE_ID;
    let rule = state.rule(id, 2).unwrap();
    assert_eq!(rule.policy, "shop/api");
    assert_eq!(rule.line, Some(8));
    assert_eq!(state.rule(0, 2), None, "no rule was consulted");
    assert_eq!(state.rule(1, 2).unwrap().policy, "default");
    assert_eq!(state.rule(id, 0), None, "an older, unknown generation");

    let again = start(bench.store.clone(), Mode::Discover);
    again.controller.set_estate(shop()).await.unwrap();
    let restored = again.controller.state();
    assert_eq!(restored.rule(id, 0).unwrap(), rule, "stored numbers");
    assert_eq!(restored.policies, state.policies);
}

/// A state in which these workloads of the namespace `shop` have an endpoint with the number 1000 +
/// interface index, for tests of what reads states.
pub(crate) fn test_state(
    workloads: &[(&str, u32)],
    modes: Modes,
    unselected: Unselected,
) -> Arc<ControlState> {
    let snapshot = snapshot(
        workloads
            .iter()
            .map(|&(name, ifindex)| workload(name, ifindex))
            .collect(),
    );
    let estate = Arc::new(snapshot.estate());
    let mut interner = Interner::new();
    let compiled = policy::compile::compile(
        &estate,
        &PolicySet::new(),
        &modes,
        unselected,
        &mut interner,
    )
    .unwrap();
    let desired: Vec<DesiredEndpoint> = interfaces(&snapshot)
        .map(|(workload, interface)| DesiredEndpoint {
            workload,
            ifindex: interface.ifindex,
            ifname: interface.name.clone(),
            network: 0,
            addresses: Vec::new(),
            learn_addresses: false,
            unsure_for: Duration::ZERO,
        })
        .collect();
    let applied = Applied {
        generation: 7,
        endpoints: desired
            .iter()
            .map(|endpoint| AppliedEndpoint {
                ifindex: endpoint.ifindex,
                endpoint_id: 1000 + endpoint.ifindex,
                result: Ok(()),
            })
            .collect(),
        entries_used: 0,
        entries_max: 0,
    };
    let parts = Parts {
        first_generation: 0,
        policies: PolicySet::new(),
        modes,
        unselected,
        snapshot,
        estate,
        compiled: Arc::new(compiled),
        interner: Arc::new(interner),
        pending: None,
    };
    Arc::new(ControlState::new(parts, &desired, &applied))
}
