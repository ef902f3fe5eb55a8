//! What the shop is made of: services, networks, addresses, and who talks to whom. Pure.
//!
//! Everything else follows from these tables: what is built, what the clients send, which edges must
//! be learned, and what counts as an attack.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Policy namespace of the shop, and its name as a compose project.
pub(super) const NAMESPACE: &str = "shop";
/// The replica in which the intruder sits.
pub(super) const INTRUDER: &str = "web-1";
/// The service that a spoofed packet claims to come from, and the one it goes to.
pub(super) const SPOOFED: &str = "dns";

pub(super) const POSTGRES: u16 = 5432;
pub(super) const REDIS: u16 = 6379;
pub(super) const STATSD: u16 = 8125;
pub(super) const SCRAPE: u16 = 9100;
pub(super) const SHOP_FRONT: u16 = 8443;
pub(super) const HTTP: u16 = 8080;
const AUTH: u16 = 9000;
const ORDERS: u16 = 8081;
const DNS: u16 = 53;
const HTTPS: u16 = 443;
/// Source port of the one UDP flow that never ends, as a statsd client has it.
const STATSD_CLIENT: u16 = 40_125;

/// A network of the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Network {
    /// Edge and web.
    Front,
    /// Everything with data in it.
    Back,
}

impl Network {
    pub(super) const ALL: [Self; 2] = [Self::Front, Self::Back];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Front => "front",
            Self::Back => "back",
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Front => 1,
            Self::Back => 2,
        }
    }

    pub(super) fn subnet_v4(self) -> String {
        format!("10.80.{}.0/24", self.number())
    }

    pub(super) fn subnet_v6(self) -> String {
        format!("fd80:{}::/64", self.number())
    }

    /// Address of the host in it.
    pub(super) fn gateway(self) -> [IpAddr; 2] {
        self.addresses(1)
    }

    /// IPv4 and IPv6 address of a member. The digits are the same in both.
    pub(super) fn addresses(self, member: u8) -> [IpAddr; 2] {
        let digits = u16::from_str_radix(&member.to_string(), 16)
            .expect("decimal digits are hexadecimal digits");
        [
            Ipv4Addr::new(10, 80, self.number(), member).into(),
            Ipv6Addr::new(0xfd80, self.number().into(), 0, 0, 0, 0, 0, digits).into(),
        ]
    }
}

/// One workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Replica {
    pub(super) name: &'static str,
    pub(super) app: &'static str,
    /// Last part of its addresses.
    pub(super) number: u8,
    /// Networks, the one with the default route first.
    pub(super) networks: &'static [Network],
    /// It is started while the daemon runs.
    pub(super) late: bool,
}

impl Replica {
    const fn new(
        name: &'static str,
        app: &'static str,
        number: u8,
        networks: &'static [Network],
    ) -> Self {
        Self {
            name,
            app,
            number,
            networks,
            late: false,
        }
    }

    /// Its addresses, IPv4 and IPv6 of each network.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.networks
            .iter()
            .flat_map(|network| network.addresses(self.number))
            .collect()
    }

    /// Its addresses as seen from `other`: on a network they share, else through the host.
    pub(super) fn addresses_for(&self, other: &Self) -> [IpAddr; 2] {
        let shared = self.networks.iter().find(|n| other.networks.contains(n));
        shared.unwrap_or(&self.networks[0]).addresses(self.number)
    }
}

const FRONT: &[Network] = &[Network::Front];
const BACK: &[Network] = &[Network::Back];
/// The common mistake that makes the firewall necessary: data stores on the front network as well.
const BOTH: &[Network] = &[Network::Back, Network::Front];

