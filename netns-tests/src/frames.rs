//! Packets as bytes: well-formed ones by etherparse, everything else by editing those.

use std::net::IpAddr;

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder, TcpHeader,
};

/// Bytes in front of the IP header.
pub const ETHERNET_LEN: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Length of the IPv6 header.
pub const IPV6_LEN: usize = 40;

const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DESTINATION_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// One end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
}

/// An end from an address and a port.
#[must_use]
pub fn end(ip: &str, port: u16) -> End {
    End {
        ip: ip.parse().expect("a test names a valid address"),
        port,
    }
}

/// A TCP segment; `flags` are letters of `FSRPAU`.
#[must_use]
pub fn tcp(source: End, destination: End, flags: &str) -> Vec<u8> {
    tcp_with_payload(source, destination, flags, &[])
}

/// A TCP segment with payload.
#[must_use]
pub fn tcp_with_payload(source: End, destination: End, flags: &str, payload: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader::new(source.port, destination.port, 1000, 64000);
    for flag in flags.chars() {
        match flag {
            'F' => header.fin = true,
            'S' => header.syn = true,
            'R' => header.rst = true,
            'P' => header.psh = true,
            'A' => header.ack = true,
            'U' => header.urg = true,
            other => panic!("`{other}` is no TCP flag"),
        }
    }
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(SOURCE_MAC, DESTINATION_MAC)
        .ip(ip_headers(source.ip, destination.ip, 64))
        .tcp_header(header)
        .write(&mut frame, payload)
        .expect("writing to a vector does not fail");
    frame
}

/// A UDP datagram.
#[must_use]
pub fn udp(source: End, destination: End, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(SOURCE_MAC, DESTINATION_MAC)
        .ip(ip_headers(source.ip, destination.ip, 64))
        .udp(source.port, destination.port)
        .write(&mut frame, payload)
        .expect("writing to a vector does not fail");
    frame
}

/// An ICMP or ICMPv6 message: type, code, the four bytes after the checksum, and the rest.
#[must_use]
pub fn icmp(
    source: IpAddr,
    destination: IpAddr,
    kind: u8,
    code: u8,
    rest: [u8; 4],
    payload: &[u8],
) -> Vec<u8> {
    icmp_with_hop_limit(source, destination, 64, kind, code, rest, payload)
}

/// [`icmp`] with a chosen TTL or hop limit.
#[must_use]
pub fn icmp_with_hop_limit(
    source: IpAddr,
    destination: IpAddr,
    hop_limit: u8,
    kind: u8,
    code: u8,
    rest: [u8; 4],
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = PacketBuilder::ethernet2(SOURCE_MAC, DESTINATION_MAC).ip(ip_headers(
        source,
        destination,
        hop_limit,
    ));
    let written = if source.is_ipv4() {
        step.icmpv4_raw(kind, code, rest).write(&mut frame, payload)
    } else {
        step.icmpv6_raw(kind, code, rest).write(&mut frame, payload)
    };
    written.expect("writing to a vector does not fail");
    frame
}

/// An IGMP message with a chosen TTL.
#[must_use]
pub fn igmp(source: &str, destination: &str, ttl: u8) -> Vec<u8> {
    let [source, destination] = [source, destination].map(|a| a.parse().expect("a valid address"));
    let mut frame = icmp_with_hop_limit(source, destination, ttl, 0x22, 0, [0; 4], &[0; 8]);
    frame[ETHERNET_LEN + 9] = 2;
    frame
}

/// An echo request from `source`, or with `reply` an echo reply.
#[must_use]
pub fn echo(source: &str, destination: &str, id: u16, reply: bool) -> Vec<u8> {
    let source: IpAddr = source.parse().expect("a test names a valid address");
    let destination: IpAddr = destination.parse().expect("a test names a valid address");
    let kind = match (source.is_ipv4(), reply) {
        (true, false) => 8,
        (true, true) => 0,
        (false, false) => 128,
        (false, true) => 129,
    };
    let [high, low] = id.to_be_bytes();
    icmp(source, destination, kind, 0, [high, low, 0, 1], b"ping")
}

/// An ICMP error that `router` sends about `offending` (a frame) to its sender.
#[must_use]
pub fn icmp_error(router: &str, kind: u8, code: u8, offending: &[u8]) -> Vec<u8> {
    let router: IpAddr = router.parse().expect("a test names a valid address");
    let packet = &offending[ETHERNET_LEN..];
    let to: IpAddr = if router.is_ipv4() {
        let octets: [u8; 4] = packet[12..16].try_into().expect("four bytes");
        octets.into()
    } else {
        let octets: [u8; 16] = packet[8..24].try_into().expect("sixteen bytes");
        octets.into()
    };
    icmp(
        router,
        to,
        kind,
        code,
        [0, 0, 5, 0xdc],
        &packet[..packet.len().min(64)],
    )
}

