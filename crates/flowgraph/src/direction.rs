//! Who opened a flow: from evidence, or unknown. Never from port numbers alone.
//!
//! Every learner that guesses ("the smaller port is the server", "above 1024 is the client") writes
//! rules that name ephemeral ports. Here the evidence is, best first:
//!
//! 1. **Certain**: the kernel saw the flow begin: a SYN without ACK, or a first packet long enough
//!    after attaching that no older flow can be behind it; or an ICMP echo, whose type names the
//!    asker.
//! 2. **Listener**: the sockets of *both* ends are known and exactly one end serves on its port.
//! 3. Otherwise **unknown**, and the flow never becomes a rule.
//!
//! Both ends must be known in step 2 because programs do open connections *from* the port they
//! listen on (peer-to-peer software, NTP, DNS resolvers): a listener on one end says nothing while
//! the other end may have one as well.
//!
//! A first UDP packet is weaker than a SYN: when a flow has been idle longer than conntrack
//! remembers, the "first" packet may be a server's late word to its client (and TFTP answers from a
//! new port). So the socket table has a veto: the supposed responder must not contradict it. A veto
//! makes a flow unknown, it never turns it round.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use policy::model::Protocol;
use serde::{Deserialize, Serialize};

use crate::record::Opener;

/// An end of a flow from the observing workload's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The workload.
    Local,
    /// The other end.
    Remote,
}

impl Side {
    /// The other side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Local => Self::Remote,
            Self::Remote => Self::Local,
        }
    }
}

/// What an opener was decided from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecidedBy {
    /// A SYN without ACK.
    Syn,
    /// The first packet, long after attaching, or an ICMP echo by its type.
    FirstPacket,
    /// The listening-socket table.
    Listener,
}

/// Who opened a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpenerDecision {
    /// The workload opened it: policy direction egress.
    Local(DecidedBy),
    /// The other end opened it: policy direction ingress.
    Remote(DecidedBy),
    /// Not known.
    Unknown,
}

impl OpenerDecision {
    const fn new(opener: Side, by: DecidedBy) -> Self {
        match opener {
            Side::Local => Self::Local(by),
            Side::Remote => Self::Remote(by),
        }
    }

    /// The opener.
    #[must_use]
    pub const fn opener(self) -> Option<Side> {
        match self {
            Self::Local(_) => Some(Side::Local),
            Self::Remote(_) => Some(Side::Remote),
            Self::Unknown => None,
        }
    }

    /// How well it is known, as flow records say it.
    #[must_use]
    pub const fn certainty(self) -> Opener {
        match self {
            Self::Local(DecidedBy::Listener) | Self::Remote(DecidedBy::Listener) => {
                Opener::Inferred
            }
            Self::Local(_) | Self::Remote(_) => Opener::Certain,
            Self::Unknown => Opener::Unknown,
        }
    }
}

/// Everything known about who opened a flow.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Protocol.
    pub protocol: Protocol,
    /// The workload's address and port.
    pub local: SocketAddr,
    /// The other end's.
    pub remote: SocketAddr,
    /// Sender of the first packet the kernel saw (`OPENER_LOCAL` in conntrack).
    pub first_sender: Side,
    /// The kernel vouches that `first_sender` opened the flow (`OPENER_UNSURE` is clear).
    pub first_is_opener: bool,
    /// An ICMP type seen in the flow and who sent it.
    pub icmp: Option<(Side, u8)>,
    /// Sockets of the workload; `None` when they cannot be read.
    pub local_sockets: Option<&'a Sockets>,
    /// Sockets of the other end; `None` when it is not on this host or they cannot be read.
    pub remote_sockets: Option<&'a Sockets>,
}

/// Ports from here on belong to somebody's ephemeral range (Linux from 32768, RFC 6335 and most
/// other systems from 49152).
const ANYONES_EPHEMERAL: u16 = 32_768;

impl Evidence<'_> {
    /// Whether the receiver of the first UDP packet may be what that packet makes it: the server.
    fn responder_is_credible(&self) -> bool {
        let local = (self.local, self.local_sockets);
        let remote = (self.remote, self.remote_sockets);
        let ((sender, sender_sockets), (receiver, receiver_sockets)) = match self.first_sender {
            Side::Local => (local, remote),
            Side::Remote => (remote, local),
        };
        match (sender_sockets, receiver_sockets) {
            (_, Some(sockets)) => sockets.serves(Protocol::UDP, receiver),
            // A server may be speaking to its client after a long silence, unless both ends use the
            // service's port (NTP, IKE).
            (Some(sockets), None) if sockets.serves(Protocol::UDP, sender) => {
                sender.port() == receiver.port()
            }
            (Some(_), None) => receiver.port() < ANYONES_EPHEMERAL,
            (None, None) => true,
        }
    }
}

