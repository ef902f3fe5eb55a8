//! The owner of what is in force: policies, modes, workloads, identities, and the kernel.
//!
//! Every change takes the same path: parse, compile, put in force in the kernel, store, publish. A
//! step that fails ends the change, and everything in force stays as it was; nobody ever sees half
//! of one. Commands run one after the other on a thread of their own, because the kernel calls
//! block.

mod command;
mod enforcement;
pub mod estate;
mod state;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane_common::conntrack::timeout;
use jiff::Timestamp;
use policy::compile::{Compiled, Interner, compile_after};
use policy::model::{Estate, Mode, Modes, Unselected};
use policy::parse::{ParsedDocuments, PolicySet, parse_files};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub use command::{Caller, ControlError, Controller, ModeChange, PolicyEdit};
pub use enforcement::{Enforcement, EnforcementError};
pub use state::{ControlState, EndpointStatus, PendingChange};

use crate::api::dto::{Change, Document, mode_name};
use crate::dataplane::{Desired, DesiredEndpoint};
use crate::store::{GenerationRow, PersistedModes, PersistedState, StateUpdate, Store};
use crate::workload::model::{EstateSnapshot, Workload, WorkloadInterface};
use command::Command;
use state::Parts;

/// Commands that may wait.
const QUEUE: usize = 64;
/// How long after a failed attach it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long a flow's first packet proves nothing on an interface that may have a past.
const OLD_UNSURE: Duration = Duration::from_nanos(timeout::UDP_REPLIED_NS);
/// The same on an interface that appeared while the daemon watched: the time between the
/// interface's first packet and the hooks, with a margin.
const FRESH_UNSURE: Duration = Duration::from_secs(5);

/// What the controller starts from.
#[derive(Clone, Debug)]
pub struct Initial {
    /// What was stored.
    pub persisted: PersistedState,
    /// Mode of groups without one, unless one was stored.
    pub default_mode: Mode,
    /// What protected workloads get where no policy selects them.
    pub unselected: Unselected,
}

