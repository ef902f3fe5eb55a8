//! A workload's network interface on this host: the place where policy is enforced.

use crate::{Identity, assert_layout};

/// Key of `endpoints` is the host-side interface index (`u32`). The value is replaced as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct EndpointConfig {
    /// Number of this incarnation of the endpoint; never reused while maps are pinned, so that
    /// conntrack entries of a vanished endpoint can never match a new one.
    pub id: u32,
    /// Index into `endpoint_states`.
    pub slot: u32,
    /// Identity of the workload behind the interface.
    pub identity: Identity,
    /// Routing domain, see [`crate::identity::AddressKey::network`].
    pub network: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Number of the workload behind the interface, shared by all its interfaces: the
    /// [`crate::identity::AddressValue::owner`] of the addresses it may send from.
    pub owner: u32,
    /// Until when (`CLOCK_MONOTONIC` nanoseconds) the first packet of a connectionless flow may
    /// belong to a flow that began before the hooks were attached, so that its direction proves
    /// nothing.
    pub unsure_until_ns: u64,
}
assert_layout!(EndpointConfig, size = 32, align = 8, {
    id @ 0, slot @ 4, identity @ 8, network @ 12, flags @ 16, owner @ 20, unsure_until_ns @ 24,
});

/// Bits of [`EndpointConfig::flags`].
pub mod flags {
    /// Addresses are not known yet: a source address without owner is accepted and reported.
    pub const LEARN_ADDRESSES: u32 = 1;
}

/// Value of `endpoint_states[slot]`: which compiled policy judges the endpoint, and since when.
///
/// One aligned 64-bit word, `generation << 32 | policy`, written with a single store into the
/// memory-mapped array: a program reads the old or the new state, never a mixture. A conntrack
/// entry carries the state it was judged under; any difference sends the packet to the slow path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct EndpointState(pub u64);

impl EndpointState {
    /// Builds the word.
    #[must_use]
    #[inline(always)]
    pub const fn new(generation: u32, policy: u32) -> Self {
        Self(((generation as u64) << 32) | policy as u64)
    }

    /// Index into `policies`; 0 means "no policy loaded", which drops.
    #[must_use]
    #[inline(always)]
    pub const fn policy(self) -> u32 {
        self.0 as u32
    }

    /// Generation: raised by every change that can alter a verdict of this endpoint.
    #[must_use]
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}
