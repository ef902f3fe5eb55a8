//! The intruder: what somebody who owns a shell in `web` tries, and how the firewall's own records
//! and the victims' own counters tell what came of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use flowgraph::record::{Event, FlowRecord, Verdict};
use policy::model::Protocol;
use testbed::{Connection, Netns, Outcome, probe};

use super::shop::{self, DROP_ZONE, INTRUDER, Listener, REPLICAS, Replica, SPOOFED, Transport};

/// How long the intruder waits for an answer.
const PATIENCE: Duration = Duration::from_millis(1_000);
/// Ports a scanner tries first.
const SCANNED: [u16; 10] = [22, 80, 443, 3306, 5432, 6379, 8080, 8081, 9000, 9100];

/// One packet or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// A TCP connection and a line over it.
    Tcp,
    /// A TCP handshake, one of many.
    Scan,
    /// A datagram and the wait for its echo.
    Udp,
    /// An ICMP echo request.
    Ping,
    /// A datagram in the name of this address.
    Spoof(IpAddr),
    /// A connection opened while it was still possible.
    Kept,
}

/// Where it goes; port 0 for a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) means: Means,
    pub(super) to: SocketAddr,
}

/// Something the intruder tries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attack {
    pub(super) title: &'static str,
    pub(super) target: String,
    pub(super) probes: Vec<Probe>,
}

/// Everything the intruder tries. With `routed` also what is on the other network.
pub(super) fn attacks(routed: bool) -> Vec<Attack> {
    let web = shop::replica(INTRUDER);
    let mut attacks = Vec::new();
    let mut each_family =
        |title, service: &str, means: &dyn Fn(usize) -> Means, port, to: [IpAddr; 2]| {
            for (family, address) in to.into_iter().enumerate() {
                let means = means(family);
                let target = match means {
                    Means::Ping => format!("{service} {address}"),
                    _ => format!("{service} {}", SocketAddr::new(address, port)),
                };
                let to = SocketAddr::new(address, port);
                attacks.push(Attack {
                    title,
                    target,
                    probes: vec![Probe { means, to }],
                });
            }
        };
    let of = |name: &str| shop::replica(name).addresses_for(web);
    each_family(
        "read the database",
        "postgres",
        &|_| Means::Tcp,
        shop::POSTGRES,
        of("postgres"),
    );
    each_family(
        "read the cache",
        "redis",
        &|_| Means::Tcp,
        shop::REDIS,
        of("redis"),
    );
    each_family(
        "go on an old connection",
        "postgres",
        &|_| Means::Kept,
        shop::POSTGRES,
        of("postgres"),
    );
    each_family(
        "move sideways",
        "web-2",
        &|_| Means::Tcp,
        shop::HTTP,
        of("web-2"),
    );
    each_family(
        "ping the database",
        "postgres",
        &|_| Means::Ping,
        0,
        of("postgres"),
    );
    let drop_zone = DROP_ZONE.addresses();
    each_family(
        "upload over TCP",
        "outside",
        &|_| Means::Tcp,
        443,
        drop_zone,
    );
    each_family("tunnel over UDP", "outside", &|_| Means::Udp, 53, drop_zone);
    let spoofed = shop::replica(SPOOFED).addresses_for(web);
    each_family(
        "pose as dns",
        "metrics",
        &|family| Means::Spoof(spoofed[family]),
        shop::STATSD,
        of("metrics"),
    );
    for (family, name) in ["scan ports, IPv4", "scan ports, IPv6"]
        .into_iter()
        .enumerate()
    {
        attacks.push(scan(web, family, name, routed));
    }
    attacks
}

/// A scan of every service the intruder can address, without the ports it may use.
fn scan(web: &Replica, family: usize, title: &'static str, routed: bool) -> Attack {
    let victims: Vec<&Replica> = REPLICAS
        .iter()
        .filter(|replica| {
            ["api", "auth", "orders", "postgres", "redis", "metrics"].contains(&replica.app)
        })
        .filter(|replica| routed || replica.networks.contains(&web.networks[0]))
        .collect();
    let probes: Vec<Probe> = victims
        .iter()
        .flat_map(|victim| SCANNED.map(|port| (victim, port)))
        .filter(|(victim, port)| {
            let listener = Listener {
                owner: victim.app,
                port: *port,
                transport: Transport::Tcp,
            };
            !shop::is_legitimate(web.app, &listener)
        })
        .map(|(victim, port)| Probe {
            means: Means::Scan,
            to: SocketAddr::new(victim.addresses_for(web)[family], port),
        })
        .collect();
    Attack {
        title,
        target: format!("{} services, {} ports", victims.len(), probes.len()),
        probes,
    }
}

/// The intruder at work. Keeps its old connections between two runs.
#[derive(Debug)]
pub(super) struct Intruder {
    netns: Netns,
    kept: Vec<(SocketAddr, Connection)>,
}

