use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::command::checked;
use crate::{Error, wait_for};

/// Where `ip netns` keeps named namespaces.
const NAMED: &str = "/run/netns";

/// A network namespace, by path. Holds nothing open: the namespace lives and dies with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    path: PathBuf,
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Netns {
    /// Creates a namespace named `name` with loopback up, as `ip netns add` does.
    ///
    /// # Errors
    /// The name is taken, or the process lacks the privilege.
    pub fn create(name: &str) -> Result<Self, Error> {
        let mut command = Command::new("ip");
        command.args(["netns", "add", name]);
        checked(command)?;
        let netns = Self::named(name);
        crate::ip_batch(&netns, &["link set lo up".to_owned()])?;
        Ok(netns)
    }

    /// The namespace of that name; it need not exist yet.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            path: Path::new(NAMED).join(name),
        }
    }

    /// The namespace this process was started in.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self {
            path: PathBuf::from("/proc/self/ns/net"),
        }
    }

    /// The namespace a process is in.
    #[must_use]
    pub fn of_pid(pid: u32) -> Self {
        Self {
            path: PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }

    /// Path of the namespace file, e.g. `/run/netns/web-1`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Name under `/run/netns`, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        (self.path.parent() == Some(Path::new(NAMED)))
            .then(|| self.path.file_name().and_then(OsStr::to_str))
            .flatten()
    }

    /// Inode of the namespace: its identity in the kernel.
    ///
    /// # Errors
    /// The namespace does not exist.
    pub fn inode(&self) -> Result<u64, Error> {
        Ok(self
            .open()?
            .metadata()
            .map_err(|e| self.enter_error(e))?
            .ino())
    }

    /// Removes the name. Processes and sockets inside keep the namespace itself alive.
    ///
    /// # Errors
    /// The name does not exist, or the process lacks the privilege.
    pub fn remove(&self) -> Result<(), Error> {
        let name = self.name().ok_or_else(|| Error::Name {
            name: self.to_string(),
            what: "a namespace to remove",
            reason: "it is not under /run/netns",
        })?;
        let mut command = Command::new("ip");
        command.args(["netns", "del", name]);
        checked(command).map(drop)
    }

    /// A command that will run inside, to be configured further and spawned by the caller.
    ///
    /// # Errors
    /// The namespace does not exist.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command, Error> {
        self.prepare(Command::new(program))
    }

    /// Spawns a process inside. It is killed when the handle is dropped.
    ///
    /// # Errors
    /// The namespace does not exist, or the program cannot be started.
    pub fn exec(&self, command: Command) -> Result<Process, Error> {
        let mut command = self.prepare(command)?;
        let child = command.spawn().map_err(|source| Error::Start {
            command: format!("{command:?}"),
            source,
        })?;
        Ok(Process { child })
    }

    /// Runs `work` on a thread inside the namespace. Sockets it opens stay there; threads it
    /// spawns inherit it. A panic of `work` goes on in the caller.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                Ok(work())
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Writes a sysctl of this namespace, e.g. `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// The namespace cannot be entered or the kernel refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<(), Error> {
        let path = Path::new("/proc/sys").join(key);
        self.run(|| std::fs::write(&path, value))?
            .map_err(Error::io(format!("setting {key} to {value} in {self}")))
    }

    /// Moves the calling thread into the namespace, for good.
    pub(crate) fn enter(&self) -> Result<(), Error> {
        let file = self.open()?;
        setns(file, CloneFlags::CLONE_NEWNET).map_err(|e| self.enter_error(e.into()))
    }

    fn open(&self) -> Result<File, Error> {
        File::open(&self.path).map_err(|e| self.enter_error(e))
    }

    fn enter_error(&self, source: io::Error) -> Error {
        Error::Enter {
            path: self.path.clone(),
            source,
        }
    }

    fn prepare(&self, mut command: Command) -> Result<Command, Error> {
        let file = self.open()?;
        // SAFETY: between fork and exec only setns(2) runs, on a descriptor that the closure owns;
        // it neither allocates nor takes a lock.
        unsafe {
            command
                .pre_exec(move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
        }
        Ok(command)
    }
}

/// A process in a lab, killed and reaped on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Exit status if it has ended.
    ///
    /// # Errors
    /// The process cannot be waited for.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child
            .try_wait()
            .map_err(Error::io("waiting for a process"))
    }

    /// Waits for it to end, at most `deadline` long.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; the process goes on.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus, Error> {
        let what = format!("process {} to end", self.id());
        wait_for(deadline, &what, || self.child.try_wait().ok().flatten())
    }

    /// Sends a signal, e.g. `libc::SIGTERM`.
    ///
    /// # Errors
    /// The process has ended, or the signal does not exist.
    pub fn signal(&mut self, signal: i32) -> Result<(), Error> {
        let what = format!("signal {signal} to process {}", self.id());
        if self.try_wait()?.is_some() {
            return Err(Error::io(what)(io::ErrorKind::NotFound.into()));
        }
        let pid = i32::try_from(self.id()).expect("process ids fit pid_t");
        // SAFETY: kill(2) takes two integers; the child was not reaped above and only this
        // handle reaps it, so the id is still its own.
        match unsafe { libc::kill(pid, signal) } {
            0 => Ok(()),
            _ => Err(Error::io(what)(io::Error::last_os_error())),
        }
    }

    /// SIGKILL, then reaps it.
    pub fn kill(&mut self) {
        // Both fail only if it has been reaped before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
