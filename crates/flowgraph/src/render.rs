//! Pictures of the graph: Graphviz DOT, Mermaid and SVG.
//!
//! Names come from container labels and DNS answers, so an attacker writes them. Each format has one
//! escaping function, and every piece of text goes through it. Above [`WORLD_LIMIT`] single
//! addresses the pictures show one node that says how many it stands for; the JSON form has them all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::edge::{Edge, Passage, PeerKey, Service};
use crate::graph::ServiceGraph;
use crate::text::shorten;

/// Single addresses up to which pictures draw each.
pub const WORLD_LIMIT: usize = 16;
/// Longest text of a node or edge, in characters.
const LONGEST_TEXT: usize = 48;
/// Services listed on one arrow.
const SERVICES_SHOWN: usize = 4;

/// What pictures draw: nodes and one arrow per pair and state.
struct Picture {
    nodes: Vec<PictureNode>,
    arrows: BTreeMap<(usize, usize, State), Vec<String>>,
}

struct PictureNode {
    label: String,
    kind: Kind,
    layer: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Workloads,
    Host,
    World,
}

/// How an arrow is drawn.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Passed,
    Audited,
    Denied,
    Undecided,
}

impl State {
    fn of(edge: &Edge) -> Self {
        if edge.key.service == Service::Undecided {
            return Self::Undecided;
        }
        match edge.passage() {
            Passage::Passed => Self::Passed,
            Passage::Audited => Self::Audited,
            Passage::Denied | Passage::Unjudged => Self::Denied,
        }
    }

    const fn color(self) -> &'static str {
        match self {
            Self::Passed => "#2e7d4f",
            Self::Audited => "#b26a00",
            Self::Denied => "#b3261e",
            Self::Undecided => "#6b7280",
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Audited => "audited",
            Self::Denied => "denied",
            Self::Undecided => "direction unknown",
        }
    }
}

impl Picture {
    fn of(graph: &ServiceGraph) -> Self {
        let all = graph.nodes();
        let is_world = |key: &PeerKey| matches!(key, PeerKey::World { .. });
        let addresses = all.iter().filter(|node| is_world(&node.key)).count();
        let mut nodes = Vec::new();
        let mut place = BTreeMap::new();
        let mut world: Option<usize> = None;
        for node in &all {
            let at = match (is_world(&node.key) && addresses > WORLD_LIMIT, world) {
                (true, Some(at)) => at,
                (merged, _) => {
                    nodes.push(PictureNode {
                        label: if merged {
                            format!("world ({addresses} addresses)")
                        } else {
                            node.label.clone()
                        },
                        kind: match node.key {
                            PeerKey::Group { .. } | PeerKey::Workload { .. } => Kind::Workloads,
                            PeerKey::Host => Kind::Host,
                            PeerKey::World { .. } => Kind::World,
                        },
                        layer: node.layer,
                    });
                    if merged {
                        world = Some(nodes.len() - 1);
                    }
                    nodes.len() - 1
                }
            };
            nodes[at].layer = nodes[at].layer.max(node.layer);
            place.insert(&node.key, at);
        }
        let mut services: BTreeMap<_, BTreeSet<(&Service, String)>> = BTreeMap::new();
        for edge in graph.edges() {
            let key = &edge.key;
            services
                .entry((place[&key.source], place[&key.destination], State::of(edge)))
                .or_default()
                .insert((&key.service, key.service_name()));
        }
        let arrows = services
            .into_iter()
            .map(|(arrow, names)| (arrow, names.into_iter().map(|(_, name)| name).collect()))
            .collect();
        Self { nodes, arrows }
    }
}

impl ServiceGraph {
    /// Graphviz DOT.
    #[must_use]
    pub fn to_dot(&self) -> String {
        let picture = Picture::of(self);
        let mut out = String::from(
            "digraph services {\n  rankdir=LR;\n  node [fontname=\"sans-serif\", fontsize=11];\n  \
             edge [fontname=\"sans-serif\", fontsize=9];\n",
        );
        for (at, node) in picture.nodes.iter().enumerate() {
            let shape = match node.kind {
                Kind::Workloads => "box",
                Kind::Host => "house",
                Kind::World => "ellipse",
            };
            let label = dot_text(&node.label);
            writeln!(out, "  n{at} [label=\"{label}\", shape={shape}];").expect("writes to memory");
        }
        for ((from, to, state), services) in &picture.arrows {
            let label = dot_text(&services_text(services));
            let style = match state {
                State::Passed => "",
                State::Audited => ", style=dashed",
                State::Denied => ", style=dashed, arrowhead=tee",
                State::Undecided => ", style=dotted, dir=none, constraint=false",
            };
            let color = state.color();
            writeln!(
                out,
                "  n{from} -> n{to} [label=\"{label}\", color=\"{color}\"{style}];"
            )
            .expect("writes to memory");
        }
        out.push_str("}\n");
        out
    }

