//! Bytes -> [`Packet`]. The only packet pointer arithmetic in the program.
//!
//! Parses what attackers send: IHL and options, VLAN tags, IPv6 extension chains, fragments, ICMP
//! errors, truncation. What is not understood gets its own drop reason.

use aya_ebpf::programs::TcContext;
use dataplane_common::{DropReason, conntrack::tcp, proto};

use crate::addr::Addr;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const ETH_LEN: usize = 14;
const VLAN_LEN: usize = 4;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// Furthest offset in the frame at which a header may start; keeps offsets small enough for the
/// verifier and bounds what a crafted chain of extension headers can make us read.
const MAX_OFFSET: usize = 512;
/// Extension headers followed before giving up.
const MAX_EXTENSIONS: usize = 6;
/// Bytes made linear when headers lie in page fragments.
const PULL_LEN: u32 = 256;

/// A packet, by value: nothing points into the buffer any more. Filled in place, because the BPF
/// stack has no room for the copies that returning it by value makes.
#[repr(C)]
pub struct Packet {
    /// Valid when `family` is not 0.
    pub source: Addr,
    pub destination: Addr,
    /// Everything else, cleared for each packet.
    pub header: Header,
}

/// What parsing finds besides the addresses: whole words, so that clearing it is a few stores.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Header {
    /// Layer 3 length as seen (GSO: of the super-packet).
    pub l3_len: u32,
    /// Identification of a fragmented datagram.
    pub fragment_id: u32,
    /// Offset of layer 4, for ICMP errors.
    pub l4_offset: u32,
    /// Offset past the last byte that the IP header claims; padding follows.
    pub end: u32,
    pub source_port_be: u16,
    pub destination_port_be: u16,
    /// 4 or 6; 0 while the addresses are unknown.
    pub family: u8,
    pub protocol: u8,
    pub tcp_flags: u8,
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    pub fragment: Fragment,
    _pad: u8,
}

/// Place of a packet within a fragmented datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fragment {
    /// Not fragmented.
    Whole = 0,
    /// Carries the layer 4 header.
    First,
    /// Carries no layer 4 header.
    Later,
}

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Frame {
    /// IPv4 or IPv6.
    Ip,
    /// Link-layer address resolution, which policy never filters.
    Arp,
}

/// The addresses and ports inside an ICMP error, as the offending packet carried them.
pub struct InnerPacket {
    pub source: Addr,
    pub destination: Addr,
    pub source_port_be: u16,
    pub destination_port_be: u16,
    pub protocol: u8,
}

/// The one bounds-checked reader.
struct Reader {
    start: usize,
    end: usize,
    /// Offset past the last byte that belongs to the packet at hand: what an IP header does not
    /// claim is padding, which the receiver cuts off before it reads on.
    limit: usize,
}

/// `LEN` bytes of the packet that are known to be there.
#[derive(Clone, Copy)]
struct Window<const LEN: usize> {
    at: usize,
}

/// Integers that are read straight from the packet, in network order.
trait Field: Copy {}
impl Field for u8 {}
impl Field for u16 {}
impl Field for u32 {}

impl Reader {
    #[inline(always)]
    fn new(ctx: &TcContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
            limit: usize::MAX,
        }
    }

    /// Reads no further than `limit` bytes into the frame.
    #[inline(always)]
    fn up_to(&self, limit: usize) -> Self {
        Self { limit, ..*self }
    }

    /// The `LEN` bytes at `offset`, if the packet has them.
    #[inline(always)]
    fn window<const LEN: usize>(&self, offset: usize) -> Result<Window<LEN>, DropReason> {
        if offset > MAX_OFFSET || offset + LEN > self.limit {
            return Err(DropReason::Truncated);
        }
        let at = opaque(self.start + offset);
        if at + LEN > self.end {
            return Err(DropReason::Truncated);
        }
        Ok(Window { at })
    }
}

/// Hides where a value came from. The verifier remembers a bounds check only for the register that
/// was compared; without this LLVM compares one sum and dereferences another, equal one.
#[inline(always)]
fn opaque(mut value: usize) -> usize {
    // SAFETY: moving a register onto itself changes nothing. (An empty template would leave two line
    // records for one instruction, which the kernel's BTF check refuses.)
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags));
    }
    value
}

