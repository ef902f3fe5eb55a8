//! What is in force, as an immutable snapshot.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane_common::Identity;
use dataplane_common::policy::rule_id;
use jiff::Timestamp;
use policy::compile::{Compiled, Interner};
use policy::evaluate::RuleRef;
use policy::model::{Estate, Mode, Modes, Unselected, Workload};
use policy::parse::PolicySet;

use crate::dataplane::{Applied, DesiredEndpoint};
use crate::workload::model::EstateSnapshot;

/// An interface and what became of attaching to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointStatus {
    /// Index into the estate's workloads.
    pub workload: usize,
    /// Interface index.
    pub ifindex: u32,
    /// Interface name.
    pub ifname: String,
    /// Number in events and conntrack.
    pub id: u32,
    /// Enforced, or why not.
    pub result: Result<(), String>,
}

/// A mode change that is taken back unless confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingChange {
    /// Group; `None` for all.
    pub group: Option<String>,
    /// The mode in force until then.
    pub mode: Mode,
    /// When it is taken back.
    pub revert_at: Timestamp,
}

/// Everything in force at one moment.
#[derive(Clone, Debug)]
pub struct ControlState {
    /// Generation in force in the kernel; 0 before the first state is.
    pub generation: u32,
    /// Rule numbers of older generations are not known: a daemon with another state directory gave
    /// them.
    pub first_generation: u32,
    /// Policies.
    pub policies: PolicySet,
    /// Modes.
    pub modes: Modes,
    /// What protected workloads get where no policy selects them.
    pub unselected: Unselected,
    /// Workloads, and where they are attached.
    pub snapshot: Arc<EstateSnapshot>,
    /// The same as policy sees it, in the same order.
    pub estate: Arc<Estate>,
    /// Compiled policies and identities.
    pub compiled: Arc<Compiled>,
    /// Numbers of identities and rules.
    pub interner: Arc<Interner>,
    /// Interfaces.
    pub endpoints: Vec<EndpointStatus>,
    /// Policy map entries used and available.
    pub policy_entries: (u32, u32),
    /// A mode change that waits for confirmation.
    pub pending: Option<PendingChange>,
    by_endpoint: HashMap<u32, usize>,
    by_address: HashMap<IpAddr, usize>,
}

/// The parts of a [`ControlState`] that are not derived.
pub(super) struct Parts {
    pub(super) first_generation: u32,
    pub(super) policies: PolicySet,
    pub(super) modes: Modes,
    pub(super) unselected: Unselected,
    pub(super) snapshot: Arc<EstateSnapshot>,
    pub(super) estate: Arc<Estate>,
    pub(super) compiled: Arc<Compiled>,
    pub(super) interner: Arc<Interner>,
    pub(super) pending: Option<PendingChange>,
}

impl ControlState {
    /// Nothing is in force yet.
    #[must_use]
    pub fn empty(modes: Modes, unselected: Unselected) -> Self {
        Self::new(
            Parts {
                first_generation: 0,
                policies: PolicySet::new(),
                modes,
                unselected,
                snapshot: Arc::default(),
                estate: Arc::default(),
                compiled: Arc::default(),
                interner: Arc::default(),
                pending: None,
            },
            &[],
            &Applied {
                generation: 0,
                endpoints: Vec::new(),
                entries_used: 0,
                entries_max: 0,
            },
        )
    }

    pub(super) fn new(parts: Parts, desired: &[DesiredEndpoint], applied: &Applied) -> Self {
        let endpoints: Vec<EndpointStatus> = desired
            .iter()
            .zip(&applied.endpoints)
            .map(|(desired, applied)| EndpointStatus {
                workload: desired.workload,
                ifindex: desired.ifindex,
                ifname: desired.ifname.clone(),
                id: applied.endpoint_id,
                result: applied.result.clone(),
            })
            .collect();
        let by_endpoint = endpoints
            .iter()
            .map(|endpoint| (endpoint.id, endpoint.workload))
            .collect();
        let mut by_address = HashMap::new();
        for (index, workload) in parts.estate.workloads.iter().enumerate() {
            for &address in &workload.addresses {
                by_address.entry(address).or_insert(index);
            }
        }
        Self {
            generation: applied.generation,
            first_generation: parts.first_generation,
            policies: parts.policies,
            modes: parts.modes,
            unselected: parts.unselected,
            snapshot: parts.snapshot,
            estate: parts.estate,
            compiled: parts.compiled,
            interner: parts.interner,
            endpoints,
            policy_entries: (applied.entries_used, applied.entries_max),
            pending: parts.pending,
            by_endpoint,
            by_address,
        }
    }

    /// The workload behind an endpoint.
    #[must_use]
    pub fn workload_of_endpoint(&self, endpoint: u32) -> Option<&Workload> {
        let index = *self.by_endpoint.get(&endpoint)?;
        self.estate.workloads.get(index)
    }

    /// The workload that has an address.
    #[must_use]
    pub fn workload_of_address(&self, address: IpAddr) -> Option<&Workload> {
        let index = *self.by_address.get(&address)?;
        self.estate.workloads.get(index)
    }

    /// Identity of the workload behind an endpoint.
    #[must_use]
    pub fn identity_of_endpoint(&self, endpoint: u32) -> Option<Identity> {
        let index = *self.by_endpoint.get(&endpoint)?;
        Some(self.compiled.workloads.get(index)?.identity)
    }

    /// The rule with this number, judged under `generation`. `None` when no rule was consulted, or
    /// when a former daemon gave the number.
    #[must_use]
    pub fn rule(&self, id: u32, generation: u32) -> Option<RuleRef> {
        if id == rule_id::NONE {
            return None;
        }
        if let Some(builtin) = RuleRef::builtin(id) {
            return Some(builtin);
        }
        if generation < self.first_generation {
            return None;
        }
        self.interner.rule(id)
    }

    /// Interfaces on which nothing is enforced, with the workload and the reason.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.endpoints
            .iter()
            .filter_map(|endpoint| {
                let reason = endpoint.result.as_ref().err()?;
                let ifname = &endpoint.ifname;
                Some(match self.estate.workloads.get(endpoint.workload) {
                    Some(workload) => {
                        format!(
                            "{}/{} on {ifname}: {reason}",
                            workload.namespace, workload.name
                        )
                    }
                    None => format!("{ifname}: {reason}"),
                })
            })
            .collect()
    }
}
