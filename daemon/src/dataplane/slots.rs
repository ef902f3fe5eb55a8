//! Compiled policies: fill a free slot completely, free it when nothing points to it.

use std::collections::BTreeSet;
use std::sync::Arc;

use dataplane_common::policy::{PolicyKey, PolicyMeta};
use policy::compile::Program;

use super::inventory::{Slot, absent_is_fine, map_error};
use super::states::wait_for_running_programs;
use super::wire::Wire;
use super::{Dataplane, DataplaneError, Desired};

/// Slots of the desired programs, in their order, and which of them are new.
pub(super) struct Filled {
    pub(super) slots: Vec<u32>,
    pub(super) new: Vec<u32>,
}

/// Writes every program that is not in the kernel yet into a free slot. Nothing points to it yet, so
/// nothing is in force; on an error nothing has changed.
pub(super) fn fill(dataplane: &mut Dataplane, desired: &Desired) -> Result<Filled, DataplaneError> {
    let inventory = &dataplane.inventory;
    let missing: Vec<&Program> = desired
        .compiled
        .programs
        .iter()
        .filter(|program| !inventory.by_program.contains_key(*program))
        .collect();
    let needed: usize = missing.iter().map(|program| program.entries.len()).sum();
    let used = inventory.entries_used() as usize;
    let available = (dataplane.maps.policy_entries_max as usize).saturating_sub(used);
    if needed > available {
        return Err(DataplaneError::DoesNotFit {
            map: "policy_entries",
            needed,
            available,
        });
    }
    let free: Vec<u32> = inventory
        .free_policy_slots(dataplane.maps.policies.len())
        .take(missing.len())
        .collect();
    if free.len() < missing.len() {
        return Err(DataplaneError::DoesNotFit {
            map: "policies",
            needed: missing.len(),
            available: free.len(),
        });
    }
    let mut new = Vec::with_capacity(free.len());
    for (program, slot) in missing.into_iter().zip(free) {
        new.push(slot);
        if let Err(error) = fill_slot(dataplane, program, slot) {
            release(dataplane, &new);
            return Err(error);
        }
    }
    let slots = desired
        .compiled
        .programs
        .iter()
        .map(|program| dataplane.inventory.by_program[program]);
    Ok(Filled {
        slots: slots.collect(),
        new,
    })
}

fn fill_slot(
    dataplane: &mut Dataplane,
    program: &Program,
    slot: u32,
) -> Result<(), DataplaneError> {
    let known = Arc::new(program.clone());
    dataplane.inventory.by_program.insert(known.clone(), slot);
    let record = dataplane.inventory.slots.entry(slot).or_default();
    record.program = Some(known);
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
        record.entries.push(key);
    }
    dataplane
        .maps
        .policies
        .set(slot, Wire(program.meta()), 0)
        .map_err(map_error("write", "policies"))
}

/// Frees slots that no endpoint points to, after the last program that may read them has returned.
pub(super) fn release_unused(dataplane: &mut Dataplane) {
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
        release(dataplane, &unused);
    }
}

/// Empties slots. An entry that cannot be deleted stays behind, out of force, until the next start.
pub(super) fn release(dataplane: &mut Dataplane, slots: &[u32]) {
    const EMPTY: PolicyMeta = PolicyMeta {
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
    for slot in slots {
        if let Err(error) = dataplane.maps.policies.set(*slot, Wire(EMPTY), 0) {
            tracing::error!(slot, %error, "cannot clear a policy slot");
        }
        let Some(Slot { program, entries }) = dataplane.inventory.slots.remove(slot) else {
            continue;
        };
        if let Some(program) = program {
            dataplane.inventory.by_program.remove(&program);
        }
        for key in entries {
            if let Err(error) = absent_is_fine(dataplane.maps.policy_entries.remove(&Wire(key))) {
                tracing::error!(slot, %error, "cannot delete a policy entry");
            }
        }
    }
}
