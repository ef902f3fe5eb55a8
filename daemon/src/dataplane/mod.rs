//! The only user of aya: desired state in, kernel state out, events and counters back.
//!
//! One [`Dataplane`] owns the maps; the controller owns the `Dataplane`. Programs, links and maps
//! are pinned, so the daemon's death changes no verdict and its successor adopts what it finds.

mod attach;
mod detach;
mod endpoints;
mod error;
mod identities;
mod inventory;
mod load;
mod observe;
mod slots;
mod states;
mod sync;
mod sys;
mod wire;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::Ebpf;
use aya::programs::{TestRun, TestRunOptions};
use dataplane_common::Direction;
use dataplane_common::conntrack::CtEntry;
use policy::compile::Compiled;

pub use attach::{AttachError, AttachMethod};
pub use error::DataplaneError;
pub use load::is_bpffs;
pub use observe::{Counters, EventReader, StatRow};

use inventory::Inventory;
use load::{Loaded, Maps, PinPaths};

/// Where the dataplane lives and how large its maps are.
#[derive(Clone, Debug)]
pub struct DataplaneConfig {
    /// Directory on a BPF file system for pins; one per daemon.
    pub bpffs: PathBuf,
    /// Entries of each conntrack map, instead of the built-in size. Applies when maps are created.
    pub conntrack_entries: Option<u32>,
    /// Entries of the policy map, likewise.
    pub policy_entries: Option<u32>,
}

impl DataplaneConfig {
    /// Default sizes.
    #[must_use]
    pub fn new(bpffs: impl Into<PathBuf>) -> Self {
        Self {
            bpffs: bpffs.into(),
            conntrack_entries: None,
            policy_entries: None,
        }
    }
}

/// What the kernel should enforce.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Identities and compiled policies.
    pub compiled: Arc<Compiled>,
    /// Interfaces to enforce them on.
    pub endpoints: Vec<DesiredEndpoint>,
}

/// A workload's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredEndpoint {
    /// Index into [`Compiled::workloads`].
    pub workload: usize,
    /// Host-side interface index.
    pub ifindex: u32,
    /// Its name.
    pub ifname: String,
    /// Routing domain; 0 unless networks overlap.
    pub network: u32,
    /// Addresses that belong to the workload on this interface.
    pub addresses: Vec<IpAddr>,
    /// Accept and report source addresses nobody owns.
    pub learn_addresses: bool,
    /// How long the first packet of a connectionless flow may belong to an older flow, from now.
    /// Only used when the endpoint is new.
    pub unsure_for: std::time::Duration,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Generation now in force on every endpoint.
    pub generation: u32,
    /// Outcome per interface, in the order asked.
    pub endpoints: Vec<AppliedEndpoint>,
    /// Policy map entries in use.
    pub entries_used: u32,
    /// Policy map capacity.
    pub entries_max: u32,
}

/// Outcome for one interface.
#[derive(Clone, Debug)]
pub struct AppliedEndpoint {
    /// Interface index.
    pub ifindex: u32,
    /// Number of this incarnation, as in events and conntrack.
    pub endpoint_id: u32,
    /// Attached, or why not. One bad interface does not stop the others.
    pub result: Result<(), String>,
}

/// A flow as conntrack holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtSnapshot {
    /// Endpoint id.
    pub endpoint: u32,
    /// Workload side.
    pub local: IpAddr,
    /// Other end.
    pub remote: IpAddr,
    /// IANA protocol.
    pub protocol: u8,
    /// Workload's port, host order.
    pub local_port: u16,
    /// Other end's port, host order.
    pub remote_port: u16,
    /// Counters and state.
    pub entry: CtEntry,
}

/// What [`detach`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DetachReport {
    /// Interfaces whose programs were detached.
    pub interfaces: Vec<u32>,
    /// Pinned maps removed.
    pub maps: usize,
}

