//! The service graph as a tree for people.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Edges by name.
    pub(super) fn named(&self) -> BTreeMap<EdgeName, &Edge> {
        let label = |id: &str| {
            let node = self.nodes.iter().find(|node| node.id == id);
            node.map_or_else(|| id.to_owned(), |node| node.label.clone())
        };
        self.edges
            .iter()
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

/// Services a source uses, by destination.
type Callees<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Draws edges as trees that begin with whom nobody calls. A service that is drawn already is
/// named, not drawn again.
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
    let mut drawing = Drawing {
        callees,
        drawn: BTreeSet::new(),
        name: &name,
        text: String::new(),
    };
    let sources: Vec<&str> = drawing.callees.keys().copied().collect();
    // The way of a request first, then those who only watch.
    let mut roots: Vec<&str> = sources
        .iter()
        .filter(|s| !called.contains(*s))
        .copied()
        .collect();
    roots.sort_by_key(|root| drawing.callees[root].len());
    // Whoever is called in a circle only has no root above it.
    for root in roots.into_iter().chain(sources) {
        if !drawing.drawn.contains(root) {
            drawing.line("", "", root, "");
            drawing.node(root, "");
        }
    }
    drawing.text
}

struct Drawing<'a, N> {
    callees: BTreeMap<&'a str, Callees<'a>>,
    drawn: BTreeSet<&'a str>,
    name: &'a N,
    text: String,
}

impl<'a, N: Fn(&str) -> String> Drawing<'a, N> {
    fn line(&mut self, indent: &str, branch: &str, what: &str, after: &str) {
        let what = (self.name)(what);
        writeln!(self.text, "{indent}{branch}{what}{after}").expect("writes to memory");
    }

    fn node(&mut self, source: &'a str, indent: &str) {
        self.drawn.insert(source);
        let Some(callees) = self.callees.get(source).cloned() else {
            return;
        };
        // New ones each on a line; many known ones on the same port together.
        let mut shared: BTreeMap<Vec<&str>, Vec<&str>> = BTreeMap::new();
        let mut single: Vec<(&str, Vec<&str>)> = Vec::new();
        for (callee, services) in callees {
            let services: Vec<&str> = services.into_iter().collect();
            let leaf = !self.callees.contains_key(callee) || self.drawn.contains(callee);
            if leaf {
                shared.entry(services).or_default().push(callee);
            } else {
                single.push((callee, services));
            }
        }
        let mut joined: Vec<(Vec<&str>, Vec<&str>)> = Vec::new();
        for (services, members) in shared {
            if members.len() >= SHARE_FROM {
                joined.push((services, members));
            } else {
                single.extend(members.into_iter().map(|member| (member, services.clone())));
            }
        }
        let count = single.len() + joined.len();
        let branch = |index: usize| match index + 1 == count {
            true => ("└─ ", "   "),
            false => ("├─ ", "│  "),
        };
        for (index, (callee, services)) in single.into_iter().enumerate() {
            let (first, then) = branch(index);
            self.line(indent, first, callee, &format!("  {}", services.join(" ")));
            if !self.drawn.contains(callee) {
                self.node(callee, &format!("{indent}{then}"));
            }
        }
        let first_joined = count - joined.len();
        for (index, (services, members)) in joined.into_iter().enumerate() {
            let (first, _) = branch(first_joined + index);
            let names: Vec<String> = members.iter().map(|member| (self.name)(member)).collect();
            self.line(
                indent,
                first,
                &names.join(", "),
                &format!("  {}", services.join(" ")),
            );
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
    fn many_known_services_share_a_line() {
        let edges = ["a", "b", "c"].map(|name| edge("metrics", name, "9100/TCP"));
        let text = tree(&edges, str::to_owned);
        assert_eq!(text, "metrics\n└─ a, b, c  9100/TCP\n");
    }
}
