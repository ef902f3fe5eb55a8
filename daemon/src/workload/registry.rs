//! The one task that owns the estate.
//!
//! A change in the kernel, in Docker or in the inventory leads to a scan, a merge and, if the
//! result differs, a new snapshot. Changes that come together are taken together: a scan starts
//! [`COALESCE`] after the first of them, and no sooner than [`SPACING`] after the last scan.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::docker::{self, DockerConfig, DockerStartError, DockerState};
use super::inventory::{Inventory, InventoryError};
use super::merge::{Inputs, merge, netns_paths};
use super::model::EstateSnapshot;
use super::netlink::{KernelView, Netlink, NetlinkError};

/// How long the first change waits for company.
const COALESCE: Duration = Duration::from_millis(3);
/// Least time between the end of a scan and the start of the next.
const SPACING: Duration = Duration::from_millis(10);
/// Scans without cause, for what no event tells: names bound to namespaces, processes that appear
/// in them.
const UNPROMPTED: Duration = Duration::from_secs(1);
/// How long the start waits for Docker's first answer.
const DOCKER_START: Duration = Duration::from_secs(5);

/// What the registry watches.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Docker.
    pub docker: DockerConfig,
    /// The inventory to begin with.
    pub inventory: Option<Inventory>,
}

/// Why the registry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RegistryStartError {
    /// The kernel cannot be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The socket that was asked for is of no use.
    #[error(transparent)]
    Docker(#[from] DockerStartError),
    /// The inventory does not fit this host.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
}

/// Why a request to the registry failed. The state in force is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The inventory does not fit this host.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The kernel cannot be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The registry has ended: the daemon is shutting down.
    #[error("the workload registry has stopped; the daemon is shutting down")]
    Stopped,
}

enum Command {
    Replace(Inventory, oneshot::Sender<Result<u64, RegistryError>>),
    Rescan(oneshot::Sender<Result<(), RegistryError>>),
}

/// Access to the registry.
#[derive(Clone, Debug)]
pub struct RegistryHandle {
    /// The estate; never empty after [`start`].
    pub estate: watch::Receiver<Arc<EstateSnapshot>>,
    commands: mpsc::Sender<Command>,
}

impl RegistryHandle {
    /// Puts an inventory in force in place of the present one. When it returns, the published
    /// snapshot has its number as `inventory_revision`.
    ///
    /// # Errors
    /// An interface or namespace does not exist; the inventory in force stays.
    pub async fn replace_inventory(&self, inventory: Inventory) -> Result<u64, RegistryError> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::Replace(inventory, answer)).await?;
        answered.await.map_err(|_| RegistryError::Stopped)?
    }

    /// Scans now. When it returns, the published snapshot is at least as new as the call.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub async fn rescan(&self) -> Result<(), RegistryError> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::Rescan(answer)).await?;
        answered.await.map_err(|_| RegistryError::Stopped)?
    }

    async fn command(&self, command: Command) -> Result<(), RegistryError> {
        let sent = self.commands.send(command).await;
        sent.map_err(|_| RegistryError::Stopped)
    }
}

