//! The wire types between the BPF program and userspace.
//!
//! Both sides compile this crate, so a layout exists once. Every type is `#[repr(C)]`, made of
//! integers and byte arrays, with explicit zeroed padding and `const` asserts on size and offsets.
//! No `bool` and no enum crosses: the kernel may be older or newer than the reader, so userspace
//! turns bytes into enums with `from_u8` and keeps what it does not know.
//!
//! Byte order: a field named `*_be` holds network order as loaded from the packet; addresses are
//! byte arrays in network order; everything else is host order.

#![no_std]
#![forbid(unsafe_code)]

pub mod conntrack;
pub mod drop_reason;
pub mod endpoint;
pub mod event;
pub mod fragment;
pub mod identity;
pub mod policy;
pub mod stats;

pub use drop_reason::DropReason;
pub use identity::Identity;

/// Version of every layout in this crate. It is part of the pin path, so a daemon never adopts
/// maps whose layout it does not know. Raise it with any change to a key, value or event.
pub const LAYOUT_VERSION: u32 = 1;

/// An IPv6 address, or an IPv4 address in its v4-mapped form (RFC 4291 section 2.5.5.2).
pub type Addr16 = [u8; 16];

/// The v4-mapped form of an IPv4 address in network order.
#[must_use]
#[inline(always)]
pub const fn v4_mapped(v4: [u8; 4]) -> Addr16 {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
    ]
}

/// IANA protocol numbers the dataplane gives meaning to.
pub mod proto {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// IGMP (RFC 3376).
    pub const IGMP: u8 = 2;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;
}

/// A workload's own view of a packet: `Egress` leaves the workload, `Ingress` reaches it.
/// On a host-side veth the TC *ingress* hook sees the workload's egress.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// Towards the workload.
    Ingress = 0,
    /// From the workload.
    Egress = 1,
}

impl Direction {
    /// The direction for a wire byte; `None` for an unknown one.
    #[must_use]
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Ingress),
            1 => Some(Self::Egress),
            _ => None,
        }
    }

    /// The lower-case name used in every output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Asserts size, alignment and field offsets of a wire type at compile time.
#[macro_export]
macro_rules! assert_layout {
    ($type:ty, size = $size:expr, align = $align:expr, { $($field:ident @ $offset:expr),* $(,)? }) => {
        const _: () = {
            assert!(::core::mem::size_of::<$type>() == $size, "size changed");
            assert!(::core::mem::align_of::<$type>() == $align, "alignment changed");
            $(assert!(::core::mem::offset_of!($type, $field) == $offset, "offset changed");)*
        };
    };
}