/// Every workload.
pub(super) const REPLICAS: [Replica; 10] = [
    Replica::new("edge", "edge", 10, FRONT),
    Replica::new("web-1", "web", 21, FRONT),
    Replica {
        late: true,
        ..Replica::new("web-2", "web", 22, FRONT)
    },
    Replica::new("api", "api", 30, BOTH),
    Replica::new("auth", "auth", 40, BACK),
    Replica::new("orders", "orders", 50, BACK),
    Replica::new("postgres", "postgres", 60, BOTH),
    Replica::new("redis", "redis", 70, BOTH),
    Replica::new("metrics", "metrics", 80, BOTH),
    Replica::new("dns", "dns", 53, BOTH),
];

/// The workload of that name.
pub(super) fn replica(name: &str) -> &'static Replica {
    REPLICAS
        .iter()
        .find(|replica| replica.name == name)
        .expect("names come from the table")
}

/// Somebody beyond the host, IPv4 and IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outsider {
    pub(super) name: &'static str,
    number: u8,
}

/// Who shops.
pub(super) const CUSTOMERS: Outsider = Outsider::new("customers", 10);
/// Who takes the money: a service the shop needs.
pub(super) const PAYMENTS: Outsider = Outsider::new("payments", 20);
/// Where stolen data goes.
pub(super) const DROP_ZONE: Outsider = Outsider::new("drop zone", 66);
/// The host's own address on the way out.
pub(super) const UPLINK: Outsider = Outsider::new("uplink", 1);

impl Outsider {
    const fn new(name: &'static str, number: u8) -> Self {
        Self { name, number }
    }

    /// Addresses for documentation (RFC 5737, RFC 3849), so that nothing real is ever meant.
    pub(super) fn addresses(self) -> [IpAddr; 2] {
        let digits = u16::from_str_radix(&self.number.to_string(), 16)
            .expect("decimal digits are hexadecimal digits");
        [
            Ipv4Addr::new(203, 0, 113, self.number).into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, digits).into(),
        ]
    }
}

/// Transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// An open port of a service or an outsider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) owner: &'static str,
    pub(super) port: u16,
    pub(super) transport: Transport,
}

/// One end of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Party {
    App(&'static str),
    Outside(Outsider),
}

/// How a request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// HTTP over a connection of its own.
    Http,
    /// One line over a connection of its own.
    Line,
    /// One line over a connection opened before the daemon and never again.
    Held,
    /// One datagram from a new port.
    Datagram,
    /// One datagram, always from this port.
    DatagramFrom(u16),
}

impl Manner {
    const fn transport(self) -> Transport {
        match self {
            Self::Http | Self::Line | Self::Held => Transport::Tcp,
            Self::Datagram | Self::DatagramFrom(_) => Transport::Udp,
        }
    }
}

/// Who talks to whom.
struct Relation {
    from: Party,
    to: Party,
    port: u16,
    manner: Manner,
}

const fn relation(from: &'static str, to: &'static str, port: u16, manner: Manner) -> Relation {
    Relation {
        from: Party::App(from),
        to: Party::App(to),
        port,
        manner,
    }
}

const RELATIONS: [Relation; 24] = [
    Relation {
        from: Party::Outside(CUSTOMERS),
        to: Party::App("edge"),
        port: SHOP_FRONT,
        manner: Manner::Http,
    },
    relation("edge", "web", HTTP, Manner::Http),
    relation("web", "api", HTTP, Manner::Http),
    relation("api", "auth", AUTH, Manner::Http),
    relation("api", "orders", ORDERS, Manner::Http),
    relation("api", "redis", REDIS, Manner::Held),
    relation("auth", "redis", REDIS, Manner::Line),
    relation("auth", "postgres", POSTGRES, Manner::Line),
    // Learned from nothing but connections that are older than the daemon.
    relation("orders", "postgres", POSTGRES, Manner::Held),
    Relation {
        from: Party::App("orders"),
        to: Party::Outside(PAYMENTS),
        port: HTTPS,
        manner: Manner::Line,
    },
    relation("metrics", "edge", SCRAPE, Manner::Http),
    relation("metrics", "web", SCRAPE, Manner::Http),
    relation("metrics", "api", SCRAPE, Manner::Http),
    relation("metrics", "auth", SCRAPE, Manner::Http),
    relation("metrics", "orders", SCRAPE, Manner::Http),
    relation("metrics", "postgres", SCRAPE, Manner::Http),
    relation("metrics", "redis", SCRAPE, Manner::Http),
    relation(
        "api",
        "metrics",
        STATSD,
        Manner::DatagramFrom(STATSD_CLIENT),
    ),
    relation("orders", "metrics", STATSD, Manner::Datagram),
    relation("edge", "dns", DNS, Manner::Datagram),
    relation("web", "dns", DNS, Manner::Datagram),
    relation("api", "dns", DNS, Manner::Datagram),
    relation("auth", "dns", DNS, Manner::Datagram),
    relation("orders", "dns", DNS, Manner::Datagram),
];

