//! Which sockets of a namespace can serve: the evidence about the direction of flows that began
//! before anybody watched.
//!
//! Read from `/proc/thread-self/net`, which shows the namespace of the reading thread
//! (proc_pid_net(5)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;

use flowgraph::direction::Sockets;
use policy::model::Protocol;

use super::netns::{Netns, NetnsError};

/// States of include/net/tcp_states.h.
const TCP_LISTEN: u8 = 0x0a;
/// A UDP socket without a peer shows as "closed".
const UDP_UNCONNECTED: u8 = 0x07;

/// Reads the serving sockets of the namespace at `path`. Blocks: call it from a blocking context.
///
/// # Errors
/// The namespace is gone, or cannot be entered or read.
pub fn read(path: &Path) -> Result<Sockets, NetnsError> {
    let error = |what, source| NetnsError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    Netns::open(path)?.run(|| -> Result<_, NetnsError> {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
            .map_err(|source| error("the ephemeral port range", source))?;
        let mut sockets = Sockets::new(parse_range(&range).unwrap_or(Sockets::DEFAULT_EPHEMERAL));
        for (table, protocol, state) in [
            ("tcp", Protocol::TCP, TCP_LISTEN),
            ("tcp6", Protocol::TCP, TCP_LISTEN),
            ("udp", Protocol::UDP, UDP_UNCONNECTED),
            ("udp6", Protocol::UDP, UDP_UNCONNECTED),
        ] {
            let text = match std::fs::read_to_string(format!("/proc/thread-self/net/{table}")) {
                Ok(text) => text,
                // No IPv6 in this kernel.
                Err(source) if source.kind() == std::io::ErrorKind::NotFound => continue,
                Err(source) => return Err(error("the socket table", source)),
            };
            for address in text.lines().skip(1).filter_map(|line| serving(line, state)) {
                sockets.insert(protocol, address);
            }
        }
        Ok(sockets)
    })?
}

/// Local address of a line of `/proc/net/{tcp,udp}{,6}` in the given state, without a peer.
fn serving(line: &str, state: u8) -> Option<SocketAddr> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = parse_address(fields.next()?)?;
    let remote = parse_address(fields.next()?)?;
    let serves = u8::from_str_radix(fields.next()?, 16).ok()? == state
        && local.port() != 0
        && remote.port() == 0;
    serves.then_some(local)
}

/// `0100007F:0035`: 32-bit words in host byte order, then the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match *bytes.as_slice() {
        [a, b, c, d] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    Some(SocketAddr::new(ip, port))
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut words = text.split_ascii_whitespace().map(str::parse);
    Some(words.next()?.ok()?..=words.next()?.ok()?)
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_net_say_who_serves() {
        let rest = "00000000:00000000 00:00000000 00000000     0        0 1 1 0";
        let line = |local: &str, remote: &str, state: &str| {
            format!("   0: {local} {remote} {state} {rest}")
        };
        let none = "00000000:0000";
        let none6 = "00000000000000000000000000000000:0000";
        for (line, state, expected) in [
            (
                line("0100007F:1F90", none, "0A"),
                TCP_LISTEN,
                Some("127.0.0.1:8080"),
            ),
            (
                line("00000000:0016", none, "0A"),
                TCP_LISTEN,
                Some("0.0.0.0:22"),
            ),
            (
                line("0100007F:1F90", "0200007F:9C40", "01"),
                TCP_LISTEN,
                None,
            ),
            (line("0100007F:1F90", none, "01"), TCP_LISTEN, None),
            (
                line("000000FD000000000000000002000000:0050", none6, "0A"),
                TCP_LISTEN,
                Some("[fd00::2]:80"),
            ),
            (line(none6, none6, "0A"), TCP_LISTEN, None),
            (
                line("00000000:0035", none, "07"),
                UDP_UNCONNECTED,
                Some("0.0.0.0:53"),
            ),
            (
                line("00000000:0035", "0200000A:0035", "01"),
                UDP_UNCONNECTED,
                None,
            ),
        ] {
            let found = serving(&line, state).map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{line}");
        }
        for junk in ["", "sl", "0: zz", "0: 01:02 03:04 0A", "0: 0100007F:1F90"] {
            assert_eq!(serving(junk, TCP_LISTEN), None, "{junk}");
        }
    }

    #[test]
    fn the_port_range_is_read_or_the_default_stands() {
        assert_eq!(parse_range("32768\t60999\n"), Some(32768..=60999));
        assert_eq!(parse_range("32768"), None);
        assert_eq!(parse_range("a b"), None);
    }
}
