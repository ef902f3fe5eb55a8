//! A case: worlds and packets in order, as a text that people read and commit.

use std::fmt::Write as _;
use std::net::IpAddr;

use dataplane_common::Direction;
use dataplane_common::policy::Mode;
use netns_tests::reference::rules::World;
use policy::evaluate::mode_name;
use policy::model::{Estate, Labels, NamedPort, Namespace, Unselected, Workload};
use policy::parse::{PolicySet, parse_documents};

/// A world whose policies are still text.
#[derive(Clone, Debug)]
pub struct WorldText {
    pub estate: Estate,
    pub policies: String,
    pub mode: Mode,
    pub unselected: Unselected,
}

impl WorldText {
    pub fn world(&self) -> World {
        let mut policies = PolicySet::new();
        let parsed = parse_documents("test.yaml", &self.policies)
            .unwrap_or_else(|errors| panic!("{errors}\n{}", self.policies));
        for document in parsed.policies {
            policies.insert(document);
        }
        World {
            estate: self.estate.clone(),
            policies,
            mode: self.mode,
            unselected: self.unselected,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Step {
    /// Puts a world in force (before the first `Attach`: prepares it).
    World(Box<WorldText>),
    /// A new endpoint, whose older flows are unknown or not.
    Attach { unsure: bool },
    /// The daemon dies and another takes over.
    Reopen,
    Packet {
        direction: Direction,
        frame: Vec<u8>,
    },
}

#[derive(Clone, Debug, Default)]
pub struct Case {
    pub steps: Vec<Step>,
}

impl Case {
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for step in &self.steps {
            match step {
                Step::World(world) => write_world(&mut out, world),
                Step::Attach { unsure } => {
                    let word = if *unsure { "unsure" } else { "sure" };
                    let _ = writeln!(out, "attach {word}");
                }
                Step::Reopen => out.push_str("reopen\n"),
                Step::Packet { direction, frame } => {
                    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
                    let _ = writeln!(out, "{} {hex}", direction.as_str());
                }
            }
        }
        out
    }

    /// Reads what [`Case::to_text`] writes; lines that begin with `#` are comments.
    pub fn parse(text: &str) -> Self {
        let mut case = Self::default();
        for (index, line) in text.lines().enumerate() {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            case.read_line(line)
                .unwrap_or_else(|| panic!("line {}: `{line}` means nothing", index + 1));
        }
        case
    }

    fn read_line(&mut self, line: &str) -> Option<()> {
        if let Some(yaml) = line.strip_prefix("    ") {
            let policies = &mut self.last_world()?.policies;
            policies.push_str(yaml);
            policies.push('\n');
            return Some(());
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "world" => self.steps.push(Step::World(Box::new(WorldText {
                estate: Estate::default(),
                policies: String::new(),
                mode: Mode::Protect,
                unselected: Unselected::Deny,
            }))),
            "namespace" => {
                let (name, labels) = rest.split_once(' ')?;
                let namespace = Namespace {
                    name: name.to_owned(),
                    labels: read_labels(labels)?,
                };
                let namespaces = &mut self.last_world()?.estate.namespaces;
                namespaces.insert(name.to_owned(), namespace);
            }
            "workload" => {
                let workload = read_workload(rest)?;
                self.last_world()?.estate.workloads.push(workload);
            }
            "host" => self.last_world()?.estate.host_addresses = read_addresses(rest)?,
            "mode" => {
                let modes = [Mode::Discover, Mode::Monitor, Mode::Protect];
                self.last_world()?.mode =
                    modes.into_iter().find(|mode| mode_name(*mode) == rest)?;
            }
            "unselected" => {
                self.last_world()?.unselected = match rest {
                    "deny" => Unselected::Deny,
                    "allow" => Unselected::Allow,
                    _ => return None,
                };
            }
            "policies" => {}
            "attach" => self.steps.push(Step::Attach {
                unsure: rest == "unsure",
            }),
            "reopen" => self.steps.push(Step::Reopen),
            "egress" | "ingress" => self.steps.push(Step::Packet {
                direction: if word == "egress" {
                    Direction::Egress
                } else {
                    Direction::Ingress
                },
                frame: (0..rest.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(rest.get(at..at + 2)?, 16).ok())
                    .collect::<Option<_>>()?,
            }),
            _ => return None,
        }
        Some(())
    }

    fn last_world(&mut self) -> Option<&mut WorldText> {
        match self.steps.last_mut()? {
            Step::World(world) => Some(world),
            Step::Attach { .. } | Step::Reopen | Step::Packet { .. } => None,
        }
    }
}

fn write_world(out: &mut String, world: &WorldText) {
    out.push_str("world\n");
    for namespace in world.estate.namespaces.values() {
        let _ = writeln!(
            out,
            "namespace {} {}",
            namespace.name,
            labels(&namespace.labels)
        );
    }
    for workload in &world.estate.workloads {
        let ports: Vec<String> = workload
            .ports
            .iter()
            .map(|port| format!("{}:{}/{}", port.name, port.port, port.protocol))
            .collect();
        let _ = writeln!(
            out,
            "workload {}/{} {} {} {}",
            workload.namespace,
            workload.name,
            labels(&workload.labels),
            addresses(&workload.addresses),
            list(&ports),
        );
    }
    let _ = writeln!(out, "host {}", addresses(&world.estate.host_addresses));
    let _ = writeln!(out, "mode {}", mode_name(world.mode));
    let unselected = match world.unselected {
        Unselected::Deny => "deny",
        Unselected::Allow => "allow",
    };
    let _ = writeln!(out, "unselected {unselected}");
    out.push_str("policies\n");
    for line in world.policies.lines() {
        let _ = writeln!(out, "    {line}");
    }
}

fn list(items: &[String]) -> String {
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.join(",")
    }
}

fn labels(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    list(&pairs)
}

fn addresses(addresses: &[IpAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    list(&texts)
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(|item| *item != "-")
}

fn read_labels(text: &str) -> Option<Labels> {
    items(text)
        .map(|pair| {
            let (key, value) = pair.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        })
        .collect()
}

fn read_addresses(text: &str) -> Option<Vec<IpAddr>> {
    items(text).map(|item| item.parse().ok()).collect()
}

fn read_workload(text: &str) -> Option<Workload> {
    let mut words = text.split(' ');
    let (namespace, name) = words.next()?.split_once('/')?;
    Some(Workload {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        labels: read_labels(words.next()?)?,
        addresses: read_addresses(words.next()?)?,
        ports: items(words.next()?)
            .map(|item| {
                let (name, port) = item.split_once(':')?;
                let (port, protocol) = port.split_once('/')?;
                Some(NamedPort {
                    name: name.to_owned(),
                    port: port.parse().ok()?,
                    protocol: protocol.parse().ok()?,
                })
            })
            .collect::<Option<_>>()?,
        group: format!("{namespace}/{name}"),
    })
}
