//! The fast form: identities, prefixes and map entries.

use std::collections::BTreeMap;
use std::net::IpAddr;

use dataplane_common::Identity;
use dataplane_common::policy::{Action, Mode, PolicyKey, PolicyValue};
use ipnet::IpNet;

/// Everything the kernel needs to know, as a value. `PolicyKey::policy` is 0 in every entry; the
/// dataplane assigns slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Exact addresses: workloads and the host.
    pub addresses: BTreeMap<IpAddr, Identity>,
    /// Longest-prefix identities for every CIDR a policy names, and both default routes.
    pub prefixes: BTreeMap<IpNet, Identity>,
    /// For each workload of the estate, in its order: identity and index into `programs`.
    pub workloads: Vec<CompiledWorkload>,
    /// Distinct compiled policies.
    pub programs: Vec<Program>,
}

/// A workload's place in [`Compiled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompiledWorkload {
    /// Identity of the workload itself.
    pub identity: Identity,
    /// Index into [`Compiled::programs`].
    pub program: usize,
}

/// One compiled policy, shared by all workloads it fits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    /// Mode of the workloads.
    pub mode: Mode,
    /// Action and rule id when no ingress entry matches.
    pub ingress_default: (Action, u32),
    /// Action and rule id when no egress entry matches.
    pub egress_default: (Action, u32),
    /// Entries, sorted by key, with `PolicyKey::policy` 0.
    pub entries: Vec<(PolicyKey, PolicyValue)>,
}
