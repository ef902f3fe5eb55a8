//! The settings of `run`, checked.

use std::path::PathBuf;

use policy::model::{Mode, Unselected};

use crate::cli::args::{Global, RunArgs};
use crate::preflight::Places;
use crate::workload::docker::DockerConfig;

/// How the daemon runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it lives.
    pub places: Places,
    /// How containers are found.
    pub docker: DockerConfig,
    /// Inventory to apply at start.
    pub inventory: Option<PathBuf>,
    /// Policies that replace the stored ones at start.
    pub policies: Option<PathBuf>,
    /// Mode of groups without one of their own, unless `mode set --all` stored another.
    pub default_mode: Mode,
    /// What protected workloads get where no policy selects them.
    pub unselected: Unselected,
}

/// Settings that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// There is no TCP listener yet.
    #[error("--listen {0} is not supported yet: the API is on the Unix socket only")]
    Listen(String),
}

impl Config {
    /// Settings from the command line.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(global: &Global, run: RunArgs) -> Result<Self, ConfigError> {
        if let Some(address) = run.listen {
            return Err(ConfigError::Listen(address));
        }
        let docker = match (run.no_docker, run.docker_socket) {
            (true, _) => DockerConfig::Off,
            (false, Some(socket)) => DockerConfig::Socket(socket),
            (false, None) => DockerConfig::Auto,
        };
        Ok(Self {
            places: places(global, &docker),
            docker,
            inventory: run.inventory,
            policies: run.policies,
            default_mode: run.default_mode.unwrap_or(Mode::Discover),
            unselected: run.unselected.unwrap_or(Unselected::Deny),
        })
    }
}

/// Where a daemon with these options lives.
#[must_use]
pub fn places(global: &Global, docker: &DockerConfig) -> Places {
    Places {
        bpffs: global.bpffs.clone(),
        state_dir: global.state_dir.clone(),
        socket: global.socket.clone(),
        docker_socket: match docker {
            DockerConfig::Off => None,
            DockerConfig::Socket(socket) => Some(socket.clone()),
            DockerConfig::Auto => Some(
                crate::workload::docker::DEFAULT_SOCKETS
                    .iter()
                    .map(PathBuf::from)
                    .find(|socket| socket.exists())
                    .unwrap_or_else(|| PathBuf::from(crate::workload::docker::DEFAULT_SOCKETS[0])),
            ),
        },
    }
}
