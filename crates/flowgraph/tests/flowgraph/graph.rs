use flowgraph::aggregate::{EdgeStore, Limits};
use flowgraph::edge::{Edge, PeerKey};
use flowgraph::graph::ServiceGraph;
use flowgraph::record::{Event, Opener, Reporter};

use crate::build::{Talk, group, world};

fn edges(talks: &[Talk]) -> Vec<Edge> {
    let mut store = EdgeStore::new(Limits::default());
    for record in talks.iter().flat_map(Talk::whole) {
        store.apply(&record);
    }
    store.edges()
}

fn shop_talks() -> Vec<Talk> {
    vec![
        Talk::tcp("198.51.100.9", "10.0.0.1", 443),
        Talk::tcp("10.0.0.1", "10.0.0.3", 8080),
        Talk::tcp("10.0.0.3", "10.0.0.4", 5432),
        Talk::tcp("10.0.0.1", "10.0.0.4", 5433),
        Talk::tcp("10.0.0.5", "10.0.0.3", 9100),
        Talk::udp("10.0.0.3", "10.0.0.6", 53),
    ]
}

#[test]
fn layers_follow_the_longest_path_from_entry_to_store() {
    let graph = ServiceGraph::from_edges(&edges(&shop_talks()));
    for (peer, layer) in [
        (world("198.51.100.9"), 0),
        (group("ops", "prom"), 0),
        (group("shop", "web"), 1),
        (group("shop", "api"), 2),
        (group("shop", "db"), 3),
        (group("kube", "dns"), 3),
    ] {
        assert_eq!(graph.layer(&peer), Some(layer), "{peer}");
    }
    assert_eq!(graph.layer(&PeerKey::Host), None);
    assert!(graph.cycles().is_empty());
}

#[test]
fn members_of_a_cycle_share_a_layer_and_a_component() {
    let mut talks = shop_talks();
    talks.push(Talk::tcp("10.0.0.3", "10.0.0.1", 8081));
    talks.push(Talk::tcp("10.0.0.1", "10.0.0.2", 7946));
    let graph = ServiceGraph::from_edges(&edges(&talks));
    assert_eq!(
        graph.cycles(),
        [[group("shop", "api"), group("shop", "web")]]
    );
    assert_eq!(
        graph.layer(&group("shop", "api")),
        graph.layer(&group("shop", "web"))
    );
    assert_eq!(graph.layer(&group("shop", "db")), Some(2));
    let document = graph.document();
    assert_eq!(document.cycles.len(), 1);
    assert_eq!(document.cycles[0].len(), 2);
}

#[test]
fn the_blast_radius_follows_edges_that_pass() {
    let mut talks = shop_talks();
    talks.push(Talk::tcp("10.0.0.4", "10.0.0.5", 1).opener(Opener::Unknown));
    let mut all = edges(&talks);
    let mut store = EdgeStore::new(Limits::default());
    let denied = Talk::tcp("10.0.0.4", "198.51.100.66", 443);
    store.apply(&denied.record(Reporter::Source, Event::New, [1, 0]));
    store.apply(
        &denied
            .clone()
            .starting(5)
            .denied(Reporter::Source, "policy_revoked"),
    );
    all.extend(store.edges());
    let graph = ServiceGraph::from_edges(&all);
    let reach = |from| -> Vec<(String, usize)> {
        graph
            .reachable(&from)
            .into_iter()
            .map(|r| (r.peer.to_string(), r.hops))
            .collect()
    };
    assert_eq!(
        reach(group("shop", "web")),
        [
            ("shop/api".to_owned(), 1),
            ("shop/db".to_owned(), 1),
            ("kube/dns".to_owned(), 2)
        ]
    );
    assert_eq!(reach(group("shop", "db")), []);
    assert_eq!(reach(PeerKey::Host), []);
    let back: Vec<_> = graph
        .reaching(&group("shop", "db"))
        .into_iter()
        .map(|r| r.peer)
        .collect();
    assert_eq!(
        back,
        [
            group("shop", "api"),
            group("shop", "web"),
            group("ops", "prom"),
            world("198.51.100.9")
        ]
    );
    // Both are still shown.
    assert_eq!(graph.edges().len(), all.len());
}

