//! Random traffic of one workload: conversations, what networks need, and what attackers send.

use std::net::IpAddr;

use dataplane_common::Direction;
use netns_tests::frames::{self, ETHERNET_LEN, End, IPV4_LEN, IPV6_LEN};

use crate::random::{OWN, OWNABLE, PORTS, Random, ip};

/// Addresses that belong to nobody.
const FOREIGN: [[&str; 4]; 2] = [
    ["192.0.2.200", "203.0.113.9", "10.0.0.99", "0.0.0.0"],
    ["2001:db8:1::1", "2001:db8:ffff::1", "fd00::99", "::"],
];
/// Addresses that are no host's.
const STRANGE: [[&str; 4]; 2] = [
    ["224.0.0.1", "255.255.255.255", "127.0.0.1", "239.1.2.3"],
    ["ff02::1", "ff02::1:2", "::1", "::ffff:10.0.0.2"],
];
const LINK_LOCAL: &str = "fe80::77";
const CLIENT_PORTS: [u16; 3] = [40000, 40001, 53];

/// Longest frame with extension headers: BPF_PROG_TEST_RUN takes less than a page.
const LONGEST: usize = 3000;

/// One end of a conversation from the workload's point of view.
#[derive(Clone, Copy)]
struct Tuple {
    local: End,
    remote: End,
    protocol: u8,
}

/// What was sent, so that later packets can belong to it.
#[derive(Default)]
pub struct Traffic {
    tuples: Vec<Tuple>,
    /// Frames that ICMP errors may be about.
    frames: Vec<(Direction, Vec<u8>)>,
}

impl Traffic {
    pub fn packet(&mut self, random: &mut Random) -> (Direction, Vec<u8>) {
        let (direction, frame) = match random.below(100) {
            0..8 => self.icmp_error(random),
            8..16 => control(random),
            _ => self.conversation(random),
        };
        let mut frame = frame;
        if random.chance(4) {
            let kind = random.pick(&[0x8100, 0x88a8]);
            frame = frames::tagged(&frame, kind, 7);
            if random.chance(40) {
                frame = frames::tagged(&frame, random.pick(&[0x8100, 0x88a8]), 8);
            }
            if random.chance(15) {
                frame = frames::tagged(&frame, 0x8100, 9);
            }
        }
        if random.chance(6) {
            damage(random, &mut frame);
        }
        // BPF_PROG_TEST_RUN itself refuses frames without a whole IP header, unless a tag hides it.
        let header = match frame[12..14] {
            [0x08, 0x00] => IPV4_LEN,
            [0x86, 0xdd] => IPV6_LEN,
            _ => 1,
        };
        frame.resize(frame.len().max(ETHERNET_LEN + header), 0);
        (direction, frame)
    }

    fn conversation(&mut self, random: &mut Random) -> (Direction, Vec<u8>) {
        let tuple = if !self.tuples.is_empty() && random.chance(75) {
            let recent = self.tuples.len().min(12);
            self.tuples[self.tuples.len() - 1 - random.below(recent)]
        } else {
            let tuple = tuple(random);
            self.tuples.push(tuple);
            tuple
        };
        let direction = random.pick(&[Direction::Egress, Direction::Ingress]);
        let (from, to) = match direction {
            Direction::Egress => (tuple.local, tuple.remote),
            Direction::Ingress => (tuple.remote, tuple.local),
        };
        let frame = message(random, tuple.protocol, from, to);
        if random.chance(30) {
            self.frames.push((direction, frame.clone()));
        }
        let frame = dress(random, frame, from.ip.is_ipv4());
        (direction, frame)
    }