impl<const LEN: usize> Window<LEN> {
    /// The integer at a constant offset within the window.
    #[inline(always)]
    fn read<T: Field, const OFFSET: usize>(self) -> T {
        const { assert!(OFFSET + size_of::<T>() <= LEN, "outside of the window") };
        // SAFETY: the window was checked and the assert keeps the integer inside it. The kernel lays
        // IP headers on 4-byte boundaries (NET_IP_ALIGN, HH_DATA_MOD); where it does not, the CPU
        // loads misaligned integers or the verifier refuses the program
        // (CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS). `read_unaligned` is no way out: the BPF backend
        // turns it into single-byte loads.
        unsafe { ((self.at + OFFSET) as *const T).read() }
    }

    /// The 16-bit integer at a constant offset, in host order.
    #[inline(always)]
    fn number<const OFFSET: usize>(self) -> u16 {
        u16::from_be(self.read::<u16, OFFSET>())
    }
}

impl Window<IPV4_LEN> {
    #[inline(always)]
    fn v4<const OFFSET: usize>(self) -> Addr {
        Addr::v4(self.read::<u32, OFFSET>())
    }
}

impl Window<IPV6_LEN> {
    #[inline(always)]
    fn v6_source(self) -> Addr {
        Addr([
            self.read::<u32, 8>(),
            self.read::<u32, 12>(),
            self.read::<u32, 16>(),
            self.read::<u32, 20>(),
        ])
    }

    #[inline(always)]
    fn v6_destination(self) -> Addr {
        Addr([
            self.read::<u32, 24>(),
            self.read::<u32, 28>(),
            self.read::<u32, 32>(),
            self.read::<u32, 36>(),
        ])
    }
}

/// Parses a frame into `packet`. When headers are not in linear memory they are made linear and
/// parsed again.
#[inline(always)]
pub fn parse(ctx: &TcContext, packet: &mut Packet) -> Result<Frame, DropReason> {
    match parse_linear(ctx, packet) {
        // What a header that is not there is called, depending on the header.
        Err(
            reason @ (DropReason::Truncated
            | DropReason::FragmentTooSmall
            | DropReason::VlanUnsupported),
        ) => {
            let linear = ctx.data_end().wrapping_sub(ctx.data()) as u32;
            if linear >= ctx.len() || linear >= PULL_LEN {
                return Err(reason);
            }
            let wanted = if ctx.len() < PULL_LEN {
                ctx.len()
            } else {
                PULL_LEN
            };
            if ctx.skb.pull_data(wanted).is_err() {
                return Err(reason);
            }
            parse_linear(ctx, packet)
        }
        other => other,
    }
}

#[inline(always)]
fn parse_linear(ctx: &TcContext, packet: &mut Packet) -> Result<Frame, DropReason> {
    let reader = Reader::new(ctx);
    let mut ethertype = reader.window::<ETH_LEN>(0)?.number::<12>();
    let mut offset = ETH_LEN;
    // The outer tag is usually out of band (skb->vlan_tci); up to two may be in band.
    if is_vlan(ethertype) {
        ethertype = inner_ethertype(&reader, offset)?;
        offset += VLAN_LEN;
        if is_vlan(ethertype) {
            ethertype = inner_ethertype(&reader, offset)?;
            offset += VLAN_LEN;
        }
        if is_vlan(ethertype) {
            return Err(DropReason::VlanUnsupported);
        }
    }
    packet.header.l3_len = ctx.len().wrapping_sub(offset as u32);
    match ethertype {
        ETHERTYPE_IPV4 => parse_ipv4(&reader, offset, is_gso(ctx), packet)?,
        ETHERTYPE_IPV6 => parse_ipv6(&reader, offset, is_gso(ctx), packet)?,
        ETHERTYPE_ARP => return Ok(Frame::Arp),
        _ => return Err(DropReason::UnknownEtherType),
    }
    Ok(Frame::Ip)
}

#[inline(always)]
fn is_vlan(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ
}

#[inline(always)]
fn inner_ethertype(reader: &Reader, offset: usize) -> Result<u16, DropReason> {
    match reader.window::<VLAN_LEN>(offset) {
        Ok(tag) => Ok(tag.number::<2>()),
        Err(_) => Err(DropReason::VlanUnsupported),
    }
}