/// Decides who opened a flow.
#[must_use]
pub fn decide(evidence: &Evidence<'_>) -> OpenerDecision {
    if let Some(asker) = evidence
        .icmp
        .and_then(|(sender, icmp_type)| echo_asker(evidence.protocol, sender, icmp_type))
    {
        return OpenerDecision::new(asker, DecidedBy::FirstPacket);
    }
    if evidence.first_is_opener {
        return match evidence.protocol {
            Protocol::TCP => OpenerDecision::new(evidence.first_sender, DecidedBy::Syn),
            Protocol::UDP if !evidence.responder_is_credible() => OpenerDecision::Unknown,
            _ => OpenerDecision::new(evidence.first_sender, DecidedBy::FirstPacket),
        };
    }
    let (Some(local), Some(remote)) = (evidence.local_sockets, evidence.remote_sockets) else {
        return OpenerDecision::Unknown;
    };
    match (
        local.serves(evidence.protocol, evidence.local),
        remote.serves(evidence.protocol, evidence.remote),
    ) {
        (true, false) => OpenerDecision::Remote(DecidedBy::Listener),
        (false, true) => OpenerDecision::Local(DecidedBy::Listener),
        (true, true) | (false, false) => OpenerDecision::Unknown,
    }
}

/// Who sent the echo request of an echo flow: RFC 792 types 8 and 0, RFC 4443 types 128 and 129.
fn echo_asker(protocol: Protocol, sender: Side, icmp_type: u8) -> Option<Side> {
    match (protocol, icmp_type) {
        (Protocol::ICMP, 8) | (Protocol::ICMPV6, 128) => Some(sender),
        (Protocol::ICMP, 0) | (Protocol::ICMPV6, 129) => Some(sender.other()),
        _ => None,
    }
}

/// The sockets of one network namespace that can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    listening: BTreeSet<(Protocol, u16, IpAddr)>,
    ephemeral: RangeInclusive<u16>,
}

impl Sockets {
    /// The kernel's default `net.ipv4.ip_local_port_range`.
    pub const DEFAULT_EPHEMERAL: RangeInclusive<u16> = 32_768..=60_999;

    /// No sockets. `ephemeral` is the namespace's `net.ipv4.ip_local_port_range`, which the kernel
    /// uses for IPv6 too.
    #[must_use]
    pub const fn new(ephemeral: RangeInclusive<u16>) -> Self {
        Self {
            listening: BTreeSet::new(),
            ephemeral,
        }
    }

    /// Adds a socket that listens (TCP, SCTP) or is bound without being connected (UDP). An
    /// unspecified `bound.ip()` is a wildcard; `::` also serves IPv4, as `net.ipv6.bindv6only` is 0
    /// by default and `/proc` does not show the socket's choice.
    pub fn insert(&mut self, protocol: Protocol, bound: SocketAddr) {
        self.listening.insert((protocol, bound.port(), bound.ip()));
    }

    /// The sockets, ordered.
    pub fn iter(&self) -> impl Iterator<Item = (Protocol, SocketAddr)> + '_ {
        self.listening
            .iter()
            .map(|&(protocol, port, ip)| (protocol, SocketAddr::new(ip, port)))
    }

    /// Whether a socket serves at `local`. For UDP the port must lie outside the ephemeral range: a
    /// client that never connects its socket is bound without being connected as well, but on an
    /// ephemeral port.
    #[must_use]
    pub fn serves(&self, protocol: Protocol, local: SocketAddr) -> bool {
        match protocol {
            Protocol::TCP | Protocol::SCTP => {}
            Protocol::UDP if self.ephemeral.contains(&local.port()) => return false,
            Protocol::UDP => {}
            _ => return false,
        }
        let at = |ip: IpAddr| self.listening.contains(&(protocol, local.port(), ip));
        let any4 = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        let any6 = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
        match local.ip() {
            IpAddr::V4(v4) => {
                at(local.ip()) || at(IpAddr::V6(v4.to_ipv6_mapped())) || at(any4) || at(any6)
            }
            IpAddr::V6(_) => at(local.ip()) || at(any6),
        }
    }
}

impl Default for Sockets {
    fn default() -> Self {
        Self::new(Self::DEFAULT_EPHEMERAL)
    }
}

/// Sockets by workload (`namespace/name`), as last read by the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerTable {
    workloads: BTreeMap<String, Sockets>,
}

impl ListenerTable {
    /// Replaces what is known about a workload.
    pub fn set(&mut self, workload: impl Into<String>, sockets: Sockets) {
        self.workloads.insert(workload.into(), sockets);
    }

    /// Forgets a workload. Its flows are unknown from now on, not "without listener".
    pub fn remove(&mut self, workload: &str) {
        self.workloads.remove(workload);
    }

    /// The sockets of a workload; `None` when they are not known.
    #[must_use]
    pub fn get(&self, workload: &str) -> Option<&Sockets> {
        self.workloads.get(workload)
    }
}