/// Who sends a request: a workload by name, or the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sender {
    Workload(&'static str),
    Outside,
}

/// A legitimate request that is made again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) sender: Sender,
    pub(super) to: SocketAddr,
    pub(super) manner: Manner,
    /// The workload at one of its ends is started late.
    pub(super) late: bool,
    /// The edge it must be learned as.
    pub(super) edge: EdgeName,
}

/// An edge, as the daemon names its ends and its service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EdgeName {
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) service: String,
}

impl EdgeName {
    /// Whether both are about the same two ends, whoever opened.
    pub(super) fn joins_the_same(&self, other: &Self) -> bool {
        let (a, b) = (&self.source, &self.destination);
        (a, b) == (&other.source, &other.destination)
            || (b, a) == (&other.source, &other.destination)
    }
}

impl std::fmt::Display for EdgeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} -> {} {}",
            self.source, self.destination, self.service
        )
    }
}

/// Group of a service.
pub(super) fn group(app: &str) -> String {
    format!("{NAMESPACE}/{app}")
}

/// Every legitimate request. `edge` is where customers reach the shop: its own address, or where the
/// host publishes it.
pub(super) fn calls(edge: &[SocketAddr]) -> Vec<Call> {
    RELATIONS.iter().flat_map(|r| expand(r, edge)).collect()
}

fn expand(relation: &Relation, edge: &[SocketAddr]) -> Vec<Call> {
    let service = format!("{}/{}", relation.port, relation.manner.transport().name());
    let call = |sender, to, late, source: String, destination: String| Call {
        sender,
        to,
        manner: relation.manner,
        late,
        edge: EdgeName {
            source,
            destination,
            service: service.clone(),
        },
    };
    let members = |app| REPLICAS.iter().filter(move |replica| replica.app == app);
    match (relation.from, relation.to) {
        (Party::App(from), Party::App(to)) => members(from)
            .flat_map(|from| members(to).map(move |to| (from, to)))
            .flat_map(|(from, to)| to.addresses_for(from).map(|address| (from, to, address)))
            .map(|(from, to, address)| {
                call(
                    Sender::Workload(from.name),
                    SocketAddr::new(address, relation.port),
                    from.late || to.late,
                    group(from.app),
                    group(to.app),
                )
            })
            .collect(),
        (Party::App(from), Party::Outside(to)) => members(from)
            .flat_map(|from| to.addresses().map(|address| (from, address)))
            .map(|(from, address)| {
                call(
                    Sender::Workload(from.name),
                    SocketAddr::new(address, relation.port),
                    from.late,
                    group(from.app),
                    address.to_string(),
                )
            })
            .collect(),
        (Party::Outside(from), Party::App(to)) => edge
            .iter()
            .map(|&edge| {
                let [v4, v6] = from.addresses();
                let address = if edge.is_ipv4() { v4 } else { v6 };
                let (source, destination) = (address.to_string(), group(to));
                call(Sender::Outside, edge, false, source, destination)
            })
            .collect(),
        (Party::Outside(_), Party::Outside(_)) => Vec::new(),
    }
}

/// The edges that must be learned, no more and no less.
pub(super) fn edges(calls: &[Call]) -> BTreeSet<EdgeName> {
    calls.iter().map(|call| call.edge.clone()).collect()
}