/// Whether the packet stands for several on the wire. Such a packet may be longer than its length
/// field can say, which is then 0 (BIG TCP, kernel 5.19 for IPv6 and 6.3 for IPv4).
#[inline(always)]
fn is_gso(ctx: &TcContext) -> bool {
    // SAFETY: the kernel passes a valid `__sk_buff`.
    unsafe { (*ctx.skb.skb).gso_size != 0 }
}

#[inline(always)]
fn parse_ipv4(
    reader: &Reader,
    offset: usize,
    is_gso: bool,
    packet: &mut Packet,
) -> Result<(), DropReason> {
    let header = reader.window::<IPV4_LEN>(offset)?;
    let version_ihl = header.read::<u8, 0>();
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    let total_len = u32::from(header.number::<2>());
    if version_ihl >> 4 != 4 || header_len < IPV4_LEN {
        return Err(DropReason::MalformedHeader);
    }
    packet.source = header.v4::<12>();
    packet.destination = header.v4::<16>();
    packet.header.family = 4;
    packet.header.protocol = header.read::<u8, 9>();
    packet.header.hop_limit = header.read::<u8, 8>();
    packet.header.fragment_id = u32::from(header.number::<4>());
    let stated = if total_len == 0 && is_gso {
        packet.header.l3_len
    } else {
        total_len
    };
    // A packet must not promise more than it brings, nor less than its own header.
    if stated > packet.header.l3_len || (stated as usize) < header_len {
        return Err(DropReason::Truncated);
    }
    let fragment_bits = header.number::<6>();
    let fragment_offset = fragment_bits & 0x1fff;
    let more = fragment_bits & 0x2000 != 0;
    packet.header.fragment = match (fragment_offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    };
    // RFC 1858, RFC 3128: an offset of one unit would overwrite the TCP flags or ports.
    if fragment_offset == 1 && packet.header.protocol == proto::TCP {
        return Err(DropReason::FragmentTooSmall);
    }
    packet.header.end = offset as u32 + stated;
    parse_l4(reader, offset + header_len, packet)
}

#[inline(always)]
fn parse_ipv6(
    reader: &Reader,
    offset: usize,
    is_gso: bool,
    packet: &mut Packet,
) -> Result<(), DropReason> {
    let header = reader.window::<IPV6_LEN>(offset)?;
    if header.read::<u8, 0>() >> 4 != 6 {
        return Err(DropReason::MalformedHeader);
    }
    packet.source = header.v6_source();
    packet.destination = header.v6_destination();
    packet.header.family = 6;
    packet.header.hop_limit = header.read::<u8, 7>();
    packet.header.fragment = Fragment::Whole;
    let payload_len = u32::from(header.number::<4>());
    let stated = if payload_len == 0 && is_gso {
        packet.header.l3_len
    } else {
        payload_len + IPV6_LEN as u32
    };
    if stated > packet.header.l3_len {
        return Err(DropReason::Truncated);
    }
    packet.header.end = offset as u32 + stated;
    let reader = &reader.up_to(packet.header.end as usize);
    if packet.source.is_v4() || packet.destination.is_v4() {
        // RFC 4942 section 2.2: never valid on the wire.
        return Err(DropReason::MartianAddress);
    }
    let mut protocol = header.read::<u8, 6>();
    let mut offset = offset + IPV6_LEN;
    let mut extensions = 0;
    while is_extension(protocol) {
        if extensions == MAX_EXTENSIONS {
            return Err(DropReason::Ipv6ExtensionHeaders);
        }
        extensions += 1;
        if protocol == EXT_FRAGMENT {
            let header = reader.window::<8>(offset)?;
            protocol = header.read::<u8, 0>();
            let bits = header.number::<2>();
            packet.header.fragment_id = u32::from_be(header.read::<u32, 4>());
            offset += 8;
            packet.header.fragment = match (bits >> 3, bits & 1) {
                // An atomic fragment is a whole datagram (RFC 6946).
                (0, 0) => Fragment::Whole,
                (0, _) => Fragment::First,
                _ => Fragment::Later,
            };
        } else {
            let header = reader.window::<2>(offset)?;
            let next = header.read::<u8, 0>();
            let len = header.read::<u8, 1>();
            // The authentication header counts in 4-byte units (RFC 4302 section 2.2).
            offset += if protocol == EXT_AUTHENTICATION {
                (usize::from(len) + 2) * 4
            } else {
                (usize::from(len) + 1) * 8
            };
            protocol = next;
        }
        if offset > packet.header.end as usize {
            return Err(DropReason::Truncated);
        }
        if offset > MAX_OFFSET {
            return Err(DropReason::Ipv6ExtensionHeaders);
        }
        if packet.header.fragment == Fragment::Later {
            break;
        }
    }
    packet.header.protocol = protocol;
    parse_l4(reader, offset, packet)
}

