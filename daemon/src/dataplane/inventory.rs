//! Observed state: what this daemon, or one before it, put into the kernel.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aya::maps::MapError;
use dataplane_common::Identity;
use dataplane_common::endpoint::{EndpointConfig, EndpointState};
use dataplane_common::identity::{AddressKey, AddressValue, CidrKey};
use dataplane_common::policy::PolicyKey;
use policy::compile::Program;

use super::DataplaneError;
use super::load::Maps;
use super::observe;
use super::wire::Wire;

/// What is in the kernel, so that a change costs its difference only.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    /// By interface index.
    pub(super) endpoints: BTreeMap<u32, Endpoint>,
    /// Compiled policies by slot.
    pub(super) slots: BTreeMap<u32, Slot>,
    /// Slot of each known program.
    pub(super) by_program: HashMap<Arc<Program>, u32>,
    pub(super) addresses: HashMap<AddressKey, AddressValue>,
    /// By prefix length (of the whole key) and prefix.
    pub(super) prefixes: HashMap<(u32, CidrKey), Identity>,
    pub(super) last_endpoint_id: u32,
    pub(super) generation: u32,
}

/// An interface under enforcement.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) config: EndpointConfig,
    /// Name at the last attach; unknown for what a former daemon attached.
    pub(super) ifname: Option<String>,
    /// Slot of its compiled policy.
    pub(super) policy: u32,
    /// Hooks attached by this daemon (a former daemon's hooks are replaced at the first apply).
    pub(super) attached: bool,
}

/// A compiled policy in the kernel.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// `None` for a policy of a former daemon, whose source is not known.
    pub(super) program: Option<Arc<Program>>,
    pub(super) entries: Vec<PolicyKey>,
}

impl Inventory {
    pub(super) fn entries_used(&self) -> u32 {
        self.slots
            .values()
            .map(|slot| slot.entries.len() as u32)
            .sum()
    }

    /// Reads what a former daemon left. Endpoints without links are forgotten, and with them their
    /// conntrack entries, so that their ids can be given again.
    pub(super) fn adopt(maps: &mut Maps, attached: &[u32]) -> Result<Self, DataplaneError> {
        let mut inventory = Self::default();
        let mut gone = Vec::new();
        for row in maps.endpoints.iter() {
            let (ifindex, Wire(config)) = row.map_err(map_error("read", "endpoints"))?;
            if attached.contains(&ifindex) {
                let state = maps.states.load(config.slot);
                inventory.generation = inventory.generation.max(state.generation());
                inventory.last_endpoint_id = inventory.last_endpoint_id.max(config.id);
                inventory.endpoints.insert(
                    ifindex,
                    Endpoint {
                        config,
                        ifname: None,
                        policy: state.policy(),
                        attached: false,
                    },
                );
            } else {
                gone.push((ifindex, config.slot));
            }
        }
        for (ifindex, slot) in gone {
            maps.states.store(slot, EndpointState::default());
            maps.endpoints
                .remove(&ifindex)
                .map_err(map_error("delete from", "endpoints"))?;
        }
        let live = inventory.endpoint_ids();
        observe::purge(maps, |endpoint| live.contains(&endpoint))?;

        for endpoint in inventory.endpoints.values() {
            inventory.slots.entry(endpoint.policy).or_default();
        }
        let mut orphans = Vec::new();
        for key in maps.policy_entries.keys() {
            let Wire(key) = key.map_err(map_error("read", "policy_entries"))?;
            match inventory.slots.get_mut(&key.policy) {
                Some(slot) => slot.entries.push(key),
                None => orphans.push(key),
            }
        }
        for key in orphans {
            maps.policy_entries
                .remove(&Wire(key))
                .map_err(map_error("delete from", "policy_entries"))?;
        }
        for row in maps.ids.iter() {
            let (Wire(key), Wire(value)) = row.map_err(map_error("read", "ids"))?;
            inventory.addresses.insert(key, value);
        }
        for row in maps.cidrs.iter() {
            let (key, identity) = row.map_err(map_error("read", "cidrs"))?;
            inventory
                .prefixes
                .insert((key.prefix_len(), key.data().0), identity);
        }
        Ok(inventory)
    }

    /// Ids of the endpoints that exist.
    pub(super) fn endpoint_ids(&self) -> BTreeSet<u32> {
        self.endpoints
            .values()
            .map(|endpoint| endpoint.config.id)
            .collect()
    }

    /// State slots nobody uses, lowest first.
    pub(super) fn free_state_slots(&self, max: u32) -> impl Iterator<Item = u32> {
        let used: BTreeSet<u32> = self
            .endpoints
            .values()
            .map(|endpoint| endpoint.config.slot)
            .collect();
        (0..max).filter(move |slot| !used.contains(slot))
    }

    /// Policy slots nobody uses, lowest first. Slot 0 is reserved: a state word of 0 means "no
    /// policy" and drops.
    pub(super) fn free_policy_slots(&self, max: u32) -> impl Iterator<Item = u32> {
        let used: BTreeSet<u32> = self.slots.keys().copied().collect();
        (1..max).filter(move |slot| !used.contains(slot))
    }
}

/// Turns a map's refusal into an error that names the operation and the map.
pub(super) fn map_error(
    operation: &'static str,
    map: &'static str,
) -> impl Fn(MapError) -> DataplaneError {
    move |source| DataplaneError::Map {
        operation,
        map,
        source,
    }
}

/// Deleting what is not there is no error.
pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}