    /// Mermaid flowchart.
    #[must_use]
    pub fn to_mermaid(&self) -> String {
        let picture = Picture::of(self);
        let mut out = String::from("flowchart LR\n");
        for (at, node) in picture.nodes.iter().enumerate() {
            let label = mermaid_text(&node.label);
            let (open, close) = match node.kind {
                Kind::Workloads => ("[", "]"),
                Kind::Host => ("{{", "}}"),
                Kind::World => ("([", "])"),
            };
            writeln!(out, "  n{at}{open}\"{label}\"{close}").expect("writes to memory");
        }
        for ((from, to, state), services) in &picture.arrows {
            let label = mermaid_text(&services_text(services));
            let arrow = match state {
                State::Passed => "-->",
                State::Audited => "-.->",
                State::Denied => "--x",
                State::Undecided => "-.-",
            };
            writeln!(out, "  n{from} {arrow}|\"{label}\"| n{to}").expect("writes to memory");
        }
        out
    }

    /// SVG: layers from left to right, arrows coloured by what policy says.
    #[must_use]
    pub fn to_svg(&self) -> String {
        svg(&Picture::of(self))
    }
}

const BOX_WIDTH: usize = 190;
const BOX_HEIGHT: usize = 36;
const COLUMN: usize = BOX_WIDTH + 150;
const ROW: usize = BOX_HEIGHT + 34;
const MARGIN: usize = 30;
/// Room for an arrow's text.
const LABEL_WIDTH: usize = 160;

fn svg(picture: &Picture) -> String {
    let places = places(picture);
    let curves: Vec<Curve> = picture
        .arrows
        .keys()
        .map(|&(from, to, state)| Curve::between(places[from], places[to], state))
        .collect();
    let boxes_end = places.iter().map(|(x, _)| x + BOX_WIDTH);
    let labels_end = curves.iter().map(|curve| curve.label.0 + LABEL_WIDTH / 2);
    let width = boxes_end.chain(labels_end).max().unwrap_or(0) + MARGIN;
    let height = places
        .iter()
        .map(|(_, y)| y + BOX_HEIGHT)
        .max()
        .unwrap_or(0)
        + MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\" \
         role=\"img\">\n<title>Service dependency graph</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n<defs>\n"
    );
    for state in [State::Passed, State::Audited, State::Denied] {
        writeln!(
            out,
            "<marker id=\"a{}\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"7\" \
             markerHeight=\"7\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"{}\"/></marker>",
            state as u8,
            state.color()
        )
        .expect("writes to memory");
    }
    out.push_str("</defs>\n");
    for ((arrow, services), curve) in picture.arrows.iter().zip(&curves) {
        svg_arrow(&mut out, picture, *arrow, services, curve);
    }
    for (node, (x, y)) in picture.nodes.iter().zip(&places) {
        let (fill, radius) = match node.kind {
            Kind::Workloads => ("#eef4ff", 6),
            Kind::Host => ("#f3f4f6", 0),
            Kind::World => ("#fff7e6", BOX_HEIGHT / 2),
        };
        let short = xml_text(&shorten(&node.label, 26));
        let full = xml_text(&shorten(&node.label, LONGEST_TEXT));
        let (text_x, text_y) = (x + BOX_WIDTH / 2, y + BOX_HEIGHT / 2 + 4);
        writeln!(
            out,
            "<g><title>{full}</title><rect x=\"{x}\" y=\"{y}\" width=\"{BOX_WIDTH}\" \
             height=\"{BOX_HEIGHT}\" rx=\"{radius}\" fill=\"{fill}\" stroke=\"#374151\"/>\
             <text x=\"{text_x}\" y=\"{text_y}\" text-anchor=\"middle\" fill=\"#111827\">{short}\
             </text></g>"
        )
        .expect("writes to memory");
    }
    out.push_str("</svg>\n");
    out
}

/// A cubic Bezier curve, and where its text goes.
struct Curve {
    start: (usize, usize),
    end: (usize, usize),
    /// Horizontal places of the control points.
    pull: (usize, usize),
    label: (usize, usize),
}

