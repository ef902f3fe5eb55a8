//! Desired − observed -> writes, in an order that no packet can tell from a single instant.
//!
//! 1. Fill the slots of new compiled policies. Nothing points to them.
//! 2. Flip the state words of present endpoints.
//! 3. Write identities, attach new interfaces.
//! 4. Remove what is gone, raise the generation once more if identities changed.
//! 5. Wait for running programs, free the old slots.
//!
//! Steps 1 to 3 are undone if the kernel refuses one of their writes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use aya::maps::MapError;
use aya::maps::lpm_trie;
use dataplane_common::endpoint::{EndpointConfig, EndpointState, flags};
use dataplane_common::identity::{AddressKey, AddressValue, CidrKey};
use dataplane_common::policy::{PolicyKey, PolicyMeta};
use dataplane_common::{Addr16, Direction, Identity, v4_mapped};
use ipnet::IpNet;
use policy::compile::Program;

use super::attach::{self, AttachMethod};
use super::load::{self, Maps, PinPaths};
use super::observe;
use super::states::wait_for_running_programs;
use super::wire::Wire;
use super::{
    Applied, AppliedEndpoint, Dataplane, DataplaneError, Desired, DesiredEndpoint, DetachReport,
};

/// What this daemon put into the kernel, so that a change costs its difference only.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    endpoints: BTreeMap<u32, Endpoint>,
    slots: BTreeMap<u32, Slot>,
    addresses: HashMap<AddressKey, AddressValue>,
    prefixes: HashMap<(u32, CidrKey), Identity>,
    next_endpoint_id: u32,
    generation: u32,
}

#[derive(Debug)]
struct Endpoint {
    config: EndpointConfig,
    ifname: Option<String>,
    policy: u32,
    /// Hooks attached by this daemon (a former daemon's hooks are replaced at the first apply).
    attached: bool,
}

#[derive(Debug)]
struct Slot {
    /// `None` for a policy of a former daemon, whose source is not known.
    program: Option<Program>,
    entries: Vec<PolicyKey>,
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
                inventory.next_endpoint_id = inventory.next_endpoint_id.max(config.id);
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
        let live: BTreeSet<u32> = inventory
            .endpoints
            .values()
            .map(|endpoint| endpoint.config.id)
            .collect();
        observe::purge(maps, |endpoint| live.contains(&endpoint))?;

