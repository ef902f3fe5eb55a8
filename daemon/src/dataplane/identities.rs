//! Who an address belongs to: the maps `ids` and `cidrs`.

use std::collections::HashMap;
use std::net::IpAddr;

use aya::maps::lpm_trie;
use dataplane_common::identity::{AddressKey, AddressValue, CidrKey};
use dataplane_common::{Addr16, Identity, v4_mapped};
use ipnet::IpNet;

use super::endpoints::Plan;
use super::inventory::{absent_is_fine, map_error};
use super::wire::Wire;
use super::{Dataplane, DataplaneError, Desired};

/// What both maps should hold.
pub(super) struct Identities {
    addresses: HashMap<AddressKey, AddressValue>,
    prefixes: HashMap<(u32, CidrKey), Identity>,
}

impl Identities {
    /// The desired identities, with the owners the plans assign.
    pub(super) fn desired(desired: &Desired, plans: &[Plan]) -> Self {
        Self {
            addresses: desired_addresses(desired, plans),
            prefixes: desired_prefixes(desired),
        }
    }

    /// Whether the kernel holds something else.
    pub(super) fn differ(&self, dataplane: &Dataplane) -> bool {
        dataplane.inventory.addresses != self.addresses
            || dataplane.inventory.prefixes != self.prefixes
    }

    /// Refuses what would not fit. Old and new coexist while the change is under way.
    pub(super) fn check_capacity(&self, dataplane: &Dataplane) -> Result<(), DataplaneError> {
        let inventory = &dataplane.inventory;
        let new_addresses = self
            .addresses
            .keys()
            .filter(|key| !inventory.addresses.contains_key(*key))
            .count();
        let new_prefixes = self
            .prefixes
            .keys()
            .filter(|key| !inventory.prefixes.contains_key(*key))
            .count();
        for (map, needed, max, used) in [
            (
                "ids",
                new_addresses,
                dataplane.maps.ids_max,
                inventory.addresses.len(),
            ),
            (
                "cidrs",
                new_prefixes,
                dataplane.maps.cidrs_max,
                inventory.prefixes.len(),
            ),
        ] {
            let available = (max as usize).saturating_sub(used);
            if needed > available {
                return Err(DataplaneError::DoesNotFit {
                    map,
                    needed,
                    available,
                });
            }
        }
        Ok(())
    }

    /// Adds and changes; on an error what was changed is changed back.
    pub(super) fn write(&self, dataplane: &mut Dataplane) -> Result<(), DataplaneError> {
        let mut written = Written::default();
        for (key, value) in &self.addresses {
            if dataplane.inventory.addresses.get(key) == Some(value) {
                continue;
            }
            if let Err(source) = dataplane.maps.ids.insert(Wire(*key), Wire(*value), 0) {
                written.restore(dataplane);
                return Err(DataplaneError::Map {
                    operation: "write",
                    map: "ids",
                    source,
                });
            }
            written.addresses.push(*key);
        }
        for (key, identity) in &self.prefixes {
            if dataplane.inventory.prefixes.get(key) == Some(identity) {
                continue;
            }
            if let Err(source) = dataplane.maps.cidrs.insert(&lpm_key(key), *identity, 0) {
                written.restore(dataplane);
                return Err(DataplaneError::Map {
                    operation: "write",
                    map: "cidrs",
                    source,
                });
            }
            written.prefixes.push(*key);
        }
        dataplane.inventory.addresses.extend(&self.addresses);
        dataplane.inventory.prefixes.extend(&self.prefixes);
        Ok(())
    }

    /// Removes what is no longer desired.
    pub(super) fn remove_others(&self, dataplane: &mut Dataplane) -> Result<(), DataplaneError> {
        let gone = |key: &&AddressKey| !self.addresses.contains_key(*key);
        let addresses: Vec<AddressKey> = dataplane
            .inventory
            .addresses
            .keys()
            .filter(gone)
            .copied()
            .collect();
        for key in addresses {
            absent_is_fine(dataplane.maps.ids.remove(&Wire(key)))
                .map_err(map_error("delete from", "ids"))?;
            dataplane.inventory.addresses.remove(&key);
        }
        let gone = |key: &&(u32, CidrKey)| !self.prefixes.contains_key(*key);
        let prefixes: Vec<(u32, CidrKey)> = dataplane
            .inventory
            .prefixes
            .keys()
            .filter(gone)
            .copied()
            .collect();
        for key in prefixes {
            absent_is_fine(dataplane.maps.cidrs.remove(&lpm_key(&key)))
                .map_err(map_error("delete from", "cidrs"))?;
            dataplane.inventory.prefixes.remove(&key);
        }
        Ok(())
    }
}

/// Keys written so far, for taking back.
#[derive(Default)]
struct Written {
    addresses: Vec<AddressKey>,
    prefixes: Vec<(u32, CidrKey)>,
}

impl Written {
    fn restore(&self, dataplane: &mut Dataplane) {
        for key in &self.addresses {
            let result = match dataplane.inventory.addresses.get(key) {
                Some(old) => dataplane.maps.ids.insert(Wire(*key), Wire(*old), 0),
                None => dataplane.maps.ids.remove(&Wire(*key)),
            };
            if let Err(error) = result {
                tracing::error!(%error, "cannot restore an address after a failed change");
            }
        }
        for key in &self.prefixes {
            let result = match dataplane.inventory.prefixes.get(key) {
                Some(old) => dataplane.maps.cidrs.insert(&lpm_key(key), *old, 0),
                None => dataplane.maps.cidrs.remove(&lpm_key(key)),
            };
            if let Err(error) = result {
                tracing::error!(%error, "cannot restore a prefix after a failed change");
            }
        }
    }
}

fn lpm_key((bits, key): &(u32, CidrKey)) -> lpm_trie::Key<Wire<CidrKey>> {
    lpm_trie::Key::new(*bits, Wire(*key))
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

fn addr16(addr: IpAddr) -> Addr16 {
    match addr {
        IpAddr::V4(v4) => v4_mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}