    fn icmp_error(&mut self, random: &mut Random) -> (Direction, Vec<u8>) {
        let (direction, offending) = if !self.frames.is_empty() && random.chance(80) {
            let recent = self.frames.len().min(12);
            self.frames[self.frames.len() - 1 - random.below(recent)].clone()
        } else {
            let tuple = tuple(random);
            let frame = message(random, tuple.protocol, tuple.local, tuple.remote);
            (Direction::Egress, frame)
        };
        let v4 = offending[12] == 0x08;
        // The receiver of the packet, or a router, tells its sender.
        let mut back = match direction {
            Direction::Egress => Direction::Ingress,
            Direction::Ingress => Direction::Egress,
        };
        let router = match back {
            Direction::Egress if random.chance(90) => OWN[usize::from(!v4)],
            _ => random.pick(&OWNABLE[usize::from(!v4)]),
        };
        if random.chance(5) {
            back = direction;
        }
        let kind = if v4 {
            random.pick(&[3, 3, 4, 11, 12])
        } else {
            random.pick(&[1, 2, 3, 4])
        };
        let mut frame = frames::icmp_error(router, kind, random.pick(&[0, 3, 4]), &offending);
        if random.chance(15) {
            // To somebody else.
            let other = random.pick(&FOREIGN[usize::from(!v4)]);
            set_address(&mut frame, other, true);
        }
        if random.chance(15) {
            // About something else.
            let at = ETHERNET_LEN + if v4 { 28 } else { 48 };
            let at = at + random.below(48);
            if let Some(byte) = frame.get_mut(at) {
                *byte = random.pick(&[0, 1, 8, 17, 58, 132, 136, 255]);
            }
        }
        (back, frame)
    }
}

fn set_address(frame: &mut [u8], text: &str, destination: bool) {
    match ip(text) {
        IpAddr::V4(v4) => {
            let at = ETHERNET_LEN + if destination { 16 } else { 12 };
            frame[at..at + 4].copy_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            let at = ETHERNET_LEN + if destination { 24 } else { 8 };
            frame[at..at + 16].copy_from_slice(&v6.octets());
        }
    }
}

fn address(random: &mut Random, family: usize) -> &'static str {
    match random.below(20) {
        0 => random.pick(&STRANGE[family]),
        1 if family == 1 => LINK_LOCAL,
        2..6 => random.pick(&FOREIGN[family]),
        _ => random.pick(&OWNABLE[family]),
    }
}

fn tuple(random: &mut Random) -> Tuple {
    let family = random.below(2);
    let local = if random.chance(85) {
        OWN[family]
    } else {
        address(random, family)
    };
    let remote = address(random, family);
    let icmp = if family == 0 { 1 } else { 58 };
    let protocol = match random.below(20) {
        0..10 => 6,
        10..14 => 17,
        14..17 => icmp,
        17 => random.pick(&[132, 136]),
        18 => random.pick(&[2, 4, 47, 50, 89]),
        _ => random.pick(&[1, 58, 132]),
    };
    let (mut server, mut client) = (random.pick(&PORTS), random.pick(&CLIENT_PORTS));
    if random.chance(50) {
        std::mem::swap(&mut server, &mut client);
    }
    Tuple {
        local: End {
            ip: ip(local),
            port: client,
        },
        remote: End {
            ip: ip(remote),
            port: server,
        },
        protocol,
    }
}

