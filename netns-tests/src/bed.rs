//! The test bed of most suites: a small shop on one bridge, its servers, and typed probes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use crate::documents::{Inventory, allow, allow_egress, allow_ingress, default_deny, policy};
use testbed::{Bridge, Connection, Lab, Outcome, Server, Workload, ip_batch, probe};

/// An answer that must come: as long as it takes on a busy machine.
pub const PATIENT: Duration = Duration::from_secs(10);
/// Silence that must last: long enough for a round trip, and every use of it also asserts that the
/// server saw nothing.
pub const SILENCE: Duration = Duration::from_millis(400);

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The workload's address of this family.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn of(self, workload: &Workload) -> IpAddr {
        match self {
            Self::V4 => workload.v4().expect("an IPv4 address").into(),
            Self::V6 => workload.v6().expect("an IPv6 address").into(),
        }
    }
}

/// Port of the TCP service of every server.
pub const TCP: u16 = 8080;
/// A second TCP port, which no policy of the suites allows unless it is about it.
pub const ADMIN: u16 = 9000;
/// Port of the UDP service.
pub const UDP: u16 = 5353;

/// `web` and `api` in namespace `shop`, `peer` in namespace `lab`, each with servers, on one bridge
/// of a lab of its own.
#[derive(Debug)]
pub struct Bed {
    /// Lab; its host namespace runs the daemon.
    pub lab: Lab,
    /// Bridge all are on.
    pub bridge: Bridge,
    /// Label `app: web`.
    pub web: Workload,
    /// Label `app: api`.
    pub api: Workload,
    /// Label `app: peer`, in another namespace.
    pub peer: Workload,
    servers: Vec<(IpAddr, IpAddr, Server)>,
}

impl Default for Bed {
    fn default() -> Self {
        Self::new()
    }
}

impl Bed {
    /// Builds it.
    ///
    /// # Panics
    /// When the lab cannot be built.
    #[must_use]
    pub fn new() -> Self {
        let lab = Lab::new("e2e").expect("a lab");
        let bridge = lab
            .bridge("br0", "10.61.0.1/24", "fd61::1/64")
            .expect("a bridge");
        let workload = |name: &str, number: u8| {
            lab.workload(name)
                .on(&bridge)
                .v4(&format!("10.61.0.{number}"))
                .v6(&format!("fd61::{number:x}"))
                .build()
                .expect("a workload")
        };
        let (web, api, peer) = (
            workload("web", 10),
            workload("api", 11),
            workload("peer", 12),
        );
        let mut bed = Self {
            lab,
            bridge,
            servers: Vec::new(),
            web,
            api,
            peer,
        };
        for workload in [bed.web.clone(), bed.api.clone(), bed.peer.clone()] {
            bed.serve(&workload);
        }
        bed
    }

    /// Starts the usual servers in a further workload.
    ///
    /// # Panics
    /// When they cannot listen.
    pub fn serve(&mut self, workload: &Workload) {
        let server = Server::new(&workload.name)
            .tcp(TCP)
            .tcp(ADMIN)
            .udp(UDP)
            .start(&workload.netns)
            .expect("a server");
        self.servers
            .push((Family::V4.of(workload), Family::V6.of(workload), server));
    }

    /// The inventory of the bed.
    pub fn inventory(&self) -> Inventory {
        Inventory::new()
            .namespace("shop", &[("team", "a")])
            .namespace("lab", &[("team", "b")])
            .workload(&self.web, "shop", &[("app", "web")])
            .port("http", TCP)
            .workload(&self.api, "shop", &[("app", "api")])
            .port("http", TCP)
            .workload(&self.peer, "lab", &[("app", "peer")])
    }

    /// Connections and datagrams that the server of `to` had from `from`.
    ///
    /// # Panics
    /// When `to` has no server.
    #[must_use]
    pub fn reached(&self, from: IpAddr, to: IpAddr) -> u64 {
        self.servers
            .iter()
            .find(|(v4, v6, _)| *v4 == to || *v6 == to)
            .map(|(_, _, server)| server.reached_by(from))
            .expect("a server at the address")
    }

