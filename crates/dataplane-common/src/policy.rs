//! Compiled policy: what the slow path looks up.
//!
//! A compiled policy is immutable. It has a slot number, a [`PolicyMeta`] and any number of
//! [`PolicyKey`]/[`PolicyValue`] entries under that number. A change compiles a new policy under a
//! free slot, fills it completely, and then flips the endpoints' state word to it, so no packet sees
//! half of a rule set.
//!
//! Lookup is a tuple-space search (Srinivasan, Suri, Varghese, SIGCOMM 1999): every entry belongs to
//! a *class* (direction, peer exact or any, port prefix length), each class is one hash probe, and
//! the meta lists which classes exist, so the cost follows the number of shapes in a policy and not
//! the number of its rules.

use crate::{Direction, Identity, assert_layout};

/// How verdicts are applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Mode {
    /// Everything passes; policy is not consulted.
    Discover = 0,
    /// Everything passes; what policy would deny is recorded as audit.
    Monitor = 1,
    /// Policy decides.
    Protect = 2,
}

impl Mode {
    /// The mode for a wire byte; `None` for an unknown one.
    #[must_use]
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Discover),
            1 => Some(Self::Monitor),
            2 => Some(Self::Protect),
            _ => None,
        }
    }
}

/// Value of `policies[slot]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct PolicyMeta {
    /// Bit `n` set: entries of ingress class `n` exist (see [`class_index`]).
    pub ingress_classes: u64,
    /// The same for egress.
    pub egress_classes: u64,
    /// Rule id reported when no ingress entry matches.
    pub ingress_default_rule: u32,
    /// The same for egress.
    pub egress_default_rule: u32,
    /// [`Action`] when no ingress entry matches.
    pub ingress_default: u8,
    /// The same for egress.
    pub egress_default: u8,
    /// [`Mode`] of the endpoints judged by this policy.
    pub mode: u8,
    /// 1 when the slot holds a complete policy; 0 drops with [`crate::DropReason::NoPolicy`].
    pub ready: u8,
    /// Zero.
    pub _pad: u32,
}
assert_layout!(PolicyMeta, size = 32, align = 8, {
    ingress_classes @ 0, egress_classes @ 8, ingress_default_rule @ 16, egress_default_rule @ 20,
    ingress_default @ 24, egress_default @ 25, mode @ 26, ready @ 27,
});

/// What a matching entry says. Higher wins among entries of the same precedence level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Action {
    /// Let the flow pass.
    Allow = 1,
    /// Steer the flow to the userspace proxy.
    Redirect = 2,
    /// Drop the flow.
    Deny = 3,
}

impl Action {
    /// The action for the two low bits of a precedence; `None` for 0.
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits & 3 {
            1 => Some(Self::Allow),
            2 => Some(Self::Redirect),
            3 => Some(Self::Deny),
            _ => None,
        }
    }
}

/// Key of `policy_entries`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct PolicyKey {
    /// Slot of the compiled policy.
    pub policy: u32,
    /// Identity of the other end; 0 in classes that match any peer.
    pub peer: Identity,
    /// Destination port of the flow in network order, masked to the class's prefix length.
    /// For ICMP: type in the high byte, code in the low byte (also network order).
    pub port_be: u16,
    /// IANA protocol; 0 in classes that match any protocol.
    pub protocol: u8,
    /// Direction in bit 7, [`class_index`] in the rest.
    pub class: u8,
}
assert_layout!(PolicyKey, size = 12, align = 4, {
    policy @ 0, peer @ 4, port_be @ 8, protocol @ 10, class @ 11,
});

/// Value of `policy_entries`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct PolicyValue {
    /// `level << 2 | Action`. The greatest precedence among matching entries decides.
    pub precedence: u32,
    /// Rule that produced the entry; userspace keeps the table.
    pub rule_id: u32,
}
assert_layout!(PolicyValue, size = 8, align = 4, { precedence @ 0, rule_id @ 4 });

/// Rule ids with a fixed meaning; everything from [`FIRST_RULE_ID`] is interned by userspace.
pub mod rule_id {
    /// No rule was consulted (discover mode, control traffic).
    pub const NONE: u32 = 0;
    /// Isolated by some policy and nothing allows it.
    pub const DEFAULT_DENY: u32 = 1;
    /// Selected by no policy in this direction, and `--unselected deny`.
    pub const UNSELECTED_DENY: u32 = 2;
    /// Selected by no policy in this direction, and `--unselected allow`.
    pub const UNSELECTED_ALLOW: u32 = 3;
    /// A workload talking to itself.
    pub const SELF_TRAFFIC: u32 = 4;
    /// The host reaching its own workloads (health checks, published ports through the host).
    pub const HOST_INGRESS: u32 = 5;
    /// First id given to a policy's rule.
    pub const FIRST_RULE_ID: u32 = 256;
}
pub use rule_id::FIRST_RULE_ID;

/// Number of level-4 shapes: any protocol, then a protocol with 0 to 16 leading port bits.
pub const L4_CLASSES: u8 = 18;
/// Number of classes of one direction.
pub const CLASSES: u8 = 2 * L4_CLASSES;
/// Set in [`PolicyKey::class`] for egress.
pub const CLASS_EGRESS_BIT: u8 = 0x80;

/// Index of a class within its direction. `port_prefix` is `None` for "any protocol" and otherwise
/// the number of leading port bits that must match (0: any port of the protocol, 16: one port).
/// Specific peers come first and longer port prefixes come first, so that ascending order goes from
/// the most specific class to the least.
#[must_use]
#[inline(always)]
pub const fn class_index(any_peer: bool, port_prefix: Option<u8>) -> u8 {
    let l4 = match port_prefix {
        Some(bits) => 16 - bits,
        None => L4_CLASSES - 1,
    };
    if any_peer { L4_CLASSES + l4 } else { l4 }
}

/// The [`PolicyKey::class`] byte.
#[must_use]
#[inline(always)]
pub const fn class_byte(direction: Direction, index: u8) -> u8 {
    match direction {
        Direction::Ingress => index,
        Direction::Egress => index | CLASS_EGRESS_BIT,
    }
}

/// The key that would match a flow in class `index`, or `None` past the last class.
#[must_use]
#[inline(always)]
pub const fn probe_key(
    policy: u32,
    direction: Direction,
    index: u8,
    peer: Identity,
    protocol: u8,
    port_be: u16,
) -> PolicyKey {
    let any_peer = index >= L4_CLASSES;
    let l4 = if any_peer { index - L4_CLASSES } else { index };
    let any_protocol = l4 == L4_CLASSES - 1;
    let mask: u16 = if l4 >= 16 { 0 } else { 0xffff_u16 << l4 };
    PolicyKey {
        policy,
        peer: if any_peer { 0 } else { peer },
        port_be: if any_protocol {
            0
        } else {
            port_be & mask.to_be()
        },
        protocol: if any_protocol { 0 } else { protocol },
        class: class_byte(direction, index),
    }
}
