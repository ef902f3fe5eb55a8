//! Desired − observed -> writes, in an order that no packet can tell from a single instant.
//!
//! 1. Fill the slots of new compiled policies. Nothing points to them.
//! 2. Flip the state words of present endpoints.
//! 3. Write identities, attach new interfaces.
//! 4. Remove what is gone, raise the generation once more if identities changed.
//! 5. Wait for running programs, free the old slots.
//!
//! Steps 1 to 3 are undone if the kernel refuses one of their writes.

use super::endpoints;
use super::identities::Identities;
use super::slots::{self, Filled};
use super::{Applied, Dataplane, DataplaneError, Desired};

/// Makes the kernel enforce `desired`.
pub(super) fn apply(
    dataplane: &mut Dataplane,
    desired: &Desired,
) -> Result<Applied, DataplaneError> {
    let Filled { slots, new } = slots::fill(dataplane, desired)?;
    let plans = endpoints::plan(dataplane, desired, &slots);
    let identities = Identities::desired(desired, &plans);
    if let Err(error) = identities.check_capacity(dataplane) {
        slots::release(dataplane, &new);
        return Err(error);
    }
    let identities_change = identities.differ(dataplane);
    let former_states = endpoints::states(dataplane);

    dataplane.inventory.generation += 1;
    endpoints::flip(dataplane, &plans);
    if let Err(error) = identities.write(dataplane) {
        for (slot, state) in former_states {
            dataplane.maps.states.store(slot, state);
        }
        slots::release(dataplane, &new);
        return Err(error);
    }

    let outcomes = endpoints::put_in_force(dataplane, &plans);
    endpoints::remove_others(dataplane, desired)?;
    identities.remove_others(dataplane)?;
    if identities_change {
        // Flows judged between the flip and the last identity write are judged again.
        dataplane.inventory.generation += 1;
        endpoints::restamp(dataplane);
    }
    slots::release_unused(dataplane);
    Ok(Applied {
        generation: dataplane.inventory.generation,
        endpoints: outcomes,
        entries_used: dataplane.inventory.entries_used(),
        entries_max: dataplane.maps.policy_entries_max,
    })
}