const EXT_FRAGMENT: u8 = 44;
const EXT_AUTHENTICATION: u8 = 51;

/// Hop-by-hop, routing, fragment, authentication, destination options, mobility, HIP, shim6: the
/// headers that have another one behind them (RFC 8200 section 4, RFC 6564).
#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        0 | 43 | EXT_FRAGMENT | EXT_AUTHENTICATION | 60 | 135 | 139 | 140
    )
}

#[inline(always)]
fn parse_l4(reader: &Reader, offset: usize, packet: &mut Packet) -> Result<(), DropReason> {
    let reader = &reader.up_to(packet.header.end as usize);
    packet.header.l4_offset = offset as u32;
    if packet.header.fragment == Fragment::Later {
        return Ok(());
    }
    let too_short = if packet.header.fragment == Fragment::First {
        DropReason::FragmentTooSmall
    } else {
        DropReason::Truncated
    };
    match packet.header.protocol {
        proto::TCP => {
            let header = reader.window::<20>(offset).map_err(|_| too_short)?;
            packet.header.source_port_be = header.read::<u16, 0>();
            packet.header.destination_port_be = header.read::<u16, 2>();
            let flags = header.read::<u8, 13>();
            packet.header.tcp_flags = flags;
            // RFC 9293 section 3.10.7: no stack opens with SYN and FIN or RST, and every segment
            // has SYN, RST or ACK set.
            let invalid_syn = flags & tcp::SYN != 0 && flags & (tcp::FIN | tcp::RST) != 0;
            if invalid_syn || flags & (tcp::SYN | tcp::RST | tcp::ACK) == 0 {
                return Err(DropReason::TcpFlagsInvalid);
            }
        }
        proto::UDP | proto::SCTP | proto::UDP_LITE => {
            let header = reader.window::<8>(offset).map_err(|_| too_short)?;
            packet.header.source_port_be = header.read::<u16, 0>();
            packet.header.destination_port_be = header.read::<u16, 2>();
        }
        proto::ICMP | proto::ICMPV6 => {
            // Each IP version has an ICMP of its own (RFC 4443 section 1). In the other it would pass
            // for neighbour discovery that routers forward.
            if (packet.header.protocol == proto::ICMP) != (packet.header.family == 4) {
                return Err(DropReason::MalformedHeader);
            }
            let header = reader.window::<4>(offset).map_err(|_| too_short)?;
            packet.header.icmp_type = header.read::<u8, 0>();
            packet.header.icmp_code = header.read::<u8, 1>();
            // In place of a port; also what later fragments are told.
            packet.header.destination_port_be = header.read::<u16, 0>();
            // Identifier of echo messages; other types have something else there.
            if packet.is_icmp_echo_request() || packet.is_icmp_echo_reply() {
                let header = reader.window::<8>(offset).map_err(|_| too_short)?;
                packet.header.source_port_be = header.read::<u16, 4>();
            }
        }
        _ => {}
    }
    Ok(())
}

