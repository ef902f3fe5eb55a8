//! The service graph as a tree for people.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Deserialize;

use super::shop::EdgeName;

/// From how many services on the same port on they share one line.
const SHARE_FROM: usize = 3;

/// The graph as the API gives it; what the demo does not need is left out.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    pub(super) edges: Vec<Edge>,
}

/// A node.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Node {
    pub(super) id: String,
    pub(super) label: String,
}

/// An edge.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Edge {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) label: String,
    pub(super) connections: u64,
    pub(super) answered: u64,
    pub(super) first_seen: Timestamp,
    pub(super) last_seen: Timestamp,
    pub(super) openers: flowgraph::edge::OpenerCounts,
}

impl Graph {
    /// Edges whose direction is known, by name: what rules are made of.
    pub(super) fn learned(&self) -> BTreeMap<EdgeName, &Edge> {
        self.named(|edge| edge.is_decided())
    }

    /// Edges whose direction is not known, by name. No rule is made of them.
    pub(super) fn undecided(&self) -> BTreeMap<EdgeName, &Edge> {
        self.named(|edge| !edge.is_decided())
    }

    fn named(&self, wanted: impl Fn(&Edge) -> bool) -> BTreeMap<EdgeName, &Edge> {
        let label = |id: &str| {
            let node = self.nodes.iter().find(|node| node.id == id);
            node.map_or_else(|| id.to_owned(), |node| node.label.clone())
        };
        self.edges
            .iter()
            .filter(|edge| wanted(edge))
            .map(|edge| {
                let name = EdgeName {
                    source: label(&edge.from),
                    destination: label(&edge.to),
                    service: edge.label.clone(),
                };
                (name, edge)
            })
            .collect()
    }
}

impl Edge {
    fn is_decided(&self) -> bool {
        self.openers.certain + self.openers.inferred > 0
    }
}

/// Services a source uses, by destination.
type Callees<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Draws edges as trees that begin with whom nobody calls. What a service calls is drawn once, below
/// the caller that is nearest to where requests come in.
pub(super) fn tree<'a>(
    edges: impl IntoIterator<Item = &'a EdgeName>,
    name: impl Fn(&str) -> String,
) -> String {
    let mut callees: BTreeMap<&str, Callees<'a>> = BTreeMap::new();
    let mut called = BTreeSet::new();
    for edge in edges {
        called.insert(edge.destination.as_str());
        let destinations = callees.entry(&edge.source).or_default();
        let services = destinations.entry(&edge.destination).or_default();
        services.insert(&edge.service);
    }
    let (roots, home) = homes(&callees, &called);
    let mut drawing = Drawing {
        callees,
        home,
        name: &name,
        text: String::new(),
    };
    for root in roots {
        let text = (drawing.name)(root);
        drawing.line("", "", &text, "");
        drawing.node(root, "");
    }
    drawing.text
}

/// The roots, and for every other service with callees the caller below which they are drawn.
fn homes<'a>(
    callees: &BTreeMap<&'a str, Callees<'a>>,
    called: &BTreeSet<&'a str>,
) -> (Vec<&'a str>, BTreeMap<&'a str, &'a str>) {
    let mut roots = Vec::new();
    let mut home = BTreeMap::new();
    let uncalled = callees.keys().filter(|source| !called.contains(*source));
    // Whoever is called in a circle only has no root above it, and becomes one.
    for root in uncalled.chain(callees.keys()) {
        if roots.contains(root) || home.contains_key(root) {
            continue;
        }
        roots.push(*root);
        let mut queue = VecDeque::from([*root]);
        while let Some(source) = queue.pop_front() {
            for callee in callees.get(source).into_iter().flat_map(BTreeMap::keys) {
                let fresh = !roots.contains(callee) && !home.contains_key(callee);
                if fresh && callees.contains_key(callee) {
                    home.insert(*callee, source);
                    queue.push_back(*callee);
                }
            }
        }
    }
    (roots, home)
}

struct Drawing<'a, N> {
    callees: BTreeMap<&'a str, Callees<'a>>,
    home: BTreeMap<&'a str, &'a str>,
    name: &'a N,
    text: String,
}

impl<'a, N: Fn(&str) -> String> Drawing<'a, N> {
    fn line(&mut self, indent: &str, branch: &str, what: &str, after: &str) {
        writeln!(self.text, "{indent}{branch}{what}{after}").expect("writes to memory");
    }

    fn node(&mut self, source: &'a str, indent: &str) {
        let callees = self.callees.get(source).cloned().unwrap_or_default();
        // Those that are drawn here come first, each with its own; the others are only named, many
        // on the same port on one line.
        let mut here: Vec<(&str, Vec<&str>)> = Vec::new();
        let mut named: BTreeMap<Vec<&str>, Vec<&str>> = BTreeMap::new();
        for (callee, services) in callees {
            let services: Vec<&str> = services.into_iter().collect();
            if self.home.get(callee) == Some(&source) {
                here.push((callee, services));
            } else {
                named.entry(services).or_default().push(callee);
            }
        }
        let mut lines: Vec<(String, Option<&str>, Vec<&str>)> = Vec::new();
        for (callee, services) in here {
            lines.push(((self.name)(callee), Some(callee), services));
        }
        for (services, members) in named {
            let names: Vec<String> = members.iter().map(|member| (self.name)(member)).collect();
            if names.len() >= SHARE_FROM {
                lines.push((names.join(", "), None, services));
            } else {
                let single = |name| (name, None, services.clone());
                lines.extend(names.into_iter().map(single));
            }
        }
        let last = lines.len().saturating_sub(1);
        for (index, (text, below, services)) in lines.into_iter().enumerate() {
            let (branch, then) = if index == last {
                ("└─ ", "   ")
            } else {
                ("├─ ", "│  ")
            };
            self.line(indent, branch, &text, &format!("  {}", services.join(" ")));
            if let Some(callee) = below {
                self.node(callee, &format!("{indent}{then}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(source: &str, destination: &str, service: &str) -> EdgeName {
        EdgeName {
            source: source.to_owned(),
            destination: destination.to_owned(),
            service: service.to_owned(),
        }
    }

    #[test]
    fn each_edge_is_drawn_once_and_a_circle_ends() {
        let edges = [
            edge("user", "web", "443/TCP"),
            edge("web", "api", "80/TCP"),
            edge("web", "api", "81/TCP"),
            edge("api", "db", "1/TCP"),
            edge("api", "web", "2/TCP"),
        ];
        let text = tree(&edges, str::to_owned);
        assert_eq!(
            text,
            "user\n└─ web  443/TCP\n   └─ api  80/TCP 81/TCP\n      ├─ db  1/TCP\n      └─ web  2/TCP\n"
        );
    }

    #[test]
    fn a_service_is_drawn_below_its_nearest_caller() {
        let edges = [
            edge("user", "api", "80/TCP"),
            edge("user", "db", "1/TCP"),
            edge("api", "db", "1/TCP"),
            edge("db", "disk", "2/TCP"),
        ];
        let text = tree(&edges, str::to_owned);
        assert_eq!(
            text,
            "user\n├─ api  80/TCP\n│  └─ db  1/TCP\n└─ db  1/TCP\n   └─ disk  2/TCP\n"
        );
    }

    #[test]
    fn many_known_services_share_a_line() {
        let edges = ["a", "b", "c"].map(|name| edge("metrics", name, "9100/TCP"));
        let text = tree(&edges, str::to_owned);
        assert_eq!(text, "metrics\n└─ a, b, c  9100/TCP\n");
    }
}