impl Curve {
    /// Towards the right a flat S from side to side; otherwise a bow around the right of both boxes.
    /// Arrows of different states between the same boxes keep apart.
    fn between(from: (usize, usize), to: (usize, usize), state: State) -> Self {
        let apart = state as usize * 6;
        let y = BOX_HEIGHT / 2 - 9 + apart;
        let mut start = (from.0 + BOX_WIDTH, from.1 + y);
        let forward = from.0 < to.0;
        let end_x = if forward { to.0 } else { to.0 + BOX_WIDTH };
        let mut end = (end_x, to.1 + y);
        if from == to {
            start.1 = from.1 + 4;
            end.1 = to.1 + BOX_HEIGHT - 4;
        }
        let label_y = (start.1 + end.1) / 2 + apart;
        if forward {
            let middle = (start.0 + end.0) / 2;
            Self {
                start,
                end,
                pull: (middle, middle),
                label: (middle, label_y),
            }
        } else {
            let bow = 60 + start.1.abs_diff(end.1) / 6;
            Self {
                start,
                end,
                pull: (start.0 + bow, end.0 + bow),
                label: ((start.0 + end.0) / 2 + bow * 3 / 4, label_y),
            }
        }
    }
}

fn svg_arrow(
    out: &mut String,
    picture: &Picture,
    (from, to, state): (usize, usize, State),
    services: &[String],
    curve: &Curve,
) {
    let text = services_text(services);
    let title = xml_text(&format!(
        "{} -> {}: {text} ({})",
        shorten(&picture.nodes[from].label, LONGEST_TEXT),
        shorten(&picture.nodes[to].label, LONGEST_TEXT),
        state.word()
    ));
    let dash = match state {
        State::Passed => "",
        State::Audited | State::Denied => " stroke-dasharray=\"6 4\"",
        State::Undecided => " stroke-dasharray=\"2 4\"",
    };
    let marker = match state {
        State::Undecided => String::new(),
        _ => format!(" marker-end=\"url(#a{})\"", state as u8),
    };
    let color = state.color();
    let ((start_x, start_y), (end_x, end_y)) = (curve.start, curve.end);
    let (pull_start, pull_end) = curve.pull;
    let (label_x, label_y) = curve.label;
    let text = xml_text(&text);
    writeln!(
        out,
        "<g><title>{title}</title><path d=\"M{start_x} {start_y}C{pull_start} {start_y} {pull_end} \
         {end_y} {end_x} {end_y}\" fill=\"none\" stroke=\"{color}\" \
         stroke-width=\"1.5\"{dash}{marker}/><text x=\"{label_x}\" y=\"{label_y}\" \
         text-anchor=\"middle\" font-size=\"10\" fill=\"{color}\" stroke=\"#ffffff\" \
         stroke-width=\"3\" paint-order=\"stroke\">{text}</text></g>"
    )
    .expect("writes to memory");
}

/// Places of the boxes: a column per layer, in it nodes ordered by where their callers are.
fn places(picture: &Picture) -> Vec<(usize, usize)> {
    let mut columns: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, node) in picture.nodes.iter().enumerate() {
        columns.entry(node.layer).or_default().push(at);
    }
    let mut rows = vec![0; picture.nodes.len()];
    let mut places = vec![(0, 0); picture.nodes.len()];
    for (column, members) in columns.values_mut().enumerate() {
        // Mean row of the callers placed so far, in thousandths; nodes without callers come last.
        let mean = |at: usize| {
            let callers: Vec<usize> = picture
                .arrows
                .keys()
                .filter(|(from, to, _)| {
                    *to == at && picture.nodes[*from].layer < picture.nodes[at].layer
                })
                .map(|(from, _, _)| rows[*from])
                .collect();
            match callers.len() {
                0 => usize::MAX,
                n => callers.iter().sum::<usize>() * 1_000 / n,
            }
        };
        members.sort_by_cached_key(|&at| (mean(at), at));
        for (row, &at) in members.iter().enumerate() {
            rows[at] = row;
            places[at] = (MARGIN + column * COLUMN, MARGIN + row * ROW);
        }
    }
    places
}

fn services_text(services: &[String]) -> String {
    let shown = services.len().min(SERVICES_SHOWN);
    let mut text = services[..shown].join(", ");
    if services.len() > shown {
        write!(text, " and {} more", services.len() - shown).expect("writes to memory");
    }
    text
}

/// For a double-quoted DOT string.
fn dot_text(text: &str) -> String {
    shorten(text, LONGEST_TEXT)
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
}

/// For a double-quoted Mermaid string: whatever is not plainly text becomes an entity code.
fn mermaid_text(text: &str) -> String {
    let mut out = String::new();
    for c in shorten(text, LONGEST_TEXT).chars() {
        if c.is_alphanumeric() || " ._/:-,()".contains(c) {
            out.push(c);
        } else {
            write!(out, "#{};", c as u32).expect("writes to memory");
        }
    }
    out
}

/// For XML text and attributes.
fn xml_text(text: &str) -> String {
    let mut out = String::new();
    for c in shorten(text, 4 * LONGEST_TEXT).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
