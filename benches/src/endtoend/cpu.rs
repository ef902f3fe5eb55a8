//! CPU time, to the nanosecond, of a piece of work and of the packets it causes.
//!
//! `/proc/stat` counts ticks of 4 ms and everyone's. Here the thread that sends also receives, on
//! one CPU: the kernel carries a packet over a veth in the sender's context (the softirq runs when
//! the send ends), so the thread's own clock holds the whole path, both stacks and the firewall
//! between. What the kernel puts off goes to that CPU's `ksoftirqd`, whose clock is added.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

/// The CPU everything is measured on.
#[derive(Debug)]
pub(super) struct Cpu {
    number: usize,
    ksoftirqd: PathBuf,
}

impl Cpu {
    /// The highest CPU this process may use: the first ones serve most interrupts.
    pub(super) fn choose() -> Result<Self> {
        // SAFETY: all zeroes is an empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is writable and its size is passed.
        let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
        if result != 0 {
            return Err(io::Error::last_os_error()).context("reading the CPU affinity");
        }
        let number = (0..libc::CPU_SETSIZE as usize)
            .rev()
            // SAFETY: the number is below CPU_SETSIZE.
            .find(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
            .context("no CPU in the affinity mask")?;
        Ok(Self {
            number,
            ksoftirqd: ksoftirqd(number)?,
        })
    }

    /// Its number.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Ties the calling thread to this CPU, ahead of what else wants it.
    pub(super) fn pin(&self) -> io::Result<()> {
        // SAFETY: all zeroes is an empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the number came from a set of this type.
        unsafe { libc::CPU_SET(self.number, &mut set) };
        // SAFETY: `set` is readable and its size is passed; 0 is the calling thread.
        if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: integers only; 0 is the calling thread.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// CPU time `work` takes on the calling thread, with what it left to `ksoftirqd`.
    pub(super) fn time<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<Duration> {
        let deferred = self.deferred()?;
        let own = thread_clock()?;
        work()?;
        let own = thread_clock()?.saturating_sub(own);
        Ok(own + self.deferred()?.saturating_sub(deferred))
    }

    /// CPU time of `ksoftirqd` so far: the first number of its `schedstat`, in nanoseconds.
    fn deferred(&self) -> io::Result<Duration> {
        let text = fs::read_to_string(&self.ksoftirqd)?;
        let first = text.split_whitespace().next();
        let nanoseconds = first.and_then(|word| word.parse().ok());
        nanoseconds
            .map(Duration::from_nanos)
            .ok_or_else(|| io::Error::other(format!("no number in {}", self.ksoftirqd.display())))
    }
}

fn ksoftirqd(cpu: usize) -> Result<PathBuf> {
    let name = format!("ksoftirqd/{cpu}");
    fs::read_dir("/proc")
        .context("reading /proc")?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        })
        .map(|path| path.join("schedstat"))
        .with_context(|| format!("no thread {name}: run the bench in the initial PID namespace"))
}

fn thread_clock() -> io::Result<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is writable.
    match unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } {
        0 => Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32)),
        _ => Err(io::Error::last_os_error()),
    }
}
