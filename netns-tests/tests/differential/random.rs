//! Random cases: worlds, close enough together to meet, and what happens in them.

use std::net::IpAddr;

use dataplane_common::policy::Mode;
use policy::model::{Estate, Labels, NamedPort, Namespace, Protocol, Unselected, Workload};

use crate::case::{Case, Step, WorldText};
use crate::traffic::Traffic;

/// Packets of one case.
const LENGTH: u64 = 1000;

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a sequence from a seed, the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64, case: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ case);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// True `percent` times of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn byte(&mut self) -> u8 {
        self.next() as u8
    }
}

/// Addresses that workloads, the host or nobody may have, by family.
pub const OWNABLE: [[&str; 8]; 2] = [
    [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
        "10.0.0.4",
        "10.0.1.5",
        "10.0.1.6",
        "192.0.2.10",
        "198.51.100.7",
    ],
    [
        "fd00::1",
        "fd00::2",
        "fd00::3",
        "fd00::4",
        "fd00:1::5",
        "fd00:1::6",
        "2001:db8::10",
        "fe80::3",
    ],
];
/// The workload's own addresses.
pub const OWN: [&str; 2] = ["10.0.0.2", "fd00::2"];

const BLOCKS: [(&str, &[&str]); 8] = [
    (
        "0.0.0.0/0",
        &["10.0.0.0/8", "192.0.2.0/24", "203.0.113.9/32"],
    ),
    ("::/0", &["fd00::/8", "2001:db8::/32", "8000::/1"]),
    ("10.0.0.0/8", &["10.0.0.0/24", "10.0.1.0/24", "10.0.0.3/32"]),
    ("10.0.0.0/24", &["10.0.0.0/30", "10.0.0.4/32"]),
    ("192.0.2.0/24", &["192.0.2.128/25"]),
    ("fd00::/64", &["fd00::/120", "fd00::3/128"]),
    ("2001:db8::/32", &["2001:db8:1::/48"]),
    ("198.51.100.7/32", &[]),
];
const APPS: [&str; 4] = ["web", "api", "db", "job"];
pub const PORTS: [u16; 10] = [0, 53, 67, 79, 80, 81, 443, 5432, 8080, 65535];
const PORT_NAMES: [&str; 2] = ["http", "dns"];

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn packets_in(case: &Case) -> u64 {
    let packets = case
        .steps
        .iter()
        .filter(|step| matches!(step, Step::Packet { .. }));
    packets.count() as u64
}

pub fn case(random: &mut Random) -> Case {
    let mut world = world(random);
    let mut steps = vec![
        Step::World(Box::new(world.clone())),
        Step::Attach {
            unsure: random.chance(25),
        },
    ];
    let changes: Vec<u64> = (0..random.below(6))
        .map(|_| random.next() % LENGTH)
        .collect();
    let reopen = random.chance(5).then(|| random.next() % LENGTH);
    let mut traffic = Traffic::default();
    for number in 0..LENGTH {
        if reopen == Some(number) {
            steps.push(Step::Reopen);
        }
        if changes.contains(&number) {
            change(random, &mut world);
            steps.push(Step::World(Box::new(world.clone())));
        }
        let (direction, frame) = traffic.packet(random);
        steps.push(Step::Packet { direction, frame });
    }
    Case { steps }
}

fn mode(random: &mut Random) -> Mode {
    random.pick(&[
        Mode::Protect,
        Mode::Protect,
        Mode::Protect,
        Mode::Monitor,
        Mode::Discover,
    ])
}

fn world(random: &mut Random) -> WorldText {
    WorldText {
        estate: estate(random),
        policies: policies(random),
        mode: mode(random),
        unselected: random.pick(&[Unselected::Deny, Unselected::Allow]),
    }
}

/// One thing changes, or all of them.
fn change(random: &mut Random, world: &mut WorldText) {
    match random.below(5) {
        0 => world.mode = mode(random),
        1 => world.estate = estate(random),
        2 => *world = self::world(random),
        // A line more: the same rules under other numbers.
        3 => world.policies.insert(0, '\n'),
        _ => world.policies = policies(random),
    }
}

