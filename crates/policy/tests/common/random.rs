//! Random estates, policies and flows, close enough together to meet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy::evaluate::Flow;
use policy::model::{
    Estate, Labels, Mode, Modes, NamedPort, Namespace, Protocol, Unselected, Workload,
};
use policy::netpol::{
    EgressRule, IngressRule, IntOrString, IpBlock, LabelSelector, NetworkPolicy, NetworkPolicySpec,
    Operator, Peer, PolicyType, Port, Requirement,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::ip;

/// Addresses of workloads, of the host and of nobody, close enough together for blocks to cut
/// between them.
const ADDRESSES: [&str; 24] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.0.5",
    "10.0.1.2",
    "10.0.1.3",
    "10.0.1.130",
    "10.1.0.1",
    "192.0.2.1",
    "192.0.2.2",
    "198.51.100.7",
    "fd00::1",
    "fd00::2",
    "fd00::3",
    "fd00::4",
    "fd00::5",
    "fd00::1:2",
    "fd00::1:3",
    "fd01::1",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8:1::1",
    "::2",
];
/// Blocks and blocks strictly inside them.
const BLOCKS: [(&str, &[&str]); 10] = [
    (
        "0.0.0.0/0",
        &["10.0.0.0/8", "192.0.2.0/24", "10.0.0.2/32", "0.0.0.0/1"],
    ),
    (
        "::/0",
        &["fd00::/8", "fd00::2/128", "2001:db8::/32", "8000::/1"],
    ),
    (
        "10.0.0.0/8",
        &["10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/31", "10.0.0.3/32"],
    ),
    ("10.66.0.10/4", &["10.0.0.0/24", "0.0.0.0/5"]),
    (
        "10.0.0.0/24",
        &["10.0.0.0/30", "10.0.0.2/31", "10.0.0.4/32"],
    ),
    ("10.0.1.128/25", &[]),
    ("192.0.2.1/32", &[]),
    ("fd00::/64", &["fd00::/120", "fd00::1:0/112", "fd00::4/126"]),
    ("2001:db8::/32", &["2001:db8:1::/48", "2001:db8::1/128"]),
    ("fd00::2/127", &["fd00::3/128"]),
];
const NAMESPACES: [&str; 2] = ["x", "z"];
const KEYS: [&str; 3] = ["app", "tier", "team"];
const VALUES: [&str; 3] = ["a", "b", ""];
const PORT_NAMES: [&str; 2] = ["http", "dns"];
const PROTOCOLS: [Protocol; 5] = [
    Protocol::TCP,
    Protocol::UDP,
    Protocol::SCTP,
    Protocol::ICMP,
    Protocol::ICMPV6,
];
/// Close together, so that ranges end beside a flow's port.
const PORTS: [u16; 9] = [0, 53, 79, 80, 81, 82, 83, 8080, 65535];

pub fn labels() -> impl Strategy<Value = Labels> {
    btree_map(
        select(&KEYS[..]).prop_map(str::to_owned),
        select(&VALUES[..]).prop_map(str::to_owned),
        0..3,
    )
}

pub fn selector() -> impl Strategy<Value = LabelSelector> {
    let values = || vec(select(&VALUES[..]).prop_map(str::to_owned), 1..3);
    let key = || select(&KEYS[..]).prop_map(str::to_owned);
    let requirement = prop_oneof![
        (key(), values()).prop_map(|(key, values)| (key, Operator::In, Some(values))),
        (key(), values()).prop_map(|(key, values)| (key, Operator::NotIn, Some(values))),
        key().prop_map(|key| (key, Operator::Exists, None)),
        key().prop_map(|key| (key, Operator::DoesNotExist, None)),
    ]
    .prop_map(|(key, operator, values)| Requirement {
        key,
        operator,
        values,
    });
    (
        option::weighted(0.4, labels()),
        option::weighted(0.4, vec(requirement, 0..2)),
    )
        .prop_map(|(match_labels, match_expressions)| LabelSelector {
            match_labels,
            match_expressions,
        })
}

pub fn namespace_selector() -> impl Strategy<Value = LabelSelector> {
    prop_oneof![
        selector(),
        select(&NAMESPACES[..]).prop_map(|name| LabelSelector {
            match_labels: Some(BTreeMap::from([(
                "kubernetes.io/metadata.name".to_owned(),
                name.to_owned(),
            )])),
            match_expressions: None,
        }),
    ]
}

pub fn peer() -> impl Strategy<Value = Peer> {
    let block = (select(&BLOCKS[..]), option::of(vec(any::<Index>(), 0..3))).prop_map(
        |((cidr, inner), except)| Peer {
            ip_block: Some(IpBlock {
                cidr: cidr.to_owned(),
                except: except.map(|picks| {
                    let picks = picks.iter().filter(|_| !inner.is_empty());
                    let chosen: BTreeSet<_> = picks.map(|pick| *pick.get(inner)).collect();
                    chosen.into_iter().map(str::to_owned).collect()
                }),
            }),
            ..Peer::default()
        },
    );
    prop_oneof![
        3 => block,
        1 => selector().prop_map(|selector| Peer {
            pod_selector: Some(selector),
            ..Peer::default()
        }),
        1 => namespace_selector().prop_map(|selector| Peer {
            namespace_selector: Some(selector),
            ..Peer::default()
        }),
        1 => (selector(), namespace_selector()).prop_map(|(pods, namespaces)| Peer {
            pod_selector: Some(pods),
            namespace_selector: Some(namespaces),
            ip_block: None,
        }),
    ]
}

