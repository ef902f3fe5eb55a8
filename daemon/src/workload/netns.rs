//! Network namespaces: finding them, entering them, reading what is inside.
//!
//! setns(2) moves the calling thread, so everything here that enters a namespace does it on a
//! thread of its own that ends afterwards; no runtime thread ever changes namespace.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};

/// Where `ip netns` and others bind namespaces to names.
pub const NAMED: &str = "/run/netns";
/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";
/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: FsType = FsType(0x6e73_6673);

/// A namespace that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// It cannot be opened.
    #[error("cannot open network namespace {path}: {source}")]
    Open {
        /// Path.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file is no namespace, such as a name whose mount is gone.
    #[error("{path} is not a network namespace; remove it with `ip netns del` or name another")]
    NotNetns {
        /// Path.
        path: PathBuf,
    },
    /// It cannot be entered.
    #[error("cannot enter network namespace {path}: {source}; the daemon needs CAP_SYS_ADMIN")]
    Enter {
        /// Path.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Something inside cannot be read.
    #[error("cannot read {what} in network namespace {path}: {source}")]
    Read {
        /// What.
        what: &'static str,
        /// Path.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// An open network namespace: cannot vanish or turn into another one while it is held.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    inode: u64,
}

impl Netns {
    /// Opens the namespace at `path` (`/run/netns/x`, `/proc/<pid>/ns/net`).
    ///
    /// # Errors
    /// It does not exist, is not readable or is something else.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let error = |source| NetnsError::Open {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(error)?;
        let kind = fstatfs(&file).map_err(|errno| error(errno.into()))?;
        if kind.filesystem_type() != NSFS {
            return Err(NetnsError::NotNetns {
                path: path.to_owned(),
            });
        }
        let inode = file.metadata().map_err(error)?.ino();
        Ok(Self {
            file,
            path: path.to_owned(),
            inode,
        })
    }

    /// Inode: the kernel's identity of the namespace.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` inside, on a thread of its own. Blocks: call it from a blocking context.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
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

    /// Moves the calling thread inside, for good.
    pub(super) fn enter(&self) -> Result<(), NetnsError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Enter {
            path: self.path.clone(),
            source: errno.into(),
        })
    }
}

/// Inode of the calling thread's namespace.
///
/// # Errors
/// `/proc` is not mounted.
pub fn own_inode() -> io::Result<u64> {
    Ok(std::fs::metadata(OWN)?.ino())
}

/// An interface as its own namespace shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InnerInterface {
    /// Name inside.
    pub name: String,
    /// MAC address; `None` for links without one.
    pub mac: Option<[u8; 6]>,
    /// Addresses, IPv6 link-local included, in the kernel's order.
    pub addresses: Vec<IpAddr>,
}

/// Interfaces of the calling thread's namespace by index, loopback left out.
///
/// # Errors
/// The kernel refuses the dump.
pub fn interfaces() -> io::Result<BTreeMap<u32, InnerInterface>> {
    let mut by_index: BTreeMap<u32, InnerInterface> = BTreeMap::new();
    let mut addresses: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for entry in nix::ifaddrs::getifaddrs()? {
        let Some(address) = entry.address else {
            continue;
        };
        // IPv4 entries carry the address label, `eth0:1` for one, instead of the link's name.
        let name = entry.interface_name.split(':').next().unwrap_or_default();
        if let Some(link) = address.as_link_addr() {
            let index = u32::try_from(link.ifindex()).unwrap_or_default();
            let interface = by_index.entry(index).or_default();
            name.clone_into(&mut interface.name);
            interface.mac = link.addr().filter(|mac| *mac != [0; 6]);
        } else if let Some(v4) = address.as_sockaddr_in() {
            addresses
                .entry(name.to_owned())
                .or_default()
                .push(v4.ip().into());
        } else if let Some(v6) = address.as_sockaddr_in6() {
            addresses
                .entry(name.to_owned())
                .or_default()
                .push(v6.ip().into());
        }
    }
    for interface in by_index.values_mut() {
        interface.addresses = addresses.remove(&interface.name).unwrap_or_default();
        interface.addresses.retain(|address| !address.is_loopback());
    }
    by_index.retain(|_, interface| interface.name != "lo");
    Ok(by_index)
}

/// A namespace that may hold a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where to open it.
    pub path: PathBuf,
    /// Name under `/run/netns`.
    pub name: Option<String>,
    /// A process in it, the lowest id.
    pub pid: Option<u32>,
}

/// Every namespace that has a name, a process, or is listed in `extra`, by inode.
///
/// Never the caller's own, and never the one of process 1: when the daemon itself lives in a
/// container, that is the host, not a workload.
///
/// # Errors
/// `/proc` cannot be read.
pub fn candidates(extra: &[PathBuf]) -> io::Result<BTreeMap<u64, Candidate>> {
    let mut found: BTreeMap<u64, Candidate> = BTreeMap::new();
    let mut add = |candidate: Candidate| {
        // Names whose namespace is gone, and processes that end meanwhile, are not candidates.
        let Ok(metadata) = std::fs::metadata(&candidate.path) else {
            return;
        };
        found
            .entry(metadata.ino())
            .and_modify(|known| known.pid = known.pid.or(candidate.pid))
            .or_insert(candidate);
    };
    for entry in std::fs::read_dir(NAMED).into_iter().flatten().flatten() {
        add(Candidate {
            path: entry.path(),
            name: entry.file_name().into_string().ok(),
            pid: None,
        });
    }
    let mut pids: Vec<u32> = std::fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        add(Candidate {
            path: PathBuf::from(format!("/proc/{pid}/ns/net")),
            name: None,
            pid: Some(pid),
        });
    }
    for path in extra {
        add(Candidate {
            path: path.clone(),
            name: None,
            pid: None,
        });
    }
    found.remove(&own_inode()?);
    if let Ok(init) = std::fs::metadata("/proc/1/ns/net") {
        found.remove(&init.ino());
    }
    Ok(found)
}

/// Command name of a process.
#[must_use]
pub fn command_name(pid: u32) -> Option<String> {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(comm.trim().to_owned())
}

/// Whether a process runs in a control group that a container runtime named after a container (64
/// hexadecimal digits).
#[must_use]
pub fn in_container_cgroup(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .is_ok_and(|text| text.lines().any(names_container))
}

fn names_container(line: &str) -> bool {
    line.split(|c: char| !c.is_ascii_hexdigit())
        .any(|word| word.len() == 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_cgroups_are_recognised_in_both_hierarchies() {
        let id = "0123456789abcdef".repeat(4);
        for line in [
            format!("0::/system.slice/docker-{id}.scope"),
            format!("5:devices:/docker/{id}"),
            format!("0::/machine.slice/libpod-{id}.scope/container"),
        ] {
            assert!(names_container(&line), "{line}");
        }
        for line in [
            "0::/system.slice/ssh.service",
            "0::/",
            "0::/user.slice/0123abcd",
        ] {
            assert!(!names_container(line), "{line}");
        }
    }

    #[test]
    fn a_file_that_is_no_namespace_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Netns::open(file.path()).unwrap_err().to_string();
        assert!(error.contains("is not a network namespace"), "{error}");
        let error = Netns::open(Path::new("/run/netns/not-there")).unwrap_err();
        assert!(matches!(error, NetnsError::Open { .. }), "{error}");
    }

    #[test]
    fn the_own_namespace_is_never_a_candidate() {
        let found = candidates(&[PathBuf::from(OWN)]).unwrap();
        assert!(!found.contains_key(&own_inode().unwrap()));
    }
}
