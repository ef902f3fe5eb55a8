//! What the rest of the daemon learns about workloads.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use policy::model::{Estate, Namespace};
use serde::{Deserialize, Serialize};

/// Label that overrides the group of a container or inventory workload.
pub const GROUP_LABEL: &str = "portcullis.group";
/// Label that names ports of a container: `http=8080/tcp,dns=53/udp`.
pub const PORTS_LABEL: &str = "portcullis.ports";
/// Label that groups are made of, as in Kubernetes.
pub const APP_LABEL: &str = "app";

/// Identity of a workload across restarts and changes of address: `docker:<project>/<service>/<n>`,
/// `docker:<container name>`, `inventory:<namespace>/<name>`, `netns:<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkloadId(pub String);

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who vouches for a workload's name and labels. Earlier wins for the same interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The static inventory.
    Inventory,
    /// Docker, or podman through its compatible socket.
    Docker,
    /// Nobody: a network namespace with an interface here.
    Netns,
}

/// Whether a workload can be protected now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadState {
    /// It has at least one interface here.
    Present,
    /// It is declared, and its interface or namespace is gone; it owns no address meanwhile.
    Absent,
}

/// A host-side interface of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkloadInterface {
    /// Index of the host-side interface, where the programs are attached.
    pub ifindex: u32,
    /// Name of the host-side interface.
    pub name: String,
    /// MAC address of the workload's side; `None` when that side cannot be read.
    pub mac: Option<[u8; 6]>,
    /// Routing domain; 0 is the one of the host.
    pub network: u32,
    /// Inode of the workload's network namespace; `None` when it cannot be found.
    pub netns: Option<u64>,
}

/// A workload on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Identity.
    pub id: WorkloadId,
    /// Who vouches for it.
    pub source: Source,
    /// What policy sees.
    pub spec: policy::model::Workload,
    /// Image of a container, as it was asked for.
    pub image: Option<String>,
    /// Full id of a container.
    pub container_id: Option<String>,
    /// Host-side interfaces, by index.
    pub interfaces: Vec<WorkloadInterface>,
    /// A path that leads into its network namespace, for [`super::listeners::read`].
    pub netns_path: Option<PathBuf>,
    /// Its addresses are neither declared nor readable: the dataplane has to learn them.
    pub learn_addresses: bool,
    /// Whether it can be protected now.
    pub state: WorkloadState,
}

/// Something that keeps a workload, or all of them, from being seen or protected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// What it is about, e.g. `container web`.
    pub subject: String,
    /// What is wrong.
    pub cause: String,
    /// The way out.
    pub hint: String,
}

impl Problem {
    /// All three parts.
    pub fn new(
        subject: impl Into<String>,
        cause: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            subject: subject.into(),
            cause: cause.into(),
            hint: hint.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.subject, self.cause, self.hint)
    }
}

/// The estate at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EstateSnapshot {
    /// Raised with every published change; 0 before the first scan.
    pub revision: u64,
    /// Number of the inventory this snapshot contains, as `replace_inventory` returned it; 0
    /// without one.
    pub inventory_revision: u64,
    /// Workloads, ordered by id.
    pub workloads: Vec<Workload>,
    /// Namespaces of the inventory by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Addresses of this host, without loopback, ordered.
    pub host_addresses: Vec<IpAddr>,
    /// What is wrong, ordered.
    pub problems: Vec<Problem>,
}

impl EstateSnapshot {
    /// What policy is resolved against.
    #[must_use]
    pub fn estate(&self) -> Estate {
        Estate {
            namespaces: self.namespaces.clone(),
            workloads: self.workloads.iter().map(|w| w.spec.clone()).collect(),
            host_addresses: self.host_addresses.clone(),
        }
    }

    /// The workload behind a host-side interface.
    #[must_use]
    pub fn by_ifindex(&self, ifindex: u32) -> Option<&Workload> {
        self.workloads
            .iter()
            .find(|w| w.interfaces.iter().any(|i| i.ifindex == ifindex))
    }

    /// The workload of that identity.
    #[must_use]
    pub fn by_id(&self, id: &str) -> Option<&Workload> {
        self.workloads.iter().find(|w| w.id.0 == id)
    }

    /// The workload that owns an address.
    #[must_use]
    pub fn by_address(&self, address: IpAddr) -> Option<&Workload> {
        self.workloads
            .iter()
            .find(|w| w.spec.addresses.contains(&address))
    }
}
