//! The fast form: identities, prefixes and map entries.
//!
//! The compiler resolves selectors over *distinct* workloads (namespace, labels, named ports), cuts
//! the address space along the CIDR blocks that policies name, gives every piece an identity, and
//! writes each rule as exact-match entries over identities and port prefixes. [`lookup`] then does
//! what the kernel does.

mod address;
mod intern;
mod lookup;
mod peer;
mod program;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use dataplane_common::policy::{Action, Mode, PolicyKey, PolicyMeta, PolicyValue};
use dataplane_common::{Direction, Identity};
use ipnet::IpNet;

use crate::model::{Estate, Modes, Unselected};
use crate::parse::PolicySet;
use crate::resolve::resolve;

pub use intern::{IdentityInfo, Interner};
pub use lookup::{identity_of, lookup};

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

impl Compiled {
    /// Number of entries of all programs: what the policy map must hold.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.programs
            .iter()
            .map(|program| program.entries.len())
            .sum()
    }
}

/// A workload's place in [`Compiled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompiledWorkload {
    /// Identity of the workload's first address. Another address has another identity when a
    /// policy's CIDR block contains only one of them; see [`Compiled::addresses`].
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

impl Program {
    /// Bit `n` set: entries of class `n` of the direction exist (see [`dataplane_common::policy::class_index`]).
    #[must_use]
    pub fn classes(&self, direction: Direction) -> u64 {
        let base = dataplane_common::policy::class_byte(direction, 0);
        self.entries
            .iter()
            .filter(|(key, _)| key.class & dataplane_common::policy::CLASS_EGRESS_BIT == base)
            .fold(0, |classes, (key, _)| classes | 1 << (key.class ^ base))
    }

    /// The kernel's summary of this program, marked complete.
    #[must_use]
    pub fn meta(&self) -> PolicyMeta {
        PolicyMeta {
            ingress_classes: self.classes(Direction::Ingress),
            egress_classes: self.classes(Direction::Egress),
            ingress_default_rule: self.ingress_default.1,
            egress_default_rule: self.egress_default.1,
            ingress_default: self.ingress_default.0 as u8,
            egress_default: self.egress_default.0 as u8,
            mode: self.mode as u8,
            ready: 1,
            _pad: 0,
        }
    }

    /// Action and rule id when no entry of the direction matches.
    #[must_use]
    pub const fn default_of(&self, direction: Direction) -> (Action, u32) {
        match direction {
            Direction::Ingress => self.ingress_default,
            Direction::Egress => self.egress_default,
        }
    }
}

/// Precedence levels, the upper 30 bits of [`PolicyValue::precedence`]. The gaps are for tiers.
pub mod level {
    /// Rules of NetworkPolicy: allows only, so one level.
    pub const NETWORK_POLICY: u32 = 1 << 16;
    /// What no policy can take away.
    pub const BUILTIN: u32 = 1 << 28;
}

/// `level << 2 | action`.
const fn precedence(level: u32, action: Action) -> u32 {
    level << 2 | action as u32
}

/// Policies that cannot be compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// All 2^32 identity numbers have been given away.
    #[error("identity numbers are used up; detach and start with an empty state directory")]
    IdentitiesExhausted,
    /// All 2^32 rule numbers have been given away.
    #[error("rule numbers are used up; detach and start with an empty state directory")]
    RulesExhausted,
}

/// Compiles policies for every workload of the estate.
///
/// Traffic of a workload with itself is not in the entries (replicas share a program, so an entry
/// could not tell a workload from its sibling); the caller allows it by comparing endpoints, as
/// [`crate::evaluate`] does. In discover mode programs carry their rules too, so that a change of
/// mode changes nothing else.
///
/// # Errors
///
/// When the interner has no numbers left.
pub fn compile(
    estate: &Estate,
    policies: &PolicySet,
    modes: &Modes,
    unselected: Unselected,
    interner: &mut Interner,
) -> Result<Compiled, CompileError> {
    compile_after(
        &Compiled::default(),
        estate,
        policies,
        modes,
        unselected,
        interner,
    )
}

/// [`compile`], for taking effect after `in_force`.
///
/// Labels that change and blocks that policies newly name give addresses other identities. Programs
/// take effect before the addresses do, so they also know the identities that only `in_force` still
/// assigns, and judge them by what these stand for: a workload that changes its labels has its old
/// labels until its address moves, instead of being unknown. The result differs from [`compile`]'s
/// in those entries only, and in nothing when no identity goes out of use. The interner must be the
/// one `in_force` was compiled with.
///
/// # Errors
///
/// As [`compile`].
pub fn compile_after(
    in_force: &Compiled,
    estate: &Estate,
    policies: &PolicySet,
    modes: &Modes,
    unselected: Unselected,
    interner: &mut Interner,
) -> Result<Compiled, CompileError> {
    let policies = resolve(policies);
    let mut space = address::AddressSpace::new(estate, &policies, interner)?;
    space.keep(in_force, interner);
    let peers = peer::PeerIndex::new(estate, &space);
    let mut compiler = program::Compiler::new(&policies, &space, peers, unselected, interner)?;

    let mut programs = Vec::new();
    let mut known: HashMap<Program, usize> = HashMap::new();
    let mut by_profile: HashMap<(usize, Mode), usize> = HashMap::new();
    let mut workloads = Vec::with_capacity(estate.workloads.len());
    for (index, workload) in estate.workloads.iter().enumerate() {
        let profile = space.workload_profiles[index];
        let mode = modes.of(&workload.group);
        let program = *by_profile.entry((profile, mode)).or_insert_with(|| {
            let program = compiler.program(profile, mode);
            *known.entry(program).or_insert_with_key(|program| {
                programs.push(program.clone());
                programs.len() - 1
            })
        });
        workloads.push(CompiledWorkload {
            identity: space.primary_identities[index],
            program,
        });
    }
    Ok(Compiled {
        addresses: space.addresses,
        prefixes: space.prefixes,
        workloads,
        programs,
    })
}
