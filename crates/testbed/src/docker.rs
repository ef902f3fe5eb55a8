//! A real `dockerd` of the lab's own: own state, own socket, inside a lab's host namespace, so that
//! its bridges and packet filter rules stay there.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};

use crate::command::checked;
use crate::{Error, Netns, Process, wait_for, wait_until};

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(20);
const BUSYBOX: &str = "/bin/busybox";
/// Applets linked into the image.
const APPLETS: [&str; 7] = ["sh", "sleep", "nc", "wget", "httpd", "ip", "ping"];

/// A running `dockerd`. Drop removes its containers, ends it and deletes its state.
#[derive(Debug)]
pub struct Dockerd {
    process: Option<Process>,
    netns: Netns,
    directory: PathBuf,
}

impl Dockerd {
    /// Image made from the host's static busybox, present from the start.
    pub const IMAGE: &'static str = "testbed-busybox";

    /// Starts `dockerd` in `netns` and waits until it answers.
    ///
    /// # Errors
    /// `dockerd`, `docker`, `tar` or a static busybox is missing, or it does not come up; its log is
    /// in the error.
    pub fn start(netns: &Netns) -> Result<Self, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("testbed-docker-{}-{number}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(Error::io(format!("creating {}", directory.display())))?;
        let mut dockerd = Self {
            process: None,
            netns: netns.clone(),
            directory,
        };
        dockerd.resume()?;
        dockerd.import_image()?;
        Ok(dockerd)
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("docker.sock")
    }

    /// Runs the `docker` client and returns its trimmed output.
    ///
    /// # Errors
    /// The client fails; its message is in the error.
    pub fn docker(&self, arguments: &[&str]) -> Result<String, Error> {
        let mut command = self.client();
        command.args(arguments);
        checked(command).map(|output| output.trim().to_owned())
    }

    /// Starts a detached container of [`Self::IMAGE`] that sleeps; `options` go before the image.
    /// Returns its id.
    ///
    /// # Errors
    /// Docker refuses.
    pub fn run_sleeping(&self, name: &str, options: &[&str]) -> Result<String, Error> {
        let mut arguments = vec!["run", "--detach", "--name", name];
        arguments.extend(options);
        arguments.extend([Self::IMAGE, "/bin/sleep", "3600"]);
        self.docker(&arguments)
    }

    /// Network namespace of a running container.
    ///
    /// # Errors
    /// It does not run.
    pub fn netns_of(&self, container: &str) -> Result<Netns, Error> {
        let pid = self.docker(&["inspect", "--format", "{{.State.Pid}}", container])?;
        match pid.parse() {
            Ok(pid) if pid != 0 => Ok(Netns::of_pid(pid)),
            _ => Err(Error::Name {
                name: container.to_owned(),
                what: "a running container",
                reason: "it has no process",
            }),
        }
    }

    /// Ends the daemon. With its containers running, they end too.
    ///
    /// # Errors
    /// It does not end in time; it is killed then.
    pub fn suspend(&mut self) -> Result<(), Error> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        process.signal(libc::SIGTERM)?;
        process.wait(STOP).map(drop)
    }

    /// Starts the daemon again on the same state.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn resume(&mut self) -> Result<(), Error> {
        let log = self.directory.join("log");
        let output = File::create(&log).map_err(Error::io("creating the log of dockerd"))?;
        let errors = output
            .try_clone()
            .map_err(Error::io("sharing the log of dockerd"))?;
        let mut command = Command::new("dockerd");
        for (option, file) in [
            ("--data-root", "data"),
            ("--exec-root", "exec"),
            ("--pidfile", "pid"),
        ] {
            command.arg(option).arg(self.directory.join(file));
        }
        command
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()))
            .args(["--storage-driver", "vfs", "--log-level", "warn"])
            // Ctrl-C at a terminal is for the lab, which ends containers and daemon in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let process = self.process.insert(self.netns.exec(command)?);
        let id = process.id();
        let answers = wait_for(START, "dockerd to answer", || {
            match self.process.as_mut()?.try_wait() {
                Ok(None) => self.docker(&["version"]).is_ok().then_some(Ok(())),
                ended => Some(Err(ended)),
            }
        })?;
        answers.map_err(|_| Error::Command {
            command: format!("dockerd (process {id})"),
            status: "ended while starting".to_owned(),
            stderr: fs::read_to_string(&log).unwrap_or_default(),
        })
    }

    fn client(&self) -> Command {
        let mut command = Command::new("docker");
        command
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()));
        command
    }

    fn import_image(&self) -> Result<(), Error> {
        let root = self.directory.join("image");
        let bin = root.join("bin");
        let io = |what: &str| Error::io(format!("{what} in {}", bin.display()));
        fs::create_dir_all(&bin).map_err(io("making the image"))?;
        fs::copy(BUSYBOX, bin.join("busybox")).map_err(Error::io(format!(
            "copying {BUSYBOX} (install busybox-static)"
        )))?;
        for applet in APPLETS {
            symlink("busybox", bin.join(applet)).map_err(io("linking applets"))?;
        }
        let archive = self.directory.join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".");
        checked(tar)?;
        let mut import = self.client();
        import.arg("import").arg(&archive).arg(Self::IMAGE);
        checked(import).map(drop)
    }

    fn tear_down(&mut self) -> Result<(), Error> {
        if self.process.is_some() {
            let all = self.docker(&["ps", "--all", "--quiet"])?;
            let mut remove = vec!["rm", "--force", "--volumes"];
            remove.extend(all.split_ascii_whitespace());
            if remove.len() > 3 {
                self.docker(&remove)?;
            }
        }
        let containerd = fs::read_to_string(self.directory.join("exec/containerd/containerd.pid"));
        let suspended = self.suspend();
        // containerd is dockerd's child and ends with it; only a killed dockerd leaves it behind.
        if let Ok(pid) = containerd.unwrap_or_default().trim().parse::<u32>() {
            let path = PathBuf::from(format!("/proc/{pid}"));
            wait_until(STOP, "containerd to end", || {
                !is_ours(&path, &self.directory)
            })?;
        }
        suspended
    }
}

/// Whether the process at `/proc/<pid>` was started on this state directory.
fn is_ours(process: &Path, directory: &Path) -> bool {
    fs::read_to_string(process.join("cmdline"))
        .is_ok_and(|line| line.contains(&*directory.to_string_lossy()))
}

/// Detaches what dockerd leaves mounted below its directory: names of network namespaces.
fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|target| Path::new(target).starts_with(directory));
    // Later mounts may lie on earlier ones. What cannot be detached shows when the directory goes.
    for target in below.collect::<Vec<_>>().into_iter().rev() {
        let _ = umount2(target, MntFlags::MNT_DETACH);
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        use std::io::Write;
        if let Err(error) = self.tear_down() {
            let _ = writeln!(std::io::stderr(), "dockerd left something behind: {error}");
        }
        unmount_below(&self.directory);
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            let directory = self.directory.display();
            let _ = writeln!(std::io::stderr(), "cannot remove {directory}: {error}");
        }
    }
}