/// Every open port: one listener each, so that its counters tell who came to this very port.
pub(super) fn listeners() -> Vec<Listener> {
    let mut listeners: Vec<Listener> = Vec::new();
    let mut add = |owner, port, transport| {
        let listener = Listener {
            owner,
            port,
            transport,
        };
        if !listeners.contains(&listener) {
            listeners.push(listener);
        }
    };
    for relation in &RELATIONS {
        let transport = relation.manner.transport();
        match relation.to {
            Party::App(app) => add(app, relation.port, transport),
            Party::Outside(outsider) => add(outsider.name, relation.port, transport),
        }
    }
    add(DROP_ZONE.name, HTTPS, Transport::Tcp);
    add(DROP_ZONE.name, DNS, Transport::Udp);
    listeners
}

/// Whether a service may talk to a port of another one.
pub(super) fn is_legitimate(from_app: &str, listener: &Listener) -> bool {
    RELATIONS.iter().any(|relation| {
        let is = |party, app| matches!(party, Party::App(name) if name == app);
        is(relation.from, from_app)
            && is(relation.to, listener.owner)
            && relation.port == listener.port
            && relation.manner.transport() == listener.transport
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_calls() -> Vec<Call> {
        calls(&["10.80.1.10:8443", "[fd80:1::10]:8443"].map(|text| text.parse().unwrap()))
    }

    #[test]
    fn every_address_has_one_owner() {
        let mut seen = BTreeSet::new();
        for replica in &REPLICAS {
            for address in replica.addresses() {
                assert!(seen.insert(address), "{address}");
            }
        }
        for network in Network::ALL {
            assert!(seen.is_disjoint(&BTreeSet::from(network.gateway())));
        }
        assert_eq!(
            replica("web-1").addresses(),
            ["10.80.1.21", "fd80:1::21"].map(|text| text.parse::<IpAddr>().unwrap())
        );
    }

    #[test]
    fn every_relation_is_used_over_both_families_and_becomes_one_edge_or_one_per_outsider() {
        let calls = all_calls();
        let edges = edges(&calls);
        // The two relations with the outside have an edge for each address.
        assert_eq!(edges.len(), RELATIONS.len() + 2);
        for edge in &edges {
            let of_edge: Vec<_> = calls.iter().filter(|call| call.edge == *edge).collect();
            let v4 = of_edge.iter().filter(|call| call.to.is_ipv4()).count();
            let outside =
                !edge.source.starts_with(NAMESPACE) || !edge.destination.starts_with(NAMESPACE);
            let expected = if outside {
                of_edge.len() * usize::from(v4 > 0)
            } else {
                of_edge.len() / 2
            };
            assert_eq!(v4, expected, "{edge}");
        }
    }

    #[test]
    fn every_call_has_a_listener_and_shares_a_network_with_it() {
        let listeners = listeners();
        for call in all_calls() {
            assert!(
                listeners
                    .iter()
                    .any(|listener| listener.port == call.to.port()),
                "{call:?}"
            );
        }
        for relation in &RELATIONS {
            let (Party::App(from), Party::App(to)) = (relation.from, relation.to) else {
                continue;
            };
            let networks = |app| REPLICAS.iter().find(|r| r.app == app).unwrap().networks;
            assert!(
                networks(from).iter().any(|n| networks(to).contains(n)),
                "{from} {to}"
            );
        }
    }

    #[test]
    fn the_intruder_may_use_the_api_and_not_the_database() {
        let listener = |owner, port| Listener {
            owner,
            port,
            transport: Transport::Tcp,
        };
        assert!(is_legitimate("web", &listener("api", HTTP)));
        assert!(!is_legitimate("web", &listener("api", SCRAPE)));
        assert!(!is_legitimate("web", &listener("postgres", POSTGRES)));
        assert!(!is_legitimate("orders", &listener(DROP_ZONE.name, HTTPS)));
    }
}
