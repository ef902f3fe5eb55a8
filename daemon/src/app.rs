//! The wiring of the daemon: what starts in which order, and what stops.
//!
//! Start: preflight, state database, dataplane (adopting what is pinned), workloads, then the first
//! state goes into force and only then the daemon is ready. Stop: tasks end within a deadline, what
//! is in force in the kernel stays.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use policy::parse::{PolicySet, parse_files};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Api};
use crate::config::Config;
use crate::controller::estate::EstateFollower;
use crate::controller::{self, ControlError, Initial};
use crate::dataplane::{Dataplane, DataplaneConfig};
use crate::documents;
use crate::flow::hub::RECENT_RECORDS;
use crate::flow::reader::Reader;
use crate::flow::scanner::Scanner;
use crate::flow::{FlowHub, Learning, listeners};
use crate::preflight::{self, Level};
use crate::store::{Store, StoredInventory};
use crate::workload::inventory::Inventory;
use crate::workload::registry::{self, RegistryConfig};

/// How long tasks may take to end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Why the daemon did not start or did not go on.
#[derive(Debug)]
pub struct AppError {
    /// What failed and why.
    pub message: String,
    /// Single findings.
    pub details: Vec<String>,
    /// The way out.
    pub hint: Option<String>,
}

/// An error and its causes in one line. Errors that name their cause already are not repeated.
#[must_use]
pub fn describe(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |mut text, cause| {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
        text
    })
}

impl From<anyhow::Error> for AppError {
    fn from(error: anyhow::Error) -> Self {
        Self {
            message: describe(&error),
            details: Vec::new(),
            hint: None,
        }
    }
}

