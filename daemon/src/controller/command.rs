//! What the controller can be asked, and how it answers.

use std::sync::Arc;
use std::time::Duration;

use policy::model::Mode;
use policy::parse::{ParseErrors, PolicyName};
use tokio::sync::{mpsc, oneshot, watch};

use super::enforcement::EnforcementError;
use super::state::ControlState;
use crate::api::dto::{Change, Document};
use crate::dataplane::{Counters, CtSnapshot};
use crate::store::StoreError;
use crate::workload::model::EstateSnapshot;

/// Why a command was not carried out. Unless the variant says otherwise, everything in force is
/// unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The documents are wrong.
    #[error("the policies have {} mistake{}", .0.0.len(), if .0.0.len() == 1 { "" } else { "s" })]
    Parse(#[from] ParseErrors),
    /// Nothing to do where something must be.
    #[error("no policy document was given")]
    Empty,
    /// Policies that do not exist.
    #[error("there is no policy {}", .0.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))]
    UnknownPolicy(Vec<PolicyName>),
    /// A group that does not exist.
    #[error("there is no group `{group}`")]
    UnknownGroup {
        /// As asked.
        group: String,
        /// Groups that exist.
        known: Vec<String>,
    },
    /// A mode change waits for confirmation.
    #[error("another mode change waits for confirmation")]
    Pending,
    /// No mode change waits for confirmation.
    #[error("no mode change waits for confirmation")]
    NothingPending,
    /// The policies do not compile.
    #[error("the policies cannot be compiled: {0}")]
    Compile(String),
    /// The kernel refused.
    #[error("the kernel did not take the change: {0}")]
    Enforce(#[source] EnforcementError),
    /// The change could not be stored; it was taken back.
    #[error("the change could not be stored and was taken back: {0}")]
    Store(#[source] StoreError),
    /// The change could not be stored, and taking it back failed: the kernel enforces it, a restart
    /// will not.
    #[error(
        "the change could not be stored ({store}), and taking it back failed as well ({enforce}): it is in force until the daemon restarts"
    )]
    Torn {
        /// Why it was not stored.
        store: StoreError,
        /// Why it was not taken back.
        enforce: EnforcementError,
    },
    /// The controller has ended.
    #[error("the daemon is shutting down")]
    Stopped,
}

impl ControlError {
    /// Single findings, one a line.
    #[must_use]
    pub fn details(&self) -> Vec<String> {
        match self {
            Self::Parse(errors) => errors.0.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        }
    }

    /// The way out.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Parse(_) => Some("nothing was changed; correct the documents and repeat".into()),
            Self::Empty => Some("give a file with NetworkPolicy documents; to remove every policy use `policy delete`".into()),
            Self::UnknownPolicy(_) => Some("nothing was deleted; `policy list` shows the names".into()),
            Self::UnknownGroup { known, .. } if known.is_empty() => {
                Some("there are no workloads yet; see `workloads`".into())
            }
            Self::UnknownGroup { known, .. } => {
                const SHOWN: usize = 12;
                let mut names = known[..known.len().min(SHOWN)].join(", ");
                if known.len() > SHOWN {
                    names.push_str(", …");
                }
                Some(format!("groups are: {names}"))
            }
            Self::Pending => Some("`mode confirm` or `mode revert` first".into()),
            Self::NothingPending => Some("it may have been taken back already; see `mode get`".into()),
            Self::Store(_) | Self::Torn { .. } => Some("check space and permissions of the state directory".into()),
            Self::Compile(_) | Self::Enforce(_) | Self::Stopped => None,
        }
    }
}

/// Who asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User id at the other end of the socket; `None` for the daemon itself.
    pub uid: Option<u32>,
}

/// A change of the policy set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyEdit {
    /// Add or update.
    Apply(Vec<Document>),
    /// Make these the only ones.
    Replace(Vec<Document>),
    /// Delete by name, and by the names in documents.
    Delete(Vec<PolicyName>, Vec<Document>),
}

