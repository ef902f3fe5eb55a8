//! Identity and policy lookup: the slow path's two questions.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_loop, maps::lpm_trie::Key};
use dataplane_common::{
    Direction,
    identity::{self, AddressKey, AddressValue, CidrKey},
    policy::{CLASSES, PolicyMeta, PolicyValue, probe_key},
};

use crate::addr::Addr;
use crate::maps::{CIDRS, IDS, POLICY_ENTRIES};

/// The exact owner of an address.
#[inline(always)]
pub fn owner(network: u32, addr: &Addr) -> Option<AddressValue> {
    let key = AddressKey {
        network,
        addr: addr.bytes(),
    };
    // SAFETY: the value is copied at once. An entry replaced meanwhile yields either value, and
    // control raises the generation after every change, so a stale answer is judged again.
    unsafe { IDS.get(key) }.copied()
}

/// Who the other end is: exact address first, then the longest prefix.
#[inline(always)]
pub fn identity_of(network: u32, addr: &Addr) -> AddressValue {
    if let Some(owner) = owner(network, addr) {
        return owner;
    }
    let data = CidrKey {
        network_be: network.to_be(),
        addr: addr.bytes(),
    };
    let key = Key::new(CidrKey::NETWORK_BITS + 128, data);
    let identity = CIDRS.get(&key).copied().unwrap_or(identity::UNKNOWN);
    AddressValue { identity, owner: 0 }
}

/// What is asked of a compiled policy, and the best answer so far.
#[repr(C)]
pub struct Query {
    pub policy: u32,
    pub peer: u32,
    /// Classes not probed yet, one bit each.
    classes: u64,
    best: PolicyValue,
    port_be: u16,
    protocol: u8,
    direction: Direction,
}

impl Query {
    /// A question to the policy in slot `policy`.
    #[inline(always)]
    pub fn new(
        policy: u32,
        meta: &PolicyMeta,
        direction: Direction,
        peer: u32,
        protocol: u8,
        port_be: u16,
    ) -> Self {
        let classes = if direction as u8 == Direction::Egress as u8 {
            meta.egress_classes
        } else {
            meta.ingress_classes
        };
        let best = PolicyValue {
            precedence: 0,
            rule_id: 0,
        };
        Self {
            policy,
            peer,
            classes,
            best,
            port_be,
            protocol,
            direction,
        }
    }

    /// The entry of the highest precedence that matches (the most specific among equals), or one of
    /// precedence 0: one hash probe for each class the policy has.
    #[inline(always)]
    pub fn answer(mut self) -> PolicyValue {
        // `bpf_loop` (kernel 5.17, commit e6f2dd0f8067) verifies the probe once; an unrolled loop of
        // 36 probes costs the verifier its whole budget.
        // SAFETY: `probe` has the signature the helper expects, and `self` outlives the call.
        unsafe {
            bpf_loop(
                u32::from(CLASSES),
                probe as *const () as *mut c_void,
                (&raw mut self).cast(),
                0,
            );
        }
        self.best
    }
}

/// Probes the most specific class left. Returns 1 to stop.
unsafe extern "C" fn probe(_iteration: u64, query: *mut c_void) -> i64 {
    // SAFETY: `answer` passes its own `Query` and nothing else refers to it meanwhile.
    let query = unsafe { &mut *query.cast::<Query>() };
    if query.classes == 0 {
        return 1;
    }
    let index = query.classes.trailing_zeros() as u8;
    query.classes &= query.classes - 1;
    let key = probe_key(
        query.policy,
        query.direction,
        index,
        query.peer,
        query.protocol,
        query.port_be,
    );
    // SAFETY: the value is copied at once; entries of a policy in use never change.
    if let Some(value) = unsafe { POLICY_ENTRIES.get(key) }
        && value.precedence > query.best.precedence
    {
        query.best = *value;
    }
    0
}