fn message(random: &mut Random, protocol: u8, from: End, to: End) -> Vec<u8> {
    let v4 = from.ip.is_ipv4();
    let payload = [0x42; 48];
    let payload = &payload[..random.pick(&[0, 4, 40, 48])];
    match protocol {
        6 => {
            let flags = random.pick(&[
                "S", "S", "S", "SA", "SA", "A", "A", "A", "A", "PA", "FA", "FA", "RA", "R", "F",
                "", "SF", "SR", "SFA", "UPF", "SPA", "FRA",
            ]);
            frames::tcp_with_payload(from, to, flags, payload)
        }
        17 => frames::udp(from, to, payload),
        1 | 58 if (protocol == 1) == v4 => {
            let kinds: [u8; 8] = if v4 {
                [8, 8, 8, 0, 0, 0, 13, 5]
            } else {
                [128, 128, 128, 129, 129, 129, 139, 0]
            };
            let kind = random.pick(&kinds);
            let id = random.pick(&[0, 0, 7, 8]);
            frames::icmp(from.ip, to.ip, kind, 0, [0, id, 0, 1], payload)
        }
        _ => {
            let mut bytes = vec![0; 12];
            bytes[..2].copy_from_slice(&from.port.to_be_bytes());
            bytes[2..4].copy_from_slice(&to.port.to_be_bytes());
            if protocol == 1 || protocol == 58 {
                bytes[0] = random.pick(&[0, 8, 3, 128, 129, 135, 1]);
            }
            bytes.extend_from_slice(payload);
            frames::raw(&from.ip.to_string(), &to.ip.to_string(), protocol, &bytes)
        }
    }
}

/// Options, extension headers, fragments, another hop limit.
fn dress(random: &mut Random, frame: Vec<u8>, v4: bool) -> Vec<u8> {
    let mut frame = frame;
    if random.chance(3) {
        let at = ETHERNET_LEN + if v4 { 8 } else { 7 };
        frame[at] = random.pick(&[1, 255]);
    }
    if v4 {
        if random.chance(8) {
            let l4 = frame.len() - ETHERNET_LEN - IPV4_LEN;
            let offset = random.pick(&[0, 0, 0, 1, 2, 4]);
            let start = usize::from(offset) * 8;
            if start < l4 {
                let len = random.pick(&[8, 16, 24, 48]).min(l4 - start);
                let id = random.pick(&[1, 2]);
                return frames::ipv4_fragment(&frame, id, offset, len, random.chance(70));
            }
        }
        if random.chance(5) {
            let words = random.pick(&[1, 5, 10]);
            frame = frames::with_ipv4_options(&frame, &vec![1; words * 4]);
        }
        return frame;
    }
    if random.chance(9) {
        let (offset, more) =
            random.pick(&[(0, true), (0, true), (0, false), (1, true), (4, false)]);
        let mut chain = vec![frames::fragment_extension(
            offset,
            more,
            random.pick(&[1, 2]),
        )];
        if random.chance(20) {
            chain.insert(random.below(2), frames::padding_extension(60));
        }
        if offset != 0 {
            // Not the bytes that the header is in.
            frame.truncate(frame.len() - (frame.len() - ETHERNET_LEN - IPV6_LEN).min(8));
        }
        return frames::with_ipv6_extensions(&frame, &chain);
    }
    if random.chance(9) {
        let chain: Vec<(u8, Vec<u8>)> = (0..=random.below(8)).map(|_| extension(random)).collect();
        let long = frames::with_ipv6_extensions(&frame, &chain);
        if long.len() <= LONGEST {
            return long;
        }
    }
    frame
}

fn extension(random: &mut Random) -> (u8, Vec<u8>) {
    match random.below(8) {
        0 => frames::fragment_extension(0, false, 9),
        1 => {
            // Authentication, in units of four bytes.
            let mut body = vec![0; 11];
            body[0] = 1;
            (51, body)
        }
        2 => {
            let words = random.pick(&[1, 7, 20, 60, 255]);
            let mut body = vec![0; 7 + words * 8];
            body[0] = words as u8;
            (60, body)
        }
        _ => frames::padding_extension(random.pick(&[0, 43, 60, 135, 139, 140])),
    }
}