/// Starts the registry in the calling thread's network namespace. When it returns, the first
/// snapshot is published, Docker's running containers included if Docker answers.
///
/// # Errors
/// The kernel cannot be asked, a socket asked for is of no use, or the inventory does not fit.
pub async fn start(
    config: RegistryConfig,
    cancel: CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<RegistryHandle, RegistryStartError> {
    if let DockerConfig::Socket(socket) = &config.docker {
        docker::check(socket).await?;
    }
    let netlink = Netlink::open()?;
    let (docker_sender, mut docker) = watch::channel(DockerState::default());
    // Ends the follower of Docker if the start fails further down.
    let started = cancel.child_token();
    let guard = started.clone().drop_guard();
    if config.docker != DockerConfig::Off {
        tasks.spawn(docker::follow(config.docker, docker_sender, started));
        // A slow Docker delays the start no longer than this; its containers come when they come.
        let _ = timeout(DOCKER_START, docker.wait_for(|state| state.attempted)).await;
    }
    let (publish, estate) = watch::channel(Arc::default());
    let (commands, requests) = mpsc::channel(16);
    let mut registry = Registry {
        netlink,
        docker,
        inventory: Inventory::default(),
        inventory_revision: 0,
        publish,
    };
    match config.inventory {
        Some(inventory) => {
            let view = registry.view(&inventory).await?;
            inventory.check_against(&view)?;
            registry.adopt(inventory, &view);
        }
        None => registry.scan().await?,
    }
    guard.disarm();
    tasks.spawn(registry.run(requests, cancel));
    Ok(RegistryHandle { estate, commands })
}

struct Registry {
    netlink: Netlink,
    docker: watch::Receiver<DockerState>,
    inventory: Inventory,
    inventory_revision: u64,
    publish: watch::Sender<Arc<EstateSnapshot>>,
}

impl Registry {
    async fn run(mut self, mut requests: mpsc::Receiver<Command>, cancel: CancellationToken) {
        let mut unprompted = interval(UNPROMPTED);
        unprompted.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut docker_gone = false;
        // When the next scan is due, and the earliest it may be.
        let mut due: Option<Instant> = None;
        let mut earliest = Instant::now();
        loop {
            let scan_at = due.unwrap_or_else(|| Instant::now() + UNPROMPTED);
            tokio::select! {
                () = cancel.cancelled() => return,
                alive = self.netlink.changed() => {
                    if !alive {
                        self.reopen(&cancel).await;
                    }
                    due = due.or(Some((Instant::now() + COALESCE).max(earliest)));
                }
                changed = self.docker.changed(), if !docker_gone => {
                    docker_gone = changed.is_err();
                    due = due.or(Some((Instant::now() + COALESCE).max(earliest)));
                }
                _ = unprompted.tick() => {
                    due = due.or(Some(Instant::now().max(earliest)));
                }
                request = requests.recv() => match request {
                    Some(Command::Replace(inventory, answer)) => {
                        // The caller may have given up waiting.
                        let _ = answer.send(self.replace(inventory).await);
                    }
                    Some(Command::Rescan(answer)) => {
                        let _ = answer.send(self.scan().await.map_err(Into::into));
                    }
                    None => return,
                },
                () = sleep_until(scan_at), if due.is_some() => {
                    due = None;
                    if let Err(error) = self.scan().await {
                        tracing::warn!(%error, "workloads cannot be scanned; the last state stays");
                    }
                    earliest = Instant::now() + SPACING;
                }
            }
        }
    }

    async fn reopen(&mut self, cancel: &CancellationToken) {
        loop {
            match Netlink::open() {
                Ok(netlink) => {
                    self.netlink = netlink;
                    return;
                }
                Err(error) => tracing::warn!(%error, "lost the kernel's link events; retrying"),
            }
            tokio::select! {
                () = sleep(UNPROMPTED) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    async fn replace(&mut self, inventory: Inventory) -> Result<u64, RegistryError> {
        let view = self.view(&inventory).await?;
        inventory.check_against(&view)?;
        self.adopt(inventory, &view);
        Ok(self.inventory_revision)
    }

    fn adopt(&mut self, inventory: Inventory, view: &KernelView) {
        self.inventory = inventory;
        self.inventory_revision += 1;
        self.merge_and_publish(view);
    }

    async fn scan(&mut self) -> Result<(), NetlinkError> {
        let inventory = std::mem::take(&mut self.inventory);
        let view = self.view(&inventory).await;
        self.inventory = inventory;
        self.merge_and_publish(&view?);
        Ok(())
    }

    async fn view(&mut self, inventory: &Inventory) -> Result<KernelView, NetlinkError> {
        let paths = netns_paths(inventory, &self.docker.borrow());
        self.netlink.scan(paths).await
    }

    fn merge_and_publish(&self, view: &KernelView) {
        let mut next = merge(Inputs {
            view,
            inventory: &self.inventory,
            docker: &self.docker.borrow(),
        });
        next.inventory_revision = self.inventory_revision;
        self.publish.send_if_modified(|current| {
            next.revision = current.revision;
            if **current == next && next.revision != 0 {
                return false;
            }
            next.revision += 1;
            for problem in next.problems.iter().filter(|p| !current.problems.contains(p)) {
                tracing::warn!(subject = %problem.subject, cause = %problem.cause, hint = %problem.hint, "workload problem");
            }
            *current = Arc::new(next);
            true
        });
    }
}
