//! Interfaces: plan what each becomes, flip its state word, attach, remove.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use dataplane_common::Direction;
use dataplane_common::endpoint::{EndpointConfig, EndpointState, flags};

use super::attach;
use super::inventory::{Endpoint, absent_is_fine, map_error};
use super::load;
use super::wire::Wire;
use super::{AppliedEndpoint, Dataplane, DataplaneError, Desired, DesiredEndpoint};

/// What one interface is going to be.
pub(super) struct Plan {
    pub(super) wanted: DesiredEndpoint,
    pub(super) config: EndpointConfig,
    /// Slot of its compiled policy.
    policy: u32,
    /// Not under enforcement yet.
    is_new: bool,
    /// Programs must be attached or replaced.
    attach: bool,
    /// All state slots are in use.
    no_slot: bool,
}

/// Plans every desired interface; `slots` are those of the compiled programs, in order.
pub(super) fn plan(dataplane: &mut Dataplane, desired: &Desired, slots: &[u32]) -> Vec<Plan> {
    // A workload keeps its number while any of its interfaces stays.
    let mut owners: HashMap<usize, u32> = HashMap::new();
    for wanted in &desired.endpoints {
        if let Some(present) = dataplane.inventory.endpoints.get(&wanted.ifindex) {
            owners
                .entry(wanted.workload)
                .or_insert(present.config.owner);
        }
    }
    let max = dataplane.maps.states.len();
    let mut free_slots = dataplane.inventory.free_state_slots(max);
    let mut last_id = dataplane.inventory.last_endpoint_id;
    let mut plans = Vec::with_capacity(desired.endpoints.len());
    for wanted in &desired.endpoints {
        let workload = desired.compiled.workloads[wanted.workload];
        let present = dataplane.inventory.endpoints.get(&wanted.ifindex);
        let endpoint_flags = if wanted.learn_addresses {
            flags::LEARN_ADDRESSES
        } else {
            0
        };
        let mut no_slot = false;
        let identified = match present {
            Some(present) => present.config,
            None => {
                let slot = free_slots.next();
                no_slot = slot.is_none();
                last_id += 1;
                EndpointConfig {
                    id: last_id,
                    slot: slot.unwrap_or_default(),
                    identity: workload.identity,
                    network: wanted.network,
                    flags: endpoint_flags,
                    owner: owners.get(&wanted.workload).copied().unwrap_or(last_id),
                    unsure_until_ns: unsure_until(wanted.unsure_for),
                }
            }
        };
        let config = EndpointConfig {
            identity: workload.identity,
            network: wanted.network,
            flags: endpoint_flags,
            ..identified
        };
        owners.entry(wanted.workload).or_insert(config.owner);
        let current = present.is_some_and(|present| {
            present.attached && present.ifname.as_deref() == Some(wanted.ifname.as_str())
        });
        plans.push(Plan {
            wanted: wanted.clone(),
            config,
            policy: slots[workload.program],
            is_new: present.is_none(),
            attach: !current,
            no_slot,
        });
    }
    drop(free_slots);
    dataplane.inventory.last_endpoint_id = last_id;
    plans
}

fn unsure_until(unsure_for: Duration) -> u64 {
    crate::flow::clock::monotonic_ns().saturating_add(unsure_for.as_nanos() as u64)
}

/// Points present endpoints to their new policy. From here on the change is in force for them.
pub(super) fn flip(dataplane: &Dataplane, plans: &[Plan]) {
    for plan in plans.iter().filter(|plan| !plan.is_new) {
        let state = EndpointState::new(dataplane.inventory.generation, plan.policy);
        dataplane.maps.states.store(plan.config.slot, state);
    }
}

/// The state words of present endpoints, for taking a flip back.
pub(super) fn states(dataplane: &Dataplane) -> Vec<(u32, EndpointState)> {
    let slots = dataplane
        .inventory
        .endpoints
        .values()
        .map(|endpoint| endpoint.config.slot);
    slots
        .map(|slot| (slot, dataplane.maps.states.load(slot)))
        .collect()
}

/// Raises the generation of every endpoint without changing its policy.
pub(super) fn restamp(dataplane: &Dataplane) {
    for endpoint in dataplane.inventory.endpoints.values() {
        let state = EndpointState::new(dataplane.inventory.generation, endpoint.policy);
        dataplane.maps.states.store(endpoint.config.slot, state);
    }
}

/// Configures and attaches; one bad interface does not stop the others.
pub(super) fn put_in_force(dataplane: &mut Dataplane, plans: &[Plan]) -> Vec<AppliedEndpoint> {
    plans
        .iter()
        .map(|plan| AppliedEndpoint {
            ifindex: plan.wanted.ifindex,
            endpoint_id: plan.config.id,
            result: attach_endpoint(dataplane, plan),
        })
        .collect()
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

/// Takes interfaces that are no longer desired out of enforcement.
pub(super) fn remove_others(
    dataplane: &mut Dataplane,
    desired: &Desired,
) -> Result<(), DataplaneError> {
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