impl Intruder {
    pub(super) fn new(netns: Netns) -> Self {
        Self {
            netns,
            kept: Vec::new(),
        }
    }

    /// Tries everything at once. One outcome for each probe of each attack; what came of a spoofed
    /// datagram its sender cannot know ([`Outcome::Connected`]: it was sent).
    pub(super) fn run(&mut self, attacks: &[Attack]) -> Result<Vec<Vec<Outcome>>> {
        let mut kept = std::mem::take(&mut self.kept);
        let (outcomes, kept) = self.netns.run(|| {
            let mut outcomes: Vec<Vec<Outcome>> = std::thread::scope(|scope| {
                let threads: Vec<_> = attacks
                    .iter()
                    .map(|attack| scope.spawn(|| try_attack(&attack.probes)))
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().expect("the intruder does not panic"))
                    .collect()
            });
            for (attack, outcomes) in attacks.iter().zip(&mut outcomes) {
                for (probe, outcome) in attack.probes.iter().zip(outcomes) {
                    if probe.means == Means::Kept {
                        *outcome = go_on(&mut kept, probe.to);
                    }
                }
            }
            (outcomes, kept)
        })?;
        self.kept = kept;
        Ok(outcomes)
    }
}

fn try_attack(probes: &[Probe]) -> Vec<Outcome> {
    let scanned: Vec<&Probe> = probes.iter().filter(|p| p.means == Means::Scan).collect();
    if scanned.is_empty() {
        return probes.iter().map(attempt).collect();
    }
    // Every host at once: whoever answers not in time is silent.
    let mut hosts: Vec<IpAddr> = scanned.iter().map(|probe| probe.to.ip()).collect();
    hosts.dedup();
    std::thread::scope(|scope| {
        let threads: Vec<_> = hosts
            .into_iter()
            .map(|host| {
                let ports: Vec<u16> = scanned
                    .iter()
                    .filter(|probe| probe.to.ip() == host)
                    .map(|probe| probe.to.port())
                    .collect();
                scope.spawn(move || probe::port_scan(host, &ports, PATIENCE))
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("the scanner does not panic"))
            .map(|(_, outcome)| outcome)
            .collect()
    })
}

fn attempt(probe: &Probe) -> Outcome {
    match probe.means {
        Means::Tcp => probe::tcp(probe.to, PATIENCE),
        Means::Scan => probe::tcp_connect(probe.to, PATIENCE),
        Means::Udp => probe::udp(probe.to, PATIENCE),
        Means::Ping => probe::ping(probe.to.ip(), PATIENCE),
        Means::Spoof(source) => match spoof(source, probe.to) {
            Ok(()) => Outcome::Connected,
            Err(error) => Outcome::Failed(format!("{error:#}")),
        },
        Means::Kept => Outcome::TimedOut,
    }
}

/// Uses the connection opened before, or opens it.
fn go_on(kept: &mut Vec<(SocketAddr, Connection)>, to: SocketAddr) -> Outcome {
    if let Some((_, connection)) = kept.iter_mut().find(|(address, _)| *address == to) {
        return connection.exchange("more of it", PATIENCE);
    }
    match Connection::open(to, PATIENCE) {
        Ok(mut connection) => {
            let outcome = connection.exchange("give me everything", PATIENCE);
            kept.push((to, connection));
            outcome
        }
        Err(outcome) => outcome,
    }
}

/// A datagram whose source is somebody else's address (ip(7), IP_TRANSPARENT).
fn spoof(source: IpAddr, to: SocketAddr) -> Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
    let (family, level, option) = match source {
        IpAddr::V4(_) => (AddressFamily::Inet, libc::SOL_IP, libc::IP_TRANSPARENT),
        IpAddr::V6(_) => (AddressFamily::Inet6, libc::SOL_IPV6, libc::IPV6_TRANSPARENT),
    };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an integer that outlives the call, of the size given.
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if set != 0 {
        return Err(std::io::Error::last_os_error()).context("setting IP_TRANSPARENT");
    }
    bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(source, 0)),
    )
    .with_context(|| format!("posing as {source}"))?;
    UdpSocket::from(fd)
        .send_to(b"revenue:0|g\n", to)
        .context("sending a spoofed datagram")?;
    Ok(())
}

