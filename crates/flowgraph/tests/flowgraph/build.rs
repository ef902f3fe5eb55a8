//! Records and estates in few words.

use std::net::IpAddr;

use dataplane_common::conntrack::tcp;
use flowgraph::RuleRef;
use flowgraph::edge::{EdgeKey, PeerKey, Service};
use flowgraph::record::{
    Direction, Event, FlowRecord, L4, Observation, Opener, Peer, Reporter, TcpFlags, Verdict,
};
use jiff::{SignedDuration, Timestamp};
use policy::model::{Estate, Labels, Protocol, Workload};

/// 2026-11-20T12:00:00Z and so many seconds.
pub(crate) fn at(seconds: i64) -> Timestamp {
    let noon: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
    noon + SignedDuration::from_secs(seconds)
}

pub(crate) fn labels(text: &str) -> Labels {
    text.split_whitespace()
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap();
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

pub(crate) fn workload(path: &str, group: &str, label_text: &str, ips: &[&str]) -> Workload {
    let (namespace, name) = path.split_once('/').unwrap();
    Workload {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        labels: labels(label_text),
        addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: Vec::new(),
        group: group.to_owned(),
    }
}

/// web (two replicas), api and db in `shop`, prom in `ops`, dns in `kube`.
pub(crate) fn shop() -> Estate {
    Estate {
        namespaces: Default::default(),
        workloads: vec![
            workload(
                "shop/web-1",
                "shop/web",
                "app=web pod=1",
                &["10.0.0.1", "fd00::1"],
            ),
            workload(
                "shop/web-2",
                "shop/web",
                "app=web pod=2",
                &["10.0.0.2", "fd00::2"],
            ),
            workload(
                "shop/api-1",
                "shop/api",
                "app=api",
                &["10.0.0.3", "fd00::3"],
            ),
            workload("shop/db-1", "shop/db", "app=db", &["10.0.0.4", "fd00::4"]),
            workload(
                "ops/prom-1",
                "ops/prom",
                "app=prom",
                &["10.0.0.5", "fd00::5"],
            ),
            workload(
                "kube/dns-1",
                "kube/dns",
                "app=dns",
                &["10.0.0.6", "fd00::6"],
            ),
        ],
        host_addresses: vec!["10.0.0.254".parse().unwrap()],
    }
}

/// The peer an address belongs to.
pub(crate) fn peer(estate: &Estate, ip: &str, port: u16) -> Peer {
    let ip: IpAddr = ip.parse().unwrap();
    let mut peer = Peer {
        ip: Some(ip),
        port: Some(port),
        ..Peer::default()
    };
    if let Some(owner) = estate.workloads.iter().find(|w| w.addresses.contains(&ip)) {
        peer.workload = Some(owner.name.clone());
        peer.namespace = Some(owner.namespace.clone());
        peer.group = Some(owner.group.clone());
        peer.labels = owner.labels.clone();
        peer.identity = Some(300);
    } else if estate.host_addresses.contains(&ip) {
        peer.identity = Some(dataplane_common::identity::HOST);
    } else {
        peer.identity = Some(dataplane_common::identity::WORLD);
    }
    peer
}

pub(crate) fn group(namespace: &str, name: &str) -> PeerKey {
    PeerKey::Group {
        namespace: namespace.to_owned(),
        name: format!("{namespace}/{name}"),
    }
}

pub(crate) fn world(ip: &str) -> PeerKey {
    PeerKey::World {
        address: ip.parse().unwrap(),
    }
}

pub(crate) fn edge_key(
    source: PeerKey,
    destination: PeerKey,
    protocol: Protocol,
    port: u16,
) -> EdgeKey {
    EdgeKey {
        source,
        destination,
        protocol,
        service: Service::Port(port),
    }
}

/// A flow in its opener's orientation, from which records are made.
#[derive(Clone, Debug)]
pub(crate) struct Talk {
    pub(crate) estate: Estate,
    pub(crate) source: (String, u16),
    pub(crate) destination: (String, u16),
    pub(crate) protocol: Protocol,
    pub(crate) opener: Opener,
    pub(crate) start: i64,
}

impl Talk {
    pub(crate) fn tcp(source: &str, destination: &str, port: u16) -> Self {
        Self {
            estate: shop(),
            source: (source.to_owned(), 40_000),
            destination: (destination.to_owned(), port),
            protocol: Protocol::TCP,
            opener: Opener::Certain,
            start: 0,
        }
    }

    pub(crate) fn udp(source: &str, destination: &str, port: u16) -> Self {
        Self {
            protocol: Protocol::UDP,
            ..Self::tcp(source, destination, port)
        }
    }

    pub(crate) fn client_port(mut self, port: u16) -> Self {
        self.source.1 = port;
        self
    }

    pub(crate) fn starting(mut self, start: i64) -> Self {
        self.start = start;
        self
    }

    pub(crate) fn opener(mut self, opener: Opener) -> Self {
        self.opener = opener;
        self
    }

    /// One reporter's record of the flow after `packets` each way.
    pub(crate) fn record(&self, reporter: Reporter, event: Event, packets: [u64; 2]) -> FlowRecord {
        let source = peer(&self.estate, &self.source.0, self.source.1);
        let destination = peer(&self.estate, &self.destination.0, self.destination.1);
        let direction = match (self.opener, reporter) {
            (Opener::Unknown, _) => Direction::Unknown,
            (_, Reporter::Source) => Direction::Egress,
            (_, Reporter::Destination) => Direction::Ingress,
        };
        let total = packets[0] + packets[1];
        let last = self.start + total as i64;
        FlowRecord {
            time: at(last),
            event,
            verdict: Verdict::Forwarded,
            drop_reason: None,
            direction,
            opener: self.opener,
            is_reply: (self.opener != Opener::Unknown).then_some(false),
            l4: Some(L4 {
                protocol: self.protocol,
                port: destination.port,
                tcp_flags: (self.protocol == Protocol::TCP).then_some(TcpFlags(tcp::ACK)),
                icmp_type: None,
                icmp_code: None,
            }),
            source,
            destination,
            l7: None,
            rule: Some(RuleRef {
                policy: "none".to_owned(),
                file: None,
                line: None,
                rule: None,
            }),
            staged_verdict: None,
            generation: Some(1),
            packets: total,
            bytes: packets[0] * 100 + packets[1] * 1_000,
            reply_packets: packets[1],
            reply_bytes: packets[1] * 1_000,
            first_seen: at(self.start),
            last_seen: at(last),
            observation: Observation {
                lost_events: 0,
                reporter: (self.opener == Opener::Unknown).then_some(reporter),
            },
        }
    }

    /// New, summary and closed of both reporters, for a connection with ten packets each way.
    pub(crate) fn whole(&self) -> Vec<FlowRecord> {
        [Reporter::Source, Reporter::Destination]
            .into_iter()
            .flat_map(|reporter| {
                [
                    self.record(reporter, Event::New, [1, 0]),
                    self.record(reporter, Event::Summary, [5, 4]),
                    self.record(reporter, Event::Closed, [10, 10]),
                ]
            })
            .collect()
    }

    /// A packet dropped by a reporter's policy.
    pub(crate) fn denied(&self, reporter: Reporter, reason: &str) -> FlowRecord {
        FlowRecord {
            verdict: Verdict::Dropped,
            drop_reason: Some(reason.to_owned()),
            ..self.record(reporter, Event::Denied, [1, 0])
        }
    }
}