impl From<ControlError> for AppError {
    fn from(error: ControlError) -> Self {
        Self {
            message: error.to_string(),
            details: error.details(),
            hint: error.hint(),
        }
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting; nothing of what is pinned in the kernel was changed then, unless the
/// message says so.
pub fn run(config: &Config) -> Result<(), AppError> {
    let started = Timestamp::now();
    check_host(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("daemon")
        .build()
        .context("cannot start the async runtime")?;
    let result = runtime.block_on(serve(config, started));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn check_host(config: &Config) -> Result<(), AppError> {
    let findings = preflight::check(&config.places);
    for finding in findings
        .iter()
        .filter(|finding| finding.level == Level::Warn)
    {
        tracing::warn!(
            subject = finding.subject,
            hint = finding.hint,
            "{}",
            finding.cause
        );
    }
    let fatal = preflight::fatal(&findings);
    let Some(first) = fatal.first() else {
        return Ok(());
    };
    Err(AppError {
        message: format!("cannot start: {}: {}", first.subject, first.cause),
        hint: first.hint.clone(),
        details: fatal[1..]
            .iter()
            .map(|finding| {
                let hint = finding.hint.as_deref().unwrap_or_default();
                format!("{}: {} ({hint})", finding.subject, finding.cause)
            })
            .collect(),
    })
}

async fn serve(config: &Config, started: Timestamp) -> Result<(), AppError> {
    let mut stop = StopSignals::new().context("cannot handle signals")?;
    let cancel = CancellationToken::new();
    let mut tasks = JoinSet::new();

    let store = Store::open(&config.places.state_dir).map_err(anyhow::Error::from)?;
    let mut persisted = store.load_state().map_err(anyhow::Error::from)?;
    if let Some(path) = &config.policies {
        // What is given at start replaces what was stored.
        persisted.policies = given_policies(path)?;
    }
    let inventory = initial_inventory(config, &store).await?;
    // The socket is bound before the kernel is touched, so that a second daemon stops here.
    let socket = api::bind(&config.places.socket)
        .with_context(|| format!("cannot listen on {}", config.places.socket.display()))?;

    let dataplane_config = DataplaneConfig::new(config.places.bpffs.clone());
    let (dataplane, ring) = tokio::task::spawn_blocking(move || Dataplane::open(&dataplane_config))
        .await
        .context("loading the dataplane panicked")?
        .map_err(anyhow::Error::from)?;

    let registry = registry::start(
        RegistryConfig {
            docker: config.docker.clone(),
            inventory: inventory.as_ref().map(|(inventory, _)| inventory.clone()),
        },
        cancel.clone(),
        &mut tasks,
    )
    .await
    .map_err(anyhow::Error::from)?;

    let (controller, controller_thread) = controller::spawn(
        dataplane,
        store.clone(),
        Initial {
            persisted,
            default_mode: config.default_mode,
            unselected: config.unselected,
        },
    )
    .context("cannot start the controller")?;

    let (learning, learner) = Learning::open(store.clone())
        .await
        .map_err(anyhow::Error::from)?;
    let hub = Arc::new(FlowHub::new(RECENT_RECORDS, learning.clone()));
    let (listener_table, listener_watch) = watch::channel(Arc::default());
    let (address_sender, addresses) = mpsc::channel(1_024);
    let (follower, estate) =
        EstateFollower::new(registry.estate.clone(), addresses, controller.clone());

    // Sockets are read before the first program is attached: they are the evidence about flows that
    // are under way by then.
    let snapshot = registry.estate.borrow().clone();
    let first_table = tokio::task::spawn_blocking(move || listeners::read(&snapshot))
        .await
        .context("reading sockets panicked")?;
    listener_table.send_replace(Arc::new(first_table));
    let listeners_wanted = Arc::new(Notify::new());
    tasks.spawn(listeners::run(
        registry.estate.clone(),
        listener_table,
        listeners_wanted.clone(),
        cancel.clone(),
    ));

    // First state: policies and workloads in one step, so that no packet is judged without them.
    let snapshot = registry.estate.borrow().clone();
    let change = controller.set_estate(snapshot).await?;
    for failure in &change.failed {
        tracing::warn!(failure, "not enforced yet");
    }
    if let Some((_, stored)) = inventory {
        store
            .save_inventory(stored, None)
            .await
            .map_err(anyhow::Error::from)?;
    }

    // Events that waited in the ring are read only now: before, their endpoints had no names.
    let reader = Reader {
        state: controller.watch(),
        listeners: listener_watch.clone(),
        listeners_wanted,
        hub: hub.clone(),
        addresses: address_sender,
    };
    let reader_cancel = cancel.clone();
    tasks.spawn(async move {
        if let Err(error) = reader.run(ring, reader_cancel.clone()).await {
            tracing::error!(%error, "the event ring cannot be read any more");
            reader_cancel.cancel();
        }
    });

    tasks.spawn(follower.run(cancel.clone()));
    let scanner = Scanner {
        controller: controller.clone(),
        listeners: listener_watch,
        hub: hub.clone(),
    };
    // The learner ends after those who teach it.
    let learner_cancel = CancellationToken::new();
    let learner = tokio::spawn(learner.run(learner_cancel.clone()));
    tasks.spawn(scanner.run(cancel.clone()));

    let (ready_sender, ready) = watch::channel(true);
    let api_thread = serve_api(
        Api {
            controller: controller.clone(),
            estate,
            registry,
            hub,
            learning,
            store,
            places: config.places.clone(),
            started,
            ready,
            cancel: cancel.clone(),
            inventory_lock: Arc::default(),
        },
        socket,
        cancel.clone(),
    )?;
    notify("READY=1");
    tracing::info!(
        socket = %config.places.socket.display(),
        generation = controller.state().generation,
        "ready"
    );

    tokio::select! {
        signal = stop.recv() => tracing::info!(signal, "stopping; what is in force stays in force"),
        () = cancel.cancelled() => tracing::error!("stopping after a fault"),
    }
    notify("STOPPING=1");
    ready_sender.send_replace(false);
    cancel.cancel();
    let ended = tokio::time::timeout(SHUTDOWN_DEADLINE, async {
        while let Some(result) = tasks.join_next().await {
            if let Err(error) = result {
                tracing::error!(%error, "a task ended badly");
            }
        }
        learner_cancel.cancel();
        if let Err(error) = learner.await {
            tracing::error!(%error, "the learner ended badly");
        }
    })
    .await;
    drop(controller);
    if ended.is_err() {
        return Err(anyhow!("some tasks did not end in time and were abandoned").into());
    }
    let joined = tokio::task::spawn_blocking(move || {
        let api = api_thread.join();
        let controller = controller_thread.join();
        api.is_ok() && controller.is_ok()
    });
    match tokio::time::timeout(SHUTDOWN_DEADLINE, joined).await {
        Ok(Ok(true)) => {
            tracing::info!("stopped");
            Ok(())
        }
        Ok(_) => Err(anyhow!("a thread of the daemon panicked; see the log").into()),
        Err(_) => Err(anyhow!("some requests did not end in time and were abandoned").into()),
    }
}

/// The policies of `--policies`, all or nothing.
fn given_policies(path: &Path) -> Result<PolicySet, AppError> {
    let documents = if path.is_dir() {
        documents::read_directory(path)?
    } else {
        vec![documents::read_one(path)?]
    };
    let files = documents
        .iter()
        .map(|document| (document.source.as_str(), document.text.as_str()));
    let parsed = parse_files(files).map_err(ControlError::from)?;
    for warning in &parsed.warnings {
        tracing::warn!("{warning}");
    }
    Ok(parsed.policies.into_iter().collect())
}

/// The inventory given at start, else the one applied last.
async fn initial_inventory(
    config: &Config,
    store: &Store,
) -> Result<Option<(Inventory, StoredInventory)>, AppError> {
    let stored = match &config.inventory {
        Some(path) => {
            let document = documents::read_one(path)?;
            Some(StoredInventory {
                source: document.source,
                text: document.text,
            })
        }
        None => store.inventory().await.map_err(anyhow::Error::from)?,
    };
    stored
        .map(|stored| {
            let inventory = Inventory::parse(&stored.text, &stored.source)
                .map_err(|error| anyhow!("the inventory has a mistake: {error}"))?;
            Ok((inventory, stored))
        })
        .transpose()
}

/// Serves the API on threads of its own.
fn serve_api(
    api: Api,
    socket: api::BoundSocket,
    cancel: CancellationToken,
) -> Result<std::thread::JoinHandle<()>, AppError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("api")
        .enable_all()
        .build()
        .context("cannot start the API runtime")?;
    let thread = std::thread::Builder::new()
        .name("api".to_owned())
        .spawn(move || {
            let router = api::router(api);
            if let Err(error) = runtime.block_on(api::serve(socket, router, cancel.clone())) {
                tracing::error!(%error, "the API ended");
                cancel.cancel();
            }
            runtime.shutdown_timeout(Duration::from_secs(1));
        })
        .context("cannot start the API thread")?;
    Ok(thread)
}

struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Tells the service manager (sd_notify(3)); without one there is nothing to do.
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let send = || -> std::io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        let name = path.to_string_lossy();
        match name.strip_prefix('@') {
            Some(abstract_name) => {
                use std::os::linux::net::SocketAddrExt;
                let address = std::os::unix::net::SocketAddr::from_abstract_name(abstract_name)?;
                socket.send_to_addr(state.as_bytes(), &address)?;
            }
            None => {
                socket.send_to(state.as_bytes(), Path::new(&path))?;
            }
        }
        Ok(())
    };
    if let Err(error) = send() {
        tracing::debug!(%error, "service manager not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_named_once() {
        let cause = std::io::Error::other("disk on fire");
        let error = anyhow::Error::from(crate::store::StoreError::Open {
            path: "/x".into(),
            source: cause,
        })
        .context("cannot start");
        let text = describe(&error);
        assert!(
            text.starts_with("cannot start: cannot open the state database /x"),
            "{text}"
        );
        assert_eq!(text.matches("disk on fire").count(), 1, "{text}");
    }
}
