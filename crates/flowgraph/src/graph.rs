//! The service dependency graph: who depends on whom, in which order, and how far an intruder gets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use petgraph::Direction;
use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use serde::Serialize;

use crate::edge::{Edge, Passage, PeerKey, Service};

/// Peers and the edges between them. Everything it gives is ordered, so that the same edges give the
/// same output.
#[derive(Clone, Debug)]
pub struct ServiceGraph {
    /// Nodes in key order; the links are the directed edges that policy does not deny, one per pair.
    graph: DiGraph<PeerKey, ()>,
    index: BTreeMap<PeerKey, NodeIndex>,
    edges: Vec<Edge>,
    layers: Vec<usize>,
    components: Vec<usize>,
}

/// A node as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// `n0`, `n1`, ... in key order.
    pub id: String,
    /// What it is.
    #[serde(flatten)]
    pub key: PeerKey,
    /// For people.
    pub label: String,
    /// Longest way from an entry of the graph: 0 for what nobody calls. Members of a cycle share it.
    pub layer: usize,
    /// Strongly connected component; nodes with the same number depend on each other.
    pub component: usize,
}

/// The graph as a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GraphDocument {
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Edges with their evidence.
    pub edges: Vec<GraphEdge>,
    /// Groups of nodes that depend on each other in a circle.
    pub cycles: Vec<Vec<String>>,
}

/// An edge of a [`GraphDocument`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GraphEdge {
    /// [`Node::id`] of the source.
    pub from: String,
    /// [`Node::id`] of the destination.
    pub to: String,
    /// For people, e.g. `8080/TCP`.
    pub label: String,
    /// The edge and its evidence.
    #[serde(flatten)]
    pub edge: Edge,
}

/// A node within reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// The node.
    pub peer: PeerKey,
    /// Fewest edges on the way.
    pub hops: usize,
}

impl ServiceGraph {
    /// Builds the graph. Edges of unknown direction and edges that policy denies are part of it, but
    /// no path leads along them.
    #[must_use]
    pub fn from_edges(edges: &[Edge]) -> Self {
        let mut edges = edges.to_vec();
        edges.sort_by(|a, b| a.key.cmp(&b.key));
        let peers: BTreeSet<&PeerKey> = edges
            .iter()
            .flat_map(|edge| [&edge.key.source, &edge.key.destination])
            .collect();
        let mut graph = DiGraph::new();
        let index: BTreeMap<PeerKey, NodeIndex> = peers
            .into_iter()
            .map(|peer| (peer.clone(), graph.add_node(peer.clone())))
            .collect();
        for edge in edges.iter().filter(|edge| is_path(edge)) {
            graph.update_edge(index[&edge.key.source], index[&edge.key.destination], ());
        }
        let (layers, components) = layers(&graph);
        Self {
            graph,
            index,
            edges,
            layers,
            components,
        }
    }

    /// Nodes in key order.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        self.graph
            .node_indices()
            .map(|node| Node {
                id: id(node),
                key: self.graph[node].clone(),
                label: self.graph[node].to_string(),
                layer: self.layers[node.index()],
                component: self.components[node.index()],
            })
            .collect()
    }

    /// Edges in key order.
    #[must_use]
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// Layer of a peer, see [`Node::layer`].
    #[must_use]
    pub fn layer(&self, peer: &PeerKey) -> Option<usize> {
        self.index.get(peer).map(|node| self.layers[node.index()])
    }

    /// Peers that depend on each other in a circle: the strongly connected components of more than
    /// one node.
    #[must_use]
    pub fn cycles(&self) -> Vec<Vec<PeerKey>> {
        let mut members: BTreeMap<usize, Vec<PeerKey>> = BTreeMap::new();
        for (node, component) in self.graph.node_indices().zip(&self.components) {
            members
                .entry(*component)
                .or_default()
                .push(self.graph[node].clone());
        }
        let mut cycles: Vec<_> = members.into_values().filter(|m| m.len() > 1).collect();
        cycles.sort();
        cycles
    }

    /// The blast radius of a peer: everything that can be reached from it along edges that policy
    /// does not deny, nearest first.
    #[must_use]
    pub fn reachable(&self, from: &PeerKey) -> Vec<Reached> {
        self.search(from, Direction::Outgoing)
    }

    /// Everything from which a peer can be reached.
    #[must_use]
    pub fn reaching(&self, to: &PeerKey) -> Vec<Reached> {
        self.search(to, Direction::Incoming)
    }

    fn search(&self, start: &PeerKey, direction: Direction) -> Vec<Reached> {
        let Some(&start) = self.index.get(start) else {
            return Vec::new();
        };
        let mut hops = BTreeMap::from([(start, 0)]);
        let mut queue = VecDeque::from([start]);
        while let Some(node) = queue.pop_front() {
            let next = hops[&node] + 1;
            for neighbor in self.graph.neighbors_directed(node, direction) {
                hops.entry(neighbor).or_insert_with(|| {
                    queue.push_back(neighbor);
                    next
                });
            }
        }
        hops.remove(&start);
        let mut reached: Vec<_> = hops
            .into_iter()
            .map(|(node, hops)| Reached {
                peer: self.graph[node].clone(),
                hops,
            })
            .collect();
        reached.sort_by(|a, b| (a.hops, &a.peer).cmp(&(b.hops, &b.peer)));
        reached
    }

    /// The graph as a document.
    #[must_use]
    pub fn document(&self) -> GraphDocument {
        let edges = self.edges.iter().map(|edge| GraphEdge {
            from: id(self.index[&edge.key.source]),
            to: id(self.index[&edge.key.destination]),
            label: edge.key.service_name(),
            edge: edge.clone(),
        });
        let cycles = self
            .cycles()
            .into_iter()
            .map(|cycle| cycle.iter().map(|peer| id(self.index[peer])).collect())
            .collect();
        GraphDocument {
            nodes: self.nodes(),
            edges: edges.collect(),
            cycles,
        }
    }

    /// [`Self::document`] as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(&self.document())
            .expect("strings, numbers, times and addresses always serialize")
    }
}

/// Whether something can travel along the edge.
fn is_path(edge: &Edge) -> bool {
    edge.key.service != Service::Undecided
        && edge.connections > 0
        && edge.passage() != Passage::Denied
}

fn id(node: NodeIndex) -> String {
    format!("n{}", node.index())
}

/// Layer and component of every node: the longest path over the condensation.
fn layers(graph: &DiGraph<PeerKey, ()>) -> (Vec<usize>, Vec<usize>) {
    let components_of = tarjan_scc(graph);
    let mut component = vec![0; graph.node_count()];
    for (number, members) in components_of.iter().enumerate() {
        for member in members {
            component[member.index()] = number;
        }
    }
    // Tarjan's algorithm finishes callees first, so the reverse order visits callers first.
    let mut layer = vec![0; components_of.len()];
    for (number, members) in components_of.iter().enumerate().rev() {
        for member in members {
            for callee in graph.neighbors(*member) {
                let callee = component[callee.index()];
                if callee != number {
                    layer[callee] = layer[callee].max(layer[number] + 1);
                }
            }
        }
    }
    let layers = component.iter().map(|&number| layer[number]).collect();
    // Number components by their first node, which does not depend on the order of the search.
    let mut renumbered = BTreeMap::new();
    let components = component
        .iter()
        .map(|number| {
            let next = renumbered.len();
            *renumbered.entry(*number).or_insert(next)
        })
        .collect();
    (layers, components)
}
