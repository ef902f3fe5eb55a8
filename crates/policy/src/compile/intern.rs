//! Numbers for identities and rules, given once and never again.

use std::collections::{BTreeMap, HashMap};

use dataplane_common::Identity;
use dataplane_common::identity::{FIRST_DYNAMIC, HOST, WORLD};
use dataplane_common::policy::FIRST_RULE_ID;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::CompileError;
use crate::evaluate::RuleRef;
use crate::model::{Labels, NamedPort};

/// Who a number stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityInfo {
    /// The host. With a block: those of its addresses for which this is the smallest block that
    /// policies name.
    Host {
        /// Smallest block around the addresses.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        block: Option<IpNet>,
    },
    /// Any address that is nobody's and in no block that policies name.
    World,
    /// Workloads that no policy can tell apart.
    Workload {
        /// Namespace.
        namespace: String,
        /// Labels.
        labels: Labels,
        /// Named ports, sorted.
        ports: Vec<NamedPort>,
        /// Smallest block that policies name around the addresses.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        block: Option<IpNet>,
    },
    /// Addresses that are nobody's and for which this is the smallest block that policies name.
    Block {
        /// The block.
        cidr: IpNet,
    },
}

/// Gives numbers to identities and rules. Equal things keep their number for the life of the
/// interner, numbers are never reused. Serializes, so that pinned maps and recorded flows keep
/// their meaning across a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredInterner", into = "StoredInterner")]
pub struct Interner {
    identities: Numbers<IdentityInfo>,
    rules: Numbers<RuleRef>,
}

impl Default for Interner {
    fn default() -> Self {
        Self {
            identities: Numbers::new(FIRST_DYNAMIC),
            rules: Numbers::new(FIRST_RULE_ID),
        }
    }
}

impl Interner {
    /// An interner that has given no numbers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of an identity.
    pub(super) fn intern_identity(&mut self, info: IdentityInfo) -> Result<Identity, CompileError> {
        match info {
            IdentityInfo::Host { block: None } => Ok(HOST),
            IdentityInfo::World => Ok(WORLD),
            info => self
                .identities
                .number(info)
                .ok_or(CompileError::IdentitiesExhausted),
        }
    }

    /// The number of a policy's rule.
    pub(super) fn intern_rule(&mut self, rule: &RuleRef) -> Result<u32, CompileError> {
        self.rules
            .number(rule.clone())
            .ok_or(CompileError::RulesExhausted)
    }

    /// Who an identity number stands for; `None` for unknown and unassigned numbers.
    #[must_use]
    pub fn identity(&self, identity: Identity) -> Option<IdentityInfo> {
        match identity {
            HOST => Some(IdentityInfo::Host { block: None }),
            WORLD => Some(IdentityInfo::World),
            number => self.identities.names.get(&number).cloned(),
        }
    }

    /// The rule a number stands for, fixed ids of `dataplane_common::policy::rule_id` included;
    /// `None` for an unassigned number.
    #[must_use]
    pub fn rule(&self, id: u32) -> Option<RuleRef> {
        RuleRef::builtin(id).or_else(|| self.rules.names.get(&id).cloned())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Numbers<T: Eq + std::hash::Hash> {
    next: u32,
    numbers: HashMap<T, u32>,
    names: BTreeMap<u32, T>,
}

impl<T: Clone + Eq + std::hash::Hash> Numbers<T> {
    fn new(first: u32) -> Self {
        Self {
            next: first,
            numbers: HashMap::new(),
            names: BTreeMap::new(),
        }
    }

    fn restore(next: u32, first: u32, names: Vec<(u32, T)>) -> Self {
        let names: BTreeMap<_, _> = names.into_iter().collect();
        let used = names
            .last_key_value()
            .map_or(first, |(last, _)| last.saturating_add(1));
        Self {
            next: next.max(used).max(first),
            numbers: names.iter().map(|(&id, name)| (name.clone(), id)).collect(),
            names,
        }
    }

    fn number(&mut self, name: T) -> Option<u32> {
        if let Some(&number) = self.numbers.get(&name) {
            return Some(number);
        }
        let number = self.next;
        self.next = number.checked_add(1)?;
        self.names.insert(number, name.clone());
        self.numbers.insert(name, number);
        Some(number)
    }
}

#[derive(Serialize, Deserialize)]
struct StoredInterner {
    next_identity: u32,
    identities: Vec<(u32, IdentityInfo)>,
    next_rule: u32,
    rules: Vec<(u32, RuleRef)>,
}

impl From<Interner> for StoredInterner {
    fn from(interner: Interner) -> Self {
        Self {
            next_identity: interner.identities.next,
            identities: interner.identities.names.into_iter().collect(),
            next_rule: interner.rules.next,
            rules: interner.rules.names.into_iter().collect(),
        }
    }
}

impl From<StoredInterner> for Interner {
    fn from(stored: StoredInterner) -> Self {
        Self {
            identities: Numbers::restore(stored.next_identity, FIRST_DYNAMIC, stored.identities),
            rules: Numbers::restore(stored.next_rule, FIRST_RULE_ID, stored.rules),
        }
    }
}