/// Whether a record is about a probe.
pub(super) fn concerns(record: &FlowRecord, probe: &Probe) -> bool {
    let from = |address: IpAddr| record.source.ip == Some(address);
    let from_intruder = match probe.means {
        Means::Spoof(source) => from(source),
        _ => shop::replica(INTRUDER).addresses().into_iter().any(from),
    };
    let protocol = match (probe.means, probe.to) {
        (Means::Tcp | Means::Scan | Means::Kept, _) => Protocol::TCP,
        (Means::Udp | Means::Spoof(_), _) => Protocol::UDP,
        (Means::Ping, SocketAddr::V4(_)) => Protocol::ICMP,
        (Means::Ping, SocketAddr::V6(_)) => Protocol::ICMPV6,
    };
    let port = match probe.means {
        Means::Ping => true,
        _ => record.destination.port == Some(probe.to.port()),
    };
    // The two ways to the database differ in nothing else. A ping may find the entry of the last one.
    let revoked =
        record.drop_reason.as_deref() == Some(dataplane_common::DropReason::PolicyRevoked.as_str());
    let kind = match (record.verdict, probe.means) {
        (Verdict::Dropped, Means::Kept) => revoked,
        (Verdict::Dropped, Means::Tcp | Means::Scan | Means::Udp) => !revoked,
        _ => true,
    };
    from_intruder
        && record.destination.ip == Some(probe.to.ip())
        && record.protocol() == Some(protocol)
        && port
        && kind
}

/// What came of an attack, by both sides' account.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Account {
    pub(super) attempt: &'static str,
    pub(super) target: String,
    /// Connections or packets tried.
    pub(super) probes: usize,
    /// Of these, that got an answer or arrived.
    pub(super) reached: usize,
    /// Of these, that the firewall has a record of with the expected verdict.
    pub(super) recorded: usize,
    /// What the intruder saw; of a spoofed datagram, what its victim saw.
    pub(super) outcome: String,
    pub(super) drop_reason: String,
    pub(super) rule: String,
}

impl Account {
    /// Judges an attack by what the intruder saw and by the firewall's records of the verdict in
    /// question.
    pub(super) fn new(attack: &Attack, outcomes: &[Outcome], records: &[FlowRecord]) -> Self {
        let mut reasons = BTreeSet::new();
        let mut rules = BTreeSet::new();
        let mut recorded = 0;
        for probe in &attack.probes {
            let mut about = records.iter().filter(|r| concerns(r, probe)).peekable();
            recorded += usize::from(about.peek().is_some());
            // Where a living flow is cut, the judgement comes before the drop.
            for record in about.filter(|record| record.event != Event::Rejudged) {
                reasons.extend(record.drop_reason.clone());
                rules.extend(record.rule.as_ref().map(ToString::to_string));
            }
        }
        let words: BTreeSet<String> = attack
            .probes
            .iter()
            .zip(outcomes)
            .map(|(probe, outcome)| match (probe.means, outcome) {
                (Means::Spoof(_), Outcome::Connected) => "arrived".to_owned(),
                (Means::Spoof(_), Outcome::TimedOut) => "never arrived".to_owned(),
                (_, outcome) => outcome.to_string(),
            })
            .collect();
        let list = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(", ");
        Self {
            attempt: attack.title,
            target: attack.target.clone(),
            probes: attack.probes.len(),
            reached: outcomes.iter().filter(|outcome| outcome.reached()).count(),
            recorded,
            outcome: list(words),
            drop_reason: list(reasons),
            rule: list(rules),
        }
    }

    /// Nothing of it got through, and the firewall says so for every part of it.
    pub(super) fn is_denied(&self) -> bool {
        self.reached == 0 && self.recorded == self.probes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_attack_is_something_the_shop_needs() {
        for attack in attacks(true) {
            for probe in &attack.probes {
                let Some(owner) = REPLICAS
                    .iter()
                    .find(|replica| replica.addresses().contains(&probe.to.ip()))
                else {
                    assert!(DROP_ZONE.addresses().contains(&probe.to.ip()));
                    continue;
                };
                let transport = match probe.means {
                    Means::Udp | Means::Spoof(_) => Transport::Udp,
                    _ => Transport::Tcp,
                };
                let listener = Listener {
                    owner: owner.app,
                    port: probe.to.port(),
                    transport,
                };
                assert!(!shop::is_legitimate("web", &listener), "{probe:?}");
            }
        }
    }

    #[test]
    fn both_families_are_tried_and_without_routing_only_what_is_near() {
        let attacks_everywhere = attacks(true);
        let count = |v4| {
            let probes = attacks_everywhere.iter().flat_map(|attack| &attack.probes);
            probes.filter(|probe| probe.to.is_ipv4() == v4).count()
        };
        assert_eq!(count(true), count(false));
        let near: Vec<Attack> = attacks(false);
        let front = shop::Network::Front.subnet_v4();
        let front: ipnet::IpNet = front.parse().unwrap();
        for probe in near
            .iter()
            .flat_map(|attack| &attack.probes)
            .filter(|p| p.to.is_ipv4())
        {
            let outside = DROP_ZONE.addresses().contains(&probe.to.ip());
            assert!(outside || front.contains(&probe.to.ip()), "{probe:?}");
        }
    }
}
