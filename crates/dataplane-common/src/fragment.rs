//! Ports of fragmented datagrams: only the first fragment carries them.

use crate::{Addr16, assert_layout};

/// Key of `fragments` (RFC 791 section 3.2, RFC 8200 section 4.5: source, destination,
/// identification and, for IPv4, protocol name a datagram; here the protocol does for IPv6 too, so that
/// a later fragment which claims another one than the first is refused).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// [`crate::endpoint::EndpointConfig::id`].
    pub endpoint: u32,
    /// Identification as on the wire (IPv4: in the low 16 bits).
    pub id: u32,
    /// Source address.
    pub source: Addr16,
    /// Destination address.
    pub destination: Addr16,
    /// IANA protocol.
    pub protocol: u8,
    /// Zero.
    pub _pad: [u8; 3],
}
assert_layout!(FragmentKey, size = 44, align = 4, {
    endpoint @ 0, id @ 4, source @ 8, destination @ 24, protocol @ 40,
});

/// Value of `fragments`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct FragmentPorts {
    /// Source port of the first fragment; for ICMP echo the identifier.
    pub source_port_be: u16,
    /// Destination port of the first fragment; for ICMP type (high byte) and code.
    pub destination_port_be: u16,
}
assert_layout!(FragmentPorts, size = 4, align = 2, { source_port_be @ 0, destination_port_be @ 2 });