    /// Asserts that a TCP exchange works.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn allowed(&self, family: Family, from: &Workload, to: &Workload, port: u16) {
        let before = self.reached(family.of(from), family.of(to));
        let outcome = tcp(family, from, to, port, PATIENT);
        assert_eq!(
            outcome,
            Outcome::Replied,
            "{} -> {}:{port} over {family:?}",
            from.name,
            to.name
        );
        let after = self.reached(family.of(from), family.of(to));
        assert_eq!(after, before + 1, "the answer came from somebody else");
    }

    /// Asserts that a TCP connection attempt meets silence, and that the server saw nothing of it.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn denied(&self, family: Family, from: &Workload, to: &Workload, port: u16) {
        let before = self.reached(family.of(from), family.of(to));
        let outcome = tcp(family, from, to, port, SILENCE);
        assert_eq!(
            outcome,
            Outcome::TimedOut,
            "{} -> {}:{port} over {family:?}",
            from.name,
            to.name
        );
        let after = self.reached(family.of(from), family.of(to));
        assert_eq!(after, before, "{} reached {}", from.name, to.name);
    }

    /// [`Self::allowed`] over IPv4 and IPv6.
    ///
    /// # Panics
    /// When one of them is not.
    #[track_caller]
    pub fn both_allowed(&self, from: &Workload, to: &Workload, port: u16) {
        for family in Family::BOTH {
            self.allowed(family, from, to, port);
        }
    }

    /// [`Self::denied`] over IPv4 and IPv6.
    ///
    /// # Panics
    /// When one of them is not.
    #[track_caller]
    pub fn both_denied(&self, from: &Workload, to: &Workload, port: u16) {
        for family in Family::BOTH {
            self.denied(family, from, to, port);
        }
    }
}

/// Something outside the host: a routed namespace that the host's default routes lead to, so that
/// it is an uplink and no workload. It answers on every address it is given.
#[derive(Debug)]
pub struct World {
    netns: Workload,
    server: Server,
}

impl World {
    /// Its addresses, from blocks set aside for documentation.
    pub const ADDRESSES: [&str; 4] = ["203.0.113.9", "203.0.113.10", "2001:db8::9", "2001:db8::a"];

    /// Builds it. Comes before the daemon, which looks for uplinks at its start.
    ///
    /// # Panics
    /// When the lab cannot be changed.
    #[must_use]
    pub fn new(lab: &Lab) -> Self {
        let [v4, other_v4, v6, other_v6] = Self::ADDRESSES;
        let netns = lab
            .workload("world")
            .routed()
            .v4(v4)
            .v6(v6)
            .build()
            .expect("the world");
        let link = &netns.interfaces[0].host_name;
        let routes = [
            format!("route add default via {v4} dev {link}"),
            format!("route add default via {v6} dev {link}"),
        ];
        ip_batch(lab.host(), &routes).expect("default routes");
        let addresses = [
            format!("addr add {other_v4}/32 dev eth0"),
            // Deprecated, so that it answers but is no source of its own accord.
            format!("addr add {other_v6}/128 dev eth0 nodad preferred_lft 0"),
        ];
        ip_batch(&netns.netns, &addresses).expect("more addresses");
        let server = Server::new("world")
            .tcp(TCP)
            .udp(UDP)
            .start(&netns.netns)
            .expect("a server");
        Self { netns, server }
    }

    /// A TCP exchange of a workload with one of the addresses.
    ///
    /// # Panics
    /// When the outcome and what the server saw disagree.
    #[must_use]
    pub fn tcp(&self, from: &Workload, to: &str, timeout: Duration) -> Outcome {
        let address = SocketAddr::new(to.parse().expect("an address"), TCP);
        let before = self.server.connections();
        let outcome = from
            .run(|| probe::tcp(address, timeout))
            .expect("the workload's namespace");
        let reached = self.server.connections() - before;
        assert_eq!(reached, u64::from(outcome == Outcome::Replied), "{outcome}");
        outcome
    }

    /// Its namespace, to probe from.
    #[must_use]
    pub fn netns(&self) -> &Workload {
        &self.netns
    }
}

/// A TCP exchange between workloads.
///
/// # Panics
/// When the namespace is gone.
#[must_use]
pub fn tcp(
    family: Family,
    from: &Workload,
    to: &Workload,
    port: u16,
    timeout: Duration,
) -> Outcome {
    let address = SocketAddr::new(family.of(to), port);
    from.run(|| probe::tcp(address, timeout))
        .expect("the workload's namespace")
}

/// A UDP exchange between workloads.
///
/// # Panics
/// When the namespace is gone.
#[must_use]
pub fn udp(
    family: Family,
    from: &Workload,
    to: &Workload,
    port: u16,
    timeout: Duration,
) -> Outcome {
    let address = SocketAddr::new(family.of(to), port);
    from.run(|| probe::udp(address, timeout))
        .expect("the workload's namespace")
}

/// An echo request between workloads.
///
/// # Panics
/// When the namespace is gone.
#[must_use]
pub fn ping(family: Family, from: &Workload, to: &Workload, timeout: Duration) -> Outcome {
    let address = family.of(to);
    from.run(|| probe::ping(address, timeout))
        .expect("the workload's namespace")
}

/// An established connection on which a line went there and back.
///
/// # Panics
/// When it cannot be made.
#[must_use]
#[track_caller]
pub fn connect(family: Family, from: &Workload, to: &Workload, port: u16) -> Connection {
    let address = SocketAddr::new(family.of(to), port);
    let mut connection = from
        .run(|| Connection::open(address, PATIENT))
        .expect("the workload's namespace")
        .unwrap_or_else(|outcome| panic!("no connection to {address}: {outcome}"));
    assert_eq!(connection.exchange("hello", PATIENT), Outcome::Replied);
    connection
}