/// Tags balance, attributes are quoted, no stray markup: what an XML parser would insist on.
fn assert_well_formed(xml: &str) {
    let mut open = Vec::new();
    let mut rest = xml;
    while let Some(start) = rest.find('<') {
        let text = &rest[..start];
        assert!(!text.contains('>'), "stray > in {text:?}");
        for part in text.split('&').skip(1) {
            let entity = part.split(';').next().unwrap();
            assert!(
                ["amp", "lt", "gt", "quot", "#39"].contains(&entity),
                "entity {entity:?}"
            );
        }
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes in {tag:?}");
        assert!(!tag.contains('<'));
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().unwrap().to_owned());
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

const HOSTILE: &[&str] = &[
    "a\"];evil[label=\"x",
    "back\\",
    "</text><script>alert(1)</script>",
    "a'b\"c&d<e>f",
    "]]>--\n-->|x|",
    "`**md**`",
    "#quot;;end",
    "tab\tnull\u{0}rtl\u{202e}zero\u{200b}",
    "\u{fffe}\u{ffff}\u{2028}",
    "a-very-long-name-that-goes-on-and-on-and-on-and-on-and-on-and-on-and-on-and-on",
    "",
];

#[test]
fn hostile_names_break_no_format() {
    let mut talks = Vec::new();
    for (n, name) in HOSTILE.iter().enumerate() {
        let mut talk = Talk::tcp("10.0.0.1", "10.0.0.3", 8080).client_port(41_000 + n as u16);
        let api = &mut talk.estate.workloads[2];
        api.group = format!("{name}{n}");
        api.namespace = (*name).to_owned();
        talks.push(talk);
    }
    let graph = ServiceGraph::from_edges(&edges(&talks));
    assert_eq!(graph.edges().len(), HOSTILE.len());

    let svg = graph.to_svg();
    assert_well_formed(&svg);
    assert!(!svg.contains("<script"));
    let json: serde_json::Value = serde_json::from_str(&graph.to_json()).unwrap();
    assert_eq!(json["nodes"].as_array().unwrap().len(), HOSTILE.len() + 1);

    let dot = graph.to_dot();
    for line in dot.lines().filter(|line| line.contains("label=")) {
        let mut unescaped = 0;
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => assert!(matches!(chars.next(), Some('\\' | '"')), "{line}"),
                '"' => unescaped += 1,
                _ => {}
            }
        }
        // A label, and an arrow's colour; after a quote closes, only the next attribute or the end.
        let expected = if line.contains(" -> ") { 4 } else { 2 };
        assert!(unescaped == expected && line.ends_with("];"), "{line}");
    }
    let mermaid = graph.to_mermaid();
    for line in mermaid.lines().skip(1) {
        assert_eq!(line.matches('"').count(), 2, "{line}");
        let label = line.split('"').nth(1).unwrap();
        assert!(
            !label.contains(['<', '>', '`', '|', '[', ']', '{', '}', '\\', '&']),
            "{line}"
        );
    }
    for text in [&svg, &dot, &mermaid] {
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
        assert!(!text.contains(['\u{202e}', '\u{200b}', '\u{2028}', '\u{fffe}']));
    }
}

#[test]
fn pictures_do_not_depend_on_the_order_of_edges() {
    let mut all = edges(&shop_talks());
    let picture = |edges: &[Edge]| {
        let graph = ServiceGraph::from_edges(edges);
        [
            graph.to_dot(),
            graph.to_mermaid(),
            graph.to_svg(),
            graph.to_json(),
        ]
    };
    let first = picture(&all);
    all.reverse();
    assert_eq!(picture(&all), first);
    assert!(first[0].contains("label=\"443/TCP\""));
    assert_well_formed(&first[2]);
}

#[test]
fn many_addresses_are_one_node_that_says_how_many() {
    let talks: Vec<_> = (1..=40)
        .map(|n| Talk::tcp(&format!("198.51.100.{n}"), "10.0.0.1", 443))
        .collect();
    let graph = ServiceGraph::from_edges(&edges(&talks));
    assert_eq!(graph.to_mermaid().lines().count(), 1 + 2 + 1);
    assert!(graph.to_mermaid().contains("world (40 addresses)"));
    assert_eq!(graph.document().nodes.len(), 41);
}

#[test]
fn an_empty_graph_is_a_graph() {
    let graph = ServiceGraph::from_edges(&[]);
    assert_well_formed(&graph.to_svg());
    assert_eq!(graph.to_mermaid(), "flowchart LR\n");
    assert!(graph.nodes().is_empty() && graph.cycles().is_empty());
}