pub fn port() -> impl Strategy<Value = Port> {
    let protocol = option::of(select(&["TCP", "UDP", "SCTP"][..]).prop_map(str::to_owned));
    let number = |first: u16| Some(IntOrString::Int(i64::from(first)));
    let range = prop_oneof![
        1 => Just((None, None)),
        4 => select(&PORTS[1..]).prop_map(move |first| (number(first), None)),
        4 => (select(&PORTS[1..]), select(&PORTS[1..])).prop_map(move |(a, b)| {
            (number(a.min(b)), Some(i64::from(a.max(b))))
        }),
        1 => (1_u16..=65535, 1_u16..=65535).prop_map(move |(a, b)| {
            (number(a.min(b)), Some(i64::from(a.max(b))))
        }),
        5 => select(&PORT_NAMES[..])
            .prop_map(|name| (Some(IntOrString::String(name.to_owned())), None)),
    ];
    (protocol, range).prop_map(|(protocol, (port, end_port))| Port {
        protocol,
        port,
        end_port,
    })
}

type RuleParts = (Option<Vec<Peer>>, Option<Vec<Port>>);

pub fn rule() -> impl Strategy<Value = RuleParts> {
    (
        option::weighted(0.8, vec(peer(), 0..3)),
        option::weighted(0.7, vec(port(), 0..3)),
    )
}

pub fn policy() -> impl Strategy<Value = NetworkPolicy> {
    let types = option::of(prop_oneof![
        Just(vec![]),
        Just(vec![PolicyType::Ingress]),
        Just(vec![PolicyType::Egress]),
        Just(vec![PolicyType::Ingress, PolicyType::Egress]),
    ]);
    (
        select(&NAMESPACES[..]),
        option::weighted(0.9, selector()),
        types,
        option::weighted(0.8, vec(rule(), 0..3)),
        option::weighted(0.8, vec(rule(), 0..3)),
    )
        .prop_map(|(namespace, pod_selector, policy_types, ingress, egress)| {
            let ingress = ingress.map(|rules| {
                let rules = rules.into_iter();
                rules
                    .map(|(from, ports)| IngressRule { from, ports })
                    .collect()
            });
            let egress = egress.map(|rules| {
                let rules = rules.into_iter();
                rules.map(|(to, ports)| EgressRule { to, ports }).collect()
            });
            let spec = NetworkPolicySpec {
                pod_selector,
                policy_types,
                ingress,
                egress,
            };
            NetworkPolicy::new(namespace, "p", spec)
        })
}

pub fn policy_list() -> impl Strategy<Value = Vec<NetworkPolicy>> {
    vec(policy(), 0..5).prop_map(|mut policies| {
        for (index, policy) in policies.iter_mut().enumerate() {
            policy.metadata.name = format!("p{index}");
        }
        policies
    })
}

pub fn named_ports() -> impl Strategy<Value = Vec<NamedPort>> {
    let port = (
        select(&PORT_NAMES[..]),
        select(&PORTS[1..7]),
        select(&PROTOCOLS[..2]),
    )
        .prop_map(|(name, port, protocol)| NamedPort {
            name: name.to_owned(),
            port,
            protocol,
        });
    vec(port, 0..4)
}

pub fn estate() -> impl Strategy<Value = Estate> {
    let workload = (select(&NAMESPACES[..]), labels(), named_ports(), 0_usize..4);
    let owners = vec(0_usize..8, ADDRESSES.len());
    (
        vec(workload, 1..6),
        owners,
        btree_map(select(&NAMESPACES[..]), labels(), 0..3),
    )
        .prop_map(|(workloads, owners, namespaces)| {
            let mut estate = Estate {
                namespaces: namespaces
                    .into_iter()
                    .map(|(name, labels)| {
                        let namespace = Namespace {
                            name: name.to_owned(),
                            labels,
                        };
                        (name.to_owned(), namespace)
                    })
                    .collect(),
                workloads: workloads
                    .into_iter()
                    .enumerate()
                    .map(|(index, (namespace, labels, ports, group))| Workload {
                        name: format!("w{index}"),
                        namespace: namespace.to_owned(),
                        labels,
                        addresses: Vec::new(),
                        ports,
                        group: format!("g{group}"),
                    })
                    .collect(),
                host_addresses: Vec::new(),
            };
            // 0: the host. 1 to 5: a workload, if there is one. The rest: nobody.
            for (text, owner) in ADDRESSES.iter().zip(owners) {
                match owner {
                    0 => estate.host_addresses.push(ip(text)),
                    owner => {
                        if let Some(workload) = estate.workloads.get_mut(owner - 1) {
                            workload.addresses.push(ip(text));
                        }
                    }
                }
            }
            estate
        })
}

pub fn modes() -> impl Strategy<Value = Modes> {
    let mode = || select(&[Mode::Discover, Mode::Monitor, Mode::Protect][..]);
    (
        mode(),
        btree_map((0_usize..4).prop_map(|n| format!("g{n}")), mode(), 0..4),
    )
        .prop_map(|(default, groups)| Modes { default, groups })
}

pub fn flows() -> impl Strategy<Value = Vec<Flow>> {
    let flow = (
        select(&ADDRESSES[..]),
        any::<Index>(),
        prop_oneof![3 => Just(Protocol::TCP), 2 => select(&PROTOCOLS[..])],
        prop_oneof![6 => select(&PORTS[..]), 1 => any::<u16>()],
    )
        .prop_map(|(source, pick, protocol, destination_port)| {
            let source = ip(source);
            let same_family: Vec<IpAddr> = ADDRESSES
                .iter()
                .map(|text| ip(text))
                .filter(|address| address.is_ipv4() == source.is_ipv4())
                .collect();
            Flow {
                source,
                destination: *pick.get(&same_family),
                protocol,
                destination_port,
            }
        });
    vec(flow, 1..60)
}

pub fn unselected() -> impl Strategy<Value = Unselected> {
    select(&[Unselected::Deny, Unselected::Allow][..])
}