/// A change of modes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeChange {
    /// Group; `None` for all, now and in the future.
    pub group: Option<String>,
    /// Mode.
    pub mode: Mode,
    /// Take it back after this time unless confirmed.
    pub confirm_within: Option<Duration>,
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, ControlError>>;

pub(super) enum Command {
    Policies(PolicyEdit, Caller, Reply<Change>),
    SetMode(ModeChange, Caller, Reply<Change>),
    ConfirmMode(Caller, Reply<Change>),
    RevertMode(Caller, Reply<Change>),
    Estate(Arc<EstateSnapshot>, Reply<Change>),
    Conntrack(Reply<Vec<CtSnapshot>>),
    Expire(u64, Reply<Vec<CtSnapshot>>),
    Counters(Reply<Counters>),
}

/// A handle to the controller.
#[derive(Clone, Debug)]
pub struct Controller {
    pub(super) sender: mpsc::Sender<Command>,
    pub(super) state: watch::Receiver<Arc<ControlState>>,
}

impl Controller {
    /// What is in force now.
    #[must_use]
    pub fn state(&self) -> Arc<ControlState> {
        self.state.borrow().clone()
    }

    /// What is in force, and every change of it.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<ControlState>> {
        self.state.clone()
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.sender
            .send(command(reply))
            .await
            .map_err(|_| ControlError::Stopped)?;
        answer.await.map_err(|_| ControlError::Stopped)?
    }

    /// Changes the policy set; returns when the kernel enforces it.
    ///
    /// # Errors
    /// [`ControlError`]; nothing was changed.
    pub async fn edit_policies(
        &self,
        edit: PolicyEdit,
        caller: Caller,
    ) -> Result<Change, ControlError> {
        self.ask(|reply| Command::Policies(edit, caller, reply))
            .await
    }

    /// Changes modes; returns when the kernel enforces them.
    ///
    /// # Errors
    /// [`ControlError`]; nothing was changed.
    pub async fn set_mode(
        &self,
        change: ModeChange,
        caller: Caller,
    ) -> Result<Change, ControlError> {
        self.ask(|reply| Command::SetMode(change, caller, reply))
            .await
    }

    /// Keeps the mode change that waits for confirmation.
    ///
    /// # Errors
    /// [`ControlError::NothingPending`], or a store that cannot be written.
    pub async fn confirm_mode(&self, caller: Caller) -> Result<Change, ControlError> {
        self.ask(|reply| Command::ConfirmMode(caller, reply)).await
    }

    /// Takes back the mode change that waits for confirmation.
    ///
    /// # Errors
    /// [`ControlError`]; nothing was changed.
    pub async fn revert_mode(&self, caller: Caller) -> Result<Change, ControlError> {
        self.ask(|reply| Command::RevertMode(caller, reply)).await
    }

    /// Takes a new estate; returns when every interface in it is attached and enforced, or is
    /// listed in [`Change::failed`].
    ///
    /// # Errors
    /// [`ControlError`]; the former estate stays in force.
    pub async fn set_estate(&self, snapshot: Arc<EstateSnapshot>) -> Result<Change, ControlError> {
        self.ask(|reply| Command::Estate(snapshot, reply)).await
    }

    /// Every flow in conntrack.
    ///
    /// # Errors
    /// [`ControlError::Enforce`].
    pub async fn conntrack(&self) -> Result<Vec<CtSnapshot>, ControlError> {
        self.ask(Command::Conntrack).await
    }

    /// Removes flows dead at `now_ns` and returns their final state.
    ///
    /// # Errors
    /// [`ControlError::Enforce`].
    pub async fn expire(&self, now_ns: u64) -> Result<Vec<CtSnapshot>, ControlError> {
        self.ask(|reply| Command::Expire(now_ns, reply)).await
    }

    /// Counters of the dataplane.
    ///
    /// # Errors
    /// [`ControlError::Enforce`].
    pub async fn counters(&self) -> Result<Counters, ControlError> {
        self.ask(Command::Counters).await
    }
}
