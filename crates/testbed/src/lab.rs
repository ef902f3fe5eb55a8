//! The lab: a host namespace, bridges and workloads, all removed together.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, InterfaceAddress, Netns, Workload, WorkloadBuilder, ip_batch};

/// `IFNAMSIZ` without the terminating zero.
pub(crate) const INTERFACE_NAME_MAX: usize = 15;

/// MAC address of every bridge. Without one of its own a bridge takes the lowest of its ports' and
/// changes it when a port is added, and neighbours that know the old one go unanswered for half a
/// minute.
const BRIDGE_MAC: &str = "02:00:00:00:00:01";

/// Which namespace plays the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabKind {
    /// A namespace of the lab's own. Nothing outside it is touched.
    OwnHost,
    /// The namespace this process runs in. Interface names carry the lab's tag.
    RealHost,
}

/// A bridge on the lab's host; its own addresses are the gateways of the workloads on it.
#[derive(Clone, Debug)]
pub struct Bridge {
    /// Interface name on the host.
    pub name: String,
    /// IPv4 address and prefix of the bridge.
    pub v4: Option<InterfaceAddress>,
    /// IPv6 address and prefix of the bridge.
    pub v6: Option<InterfaceAddress>,
}

/// What exists and must be removed.
#[derive(Debug, Default)]
struct Made {
    host_links: BTreeSet<String>,
    netnses: BTreeSet<String>,
}

/// A laboratory network. Everything in it is removed on drop; with `TESTBED_KEEP=1` in the
/// environment a lab of a panicking test stays, and says how to enter it.
#[derive(Debug)]
pub struct Lab {
    tag: String,
    kind: LabKind,
    host: Netns,
    made: Mutex<Made>,
}

impl Lab {
    /// A lab with a host namespace of its own. `prefix` begins the names of its namespaces.
    ///
    /// # Errors
    /// Lack of privilege, a missing `ip`, or a bad prefix.
    pub fn new(prefix: &str) -> Result<Self, Error> {
        Self::with_kind(prefix, LabKind::OwnHost)
    }

