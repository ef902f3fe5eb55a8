//! ICMP and ICMPv6 echo over raw sockets (RFC 792, RFC 4443).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto,
    socket,
};

use crate::Outcome;
use crate::probe::wait_ready;

const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
const ECHO_LEN: usize = 8;
const IPV6_HEADER_LEN: usize = 40;

/// One echo request: `Replied`, `TimedOut`, or `Unreachable` when an ICMP error quotes it.
pub fn ping(to: IpAddr, timeout: Duration) -> Outcome {
    static SEQUENCE: AtomicU16 = AtomicU16::new(1);
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    let identifier = std::process::id() as u16;
    attempt(to, identifier, sequence, timeout).unwrap_or_else(|error| Outcome::from_error(&error))
}

fn attempt(to: IpAddr, identifier: u16, sequence: u16, timeout: Duration) -> io::Result<Outcome> {
    let deadline = Instant::now() + timeout;
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let fd: OwnedFd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let request = echo_request(to, identifier, sequence);
    let destination = SockaddrStorage::from(SocketAddr::new(to, 0));
    sendto(fd.as_raw_fd(), &request, &destination, MsgFlags::empty())?;
    let mut buffer = [0; 2048];
    while wait_ready(&fd, PollFlags::POLLIN, deadline)? {
        let (length, from) = recvfrom::<SockaddrStorage>(fd.as_raw_fd(), &mut buffer)?;
        let message = match to {
            IpAddr::V4(_) => skip_ipv4(&buffer[..length]),
            IpAddr::V6(_) => Some(&buffer[..length]),
        };
        let Some(message) = message else { continue };
        let from = from.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        });
        match judge(message, to.is_ipv4(), identifier, sequence) {
            Some(Outcome::Replied) if from == Some(to) => return Ok(Outcome::Replied),
            Some(Outcome::Unreachable) => return Ok(Outcome::Unreachable),
            _ => {}
        }
    }
    Ok(Outcome::TimedOut)
}

fn echo_request(to: IpAddr, identifier: u16, sequence: u16) -> [u8; ECHO_LEN] {
    let mut message = [0; ECHO_LEN];
    message[0] = if to.is_ipv4() {
        ECHO_REQUEST_V4
    } else {
        ECHO_REQUEST_V6
    };
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    // The kernel fills in the ICMPv6 checksum, which covers addresses it chooses.
    if to.is_ipv4() {
        let sum: u32 = message
            .chunks_exact(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        message[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    }
    message
}

/// What a received ICMP message says about our request; `None` when it is about something else.
fn judge(message: &[u8], v4: bool, identifier: u16, sequence: u16) -> Option<Outcome> {
    let ours = |echo: &[u8], kind: u8| {
        echo.len() >= ECHO_LEN
            && echo[0] == kind
            && echo[4..6] == identifier.to_be_bytes()
            && echo[6..8] == sequence.to_be_bytes()
    };
    let reply = if v4 { ECHO_REPLY_V4 } else { ECHO_REPLY_V6 };
    if ours(message, reply) {
        return Some(Outcome::Replied);
    }
    let quoted = message.get(ECHO_LEN..)?;
    let (error, inner, request) = if v4 {
        (
            matches!(message[0], 3 | 11 | 12),
            skip_ipv4(quoted)?,
            ECHO_REQUEST_V4,
        )
    } else {
        (
            matches!(message[0], 1..=4),
            quoted.get(IPV6_HEADER_LEN..)?,
            ECHO_REQUEST_V6,
        )
    };
    (error && ours(inner, request)).then_some(Outcome::Unreachable)
}

fn skip_ipv4(packet: &[u8]) -> Option<&[u8]> {
    let header_len = usize::from(packet.first()? & 0x0f) * 4;
    packet.get(header_len..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_sums_to_all_ones() {
        let message = echo_request("10.0.0.1".parse().unwrap(), 0xfffe, 0xffff);
        let sum: u32 = message
            .chunks_exact(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }

    #[test]
    fn only_our_own_echo_counts() {
        let mut reply = echo_request("fd00::1".parse().unwrap(), 7, 9);
        reply[0] = ECHO_REPLY_V6;
        assert_eq!(judge(&reply, false, 7, 9), Some(Outcome::Replied));
        assert_eq!(judge(&reply, false, 7, 8), None);
        assert_eq!(judge(&reply, false, 8, 9), None);
    }

    #[test]
    fn an_error_that_quotes_our_request_is_unreachable() {
        let mut packet = vec![3, 1, 0, 0, 0, 0, 0, 0];
        packet.extend([0x45; 20]);
        packet.extend(echo_request("10.0.0.1".parse().unwrap(), 7, 9));
        assert_eq!(judge(&packet, true, 7, 9), Some(Outcome::Unreachable));
        assert_eq!(judge(&packet, true, 7, 1), None);
        assert_eq!(judge(&packet[..30], true, 7, 9), None);
    }
}
