//! The firewall of the demo: a real daemon in a process of its own, spoken to over its socket.

use std::fs::File;
use std::future::Future;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use testbed::{Netns, Process};
use tokio::runtime::Runtime;

use super::stop;
use crate::cli::client::{Client, Query};
use crate::cli::error::CliError;

/// The program itself, also when its file was replaced meanwhile.
const SELF: &str = "/proc/self/exe";
const BPFFS: &str = "/sys/fs/bpf";
const READY: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(20);
/// Lines of the daemon's log that an error shows.
const LOG_LINES: usize = 12;

/// A running daemon. Dropping it stops the daemon and detaches.
#[derive(Debug)]
pub(super) struct Firewall {
    process: Option<Process>,
    attached: bool,
    host: Netns,
    client: Client,
    runtime: Runtime,
    places: Places,
}

/// Where the daemon of one demo lives.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) socket: PathBuf,
    pub(super) bpffs: PathBuf,
    state: PathBuf,
    log: PathBuf,
}

impl Places {
    pub(super) fn new(directory: &Path, tag: &str) -> Self {
        Self {
            socket: directory.join("api.sock"),
            state: directory.join("state"),
            log: directory.join("daemon.log"),
            bpffs: Path::new(BPFFS).join(tag),
        }
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(SELF);
        command
            .env_clear()
            .arg(name)
            .arg("--socket")
            .arg(&self.socket)
            .arg("--state-dir")
            .arg(&self.state)
            .arg("--bpffs")
            .arg(&self.bpffs)
            .stdin(Stdio::null());
        command
    }

    /// Removes what a demo that was killed left in the kernel.
    pub(super) fn sweep(tag_of: impl Fn(&str) -> bool) {
        let Ok(entries) = std::fs::read_dir(BPFFS) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(&tag_of) {
                // What cannot be removed does not stand in the way of this demo.
                let _ = Command::new(SELF)
                    .args(["detach", "--force", "--bpffs"])
                    .arg(entry.path())
                    .stdin(Stdio::null())
                    .output();
                let _ = std::fs::remove_dir(entry.path());
            }
        }
    }
}

impl Firewall {
    /// Starts the daemon in `host` and waits until it is ready.
    pub(super) fn start(
        host: &Netns,
        places: Places,
        inventory: Option<&Path>,
        docker_socket: Option<&Path>,
    ) -> Result<Self> {
        let log = File::create(&places.log).context("cannot create the daemon's log")?;
        let output = log.try_clone().context("cannot share the daemon's log")?;
        let mut command = places.command("run");
        command.arg("--no-listen");
        match docker_socket {
            Some(socket) => command.arg("--docker-socket").arg(socket),
            None => command.arg("--no-docker"),
        };
        if let Some(inventory) = inventory {
            command.arg("--inventory").arg(inventory);
        }
        // Ctrl-C at a terminal is for the demo, which then stops the daemon in order.
        command.process_group(0).stdout(output).stderr(log);
        // SAFETY: between fork and exec only prctl(2) runs, with integers.
        unsafe {
            command.pre_exec(|| {
                // The daemon must not outlive a demo that is killed.
                match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the async runtime")?;
        let mut firewall = Self {
            process: Some(host.exec(command)?),
            attached: true,
            host: host.clone(),
            client: Client::new(&places.socket),
            runtime,
            places,
        };
        stop::wait(READY, "the daemon to be ready", || {
            firewall.check_alive()?;
            let ready = firewall.ask(firewall.client.get_text("/readyz"));
            Ok(ready.is_ok().then_some(()))
        })
        .with_context(|| firewall.log_tail())?;
        Ok(firewall)
    }

    /// Whether the daemon still runs; its last words if not.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        match self.process.as_mut().map(Process::try_wait).transpose()? {
            Some(Some(status)) => bail!("the daemon ended ({status})\n{}", self.log_tail()),
            Some(None) | None => Ok(()),
        }
    }

    /// Where it lives.
    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    /// `GET`.
    pub(super) fn get<T: DeserializeOwned>(&self, query: &Query) -> Result<T> {
        self.ask(self.client.get(query.as_str()))
    }

    /// `GET` of a text.
    pub(super) fn get_text(&self, query: &Query) -> Result<String> {
        self.ask(self.client.get_text(query.as_str()))
    }

    /// `POST`.
    pub(super) fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T> {
        self.ask(self.client.post(path, body))
    }

    fn ask<T>(&self, request: impl Future<Output = Result<T, CliError>>) -> Result<T> {
        self.runtime.block_on(request).map_err(|error| {
            let mut text = error.message;
            for line in error.details.iter().chain(&error.hint) {
                text.push_str("\n  ");
                text.push_str(line);
            }
            anyhow!(text)
        })
    }

    /// Stops the daemon, detaches, and checks that nothing stays pinned.
    pub(super) fn stop(mut self) -> Result<()> {
        self.tear_down()
    }

    fn tear_down(&mut self) -> Result<()> {
        let mut result = Ok(());
        if let Some(mut process) = self.process.take() {
            let ended = match process.signal(libc::SIGTERM) {
                Ok(()) => process.wait(STOP).map_err(anyhow::Error::from),
                // It has ended before; why was reported then.
                Err(_) => return self.detach(),
            };
            result = match ended {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(anyhow!(
                    "the daemon stopped with {status}\n{}",
                    self.log_tail()
                )),
                Err(error) => Err(error.context("the daemon did not stop and was killed")),
            };
        }
        self.detach().and(result)
    }

    fn detach(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.attached) {
            return Ok(());
        }
        let mut command = self.places.command("detach");
        command.arg("--force").stdout(Stdio::null());
        let mut child = self.host.exec(command)?;
        let status = child.wait(STOP)?;
        if !status.success() {
            bail!("detach failed ({status})");
        }
        let path = &self.places.bpffs;
        match std::fs::remove_dir(path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("detach left pins below {}", path.display()))
            }
        }
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(&self.places.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("last lines of the daemon's log:\n{}", tail.join("\n"))
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        if let Err(error) = self.tear_down() {
            crate::cli::output::note(&format!("error: {error:#}"));
        }
    }
}