    /// A lab of the given kind.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn with_kind(prefix: &str, kind: LabKind) -> Result<Self, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        check_name(prefix, "a lab", 32)?;
        sweep(prefix);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{prefix}-{}-{number}", std::process::id());
        let mut lab = Self {
            host: Netns::of_this_process(),
            kind,
            made: Mutex::default(),
            tag,
        };
        if kind == LabKind::OwnHost {
            lab.host = lab.netns("host")?;
            for key in [
                "net/ipv4/ip_forward",
                "net/ipv6/conf/all/forwarding",
                "net/ipv6/conf/default/forwarding",
            ] {
                lab.host.sysctl(key, "1")?;
            }
        }
        Ok(lab)
    }

    /// Which namespace plays the host.
    #[must_use]
    pub fn kind(&self) -> LabKind {
        self.kind
    }

    /// The host namespace: run the daemon under test here.
    #[must_use]
    pub fn host(&self) -> &Netns {
        &self.host
    }

    /// A further empty namespace, `lo` up, named after `name`.
    ///
    /// # Errors
    /// The name is taken in this lab, or the namespace cannot be made.
    pub fn netns(&self, name: &str) -> Result<Netns, Error> {
        check_name(name, "a workload", 64)?;
        let full = format!("{}-{name}", self.tag);
        if !self.made().netnses.insert(full.clone()) {
            return Err(Error::Name {
                name: name.to_owned(),
                what: "a second workload",
                reason: "it is taken in this lab",
            });
        }
        Netns::create(&full)
    }

    /// Makes a bridge with the addresses `v4` and `v6` (`10.0.0.1/24`, `fd00::1/64`; an empty text
    /// means none), which become the gateways of workloads on it.
    ///
    /// # Errors
    /// Bad names or addresses, or `ip` refuses.
    pub fn bridge(&self, name: &str, v4: &str, v6: &str) -> Result<Bridge, Error> {
        let parse = |text: &str| match text {
            "" => Ok(None),
            text => text.parse::<InterfaceAddress>().map(Some),
        };
        let bridge = Bridge {
            name: self.host_link_name(name)?,
            v4: parse(v4)?,
            v6: parse(v6)?,
        };
        let link = &bridge.name;
        let add = format!(
            "link add name {link} address {BRIDGE_MAC} type bridge stp_state 0 forward_delay 0"
        );
        ip_batch(&self.host, &[add])?;
        no_dad(&self.host, link)?;
        let mut lines = Vec::new();
        for address in [bridge.v4, bridge.v6].into_iter().flatten() {
            lines.push(address_line(link, address));
        }
        lines.push(format!("link set dev {link} up"));
        ip_batch(&self.host, &lines)?;
        Ok(bridge)
    }

    /// Begins a workload.
    pub fn workload<'lab>(&'lab self, name: &str) -> WorkloadBuilder<'lab> {
        WorkloadBuilder::new(self, name)
    }

    /// Removes a workload: its veths at once, then its namespace. The name is free again.
    ///
    /// # Errors
    /// It is gone already.
    pub fn remove(&self, workload: &Workload) -> Result<(), Error> {
        for interface in &workload.interfaces {
            self.remove_host_link(&interface.host_name)?;
        }
        self.made()
            .netnses
            .remove(workload.netns.name().unwrap_or_default());
        workload.netns.remove()
    }

    /// Removes a host-side interface of this lab.
    ///
    /// # Errors
    /// It is gone already.
    pub fn remove_host_link(&self, name: &str) -> Result<(), Error> {
        self.made().host_links.remove(name);
        ip_batch(&self.host, &[format!("link del dev {name}")])
    }

    /// How to enter the namespaces, one command a line.
    #[must_use]
    pub fn how_to_enter(&self) -> String {
        self.made()
            .netnses
            .iter()
            .map(|name| format!("  ip netns exec {name} sh\n"))
            .collect()
    }

    /// Removes everything now and reports the first failure, which drop cannot.
    ///
    /// # Errors
    /// Something of the lab cannot be removed.
    pub fn destroy(self) -> Result<(), Error> {
        self.tear_down()
    }

    fn tear_down(&self) -> Result<(), Error> {
        let made = std::mem::take(&mut *self.made());
        let mut first = Ok(());
        let mut keep = |result: Result<(), Error>| {
            if first.is_ok() {
                first = result;
            }
        };
        for name in &made.host_links {
            // Deleted by the code under test, perhaps, so only what still exists.
            if ip_batch(&self.host, &[format!("link show dev {name}")]).is_ok() {
                keep(ip_batch(&self.host, &[format!("link del dev {name}")]));
            }
        }
        for name in &made.netnses {
            let netns = Netns::named(name);
            if netns.path().exists() {
                keep(netns.remove());
            }
        }
        first
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        // A panic elsewhere must not keep the lab from being cleaned up.
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host-side interface name for `wish`: itself in an own host, tagged in the real one.
    pub(crate) fn host_link_name(&self, wish: &str) -> Result<String, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = match self.kind {
            LabKind::OwnHost => wish.to_owned(),
            LabKind::RealHost => {
                let count = COUNT.fetch_add(1, Ordering::Relaxed);
                let unique = format!("{:x}x{count:x}", std::process::id());
                let room = INTERFACE_NAME_MAX.saturating_sub(unique.len());
                format!("{}{unique}", wish.chars().take(room).collect::<String>())
            }
        };
        check_name(&name, "an interface", INTERFACE_NAME_MAX)?;
        if self.made().host_links.insert(name.clone()) {
            Ok(name)
        } else {
            Err(Error::Name {
                name,
                what: "a second interface",
                reason: "it is taken in this lab",
            })
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut stderr = std::io::stderr();
        if std::thread::panicking() && !self.made().netnses.is_empty() {
            let enter = self.how_to_enter();
            if std::env::var_os("TESTBED_KEEP").is_some_and(|value| value == "1") {
                let _ = write!(stderr, "lab {} is kept; enter it with\n{enter}", self.tag);
                return;
            }
            let _ = write!(
                stderr,
                "lab {} is removed; with TESTBED_KEEP=1 it would stay for\n{enter}",
                self.tag
            );
        }
        if let Err(error) = self.tear_down() {
            let _ = writeln!(stderr, "lab {}: left something behind: {error}", self.tag);
        }
    }
}

/// Switches duplicate address detection off before the link comes up: until it ends, a link-local
/// address cannot even be the source of a neighbour solicitation, and forwarding stalls.
pub(crate) fn no_dad(netns: &Netns, link: &str) -> Result<(), Error> {
    netns.sysctl(&format!("net/ipv6/conf/{link}/accept_dad"), "0")
}

pub(crate) fn address_line(link: &str, address: InterfaceAddress) -> String {
    let nodad = if address.address.is_ipv6() {
        " nodad"
    } else {
        ""
    };
    format!("addr add {address} dev {link}{nodad}")
}

fn check_name(name: &str, what: &'static str, max: usize) -> Result<(), Error> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > max {
        "it is too long"
    } else if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        || name.starts_with(['-', '.'])
    {
        "only letters, digits, `-`, `_` and `.` may be in it"
    } else {
        return Ok(());
    };
    Err(Error::Name {
        name: name.to_owned(),
        what,
        reason,
    })
}

/// Removes namespaces of earlier labs of this prefix whose process is gone (killed, say).
fn sweep(prefix: &str) {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let owner = name
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix('-'))
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another process may be sweeping too; who comes second has nothing to do.
            let _ = Netns::named(name).remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_or_ip_would_misread_are_refused() {
        for bad in ["", "a/b", "-x", "a b", "veth-much-too-long"] {
            assert!(check_name(bad, "an interface", INTERFACE_NAME_MAX).is_err());
        }
        assert!(check_name("v-web_1.a", "an interface", INTERFACE_NAME_MAX).is_ok());
    }
}
