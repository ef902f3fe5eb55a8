//! The daemon under test: the real binary as a process of its own, and its command line.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use testbed::{Lab, Netns, Process, wait_for};

use crate::bpffs::Bpffs;
pub use crate::output::Output;

/// Names the binary under test; `cargo xtask test-root` sets it.
const BINARY_ENV: &str = "PORTCULLIS_BIN";
/// From exec to ready, on a machine that is busy with other things.
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(30);
const SIGTERM: i32 = nix::sys::signal::Signal::SIGTERM as i32;
/// Until something that is asynchronous by design (flow records, workload events) is visible.
pub const SOON: Duration = Duration::from_secs(20);

/// The binary under test.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn binary() -> PathBuf {
    let path = std::env::var_os(BINARY_ENV).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/portcullis"),
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask test-root`, or name it in {BINARY_ENV}",
        path.display()
    );
    path
}

/// How a daemon is started.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Options {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    inventory: Option<String>,
    policies: Option<String>,
    docker: bool,
}

impl Options {
    /// Defaults of the daemon, without Docker.
    pub fn new() -> Self {
        Self::default()
    }

    /// `--inventory` with this text.
    pub fn inventory(mut self, text: impl Into<String>) -> Self {
        self.inventory = Some(text.into());
        self
    }

    /// `--policies` with this text.
    pub fn policies(mut self, text: impl Into<String>) -> Self {
        self.policies = Some(text.into());
        self
    }

    /// `--default-mode`.
    pub fn mode(self, mode: &str) -> Self {
        self.argument("--default-mode").argument(mode)
    }

    /// `--docker-socket`.
    pub fn docker(mut self, socket: &Path) -> Self {
        self.docker = true;
        self.argument("--docker-socket")
            .argument(&socket.to_string_lossy())
    }

    /// Another argument of `run`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// A variable for the daemon and for every command of it.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A daemon with state directory, socket and BPF file system of its own. Drop stops it, detaches
/// and removes everything; when the test fails, its log is shown.
#[derive(Debug)]
pub struct Daemon {
    process: Option<Process>,
    netns: Netns,
    options: Options,
    bpffs: Bpffs,
    directory: TempDir,
}

impl Daemon {
    /// Starts `portcullis run` in the lab's host namespace and waits until it is ready.
    ///
    /// # Panics
    /// When it ends or does not become ready; its log is shown.
    #[must_use]
    pub fn start(lab: &Lab, options: Options) -> Self {
        let mut daemon = Self::prepare(lab, options);
        daemon.restart();
        daemon
    }

    /// Everything but the process.
    ///
    /// # Panics
    /// When files cannot be made.
    #[must_use]
    pub fn prepare(lab: &Lab, options: Options) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-e2e-")
            .tempdir()
            .expect("a temporary directory");
        let bpffs = Bpffs::mount(directory.path().join("bpf"));
        let mut daemon = Self {
            process: None,
            netns: lab.host().clone(),
            options,
            bpffs,
            directory,
        };
        if let Some(text) = daemon.options.inventory.take() {
            daemon.give("--inventory", "inventory.yaml", &text);
        }
        if let Some(text) = daemon.options.policies.take() {
            daemon.give("--policies", "policies.yaml", &text);
        }
        if !daemon.options.docker {
            daemon.options.arguments.push("--no-docker".to_owned());
        }
        daemon
    }

    fn give(&mut self, option: &str, name: &str, text: &str) {
        let path = self.file(name, text);
        self.options
            .arguments
            .extend([option.to_owned(), path.display().to_string()]);
    }

    /// Starts it again on its state and waits until it is ready.
    ///
    /// # Panics
    /// When it runs already, ends, or does not become ready.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "it is running");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log file");
        let mut command = self.run_command();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log);
        self.process = Some(self.netns.exec(command).expect("the daemon to start"));
        let ready = wait_for(START, "the daemon to be ready", || {
            let process = self.process.as_mut().expect("it was started");
            if let Some(status) = process.try_wait().expect("its status") {
                return Some(Err(status));
            }
            if !self.socket().exists() {
                return None;
            }
            let status = self.cli(&["status", "-o", "json"]);
            (status.status == Some(0) && status.json()["ready"] == true).then_some(Ok(()))
        });
        match ready {
            Ok(Ok(())) => {}
            Ok(Err(status)) => panic!("the daemon ended with {status}"),
            Err(error) => panic!("{error}"),
        }
    }

    /// `portcullis run` with everything this daemon is given, not started.
    #[must_use]
    pub fn run_command(&self) -> Command {
        let mut command = self.command();
        command.arg("run").args(&self.options.arguments);
        command
    }

    /// `portcullis` with this daemon's places, not started.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        // Nothing of the caller's own set-up may reach the daemon under test.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PORTCULLIS_") {
                command.env_remove(name);
            }
        }
        command
            .env("PORTCULLIS_SOCKET", self.socket())
            .env("PORTCULLIS_STATE_DIR", self.state_dir())
            .env("PORTCULLIS_BPFFS", self.pins())
            .envs(self.options.environment.iter().cloned());
        command
    }

    /// Runs a command of the command line in the daemon's namespace.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.cli_with_input(arguments, "")
    }

    /// As [`Self::cli`], with a standard input.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn cli_with_input(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command();
        command.args(arguments);
        self.netns
            .run(|| Output::of(command, input))
            .expect("the namespace to be there")
    }

    /// Runs a command that must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub fn ok(&self, arguments: &[&str]) -> Output {
        self.cli(arguments).ok()
    }

    /// `policy apply` of this text.
    ///
    /// # Panics
    /// When it is refused.
    pub fn apply(&self, documents: &str) -> Output {
        self.cli_with_input(&["policy", "apply", "-f", "-"], documents)
            .ok()
    }

    /// `policy replace` with this text.
    ///
    /// # Panics
    /// When it is refused.
    pub fn replace(&self, documents: &str) -> Output {
        self.cli_with_input(&["policy", "replace", "-f", "-"], documents)
            .ok()
    }

    /// `inventory apply` of this text.
    ///
    /// # Panics
    /// When it is refused.
    pub fn inventory(&self, document: &str) -> Output {
        self.cli_with_input(&["inventory", "apply", "-f", "-"], document)
            .ok()
    }

    /// `mode set --all`.
    ///
    /// # Panics
    /// When it is refused.
    pub fn mode(&self, mode: &str) {
        self.ok(&["mode", "set", "--all", mode]);
    }

    /// A command's JSON output.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut arguments = arguments.to_vec();
        arguments.extend(["-o", "json"]);
        self.ok(&arguments).json()
    }

    /// Flow records that match these filters of `flows`, oldest first as printed.
    ///
    /// # Panics
    /// When the command fails.
    #[must_use]
    pub fn flows(&self, filters: &[&str]) -> Vec<Value> {
        let mut arguments = vec!["flows", "-o", "jsonl"];
        arguments.extend(filters);
        self.ok(&arguments).jsonl()
    }

    /// Waits for a flow record that matches the filters, and returns the last such.
    ///
    /// # Panics
    /// When none comes; every record there is stands in the message.
    #[must_use]
    pub fn flow(&self, filters: &[&str]) -> Value {
        wait_for(SOON, &format!("a flow with {filters:?}"), || {
            self.flows(filters).pop()
        })
        .unwrap_or_else(|error| {
            let all: Vec<String> = self.flows(&[]).iter().map(Value::to_string).collect();
            panic!("{error}; there are\n{}", all.join("\n"))
        })
    }

    /// Packets with this verdict (and, if not empty, this drop reason) in both directions.
    ///
    /// # Panics
    /// When the command fails.
    #[must_use]
    pub fn packets(&self, verdict: &str, reason: &str) -> u64 {
        self.json(&["counters"])["packets"]
            .as_array()
            .expect("rows of counters")
            .iter()
            .filter(|row| row["verdict"] == verdict)
            .filter(|row| reason.is_empty() || row["reason"] == reason)
            .filter_map(|row| row["packets"].as_u64())
            .sum()
    }

    /// One workload as `workloads` shows it.
    ///
    /// # Panics
    /// When the command fails.
    #[must_use]
    pub fn workload(&self, name: &str) -> Option<Value> {
        let workloads = self.json(&["workloads"]);
        workloads
            .as_array()
            .expect("a list of workloads")
            .iter()
            .find(|workload| workload["name"] == name)
            .cloned()
    }

    /// What is in force, to compare: policies, modes, inventory, workloads.
    ///
    /// # Panics
    /// When a command fails.
    #[must_use]
    pub fn in_force(&self) -> Vec<Value> {
        let mut state: Vec<Value> = ["policy list", "mode get", "workloads"]
            .iter()
            .map(|command| self.json(&command.split(' ').collect::<Vec<_>>()))
            .collect();
        state.push(self.ok(&["inventory", "show"]).stdout.into());
        state.push(self.json(&["status"])["generation"].clone());
        state
    }

    /// SIGKILL.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill9(&mut self) {
        let mut process = self.process.take().expect("it is running");
        process.kill();
    }

    /// SIGTERM, and waits for it to end with success.
    ///
    /// # Panics
    /// When it does not.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("it is running");
        process.signal(SIGTERM).expect("it is running");
        let status = process.wait(STOP).expect("it ends in time");
        assert!(status.success(), "the daemon ended with {status}");
    }

    /// `detach`.
    ///
    /// # Panics
    /// When it fails.
    pub fn detach(&self) -> Output {
        self.ok(&["detach"])
    }

    /// Whether the process is there.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it is running").id()
    }

    /// Its BPF file system.
    #[must_use]
    pub fn bpffs(&self) -> &Bpffs {
        &self.bpffs
    }

    /// The directory of its pins.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.bpffs.path().join("portcullis")
    }

    /// Pinned maps.
    ///
    /// # Panics
    /// When the pins cannot be read.
    #[must_use]
    pub fn pinned_maps(&self) -> Vec<PathBuf> {
        let mut pins = self.bpffs.entries();
        pins.retain(|path| path.parent().is_some_and(|parent| parent.ends_with("maps")));
        pins
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("api.sock")
    }

    /// Its state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Writes a file beside its state and returns the path.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).expect("a file in the temporary directory");
        path
    }

    /// Everything it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }
}

impl Drop for Daemon {
    #[expect(
        clippy::print_stderr,
        reason = "the test harness shows it with the failure"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the daemon:\n{}", self.log());
        }
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself, which is why the test fails.
            let _ = process.signal(SIGTERM);
            if process.wait(STOP).is_err() {
                process.kill();
            }
        }
        let detached = self.cli(&["detach"]);
        if detached.status != Some(0) {
            eprintln!("{detached:#?}");
        }
    }
}
