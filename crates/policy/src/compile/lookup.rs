//! What the kernel does with a [`Compiled`], in the same steps.

use std::net::IpAddr;

use dataplane_common::identity::UNKNOWN;
use dataplane_common::policy::{Action, CLASSES, PolicyValue, probe_key};
use dataplane_common::{Direction, Identity};
use ipnet::IpNet;

use super::Compiled;
use crate::model::Protocol;

/// Identity of an address: exact, else by longest prefix.
#[must_use]
pub fn identity_of(compiled: &Compiled, address: IpAddr) -> Identity {
    if let Some(&identity) = compiled.addresses.get(&address) {
        return identity;
    }
    let longest = IpNet::from(address).prefix_len();
    (0..=longest)
        .rev()
        .filter_map(|length| IpNet::new(address, length).ok())
        .find_map(|net| compiled.prefixes.get(&net.trunc()).copied())
        .unwrap_or(UNKNOWN)
}

/// The action and rule id of a flow towards (`Ingress`) or from (`Egress`) a workload of the
/// program: one probe per class in use, the highest precedence decides, among equals the most
/// specific class. `port` is the flow's destination port in host order (for ICMP: type << 8 | code).
/// Traffic of a workload with itself is for the caller to recognise before.
///
/// # Panics
///
/// When `program` is no index into [`Compiled::programs`].
#[must_use]
pub fn lookup(
    compiled: &Compiled,
    program: usize,
    direction: Direction,
    peer: Identity,
    protocol: Protocol,
    port: u16,
) -> (Action, u32) {
    let program = &compiled.programs[program];
    let classes = program.classes(direction);
    let mut best: Option<PolicyValue> = None;
    for index in (0..CLASSES).filter(|index| classes & (1 << index) != 0) {
        let key = probe_key(0, direction, index, peer, protocol.0, port.to_be());
        let Ok(found) = program.entries.binary_search_by_key(&key, |(key, _)| *key) else {
            continue;
        };
        let value = program.entries[found].1;
        if best.is_none_or(|best| value.precedence > best.precedence) {
            best = Some(value);
        }
    }
    best.and_then(|value| Some((Action::from_bits(value.precedence)?, value.rule_id)))
        .unwrap_or_else(|| program.default_of(direction))
}
