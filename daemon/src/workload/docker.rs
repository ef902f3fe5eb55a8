//! Docker, or podman through its compatible socket: which containers run, and what they are called.
//!
//! | Docker | Workload |
//! |---|---|
//! | container name | name; `app` label and group `docker/<name>` without compose |
//! | `com.docker.compose.project` | namespace (`docker` without) |
//! | project and `com.docker.compose.service` | group `<project>/<service>`; `app` label |
//! | project, service and container number | id `docker:<project>/<service>/<number>` |
//! | label `portcullis.group` | group, over all of the above |
//! | label `portcullis.ports` | named ports, `http=8080/tcp,dns=53/udp` |
//!
//! A label `app` of the container itself stands. Interfaces and addresses come from the kernel.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::errors::Error as DockerError;
use bollard::models::{ContainerInspectResponse, EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::{EventsOptionsBuilder, ListContainersOptions};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;
use policy::model::{Labels, NamedPort};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::model::{APP_LABEL, GROUP_LABEL, PORTS_LABEL, Problem, WorkloadId};

/// Sockets tried when none is given.
pub const DEFAULT_SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/podman/podman.sock"];
/// Policy namespace of containers outside compose.
pub const DOCKER_NAMESPACE: &str = "docker";

const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";
const COMPOSE_NUMBER: &str = "com.docker.compose.container-number";
const COMPOSE_ONEOFF: &str = "com.docker.compose.oneoff";

const REQUEST_TIMEOUT_S: u64 = 10;
/// Podman sends no network events, and events can be lost: the list is compared this often.
const RESYNC_EVERY: Duration = Duration::from_secs(15);
const RECONNECT_FIRST: Duration = Duration::from_millis(250);
const RECONNECT_MOST: Duration = Duration::from_secs(5);

/// Whether to talk to Docker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerConfig {
    /// Do not.
    Off,
    /// If one of [`DEFAULT_SOCKETS`] is there, now or later.
    Auto,
    /// To this socket; that it cannot be reached at start is an error.
    Socket(PathBuf),
}

/// How a container is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// A network namespace of its own.
    Own,
    /// The host's.
    Host,
    /// Another container's.
    Container,
    /// Loopback only.
    None,
}

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Full id.
    pub id: String,
    /// Name, without the leading slash.
    pub name: String,
    /// Image as it was asked for.
    pub image: String,
    /// Labels of container and image.
    pub labels: Labels,
    /// Id of its first process in the daemon's PID namespace.
    pub pid: u32,
    /// Docker's own path to the network namespace.
    pub sandbox_key: Option<PathBuf>,
    /// How it is connected.
    pub network: NetworkMode,
    /// Addresses Docker gave it, over all networks.
    pub addresses: Vec<IpAddr>,
}

/// What Docker last said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DockerState {
    /// The connection is up and the list is complete.
    pub connected: bool,
    /// The first attempt is over, with or without success.
    pub attempted: bool,
    /// Running containers by id. Kept while the connection is down.
    pub containers: BTreeMap<String, Container>,
    /// What is wrong, if anything.
    pub problem: Option<Problem>,
}

/// Whether compose keeps a label for itself. Replica number, configuration hash and the like differ
/// between replicas and from one `up` to the next; as part of the identity they would make every
/// replica somebody else.
fn is_bookkeeping(key: &str) -> bool {
    key.starts_with("com.docker.compose.") && key != COMPOSE_PROJECT && key != COMPOSE_SERVICE
}

/// A project as a namespace that Kubernetes accepts (RFC 1123 label): compose allows `_` in names.
fn namespace_name(project: &str) -> String {
    let name: String = project
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(63)
        .collect();
    let name = name.trim_matches('-');
    if name.is_empty() {
        DOCKER_NAMESPACE.to_owned()
    } else {
        name.to_owned()
    }
}

impl Container {
    fn from_inspect(response: ContainerInspectResponse) -> Option<Self> {
        let state = response.state?;
        let pid = u32::try_from(state.pid?).ok().filter(|pid| *pid != 0)?;
        if state.running != Some(true) {
            return None;
        }
        let config = response.config.unwrap_or_default();
        let settings = response.network_settings.unwrap_or_default();
        let mode = response.host_config.and_then(|host| host.network_mode);
        let parse = |text: Option<String>| text?.parse::<IpAddr>().ok();
        let mut addresses: Vec<IpAddr> = settings
            .networks
            .unwrap_or_default()
            .into_values()
            .flat_map(|network| {
                [
                    parse(network.ip_address),
                    parse(network.global_ipv6_address),
                ]
            })
            .flatten()
            .collect();
        addresses.sort();
        addresses.dedup();
        Some(Self {
            id: response.id?,
            name: response.name?.trim_start_matches('/').to_owned(),
            image: config.image.unwrap_or_default(),
            labels: config.labels.unwrap_or_default().into_iter().collect(),
            pid,
            sandbox_key: settings
                .sandbox_key
                .filter(|key| !key.is_empty())
                .map(PathBuf::from),
            network: match mode.as_deref() {
                Some("host") => NetworkMode::Host,
                Some("none") => NetworkMode::None,
                Some(mode) if mode.starts_with("container:") => NetworkMode::Container,
                _ => NetworkMode::Own,
            },
            addresses,
        })
    }