/// The kernel side, owned by one task.
pub struct Dataplane {
    ebpf: Ebpf,
    maps: Maps,
    paths: PinPaths,
    method: AttachMethod,
    inventory: Inventory,
}

impl std::fmt::Debug for Dataplane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataplane")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

impl Dataplane {
    /// Loads the programs and creates or adopts the pinned maps. Interfaces a former daemon attached
    /// go on enforcing; the first [`Dataplane::apply`] reconciles them.
    ///
    /// # Errors
    /// Missing privileges, no bpffs, a kernel that refuses the object.
    pub fn open(config: &DataplaneConfig) -> Result<(Self, EventReader), DataplaneError> {
        let Loaded {
            ebpf,
            mut maps,
            events,
            paths,
        } = load::load(config)?;
        let method = AttachMethod::detect();
        let mut attached = attach::attached_interfaces(&paths.links)?;
        attached.extend(detach::clsact_interfaces(&paths.maps));
        let inventory = Inventory::adopt(&mut maps, &attached)?;
        Ok((
            Self {
                ebpf,
                maps,
                paths,
                method,
                inventory,
            },
            EventReader::new(events),
        ))
    }

    /// How programs are attached on this kernel.
    #[must_use]
    pub fn attach_method(&self) -> AttachMethod {
        self.method
    }

    /// Makes the kernel enforce `desired` and returns when it does. All or nothing for policy and
    /// identities; interfaces succeed or fail one by one.
    ///
    /// # Errors
    /// A policy that does not fit, or a map operation the kernel refused; what was in force stays.
    pub fn apply(&mut self, desired: &Desired) -> Result<Applied, DataplaneError> {
        sync::apply(self, desired)
    }

    /// Every flow in conntrack.
    ///
    /// # Errors
    /// A map that cannot be read.
    pub fn conntrack(&self) -> Result<Vec<CtSnapshot>, DataplaneError> {
        observe::conntrack(&self.maps)
    }

    /// Removes flows that are dead at `now_ns` (`CLOCK_MONOTONIC`), and those of endpoints that are
    /// gone, and returns their final state.
    ///
    /// # Errors
    /// A map that cannot be read or written.
    pub fn expire(&mut self, now_ns: u64) -> Result<Vec<CtSnapshot>, DataplaneError> {
        observe::expire(&mut self.maps, now_ns, &self.inventory.endpoint_ids())
    }

    /// Packets by verdict, direction and reason; lost events; map fill.
    ///
    /// # Errors
    /// A map that cannot be read.
    pub fn counters(&self) -> Result<Counters, DataplaneError> {
        let mut counters = observe::counters(&self.maps)?;
        counters.policy_entries_used = self.inventory.entries_used();
        counters.policy_entries_max = self.maps.policy_entries_max;
        Ok(counters)
    }

    /// Runs the program of a direction on a frame as if interface 1 (loopback) of the current
    /// network namespace had seen it, `repeat` times (`BPF_PROG_TEST_RUN`). Returns the verdict
    /// (`true`: passes) and the mean duration.
    ///
    /// # Errors
    /// The kernel's refusal, e.g. a frame shorter than an Ethernet header.
    pub fn test_run(
        &mut self,
        direction: Direction,
        frame: &[u8],
        repeat: u32,
    ) -> Result<(bool, std::time::Duration), DataplaneError> {
        let name = attach::program_name(direction);
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat,
            ..TestRunOptions::default()
        };
        let result = load::program(&mut self.ebpf, direction)?
            .test_run(options)
            .map_err(|source| DataplaneError::Program {
                name,
                source: Box::new(source),
            })?;
        Ok((result.return_value as i32 == -1, result.duration))
    }
}

/// Removes every link, filter, map and pin of the daemon that used `bpffs`; needs no running daemon.
/// Without pins there is nothing to do, which is not an error.
///
/// # Errors
/// A pin that cannot be removed.
pub fn detach(bpffs: &Path) -> Result<DetachReport, DataplaneError> {
    detach::detach(&PinPaths::new(bpffs))
}
