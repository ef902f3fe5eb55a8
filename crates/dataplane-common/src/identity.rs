//! Who an address belongs to, as a number the kernel can compare.
//!
//! Userspace interns identities (namespace, labels, named ports, and the policy CIDR blocks an
//! address lies in) and tells the kernel through two maps: exact addresses (`ids`) and, on a miss,
//! the longest matching prefix (`cidrs`).

use crate::{Addr16, assert_layout};

/// A numeric identity. Numbers below [`FIRST_DYNAMIC`] are reserved.
pub type Identity = u32;

/// No mapping at all for the address.
pub const UNKNOWN: Identity = 0;
/// An address of the host the daemon runs on.
pub const HOST: Identity = 1;
/// Any address that is neither a workload's nor the host's.
pub const WORLD: Identity = 2;
/// First number given to workloads and to policy CIDR blocks.
pub const FIRST_DYNAMIC: Identity = 256;

/// Key of `ids`: an exact address in one routing domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct AddressKey {
    /// Routing domain of the endpoint that asks, so that two isolated networks may use the same
    /// addresses. 0 is the domain shared by everything that can route to each other.
    pub network: u32,
    /// The address.
    pub addr: Addr16,
}
assert_layout!(AddressKey, size = 20, align = 4, { network @ 0, addr @ 4 });

/// Value of `ids`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct AddressValue {
    /// Identity of the address.
    pub identity: Identity,
    /// [`crate::endpoint::EndpointConfig::owner`] of the workload that may use the address as a
    /// source; 0 for addresses of no local workload.
    pub owner: u32,
}
assert_layout!(AddressValue, size = 8, align = 4, { identity @ 0, owner @ 4 });

/// Key of the longest-prefix map `cidrs`, after the `prefix_len` the kernel's LPM trie wants first.
/// Prefix lengths count from the start of this struct: 32 bits of network plus the (v4-mapped)
/// prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct CidrKey {
    /// Routing domain, in network byte order so that its bits lead the trie.
    pub network_be: u32,
    /// First address of the prefix.
    pub addr: Addr16,
}
assert_layout!(CidrKey, size = 20, align = 4, { network_be @ 0, addr @ 4 });

impl CidrKey {
    /// Bits of the key in front of the address.
    pub const NETWORK_BITS: u32 = 32;
    /// Bits in front of an IPv4 address inside its v4-mapped form.
    pub const V4_MAPPED_BITS: u32 = 96;
}