    fn compose(&self) -> Option<(&str, &str)> {
        let label = |key| self.labels.get(key).map(String::as_str);
        label(COMPOSE_PROJECT).zip(label(COMPOSE_SERVICE))
    }

    /// Identity across restarts and recreation.
    #[must_use]
    pub fn workload_id(&self) -> WorkloadId {
        let oneoff = self
            .labels
            .get(COMPOSE_ONEOFF)
            .is_some_and(|value| value.eq_ignore_ascii_case("true"));
        WorkloadId(match (self.compose(), self.labels.get(COMPOSE_NUMBER)) {
            (Some((project, service)), Some(number)) if !oneoff => {
                format!("docker:{project}/{service}/{number}")
            }
            _ => format!("docker:{}", self.name),
        })
    }

    /// What policy sees, without addresses.
    #[must_use]
    pub fn spec(&self) -> policy::model::Workload {
        let compose = self.compose();
        let mut labels = self.labels.clone();
        labels.retain(|key, _| !is_bookkeeping(key));
        labels.entry(APP_LABEL.to_owned()).or_insert_with(|| {
            compose
                .map_or(&*self.name, |(_, service)| service)
                .to_owned()
        });
        let group = match (labels.get(GROUP_LABEL), compose) {
            (Some(group), _) => group.clone(),
            (None, Some((project, service))) => format!("{project}/{service}"),
            (None, None) => format!("{DOCKER_NAMESPACE}/{}", self.name),
        };
        policy::model::Workload {
            name: self.name.clone(),
            namespace: compose.map_or_else(
                || DOCKER_NAMESPACE.to_owned(),
                |(project, _)| namespace_name(project),
            ),
            ports: labels
                .get(PORTS_LABEL)
                .map_or_else(Vec::new, |text| named_ports(text)),
            labels,
            addresses: Vec::new(),
            group,
        }
    }

    /// Paths that may lead into its network namespace, the surest first.
    #[must_use]
    pub fn netns_paths(&self) -> Vec<PathBuf> {
        let process = PathBuf::from(format!("/proc/{}/ns/net", self.pid));
        std::iter::once(process)
            .chain(self.sandbox_key.clone())
            .collect()
    }
}

/// `http=8080/tcp,dns=53/udp`; entries that say nothing are left out.
fn named_ports(text: &str) -> Vec<NamedPort> {
    let parse = |entry: &str| {
        let (name, rest) = entry.trim().split_once('=')?;
        let (port, protocol) = rest.split_once('/').unwrap_or((rest, "tcp"));
        Some(NamedPort {
            name: name.to_owned(),
            port: port.parse().ok().filter(|port| *port != 0)?,
            protocol: protocol.parse().ok()?,
        })
    };
    text.split(',').filter_map(parse).collect()
}

/// A socket that was asked for and cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot talk to Docker at {socket}: {source}; check that the service runs and the path is its \
     socket, or leave the setting out to go on without Docker"
)]
pub struct DockerStartError {
    /// Socket.
    pub socket: PathBuf,
    /// Cause.
    pub source: DockerError,
}

/// Connects once, for a socket that was asked for.
///
/// # Errors
/// There is no socket, or nobody that speaks the protocol behind it.
pub async fn check(socket: &Path) -> Result<(), DockerStartError> {
    connect(socket)
        .await
        .map(drop)
        .map_err(|source| DockerStartError {
            socket: socket.to_owned(),
            source,
        })
}

async fn connect(socket: &Path) -> Result<Docker, DockerError> {
    let path = socket.to_string_lossy();
    let docker = Docker::connect_with_unix(&path, REQUEST_TIMEOUT_S, API_DEFAULT_VERSION)?;
    docker.negotiate_version().await
}