fn estate(random: &mut Random) -> Estate {
    let mut estate = Estate::default();
    for app in APPS {
        if app != "web" && random.chance(20) {
            continue;
        }
        let mut labels = Labels::from([("app".to_owned(), app.to_owned())]);
        if random.chance(40) {
            labels.insert(
                "tier".to_owned(),
                random.pick(&["front", "back"]).to_owned(),
            );
        }
        let namespace = if app == "job" || random.chance(15) {
            "ops"
        } else {
            "shop"
        };
        let mut ports = Vec::new();
        for name in PORT_NAMES {
            if random.chance(50) {
                ports.push(NamedPort {
                    name: name.to_owned(),
                    port: random.pick(&[80, 53, 8080]),
                    protocol: random.pick(&[Protocol::TCP, Protocol::UDP]),
                });
            }
        }
        estate.workloads.push(Workload {
            name: app.to_owned(),
            namespace: namespace.to_owned(),
            labels,
            addresses: Vec::new(),
            ports,
            group: format!("{namespace}/{app}"),
        });
    }
    let learns = random.chance(15);
    for text in OWNABLE.iter().flatten() {
        let own = OWN.contains(text);
        let owner = if own && random.chance(90) {
            1
        } else {
            random.below(7)
        };
        match owner {
            0 => estate.host_addresses.push(ip(text)),
            1 if learns => {}
            1 if !own && random.chance(70) => {}
            owner => {
                if let Some(workload) = estate.workloads.get_mut(owner - 1) {
                    workload.addresses.push(ip(text));
                }
            }
        }
    }
    if random.chance(60) {
        estate.namespaces.insert(
            "ops".to_owned(),
            Namespace {
                name: "ops".to_owned(),
                labels: Labels::from([("team".to_owned(), "sre".to_owned())]),
            },
        );
    }
    estate
}

fn selector(random: &mut Random) -> String {
    match random.below(6) {
        0 => "{}".to_owned(),
        1 => "{matchLabels: {tier: front}}".to_owned(),
        2 => format!(
            "{{matchExpressions: [{{key: app, operator: NotIn, values: [{}]}}]}}",
            random.pick(&APPS)
        ),
        _ => format!("{{matchLabels: {{app: {}}}}}", random.pick(&APPS)),
    }
}

fn peer(random: &mut Random) -> String {
    match random.below(8) {
        0..3 => {
            let (cidr, inner) = random.pick(&BLOCKS);
            let except: Vec<String> = inner
                .iter()
                .filter(|_| random.chance(40))
                .map(|net| format!("\"{net}\""))
                .collect();
            format!(
                "{{ipBlock: {{cidr: \"{cidr}\", except: [{}]}}}}",
                except.join(", ")
            )
        }
        3 => "{namespaceSelector: {matchLabels: {team: sre}}}".to_owned(),
        4 => format!(
            "{{namespaceSelector: {{}}, podSelector: {}}}",
            selector(random)
        ),
        _ => format!("{{podSelector: {}}}", selector(random)),
    }
}

fn port(random: &mut Random) -> String {
    let protocol = random.pick(&["TCP", "TCP", "UDP", "SCTP"]);
    match random.below(7) {
        0 => format!("{{protocol: {protocol}}}"),
        1 => format!(
            "{{protocol: {protocol}, port: {}}}",
            random.pick(&PORT_NAMES)
        ),
        2 | 3 => {
            let (a, b) = (random.pick(&PORTS[1..]), random.pick(&PORTS[1..]));
            format!(
                "{{protocol: {protocol}, port: {}, endPort: {}}}",
                a.min(b),
                a.max(b)
            )
        }
        _ => format!(
            "{{protocol: {protocol}, port: {}}}",
            random.pick(&PORTS[1..])
        ),
    }
}

fn rules(random: &mut Random, peers: &str) -> String {
    let mut text = String::new();
    for _ in 0..random.below(4) {
        let mut fields = Vec::new();
        if random.chance(80) {
            let list: Vec<String> = (0..=random.below(2)).map(|_| peer(random)).collect();
            fields.push(format!("{peers}: [{}]", list.join(", ")));
        }
        if random.chance(70) {
            let list: Vec<String> = (0..=random.below(3)).map(|_| port(random)).collect();
            fields.push(format!("ports: [{}]", list.join(", ")));
        }
        text.push_str(&format!("  - {{{}}}\n", fields.join(", ")));
    }
    if text.is_empty() {
        " []\n".to_owned()
    } else {
        format!("\n{text}")
    }
}

fn policies(random: &mut Random) -> String {
    let mut text = String::new();
    for number in 0..random.below(4) {
        let selector = if random.chance(60) {
            "{}".to_owned()
        } else {
            selector(random)
        };
        let types = random.pick(&[
            "[Ingress, Egress]",
            "[Ingress, Egress]",
            "[Ingress]",
            "[Egress]",
        ]);
        let ingress = rules(random, "from");
        let egress = rules(random, "to");
        let directions = [
            ("Ingress", "ingress", ingress),
            ("Egress", "egress", egress),
        ];
        text.push_str(&format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: p{number}, namespace: shop}}\nspec:\n  podSelector: {selector}\n  \
             policyTypes: {types}\n"
        ));
        for (kind, field, rules) in directions {
            if types.contains(kind) {
                text.push_str(&format!("  {field}:{rules}"));
            }
        }
    }
    text
}