/// Frames that a network needs, sensible and not.
fn control(random: &mut Random) -> (Direction, Vec<u8>) {
    let direction = random.pick(&[Direction::Egress, Direction::Ingress]);
    let own = ip(OWN[1]);
    let hop_limit = random.pick(&[255, 255, 255, 64, 1]);
    let other = ip(random.pick(&[
        "ff02::1",
        "ff02::2",
        "fe80::1",
        "fd00::3",
        "2001:db8::10",
        "fd00::2",
    ]));
    let source = random.pick(&[own, ip(LINK_LOCAL), ip("::"), ip("fd00::3")]);
    let frame = match random.below(12) {
        0 => frames::ethernet(0x0806, &[0; 28]),
        1 => frames::ethernet(
            random.pick(&[0x88cc, 0x8847, 0x86dd, 0x0800]),
            &[random.byte(); 46],
        ),
        2..5 => {
            let kind = random.pick(&[133, 134, 135, 136, 137, 130, 131, 132, 143]);
            let payload = [0; 20];
            let mut frame =
                frames::icmp_with_hop_limit(source, other, hop_limit, kind, 0, [0; 4], &payload);
            if random.chance(10) {
                let (offset, more) = random.pick(&[(0, true), (4, false)]);
                let chain = [frames::fragment_extension(offset, more, 5)];
                frame = frames::with_ipv6_extensions(&frame, &chain);
            }
            frame
        }
        5 => frames::igmp(
            random.pick(&["10.0.0.2", "10.0.0.1"]),
            random.pick(&["224.0.0.22", "10.0.0.3"]),
            random.pick(&[1, 1, 64]),
        ),
        6 => {
            // ICMPv6 in IPv4: no neighbour discovery.
            let mut bytes = vec![random.pick(&[133, 135, 136, 128]), 0, 0, 0];
            bytes.resize(24, 0);
            let mut frame = frames::raw("10.0.0.2", "192.0.2.10", 58, &bytes);
            frame[ETHERNET_LEN + 8] = 255;
            frame
        }
        7 => frames::icmp(
            ip("10.0.0.2"),
            ip("10.0.0.1"),
            5,
            random.pick(&[0, 1]),
            [10, 0, 0, 1],
            &[0; 28],
        ),
        number => {
            let v6 = number > 9;
            let (client, server) = if v6 { (546, 547) } else { (68, 67) };
            let all = random.pick(if v6 {
                &["ff02::1:2", "ff05::1:3", "fd00::1"][..]
            } else {
                &["255.255.255.255", "10.0.0.1", "224.0.0.1"][..]
            });
            let none = random.pick(if v6 {
                &["fe80::77", "::", "fd00::2"][..]
            } else {
                &["0.0.0.0", "10.0.0.2", "10.0.0.1"][..]
            });
            let (mut from, mut to) = (frames::end(none, client), frames::end(all, server));
            if random.chance(50) {
                std::mem::swap(&mut from, &mut to);
            }
            let frame = frames::udp(from, to, &[0; 40]);
            if v6 || random.chance(80) {
                frame
            } else {
                let (offset, more) = random.pick(&[(0, true), (2, false)]);
                frames::ipv4_fragment(&frame, 3, offset, 16, more)
            }
        }
    };
    (direction, frame)
}

/// What attackers and broken links do.
fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(6) {
        0 | 1 => {
            let len = ETHERNET_LEN + random.below(frame.len() - ETHERNET_LEN + 1);
            frame.truncate(len);
        }
        2 => {
            // Padding behind the packet.
            let len = frame.len() + random.below(30);
            frame.resize(len, 0x5a);
        }
        3 => {
            // The length field, of whichever version.
            let at = ETHERNET_LEN + random.pick(&[2, 4]);
            let len = (frame.len().saturating_sub(ETHERNET_LEN)) as u16;
            let value = random.pick(&[0, 20, 28, 40, len, len + 1, len.saturating_sub(1)]);
            if let Some(field) = frame.get_mut(at..at + 2) {
                field.copy_from_slice(&value.to_be_bytes());
            }
        }
        4 => {
            let at = ETHERNET_LEN + random.pick(&[0, 6, 9]);
            if at < frame.len() {
                frame[at] = random.byte();
            }
        }
        _ => {
            let at = 12 + random.below(frame.len() - 12);
            frame[at] = random.byte();
        }
    }
}
