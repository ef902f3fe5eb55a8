//! Bytes -> [`Packet`], by slices and RFCs.
//!
//! What a frame says is read as its receiver would read it: a header counts only as far as the
//! header around it says (RFC 791 section 3.1, RFC 8200 section 3), whatever else is in the frame.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_common::{DropReason, proto};

/// Offset in the frame past which no header may start.
const FURTHEST_HEADER: usize = 512;
/// IPv6 extension headers that may stand in a row.
const EXTENSIONS: usize = 6;
/// UDP-Lite (RFC 3828), whose first eight bytes are UDP's.
pub(super) const UDP_LITE: u8 = 136;

/// Place within a fragmented datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// Has the layer 4 header.
    First,
    /// Has none.
    Later,
}

/// The part of layer 4 that policy and conntrack look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layer4 {
    /// Source port; of an ICMP echo the identifier.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// TCP flags.
    pub tcp_flags: u8,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
}

/// What a frame says, as far as it could be read.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    /// Bytes of the frame behind link header and tags; 0 when these could not be read.
    pub l3_len: u64,
    /// Source and destination, from a header of the right version.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Protocol behind the IP headers; 0 when it was not reached.
    pub protocol: u8,
    /// Identification of a fragmented datagram.
    pub fragment_id: u32,
    /// Place in it.
    pub fragment: Option<Fragment>,
    /// Layer 4.
    pub l4: Layer4,
    /// What follows the first eight bytes of layer 4: in an ICMP error, the offending packet.
    pub inner: Vec<u8>,
    /// Where in the frame that is.
    pub inner_offset: usize,
}

/// What a readable frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Address resolution for IPv4.
    Arp,
    /// IPv4 or IPv6.
    Ip,
}

/// What an ICMP error says about the packet that caused it.
#[derive(Clone, Copy, Debug)]
pub struct Offending {
    /// Who sent it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: u8,
    /// Source port, or echo identifier.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

impl Packet {
    /// 4 or 6; 0 when no IP header was read.
    #[must_use]
    pub fn family(&self) -> u8 {
        match self.addresses {
            Some((IpAddr::V4(_), _)) => 4,
            Some((IpAddr::V6(_), _)) => 6,
            None => 0,
        }
    }

    /// Source address of an IP packet.
    ///
    /// # Panics
    /// When the frame is no IP packet.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.addresses.expect("an IP packet").0
    }