/// Starts the controller. Nothing is put in force before the first estate arrives. The thread ends
/// when every [`Controller`] is dropped; what is in force in the kernel stays.
///
/// # Errors
/// When no thread can be started.
pub fn spawn<E: Enforcement>(
    enforcement: E,
    store: Store,
    initial: Initial,
) -> std::io::Result<(Controller, JoinHandle<()>)> {
    let modes = Modes {
        default: initial
            .persisted
            .modes
            .default
            .unwrap_or(initial.default_mode),
        groups: initial.persisted.modes.groups.clone(),
    };
    let (publisher, state) = watch::channel(Arc::new(ControlState::empty(
        modes.clone(),
        initial.unselected,
    )));
    let (sender, receiver) = mpsc::channel(QUEUE);
    let restored = initial.persisted.interner.is_some();
    let mut owner = Owner {
        enforcement,
        store,
        publisher,
        interner: initial.persisted.interner.unwrap_or_default(),
        interner_saved: restored,
        first_generation: restored.then_some(0),
        persisted_default: initial.persisted.modes.default,
        force: Intent {
            policies: initial.persisted.policies,
            modes,
            unselected: initial.unselected,
            snapshot: Arc::default(),
            estate: Arc::default(),
        },
        pending: None,
        retry_at: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let thread = std::thread::Builder::new()
        .name("controller".to_owned())
        .spawn(move || runtime.block_on(owner.run(receiver)))?;
    Ok((Controller { sender, state }, thread))
}

/// What somebody wants in force.
#[derive(Clone)]
struct Intent {
    policies: PolicySet,
    modes: Modes,
    unselected: Unselected,
    snapshot: Arc<EstateSnapshot>,
    estate: Arc<Estate>,
}

/// Why a change is made, for the history.
struct Cause {
    caller: Caller,
    what: &'static str,
    detail: String,
}

struct Pending {
    before: Modes,
    before_persisted_default: Option<Mode>,
    deadline: Instant,
    shown: PendingChange,
}

struct Owner<E> {
    enforcement: E,
    store: Store,
    publisher: watch::Sender<Arc<ControlState>>,
    interner: Interner,
    /// The store holds the interner as it was after the last change.
    interner_saved: bool,
    /// Generation from which rule numbers are known: 0 when the interner came from the store, else
    /// the first one put in force.
    first_generation: Option<u32>,
    /// The default mode, if it was set by hand and not by a flag.
    persisted_default: Option<Mode>,
    force: Intent,
    pending: Option<Pending>,
    retry_at: Option<Instant>,
}

impl<E: Enforcement> Owner<E> {
    async fn run(&mut self, mut receiver: mpsc::Receiver<Command>) {
        loop {
            let deadline = self.pending.as_ref().map(|pending| pending.deadline);
            let retry = self.retry_at;
            tokio::select! {
                command = receiver.recv() => match command {
                    Some(command) => self.handle(command),
                    None => return,
                },
                () = until(deadline) => {
                    tracing::warn!("mode change was not confirmed in time and is taken back");
                    if let Err(error) = self.revert(Caller::default(), "mode revert (not confirmed)") {
                        tracing::error!(%error, "cannot take the mode change back, trying again");
                        if let Some(pending) = &mut self.pending {
                            pending.deadline = Instant::now() + RETRY_AFTER;
                        }
                    }
                }
                () = until(retry) => self.retry(),
            }
        }
    }

    /// The reply is lost when the caller went away; the change counts all the same.
    fn handle(&mut self, command: Command) {
        match command {
            Command::Policies(edit, caller, reply) => {
                let _ = reply.send(self.edit_policies(edit, caller));
            }
            Command::SetMode(change, caller, reply) => {
                let _ = reply.send(self.set_mode(&change, caller));
            }
            Command::ConfirmMode(caller, reply) => {
                let _ = reply.send(self.confirm(caller));
            }
            Command::RevertMode(caller, reply) => {
                let _ = reply.send(self.revert(caller, "mode revert"));
            }
            Command::Estate(snapshot, reply) => {
                let _ = reply.send(self.set_estate(snapshot));
            }
            Command::Conntrack(reply) => {
                let _ = reply.send(self.enforcement.conntrack().map_err(ControlError::Enforce));
            }
            Command::Expire(now_ns, reply) => {
                let _ = reply.send(
                    self.enforcement
                        .expire(now_ns)
                        .map_err(ControlError::Enforce),
                );
            }
            Command::Counters(reply) => {
                let _ = reply.send(self.enforcement.counters().map_err(ControlError::Enforce));
            }
        }
    }

    fn edit_policies(&mut self, edit: PolicyEdit, caller: Caller) -> Result<Change, ControlError> {
        let before = self.force.policies.clone();
        let (policies, warnings, what) = match edit {
            PolicyEdit::Apply(documents) => {
                let parsed = parse(&documents)?;
                let mut policies = before.clone();
                policies.extend(parsed.policies);
                (policies, parsed.warnings, "policy apply")
            }
            PolicyEdit::Replace(documents) => {
                let parsed = parse(&documents)?;
                (
                    parsed.policies.into_iter().collect(),
                    parsed.warnings,
                    "policy replace",
                )
            }
            PolicyEdit::Delete(mut names, documents) => {
                if !documents.is_empty() {
                    let parsed = parse(&documents)?;
                    names.extend(
                        parsed
                            .policies
                            .iter()
                            .map(|document| document.name().clone()),
                    );
                }
                let unknown: BTreeSet<_> = names
                    .iter()
                    .filter(|name| before.get(name).is_none())
                    .cloned()
                    .collect();
                if !unknown.is_empty() {
                    return Err(ControlError::UnknownPolicy(unknown.into_iter().collect()));
                }
                let mut policies = before.clone();
                for name in &names {
                    policies.remove(name);
                }
                (policies, Vec::new(), "policy delete")
            }
        };
        let mut change = difference(&before, &policies);
        change.warnings = warnings.iter().map(ToString::to_string).collect();
        let detail = format!(
            "{} added, {} changed, {} removed",
            change.added.len(),
            change.changed.len(),
            change.removed.len()
        );
        let next = Intent {
            policies: policies.clone(),
            ..self.force.clone()
        };
        let cause = Cause {
            caller,
            what,
            detail,
        };
        self.commit(next, cause, |update| update.policies = Some(policies))?;
        Ok(self.answer(change))
    }

    fn set_mode(&mut self, change: &ModeChange, caller: Caller) -> Result<Change, ControlError> {
        if self.pending.is_some() {
            return Err(ControlError::Pending);
        }
        let mut modes = self.force.modes.clone();
        let mut persisted_default = self.persisted_default;
        let name = match &change.group {
            Some(group) => {
                self.check_group(group)?;
                modes.groups.insert(group.clone(), change.mode);
                group.clone()
            }
            None => {
                modes.default = change.mode;
                modes.groups.clear();
                persisted_default = Some(change.mode);
                "all groups".to_owned()
            }
        };
        let before = self.force.modes.clone();
        let pending = change.confirm_within.map(|within| Pending {
            before,
            before_persisted_default: self.persisted_default,
            deadline: Instant::now() + within,
            shown: PendingChange {
                group: change.group.clone(),
                mode: change.mode,
                revert_at: Timestamp::now()
                    .saturating_add(within)
                    .unwrap_or(Timestamp::MAX),
            },
        });
        // An unconfirmed mode is not stored: a restart takes it back as well.
        let persisted = pending.is_none().then(|| PersistedModes {
            default: persisted_default,
            groups: modes.groups.clone(),
        });
        let next = Intent {
            modes,
            ..self.force.clone()
        };
        let cause = Cause {
            caller,
            what: "mode set",
            detail: format!("{name}: {}", mode_name::of(change.mode)),
        };
        let former = std::mem::replace(&mut self.pending, pending);
        if let Err(error) = self.commit(next, cause, |update| update.modes = persisted) {
            self.pending = former;
            return Err(error);
        }
        self.persisted_default = persisted_default;
        Ok(self.answer(Change {
            changed: vec![name],
            ..Change::default()
        }))
    }

    fn confirm(&mut self, caller: Caller) -> Result<Change, ControlError> {
        let pending = self.pending.as_ref().ok_or(ControlError::NothingPending)?;
        let name = pending.shown.group.clone();
        let mut state = ControlState::clone(&self.publisher.borrow());
        self.store
            .save_state(StateUpdate {
                modes: Some(PersistedModes {
                    default: self.persisted_default,
                    groups: self.force.modes.groups.clone(),
                }),
                history: Some(GenerationRow {
                    generation: state.generation,
                    time: Timestamp::now(),
                    uid: caller.uid,
                    what: "mode confirm".to_owned(),
                    detail: String::new(),
                }),
                ..StateUpdate::default()
            })
            .map_err(ControlError::Store)?;
        self.pending = None;
        state.pending = None;
        self.publisher.send_replace(Arc::new(state));
        Ok(self.answer(Change {
            unchanged: vec![name.unwrap_or_else(|| "all groups".to_owned())],
            ..Change::default()
        }))
    }

    fn revert(&mut self, caller: Caller, what: &'static str) -> Result<Change, ControlError> {
        let pending = self.pending.take().ok_or(ControlError::NothingPending)?;
        let name = pending
            .shown
            .group
            .clone()
            .unwrap_or_else(|| "all groups".to_owned());
        let next = Intent {
            modes: pending.before.clone(),
            ..self.force.clone()
        };
        let cause = Cause {
            caller,
            what,
            detail: name.clone(),
        };
        if let Err(error) = self.commit(next, cause, |_| {}) {
            self.pending = Some(pending);
            return Err(error);
        }
        self.persisted_default = pending.before_persisted_default;
        Ok(self.answer(Change {
            changed: vec![name],
            ..Change::default()
        }))
    }

    fn set_estate(&mut self, snapshot: Arc<EstateSnapshot>) -> Result<Change, ControlError> {
        let first = self.publisher.borrow().generation == 0;
        if !first && self.retry_at.is_none() && same_workloads(&self.force.snapshot, &snapshot) {
            // Only revision numbers or problems differ; the kernel has nothing to learn from them.
            let mut state = ControlState::clone(&self.publisher.borrow());
            state.snapshot = snapshot.clone();
            self.force.snapshot = snapshot;
            self.publisher.send_replace(Arc::new(state));
            return Ok(self.answer(Change::default()));
        }
        let names = |snapshot: &EstateSnapshot| -> BTreeSet<String> {
            let qualified =
                |workload: &Workload| format!("{}/{}", workload.spec.namespace, workload.spec.name);
            snapshot.workloads.iter().map(qualified).collect()
        };
        let (before, after) = (names(&self.force.snapshot), names(&snapshot));
        let change = Change {
            added: after.difference(&before).cloned().collect(),
            removed: before.difference(&after).cloned().collect(),
            ..Change::default()
        };
        let detail = format!(
            "{} workloads, {} added, {} removed",
            after.len(),
            change.added.len(),
            change.removed.len()
        );
        let next = Intent {
            estate: Arc::new(snapshot.estate()),
            snapshot,
            ..self.force.clone()
        };
        let cause = Cause {
            caller: Caller::default(),
            what: if first { "start" } else { "workloads" },
            detail,
        };
        // What the daemon was started with may differ from what is stored.
        let given = first.then(|| self.force.policies.clone());
        self.commit(next, cause, |update| update.policies = given)?;
        Ok(self.answer(change))
    }

    /// Attaches again where it failed.
    fn retry(&mut self) {
        let snapshot = self.force.snapshot.clone();
        if let Err(error) = self.set_estate(snapshot) {
            tracing::warn!(%error, "attaching again failed");
            self.retry_at = Some(Instant::now() + RETRY_AFTER);
        }
    }

    fn check_group(&self, group: &str) -> Result<(), ControlError> {
        let known: BTreeSet<&str> = self
            .force
            .estate
            .workloads
            .iter()
            .map(|workload| workload.group.as_str())
            .chain(self.force.modes.groups.keys().map(String::as_str))
            .collect();
        if known.contains(group) {
            return Ok(());
        }
        Err(ControlError::UnknownGroup {
            group: group.to_owned(),
            known: known.into_iter().map(str::to_owned).collect(),
        })
    }

    /// Compiles, puts in force, stores and publishes; on an error nothing has changed.
    fn commit(
        &mut self,
        next: Intent,
        cause: Cause,
        persist: impl FnOnce(&mut StateUpdate),
    ) -> Result<(), ControlError> {
        let mut interner = self.interner.clone();
        // The kernel flips policies before addresses; in between, the addresses in force must mean
        // something to the new policies.
        let in_force = self.publisher.borrow().compiled.clone();
        let compiled = compile_after(
            &in_force,
            &next.estate,
            &next.policies,
            &next.modes,
            next.unselected,
            &mut interner,
        )
        .map_err(|error| ControlError::Compile(error.to_string()))?;
        let desired = self.desired(Arc::new(compiled), &next);
        let applied = self
            .enforcement
            .apply(&desired)
            .map_err(ControlError::Enforce)?;
        let mut update = StateUpdate {
            interner: (interner != self.interner || !self.interner_saved).then(|| interner.clone()),
            history: Some(GenerationRow {
                generation: applied.generation,
                time: Timestamp::now(),
                uid: cause.caller.uid,
                what: cause.what.to_owned(),
                detail: cause.detail.clone(),
            }),
            ..StateUpdate::default()
        };
        persist(&mut update);
        if let Err(error) = self.store.save_state(update) {
            return Err(self.take_back(error));
        }
        let first_generation = *self.first_generation.get_or_insert(applied.generation);
        self.interner = interner;
        self.interner_saved = true;
        self.force = next;
        let state = ControlState::new(
            Parts {
                first_generation,
                policies: self.force.policies.clone(),
                modes: self.force.modes.clone(),
                unselected: self.force.unselected,
                snapshot: self.force.snapshot.clone(),
                estate: self.force.estate.clone(),
                compiled: desired.compiled,
                interner: Arc::new(self.interner.clone()),
                pending: self.pending.as_ref().map(|pending| pending.shown.clone()),
            },
            &desired.endpoints,
            &applied,
        );
        let failures = state.failures();
        for failure in &failures {
            tracing::warn!(failure, "not enforced");
        }
        self.retry_at = (!failures.is_empty()).then(|| Instant::now() + RETRY_AFTER);
        tracing::info!(
            generation = applied.generation,
            what = cause.what,
            detail = cause.detail,
            "in force"
        );
        self.publisher.send_replace(Arc::new(state));
        Ok(())
    }

    /// The kernel took a change that the store did not: back to what is stored.
    fn take_back(&mut self, store: crate::store::StoreError) -> ControlError {
        let compiled = self.publisher.borrow().compiled.clone();
        let former = self.desired(compiled, &self.force);
        match self.enforcement.apply(&former) {
            Ok(applied) => {
                // The same state under a later generation.
                let mut state = ControlState::clone(&self.publisher.borrow());
                state.generation = applied.generation;
                self.publisher.send_replace(Arc::new(state));
                ControlError::Store(store)
            }
            Err(enforce) => ControlError::Torn { store, enforce },
        }
    }

    fn desired(&self, compiled: Arc<Compiled>, next: &Intent) -> Desired {
        let first = self.publisher.borrow().generation == 0;
        let known: BTreeSet<u32> = interfaces(&self.force.snapshot)
            .map(|(_, i)| i.ifindex)
            .collect();
        let endpoints = interfaces(&next.snapshot)
            .map(|(index, interface)| {
                let workload = &next.snapshot.workloads[index];
                // An interface that appeared while the daemon watched has hardly any past. One that
                // was there before, or could not be attached at once, may have flows of any age.
                let fresh = !first && !known.contains(&interface.ifindex);
                DesiredEndpoint {
                    workload: index,
                    ifindex: interface.ifindex,
                    ifname: interface.name.clone(),
                    network: interface.network,
                    addresses: workload.spec.addresses.clone(),
                    learn_addresses: workload.learn_addresses,
                    unsure_for: if fresh { FRESH_UNSURE } else { OLD_UNSURE },
                }
            })
            .collect();
        Desired {
            compiled,
            endpoints,
        }
    }

    /// Completes an answer with what is in force now.
    fn answer(&self, change: Change) -> Change {
        let state = self.publisher.borrow();
        Change {
            generation: state.generation,
            failed: state.failures(),
            ..change
        }
    }
}

fn interfaces(snapshot: &EstateSnapshot) -> impl Iterator<Item = (usize, &WorkloadInterface)> {
    snapshot
        .workloads
        .iter()
        .enumerate()
        .flat_map(|(index, workload)| {
            workload
                .interfaces
                .iter()
                .map(move |interface| (index, interface))
        })
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Whether two snapshots are the same to the kernel.
fn same_workloads(before: &EstateSnapshot, after: &EstateSnapshot) -> bool {
    before.workloads == after.workloads
        && before.namespaces == after.namespaces
        && before.host_addresses == after.host_addresses
}

fn parse(documents: &[Document]) -> Result<ParsedDocuments, ControlError> {
    let parsed = parse_files(
        documents
            .iter()
            .map(|document| (document.source.as_str(), document.text.as_str())),
    )?;
    if parsed.policies.is_empty() {
        return Err(ControlError::Empty);
    }
    Ok(parsed)
}

fn difference(before: &PolicySet, after: &PolicySet) -> Change {
    let mut change = Change::default();
    for document in after.iter() {
        let name = document.name().to_string();
        match before.get(document.name()) {
            None => change.added.push(name),
            Some(former) if former.policy() == document.policy() => change.unchanged.push(name),
            Some(_) => change.changed.push(name),
        }
    }
    change.removed = before
        .iter()
        .filter(|document| after.get(document.name()).is_none())
        .map(|document| document.name().to_string())
        .collect();
    change
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::{shop as test_shop, test_kernel, test_state};