        for endpoint in inventory.endpoints.values() {
            inventory
                .slots
                .entry(endpoint.policy)
                .or_insert_with(|| Slot {
                    program: None,
                    entries: Vec::new(),
                });
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

    fn free_state_slot(&self, max: u32) -> Option<u32> {
        let used: BTreeSet<u32> = self
            .endpoints
            .values()
            .map(|endpoint| endpoint.config.slot)
            .collect();
        (0..max).find(|slot| !used.contains(slot))
    }

    /// Policy slot 0 is reserved: a state word of 0 means "no policy" and drops.
    fn free_policy_slots(&self, max: u32) -> impl Iterator<Item = u32> {
        let used: BTreeSet<u32> = self.slots.keys().copied().collect();
        (1..max).filter(move |slot| !used.contains(slot))
    }
}

/// Makes the kernel enforce `desired`.
pub(super) fn apply(
    dataplane: &mut Dataplane,
    desired: &Desired,
) -> Result<Applied, DataplaneError> {
    let new_slots = fill_policies(dataplane, desired)?;
    let slot_of_program = |inventory: &Inventory, program: &Program| {
        inventory
            .slots
            .iter()
            .find(|(_, slot)| slot.program.as_ref() == Some(program))
            .map(|(number, _)| *number)
            .expect("fill_policies made a slot for every program")
    };
    let slots: Vec<u32> = desired
        .compiled
        .programs
        .iter()
        .map(|program| slot_of_program(&dataplane.inventory, program))
        .collect();

    // Ids of new endpoints are needed by the address table, so they are assigned first.
    let plan = plan_endpoints(dataplane, desired, &slots);
    let addresses = desired_addresses(desired, &plan);
    let prefixes = desired_prefixes(desired);
    if let Err(error) = check_capacity(dataplane, &addresses, &prefixes) {
        free_slots(dataplane, &new_slots);
        return Err(error);
    }

    let identities_changed =
        dataplane.inventory.addresses != addresses || dataplane.inventory.prefixes != prefixes;
    let old_states: Vec<(u32, EndpointState)> = dataplane
        .inventory
        .endpoints
        .values()
        .map(|endpoint| {
            (
                endpoint.config.slot,
                dataplane.maps.states.load(endpoint.config.slot),
            )
        })
        .collect();

    dataplane.inventory.generation += 1;
    flip(dataplane, &plan);
    if let Err(error) = add_identities(dataplane, &addresses, &prefixes) {
        for (slot, state) in old_states {
            dataplane.maps.states.store(slot, state);
        }
        free_slots(dataplane, &new_slots);
        return Err(error);
    }

    let endpoints = attach_endpoints(dataplane, plan);
    remove_endpoints(dataplane, desired)?;
    remove_identities(dataplane, &addresses, &prefixes)?;
    if identities_changed {
        // Flows judged between the flip and the last identity write are judged again.
        dataplane.inventory.generation += 1;
        restamp(dataplane);
    }
    free_unused_slots(dataplane);
    Ok(Applied {
        generation: dataplane.inventory.generation,
        endpoints,
        entries_used: dataplane.inventory.entries_used(),
        entries_max: dataplane.maps.policy_entries_max,
    })
}

/// Writes every program that is not in the kernel yet into a free slot; returns those slots.
fn fill_policies(dataplane: &mut Dataplane, desired: &Desired) -> Result<Vec<u32>, DataplaneError> {
    let known = |inventory: &Inventory, program: &Program| {
        inventory
            .slots
            .values()
            .any(|slot| slot.program.as_ref() == Some(program))
    };
    let new: Vec<&Program> = desired
        .compiled
        .programs
        .iter()
        .filter(|program| !known(&dataplane.inventory, program))
        .collect();
    let needed: usize = new.iter().map(|program| program.entries.len()).sum();
    let used = dataplane.inventory.entries_used() as usize;
    let available = (dataplane.maps.policy_entries_max as usize).saturating_sub(used);
    if needed > available {
        return Err(DataplaneError::DoesNotFit {
            map: "policy_entries",
            needed,
            available,
        });
    }
    let free: Vec<u32> = dataplane
        .inventory
        .free_policy_slots(dataplane.maps.policies.len())
        .take(new.len())
        .collect();
    if free.len() < new.len() {
        return Err(DataplaneError::DoesNotFit {
            map: "policies",
            needed: new.len(),
            available: free.len(),
        });
    }
    let mut filled = Vec::new();
    for (program, slot) in new.into_iter().zip(free) {
        filled.push(slot);
        if let Err(error) = fill_slot(dataplane, program, slot) {
            free_slots(dataplane, &filled);
            return Err(error);
        }
    }
    Ok(filled)
}

fn fill_slot(
    dataplane: &mut Dataplane,
    program: &Program,
    slot: u32,
) -> Result<(), DataplaneError> {
    let entries = dataplane.inventory.slots.entry(slot).or_insert(Slot {
        program: Some(program.clone()),
        entries: Vec::new(),
    });
    for (key, value) in &program.entries {
        let key = PolicyKey {
            policy: slot,
            ..*key
        };
        dataplane
            .maps
            .policy_entries
            .insert(Wire(key), Wire(*value), 0)
            .map_err(map_error("write", "policy_entries"))?;
        entries.entries.push(key);
    }
    dataplane
        .maps
        .policies
        .set(slot, Wire(program.meta()), 0)
        .map_err(map_error("write", "policies"))
}

/// What one interface is going to be.
struct Plan {
    wanted: DesiredEndpoint,
    config: EndpointConfig,
    policy: u32,
    is_new: bool,
    attach: bool,
    no_slot: bool,
}

fn plan_endpoints(dataplane: &mut Dataplane, desired: &Desired, slots: &[u32]) -> Vec<Plan> {
    let mut plans = Vec::with_capacity(desired.endpoints.len());
    let mut taken: BTreeSet<u32> = BTreeSet::new();
    // A workload keeps its number while any of its interfaces stays.
    let mut owners: HashMap<usize, u32> = HashMap::new();
    for wanted in &desired.endpoints {
        if let Some(present) = dataplane.inventory.endpoints.get(&wanted.ifindex) {
            owners
                .entry(wanted.workload)
                .or_insert(present.config.owner);
        }
    }
    for wanted in &desired.endpoints {
        let workload = desired.compiled.workloads[wanted.workload];
        let endpoint_flags = if wanted.learn_addresses {
            flags::LEARN_ADDRESSES
        } else {
            0
        };
        let policy = slots[workload.program];
        let (config, is_new, attach, no_slot) =
            match dataplane.inventory.endpoints.get(&wanted.ifindex) {
                Some(present) => {
                    let config = EndpointConfig {
                        identity: workload.identity,
                        network: wanted.network,
                        flags: endpoint_flags,
                        ..present.config
                    };
                    let renamed = present.ifname.as_deref() != Some(wanted.ifname.as_str());
                    (config, false, !present.attached || renamed, false)
                }
                None => {
                    let max = dataplane.maps.states.len();
                    let slot = dataplane
                        .inventory
                        .free_state_slot(max)
                        .filter(|slot| !taken.contains(slot))
                        .or_else(|| {
                            let used: BTreeSet<u32> = dataplane
                                .inventory
                                .endpoints
                                .values()
                                .map(|endpoint| endpoint.config.slot)
                                .collect();
                            (0..max).find(|slot| !used.contains(slot) && !taken.contains(slot))
                        });
                    dataplane.inventory.next_endpoint_id += 1;
                    let id = dataplane.inventory.next_endpoint_id;
                    let config = EndpointConfig {
                        id,
                        slot: slot.unwrap_or_default(),
                        identity: workload.identity,
                        network: wanted.network,
                        flags: endpoint_flags,
                        owner: owners.get(&wanted.workload).copied().unwrap_or(id),
                        unsure_until_ns: unsure_until(wanted.unsure_for),
                    };
                    taken.extend(slot);
                    (config, true, true, slot.is_none())
                }
            };
        owners.entry(wanted.workload).or_insert(config.owner);
        plans.push(Plan {
            wanted: wanted.clone(),
            config,
            policy,
            is_new,
            attach,
            no_slot,
        });
    }
    plans
}

fn unsure_until(unsure_for: Duration) -> u64 {
    crate::flow::clock::monotonic_ns().saturating_add(unsure_for.as_nanos() as u64)
}

fn desired_addresses(desired: &Desired, plans: &[Plan]) -> HashMap<AddressKey, AddressValue> {
    let mut addresses = HashMap::new();
    for (addr, identity) in &desired.compiled.addresses {
        let key = AddressKey {
            network: 0,
            addr: addr16(*addr),
        };
        addresses.insert(
            key,
            AddressValue {
                identity: *identity,
                owner: 0,
            },
        );
    }
    for plan in plans {
        for addr in &plan.wanted.addresses {
            let key = AddressKey {
                network: plan.config.network,
                addr: addr16(*addr),
            };
            let identity = desired
                .compiled
                .addresses
                .get(addr)
                .copied()
                .unwrap_or(plan.config.identity);
            addresses.insert(
                key,
                AddressValue {
                    identity,
                    owner: plan.config.owner,
                },
            );
        }
    }
    addresses
}

fn desired_prefixes(desired: &Desired) -> HashMap<(u32, CidrKey), Identity> {
    desired
        .compiled
        .prefixes
        .iter()
        .map(|(prefix, identity)| {
            let bits = match prefix {
                IpNet::V4(v4) => CidrKey::V4_MAPPED_BITS + u32::from(v4.prefix_len()),
                IpNet::V6(v6) => u32::from(v6.prefix_len()),
            };
            let key = CidrKey {
                network_be: 0,
                addr: addr16(prefix.network()),
            };
            ((CidrKey::NETWORK_BITS + bits, key), *identity)
        })
        .collect()
}

fn check_capacity(
    dataplane: &Dataplane,
    addresses: &HashMap<AddressKey, AddressValue>,
    prefixes: &HashMap<(u32, CidrKey), Identity>,
) -> Result<(), DataplaneError> {
    // Old and new coexist while the change is under way.
    let new_addresses = addresses
        .keys()
        .filter(|key| !dataplane.inventory.addresses.contains_key(*key))
        .count();
    let free = dataplane.maps.ids_max as usize - dataplane.inventory.addresses.len();
    if new_addresses > free {
        return Err(DataplaneError::DoesNotFit {
            map: "ids",
            needed: new_addresses,
            available: free,
        });
    }
    let new_prefixes = prefixes
        .keys()
        .filter(|key| !dataplane.inventory.prefixes.contains_key(*key))
        .count();
    let free = dataplane.maps.cidrs_max as usize - dataplane.inventory.prefixes.len();
    if new_prefixes > free {
        return Err(DataplaneError::DoesNotFit {
            map: "cidrs",
            needed: new_prefixes,
            available: free,
        });
    }
    Ok(())
}

/// Points present endpoints to their new policy. From here on the change is in force for them.
fn flip(dataplane: &mut Dataplane, plans: &[Plan]) {
    for plan in plans.iter().filter(|plan| !plan.is_new) {
        let state = EndpointState::new(dataplane.inventory.generation, plan.policy);
        dataplane.maps.states.store(plan.config.slot, state);
    }
}

/// Raises the generation of every endpoint without changing its policy.
fn restamp(dataplane: &Dataplane) {
    for endpoint in dataplane.inventory.endpoints.values() {
        let state = EndpointState::new(dataplane.inventory.generation, endpoint.policy);
        dataplane.maps.states.store(endpoint.config.slot, state);
    }
}

/// Adds and changes identities; on failure restores the ones already changed.
fn add_identities(
    dataplane: &mut Dataplane,
    addresses: &HashMap<AddressKey, AddressValue>,
    prefixes: &HashMap<(u32, CidrKey), Identity>,
) -> Result<(), DataplaneError> {
    let mut changed = Vec::new();
    for (key, value) in addresses {
        if dataplane.inventory.addresses.get(key) == Some(value) {
            continue;
        }
        if let Err(source) = dataplane.maps.ids.insert(Wire(*key), Wire(*value), 0) {
            restore_addresses(dataplane, &changed);
            return Err(DataplaneError::Map {
                operation: "write",
                map: "ids",
                source,
            });
        }
        changed.push(*key);
    }
    for ((bits, key), identity) in prefixes {
        if dataplane.inventory.prefixes.get(&(*bits, *key)) == Some(identity) {
            continue;
        }
        let lpm_key = lpm_trie::Key::new(*bits, Wire(*key));
        if let Err(source) = dataplane.maps.cidrs.insert(&lpm_key, *identity, 0) {
            restore_addresses(dataplane, &changed);
            return Err(DataplaneError::Map {
                operation: "write",
                map: "cidrs",
                source,
            });
        }
    }
    dataplane.inventory.addresses.extend(addresses);
    dataplane.inventory.prefixes.extend(prefixes);
    Ok(())
}

fn restore_addresses(dataplane: &mut Dataplane, changed: &[AddressKey]) {
    for key in changed {
        let result = match dataplane.inventory.addresses.get(key) {
            Some(old) => dataplane.maps.ids.insert(Wire(*key), Wire(*old), 0),
            None => dataplane.maps.ids.remove(&Wire(*key)),
        };
        if let Err(error) = result {
            tracing::error!(%error, "cannot restore an identity after a failed change");
        }
    }
}

fn remove_identities(
    dataplane: &mut Dataplane,
    addresses: &HashMap<AddressKey, AddressValue>,
    prefixes: &HashMap<(u32, CidrKey), Identity>,
) -> Result<(), DataplaneError> {
    let gone: Vec<AddressKey> = dataplane
        .inventory
        .addresses
        .keys()
        .filter(|key| !addresses.contains_key(*key))
        .copied()
        .collect();
    for key in gone {
        absent_is_fine(dataplane.maps.ids.remove(&Wire(key)))
            .map_err(map_error("delete from", "ids"))?;
        dataplane.inventory.addresses.remove(&key);
    }
    let gone: Vec<(u32, CidrKey)> = dataplane
        .inventory
        .prefixes
        .keys()
        .filter(|key| !prefixes.contains_key(*key))
        .copied()
        .collect();
    for (bits, key) in gone {
        absent_is_fine(
            dataplane
                .maps
                .cidrs
                .remove(&lpm_trie::Key::new(bits, Wire(key))),
        )
        .map_err(map_error("delete from", "cidrs"))?;
        dataplane.inventory.prefixes.remove(&(bits, key));
    }
    Ok(())
}

/// Configures and attaches; one bad interface does not stop the others.
fn attach_endpoints(dataplane: &mut Dataplane, plans: Vec<Plan>) -> Vec<AppliedEndpoint> {
    let mut outcomes = Vec::with_capacity(plans.len());
    for plan in plans {
        let result = attach_endpoint(dataplane, &plan);
        outcomes.push(AppliedEndpoint {
            ifindex: plan.wanted.ifindex,
            endpoint_id: plan.config.id,
            result,
        });
    }
    outcomes
}

fn attach_endpoint(dataplane: &mut Dataplane, plan: &Plan) -> Result<(), String> {
    let ifindex = plan.wanted.ifindex;
    if plan.no_slot {
        return Err(format!(
            "all {} endpoint slots are in use; raise the size of BPF map `endpoint_states`",
            dataplane.maps.states.len()
        ));
    }
    let state = EndpointState::new(dataplane.inventory.generation, plan.policy);
    dataplane.maps.states.store(plan.config.slot, state);
    let unchanged = dataplane
        .inventory
        .endpoints
        .get(&ifindex)
        .is_some_and(|present| present.config == plan.config);
    if !unchanged {
        dataplane
            .maps
            .endpoints
            .insert(ifindex, Wire(plan.config), 0)
            .map_err(|error| format!("cannot write BPF map `endpoints`: {error}"))?;
    }
    let mut attached = !plan.attach;
    let mut result = Ok(());
    if plan.attach {
        result = [Direction::Egress, Direction::Ingress]
            .into_iter()
            .try_for_each(|direction| {
                let program = load::program(&mut dataplane.ebpf, direction)
                    .map_err(|error| error.to_string())?;
                attach::attach(
                    program,
                    dataplane.method,
                    &dataplane.paths.links,
                    ifindex,
                    &plan.wanted.ifname,
                    direction,
                )
                .map_err(|error| error.to_string())
            });
        attached = result.is_ok();
    }
    dataplane.inventory.endpoints.insert(
        ifindex,
        Endpoint {
            config: plan.config,
            ifname: Some(plan.wanted.ifname.clone()),
            policy: plan.policy,
            attached,
        },
    );
    result
}

fn remove_endpoints(dataplane: &mut Dataplane, desired: &Desired) -> Result<(), DataplaneError> {
    let wanted: BTreeSet<u32> = desired
        .endpoints
        .iter()
        .map(|endpoint| endpoint.ifindex)
        .collect();
    let gone: Vec<u32> = dataplane
        .inventory
        .endpoints
        .keys()
        .filter(|ifindex| !wanted.contains(ifindex))
        .copied()
        .collect();
    for ifindex in gone {
        let Some(endpoint) = dataplane.inventory.endpoints.remove(&ifindex) else {
            continue;
        };
        attach::detach(
            dataplane.method,
            &dataplane.paths.links,
            ifindex,
            endpoint.ifname.as_deref(),
        );
        absent_is_fine(dataplane.maps.endpoints.remove(&ifindex))
            .map_err(map_error("delete from", "endpoints"))?;
        dataplane
            .maps
            .states
            .store(endpoint.config.slot, EndpointState::default());
    }
    Ok(())
}

/// Frees slots that no endpoint points to, after the last program that may read them has returned.
fn free_unused_slots(dataplane: &mut Dataplane) {
    let used: BTreeSet<u32> = dataplane
        .inventory
        .endpoints
        .values()
        .map(|endpoint| endpoint.policy)
        .collect();
    let unused: Vec<u32> = dataplane
        .inventory
        .slots
        .keys()
        .filter(|slot| !used.contains(slot))
        .copied()
        .collect();
    if !unused.is_empty() {
        wait_for_running_programs();
        free_slots(dataplane, &unused);
    }
}

fn free_slots(dataplane: &mut Dataplane, slots: &[u32]) {
    for slot in slots {
        let empty = PolicyMeta {
            ingress_classes: 0,
            egress_classes: 0,
            ingress_default_rule: 0,
            egress_default_rule: 0,
            ingress_default: 0,
            egress_default: 0,
            mode: 0,
            ready: 0,
            _pad: 0,
        };
        if let Err(error) = dataplane.maps.policies.set(*slot, Wire(empty), 0) {
            tracing::error!(slot, %error, "cannot clear a policy slot");
        }
        let Some(freed) = dataplane.inventory.slots.remove(slot) else {
            continue;
        };
        for key in freed.entries {
            if let Err(error) = absent_is_fine(dataplane.maps.policy_entries.remove(&Wire(key))) {
                tracing::error!(slot, %error, "cannot delete a policy entry");
            }
        }
    }
}

/// Removes every trace of the daemon that used these pins.
pub(super) fn detach(paths: &PinPaths) -> Result<DetachReport, DataplaneError> {
    let mut report = DetachReport::default();
    for ifindex in attach::attached_interfaces(&paths.links)? {
        attach::detach(AttachMethod::Tcx, &paths.links, ifindex, None);
        report.interfaces.push(ifindex);
    }
    for ifindex in clsact_interfaces(&paths.maps) {
        let ifname = interface_name(ifindex);
        attach::detach(
            AttachMethod::Clsact,
            &paths.links,
            ifindex,
            ifname.as_deref(),
        );
        if !report.interfaces.contains(&ifindex) {
            report.interfaces.push(ifindex);
        }
    }
    if let Ok(entries) = std::fs::read_dir(&paths.maps) {
        for entry in entries.flatten() {
            remove_file(&entry.path())?;
            report.maps += 1;
        }
    }
    for directory in [&paths.maps, &paths.links] {
        remove_dir(directory)?;
        if let Some(version) = directory.parent() {
            remove_dir(version)?;
        }
    }
    remove_dir(&paths.root)?;
    Ok(report)
}

/// Interfaces that exist and that the pinned `endpoints` map knows, for kernels whose attachments
/// leave no pin. (A namespace does not give an index out again before 2^31 others.)
pub(super) fn clsact_interfaces(maps: &Path) -> Vec<u32> {
    if AttachMethod::detect() == AttachMethod::Tcx {
        return Vec::new();
    }
    let Ok(data) = aya::maps::MapData::from_pin(maps.join("endpoints")) else {
        return Vec::new();
    };
    let map = aya::maps::Map::HashMap(data);
    match aya::maps::HashMap::<_, u32, Wire<EndpointConfig>>::try_from(map) {
        Ok(map) => map
            .keys()
            .filter_map(Result::ok)
            .filter(|&ifindex| interface_name(ifindex).is_some())
            .collect(),
        Err(_) => Vec::new(),
    }
}

fn interface_name(ifindex: u32) -> Option<String> {
    nix::net::if_::if_indextoname(ifindex)
        .ok()?
        .into_string()
        .ok()
}

fn remove_file(path: &Path) -> Result<(), DataplaneError> {
    std::fs::remove_file(path).map_err(|source| DataplaneError::Pin {
        operation: "remove",
        path: path.to_owned(),
        source,
    })
}

/// Removes an empty directory; one that is missing, or that another daemon still uses, is fine.
fn remove_dir(path: &Path) -> Result<(), DataplaneError> {
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Ok(())
        }
        Err(source) => Err(DataplaneError::Pin {
            operation: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}

fn addr16(addr: IpAddr) -> Addr16 {
    match addr {
        IpAddr::V4(v4) => v4_mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn map_error(operation: &'static str, map: &'static str) -> impl Fn(MapError) -> DataplaneError {
    move |source| DataplaneError::Map {
        operation,
        map,
        source,
    }
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
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