/// Reads the packet inside an ICMP error (RFC 792, RFC 4443 section 2.4: as much of the offending
/// packet as fits; at least its IP header and 8 bytes).
#[inline(always)]
pub fn parse_inner(ctx: &TcContext, packet: &Packet) -> Result<InnerPacket, DropReason> {
    let reader = Reader::new(ctx).up_to(packet.header.end as usize);
    let offset = packet.header.l4_offset as usize + 8;
    let (source, destination, protocol, l4) = if packet.header.family == 4 {
        let header = reader.window::<IPV4_LEN>(offset)?;
        let version_ihl = header.read::<u8, 0>();
        let header_len = usize::from(version_ihl & 0x0f) * 4;
        if version_ihl >> 4 != 4 || header_len < IPV4_LEN {
            return Err(DropReason::MalformedHeader);
        }
        if header.number::<6>() & 0x1fff != 0 {
            return Err(DropReason::IcmpErrorUnrelated);
        }
        let (source, destination) = (header.v4::<12>(), header.v4::<16>());
        (
            source,
            destination,
            header.read::<u8, 9>(),
            offset + header_len,
        )
    } else {
        let header = reader.window::<IPV6_LEN>(offset)?;
        if header.read::<u8, 0>() >> 4 != 6 {
            return Err(DropReason::MalformedHeader);
        }
        let (source, destination) = (header.v6_source(), header.v6_destination());
        (
            source,
            destination,
            header.read::<u8, 6>(),
            offset + IPV6_LEN,
        )
    };
    let (source_port_be, destination_port_be) = match protocol {
        proto::TCP | proto::UDP | proto::SCTP | proto::UDP_LITE => {
            let header = reader.window::<4>(l4)?;
            (header.read::<u16, 0>(), header.read::<u16, 2>())
        }
        proto::ICMP | proto::ICMPV6 => {
            let header = reader.window::<6>(l4)?;
            let kind = header.read::<u8, 0>();
            let is_echo = if packet.header.family == 4 {
                protocol == proto::ICMP && matches!(kind, 8 | 0)
            } else {
                protocol == proto::ICMPV6 && matches!(kind, 128 | 129)
            };
            if !is_echo {
                // RFC 1122 section 3.2.2: no error is sent about an error.
                return Err(DropReason::IcmpErrorUnrelated);
            }
            (header.read::<u16, 4>(), 0)
        }
        _ => (0, 0),
    };
    Ok(InnerPacket {
        source,
        destination,
        source_port_be,
        destination_port_be,
        protocol,
    })
}

impl Packet {
    /// Forgets the packet before, but for its addresses, which `family` 0 makes invalid.
    #[inline(always)]
    pub fn clear(&mut self) {
        const WORDS: usize = size_of::<Header>() / size_of::<u64>();
        const { assert!(WORDS * size_of::<u64>() == size_of::<Header>()) };
        let words = (&raw mut self.header).cast::<u64>();
        let mut word = 0;
        while word < WORDS {
            // SAFETY: within the header, which is aligned to words and for which zero is valid
            // (`Fragment::Whole`). Volatile, or LLVM makes a call of the byte-wise `memset` of it.
            unsafe { words.add(word).write_volatile(0) };
            word += 1;
        }
    }

    /// Forgets the addresses of the packet before when this one's were not reached.
    #[inline(always)]
    pub fn clear_unknown_addresses(&mut self) {
        if self.header.family == 0 {
            self.source = Addr([0; 4]);
            self.destination = Addr([0; 4]);
        }
    }

    #[inline(always)]
    pub fn is_icmp_echo_request(&self) -> bool {
        (self.header.protocol == proto::ICMP && self.header.icmp_type == 8)
            || (self.header.protocol == proto::ICMPV6 && self.header.icmp_type == 128)
    }

    #[inline(always)]
    pub fn is_icmp_echo_reply(&self) -> bool {
        (self.header.protocol == proto::ICMP && self.header.icmp_type == 0)
            || (self.header.protocol == proto::ICMPV6 && self.header.icmp_type == 129)
    }

    /// ICMP that is no echo: a message of its own, of which each is judged with all rules.
    #[inline(always)]
    pub fn is_icmp_but_no_echo(&self) -> bool {
        matches!(self.header.protocol, proto::ICMP | proto::ICMPV6)
            && !self.is_icmp_echo_request()
            && !self.is_icmp_echo_reply()
    }

    /// Destination unreachable, packet too big, time exceeded, parameter problem, source quench.
    #[inline(always)]
    pub fn is_icmp_error(&self) -> bool {
        (self.header.protocol == proto::ICMP && matches!(self.header.icmp_type, 3 | 4 | 11 | 12))
            || (self.header.protocol == proto::ICMPV6 && matches!(self.header.icmp_type, 1..=4))
    }
}