/// Follows Docker until cancelled, publishing every change. Reconnects for ever.
pub async fn follow(
    config: DockerConfig,
    state: watch::Sender<DockerState>,
    cancel: CancellationToken,
) {
    let sockets: Vec<PathBuf> = match config {
        DockerConfig::Off => return,
        DockerConfig::Auto => DEFAULT_SOCKETS.iter().map(PathBuf::from).collect(),
        DockerConfig::Socket(socket) => vec![socket],
    };
    let mut pause = RECONNECT_FIRST;
    loop {
        let session = async {
            match sockets.iter().find(|socket| socket.exists()) {
                None => Problem::new(
                    "docker",
                    format!("there is no socket at {}", sockets[0].display()),
                    "start Docker, name another socket with `run --docker-socket` (podman: \
                     /run/podman/podman.sock), or say `run --no-docker`; plain namespaces and the \
                     inventory work without",
                ),
                Some(socket) => {
                    let error = follow_once(socket, &state, &mut pause).await;
                    tracing::debug!(socket = %socket.display(), %error, "docker session ended");
                    Problem::new(
                        "docker",
                        format!("no connection to {}: {error}", socket.display()),
                        "check that the service runs; what was known of its containers stays",
                    )
                }
            }
        };
        let problem = tokio::select! {
            problem = session => problem,
            () = cancel.cancelled() => return,
        };
        state.send_if_modified(|state| {
            let before = state.clone();
            state.connected = false;
            state.attempted = true;
            state.problem = Some(problem);
            *state != before
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => return,
        }
        pause = (pause * 2).min(RECONNECT_MOST);
    }
}

/// One connection: the list, then events. Returns why it ended.
async fn follow_once(
    socket: &Path,
    state: &watch::Sender<DockerState>,
    pause: &mut Duration,
) -> DockerError {
    let session = async {
        let docker = connect(socket).await?;
        // From before the list, so that nothing falls between list and stream; what comes twice
        // only leads to a second look.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
            .to_string();
        let filters = HashMap::from([("type", vec!["container", "network"])]);
        let options = EventsOptionsBuilder::new()
            .since(&since)
            .filters(&filters)
            .build();
        let mut events = Box::pin(docker.events(Some(options)));
        resync(&docker, state).await?;
        *pause = RECONNECT_FIRST;
        let mut resync_tick = tokio::time::interval(RESYNC_EVERY);
        resync_tick.reset();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        if let Some(id) = concerned(event) {
                            refresh(&docker, &id, state).await?;
                        }
                    }
                    // A stream that ends or times out while idle ends the session; the next one
                    // lists again.
                    Some(Err(error)) => return Err(error),
                    None => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                },
                _ = resync_tick.tick() => resync(&docker, state).await?,
            }
        }
    };
    let ended: Result<std::convert::Infallible, DockerError> = session.await;
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// Id of the container an event is about, if it can have changed what we know.
fn concerned(event: EventMessage) -> Option<String> {
    let actor = event.actor?;
    let action = event.action?;
    match event.typ? {
        EventMessageTypeEnum::CONTAINER => {
            let relevant = [
                "start", "restart", "die", "stop", "destroy", "rename", "update",
            ];
            relevant.contains(&action.as_str()).then_some(actor.id?)
        }
        EventMessageTypeEnum::NETWORK => {
            let relevant = ["connect", "disconnect"];
            let id = actor.attributes?.remove("container")?;
            relevant.contains(&action.as_str()).then_some(id)
        }
        _ => None,
    }
}

async fn inspect(docker: &Docker, id: &str) -> Result<Option<Container>, DockerError> {
    match docker.inspect_container(id, None).await {
        Ok(response) => Ok(Container::from_inspect(response)),
        Err(DockerError::DockerResponseServerError {
            status_code: 404, ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn refresh(
    docker: &Docker,
    id: &str,
    state: &watch::Sender<DockerState>,
) -> Result<(), DockerError> {
    let container = inspect(docker, id).await?;
    state.send_if_modified(|state| {
        let before = match container {
            Some(container) => {
                let unchanged = state.containers.get(id) == Some(&container);
                state.containers.insert(id.to_owned(), container);
                return !unchanged;
            }
            None => state.containers.remove(id),
        };
        before.is_some()
    });
    Ok(())
}

async fn resync(docker: &Docker, state: &watch::Sender<DockerState>) -> Result<(), DockerError> {
    let running = docker
        .list_containers(None::<ListContainersOptions>)
        .await?;
    let mut containers = BTreeMap::new();
    for id in running.into_iter().filter_map(|summary| summary.id) {
        if let Some(container) = inspect(docker, &id).await? {
            containers.insert(id, container);
        }
    }
    let synced = DockerState {
        connected: true,
        attempted: true,
        containers,
        problem: None,
    };
    state.send_if_modified(|state| {
        let changed = *state != synced;
        *state = synced;
        changed
    });
    Ok(())
}

#[cfg(test)]
#[path = "docker_tests.rs"]
mod tests;