    /// Destination address of an IP packet.
    ///
    /// # Panics
    /// When the frame is no IP packet.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        self.addresses.expect("an IP packet").1
    }

    /// Whether it is ICMP of its family.
    #[must_use]
    pub fn is_icmp(&self) -> bool {
        matches!(self.protocol, proto::ICMP | proto::ICMPV6)
    }

    /// Whether it is an echo request or reply.
    #[must_use]
    pub fn is_echo(&self) -> bool {
        self.is_echo_request() || self.is_echo_reply()
    }

    /// Whether it is an echo request.
    #[must_use]
    pub fn is_echo_request(&self) -> bool {
        match self.l4.icmp {
            Some((kind, _)) => kind == if self.protocol == proto::ICMP { 8 } else { 128 },
            None => false,
        }
    }

    /// Whether it is an echo reply.
    #[must_use]
    pub fn is_echo_reply(&self) -> bool {
        match self.l4.icmp {
            Some((kind, _)) => kind == if self.protocol == proto::ICMP { 0 } else { 129 },
            None => false,
        }
    }

    /// Whether it is an ICMP error about another packet: destination unreachable, source quench,
    /// time exceeded, parameter problem (RFC 792); for IPv6 also packet too big (RFC 4443).
    #[must_use]
    pub fn is_icmp_error(&self) -> bool {
        match (self.protocol, self.l4.icmp) {
            (proto::ICMP, Some((kind, _))) => [3, 4, 11, 12].contains(&kind),
            (proto::ICMPV6, Some((kind, _))) => (1..=4).contains(&kind),
            _ => false,
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn v4(bytes: &[u8], at: usize) -> IpAddr {
    let octets: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
    Ipv4Addr::from(octets).into()
}

fn v6(bytes: &[u8], at: usize) -> IpAddr {
    let octets: [u8; 16] = bytes[at..at + 16].try_into().expect("sixteen bytes");
    Ipv6Addr::from(octets).into()
}

/// Reads a frame. The packet holds what was read before a refusal.
pub fn parse(frame: &[u8]) -> (Packet, Result<Kind, DropReason>) {
    let mut packet = Packet::default();
    let outcome = link(frame, &mut packet);
    (packet, outcome)
}

/// Ethernet with up to two VLAN tags of either kind (IEEE 802.1Q, 802.1ad).
fn link(frame: &[u8], packet: &mut Packet) -> Result<Kind, DropReason> {
    let is_tag = |ethertype| ethertype == 0x8100 || ethertype == 0x88a8;
    if frame.len() < 14 {
        return Err(DropReason::Truncated);
    }
    let mut ethertype = be16(frame, 12);
    let mut offset = 14;
    for _ in 0..2 {
        if is_tag(ethertype) {
            if frame.len() < offset + 4 {
                return Err(DropReason::VlanUnsupported);
            }
            ethertype = be16(frame, offset + 2);
            offset += 4;
        }
    }
    if is_tag(ethertype) {
        return Err(DropReason::VlanUnsupported);
    }
    packet.l3_len = (frame.len() - offset) as u64;
    match ethertype {
        0x0800 => ipv4(frame, offset, packet)?,
        0x86dd => ipv6(frame, offset, packet)?,
        0x0806 => return Ok(Kind::Arp),
        _ => return Err(DropReason::UnknownEtherType),
    }
    Ok(Kind::Ip)
}

fn ipv4(frame: &[u8], offset: usize, packet: &mut Packet) -> Result<(), DropReason> {
    let header = &frame[offset..];
    if header.len() < 20 {
        return Err(DropReason::Truncated);
    }
    let header_len = usize::from(header[0] & 15) * 4;
    if header[0] >> 4 != 4 || header_len < 20 {
        return Err(DropReason::MalformedHeader);
    }
    packet.addresses = Some((v4(header, 12), v4(header, 16)));
    packet.protocol = header[9];
    packet.hop_limit = header[8];
    packet.fragment_id = u32::from(be16(header, 4));
    let total_len = usize::from(be16(header, 2));
    if total_len > header.len() || total_len < header_len {
        return Err(DropReason::Truncated);
    }
    let fragment_offset = be16(header, 6) & 0x1fff;
    let more = be16(header, 6) & 0x2000 != 0;
    packet.fragment = Some(match (fragment_offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    });
    // RFC 3128: would overwrite the flags of the TCP header.
    if packet.protocol == proto::TCP && fragment_offset == 1 {
        return Err(DropReason::FragmentTooSmall);
    }
    layer4(&frame[..offset + total_len], offset + header_len, packet)
}

fn ipv6(frame: &[u8], offset: usize, packet: &mut Packet) -> Result<(), DropReason> {
    let header = &frame[offset..];
    if header.len() < 40 {
        return Err(DropReason::Truncated);
    }
    if header[0] >> 4 != 6 {
        return Err(DropReason::MalformedHeader);
    }
    let (source, destination) = (v6(header, 8), v6(header, 24));
    packet.addresses = Some((source, destination));
    packet.hop_limit = header[7];
    let end = 40 + usize::from(be16(header, 4));
    if end > header.len() {
        return Err(DropReason::Truncated);
    }
    // RFC 4942 section 2.2.
    for address in [source, destination] {
        if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return Err(DropReason::MartianAddress);
        }
    }
    let frame = &frame[..offset + end];
    packet.fragment = Some(Fragment::Whole);
    let mut next = header[6];
    let mut at = offset + 40;
    let mut seen = 0;
    // RFC 8200 section 4 and, for the last three, RFC 6275, 7401 and 5533.
    while [0, 43, 44, 51, 60, 135, 139, 140].contains(&next) {
        seen += 1;
        if seen > EXTENSIONS {
            return Err(DropReason::Ipv6ExtensionHeaders);
        }
        let extension = frame.get(at..).unwrap_or_default();
        let needed = if next == 44 { 8 } else { 2 };
        if extension.len() < needed {
            return Err(DropReason::Truncated);
        }
        let len = match next {
            44 => {
                packet.fragment_id =
                    u32::from_be_bytes(extension[4..8].try_into().expect("four bytes"));
                let (fragment_offset, more) =
                    (be16(extension, 2) >> 3, be16(extension, 2) & 1 != 0);
                packet.fragment = Some(match (fragment_offset, more) {
                    // RFC 6946: an atomic fragment is a whole datagram.
                    (0, false) => Fragment::Whole,
                    (0, true) => Fragment::First,
                    _ => Fragment::Later,
                });
                8
            }
            // RFC 4302 section 2.2: in units of four bytes, minus two.
            51 => (usize::from(extension[1]) + 2) * 4,
            _ => (usize::from(extension[1]) + 1) * 8,
        };
        next = extension[0];
        at += len;
        if at > frame.len() {
            return Err(DropReason::Truncated);
        }
        if at > FURTHEST_HEADER {
            return Err(DropReason::Ipv6ExtensionHeaders);
        }
        if packet.fragment == Some(Fragment::Later) {
            break;
        }
    }
    packet.protocol = next;
    layer4(frame, at, packet)
}

/// Reads the layer 4 header at `at`; `frame` ends where the IP packet does.
fn layer4(frame: &[u8], at: usize, packet: &mut Packet) -> Result<(), DropReason> {
    let bytes = &frame[at..];
    let too_short = match packet.fragment {
        Some(Fragment::Later) => return Ok(()),
        // RFC 1858: nobody makes fragments so small but to hide ports.
        Some(Fragment::First) => DropReason::FragmentTooSmall,
        Some(Fragment::Whole) | None => DropReason::Truncated,
    };
    let need = |len| {
        if bytes.len() < len {
            Err(too_short)
        } else {
            Ok(())
        }
    };
    match packet.protocol {
        proto::TCP => {
            need(20)?;
            packet.l4.source_port = be16(bytes, 0);
            packet.l4.destination_port = be16(bytes, 2);
            let flags = bytes[13];
            packet.l4.tcp_flags = flags;
            let has = |letter: u8| flags & letter != 0;
            let (fin, syn, rst, ack) = (has(1), has(2), has(4), has(16));
            if (syn && (fin || rst)) || !(syn || rst || ack) {
                return Err(DropReason::TcpFlagsInvalid);
            }
        }
        proto::UDP | proto::SCTP | UDP_LITE => {
            need(8)?;
            packet.l4.source_port = be16(bytes, 0);
            packet.l4.destination_port = be16(bytes, 2);
        }
        proto::ICMP | proto::ICMPV6 => {
            // RFC 4443 section 1: each IP version has an ICMP of its own.
            let own = if packet.family() == 4 {
                proto::ICMP
            } else {
                proto::ICMPV6
            };
            if packet.protocol != own {
                return Err(DropReason::MalformedHeader);
            }
            need(4)?;
            packet.l4.icmp = Some((bytes[0], bytes[1]));
            if packet.is_echo() {
                need(8)?;
                packet.l4.source_port = be16(bytes, 4);
            }
            packet.inner = bytes.get(8..).unwrap_or_default().to_vec();
            packet.inner_offset = at + 8;
        }
        _ => {}
    }
    Ok(())
}

/// Reads the packet inside an ICMP error: its IP header, without extension headers, and the first
/// bytes behind it (RFC 792, RFC 4443 section 2.4).
///
/// # Errors
/// The reason to refuse the error for.
pub fn offending(packet: &Packet) -> Result<Offending, DropReason> {
    let bytes = &packet.inner[..];
    if packet.inner_offset > FURTHEST_HEADER {
        return Err(DropReason::Truncated);
    }
    let (source, destination, protocol, header_len, echoes) = if packet.family() == 4 {
        if bytes.len() < 20 {
            return Err(DropReason::Truncated);
        }
        let header_len = usize::from(bytes[0] & 15) * 4;
        if bytes[0] >> 4 != 4 || header_len < 20 {
            return Err(DropReason::MalformedHeader);
        }
        // RFC 1122 section 3.2.2: no error is sent about a later fragment.
        if be16(bytes, 6) & 0x1fff != 0 {
            return Err(DropReason::IcmpErrorUnrelated);
        }
        (v4(bytes, 12), v4(bytes, 16), bytes[9], header_len, [8, 0])
    } else {
        if bytes.len() < 40 {
            return Err(DropReason::Truncated);
        }
        if bytes[0] >> 4 != 6 {
            return Err(DropReason::MalformedHeader);
        }
        (v6(bytes, 8), v6(bytes, 24), bytes[6], 40, [128, 129])
    };
    if packet.inner_offset + header_len > FURTHEST_HEADER {
        return Err(DropReason::Truncated);
    }
    let l4 = bytes.get(header_len..).unwrap_or_default();
    let (source_port, destination_port) = match protocol {
        proto::TCP | proto::UDP | proto::SCTP | UDP_LITE => {
            if l4.len() < 4 {
                return Err(DropReason::Truncated);
            }
            (be16(l4, 0), be16(l4, 2))
        }
        proto::ICMP | proto::ICMPV6 => {
            if l4.len() < 6 {
                return Err(DropReason::Truncated);
            }
            // RFC 1122 section 3.2.2: no error is sent about an error; and of the other messages
            // only echoes are flows.
            if protocol != packet.protocol || !echoes.contains(&l4[0]) {
                return Err(DropReason::IcmpErrorUnrelated);
            }
            (be16(l4, 4), 0)
        }
        _ => (0, 0),
    };
    Ok(Offending {
        source,
        destination,
        protocol,
        source_port,
        destination_port,
    })
}