/// A packet of any protocol.
#[must_use]
pub fn raw(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let source: IpAddr = source.parse().expect("a test names a valid address");
    let destination: IpAddr = destination.parse().expect("a test names a valid address");
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(SOURCE_MAC, DESTINATION_MAC)
        .ip(ip_headers(source, destination, 64))
        .write(&mut frame, IpNumber(protocol), payload)
        .expect("writing to a vector does not fail");
    frame
}

/// A frame of any EtherType.
#[must_use]
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET_LEN + payload.len());
    frame.extend_from_slice(&DESTINATION_MAC);
    frame.extend_from_slice(&SOURCE_MAC);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Puts a VLAN tag of the given EtherType in front of what the frame carries.
#[must_use]
pub fn tagged(frame: &[u8], tag_ethertype: u16, vlan: u16) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend_from_slice(&tag_ethertype.to_be_bytes());
    tagged.extend_from_slice(&vlan.to_be_bytes());
    tagged.extend_from_slice(&frame[12..]);
    tagged
}

/// Inserts IPv4 options (padded to 4 bytes) and corrects lengths.
#[must_use]
pub fn with_ipv4_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    assert!(
        options.len().is_multiple_of(4) && options.len() <= 40,
        "options come in words, ten at most"
    );
    let mut edited = frame[..ETHERNET_LEN + IPV4_LEN].to_vec();
    edited.extend_from_slice(options);
    edited.extend_from_slice(&frame[ETHERNET_LEN + IPV4_LEN..]);
    edited[ETHERNET_LEN] = 0x40 | (5 + options.len() / 4) as u8;
    let total = (edited.len() - ETHERNET_LEN) as u16;
    edited[ETHERNET_LEN + 2..ETHERNET_LEN + 4].copy_from_slice(&total.to_be_bytes());
    edited
}

/// Inserts IPv6 extension headers, given as (type, bytes without the next-header byte).
#[must_use]
pub fn with_ipv6_extensions(frame: &[u8], extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut chain = Vec::new();
    let upper = frame[ETHERNET_LEN + 6];
    for (index, (_, body)) in extensions.iter().enumerate() {
        chain.push(extensions.get(index + 1).map_or(upper, |(next, _)| *next));
        chain.extend_from_slice(body);
    }
    let mut edited = frame[..ETHERNET_LEN + IPV6_LEN].to_vec();
    if let Some((first, _)) = extensions.first() {
        edited[ETHERNET_LEN + 6] = *first;
    }
    edited.extend_from_slice(&chain);
    edited.extend_from_slice(&frame[ETHERNET_LEN + IPV6_LEN..]);
    let payload = (edited.len() - ETHERNET_LEN - IPV6_LEN) as u16;
    edited[ETHERNET_LEN + 4..ETHERNET_LEN + 6].copy_from_slice(&payload.to_be_bytes());
    edited
}

/// An options header (hop-by-hop, destination) of 8 bytes full of padding.
#[must_use]
pub fn padding_extension(kind: u8) -> (u8, Vec<u8>) {
    (kind, vec![0, 1, 4, 0, 0, 0, 0])
}

/// An IPv6 fragment header: offset in 8-byte units.
#[must_use]
pub fn fragment_extension(offset: u16, more: bool, id: u32) -> (u8, Vec<u8>) {
    let bits = (offset << 3) | u16::from(more);
    let mut body = vec![0];
    body.extend_from_slice(&bits.to_be_bytes());
    body.extend_from_slice(&id.to_be_bytes());
    (44, body)
}

/// Cuts a well-formed IPv4 packet into the fragment that begins at `offset` (8-byte units of what
/// follows the header) and is `len` bytes long.
#[must_use]
pub fn ipv4_fragment(frame: &[u8], id: u16, offset: u16, len: usize, more: bool) -> Vec<u8> {
    let start = ETHERNET_LEN + IPV4_LEN + usize::from(offset) * 8;
    let mut edited = frame[..ETHERNET_LEN + IPV4_LEN].to_vec();
    edited.extend_from_slice(&frame[start..start + len]);
    let total = (edited.len() - ETHERNET_LEN) as u16;
    let bits = offset | if more { 0x2000 } else { 0 };
    edited[ETHERNET_LEN + 2..ETHERNET_LEN + 4].copy_from_slice(&total.to_be_bytes());
    edited[ETHERNET_LEN + 4..ETHERNET_LEN + 6].copy_from_slice(&id.to_be_bytes());
    edited[ETHERNET_LEN + 6..ETHERNET_LEN + 8].copy_from_slice(&bits.to_be_bytes());
    edited
}

fn ip_headers(source: IpAddr, destination: IpAddr, hop_limit: u8) -> IpHeaders {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => IpHeaders::Ipv4(
            Ipv4Header::new(
                0,
                hop_limit,
                IpNumber::TCP,
                source.octets(),
                destination.octets(),
            )
            .expect("length zero fits"),
            Default::default(),
        ),
        (IpAddr::V6(source), IpAddr::V6(destination)) => IpHeaders::Ipv6(
            Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: IpNumber::TCP,
                hop_limit,
                source: source.octets(),
                destination: destination.octets(),
            },
            Default::default(),
        ),
        _ => panic!("both ends of a packet are of one family"),
    }
}
