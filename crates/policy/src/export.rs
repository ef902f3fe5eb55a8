//! NetworkPolicy documents as YAML text, with comments that carry evidence.
//!
//! An emitter for these few types and nothing else: field order, quoting and indentation never
//! vary, so exported files can be compared line by line.

use std::fmt::Write as _;

use ipnet::Ipv4Net;

use crate::model::Labels;
use crate::netpol::{
    API_VERSION, IntOrString, KIND, LabelSelector, NetworkPolicy, Peer, PolicyType, Port,
};
use crate::resolve::effective_policy_types;

/// A policy and what is known about it, to be written as comments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnotatedPolicy {
    /// The policy.
    pub policy: NetworkPolicy,
    /// Lines above the document, without `# `.
    pub comments: Vec<String>,
    /// Lines above `ingress[i]`, e.g. `1,204 flows, first 2026-11-01, last 2026-11-20`.
    pub ingress_comments: Vec<Vec<String>>,
    /// Lines above `egress[i]`.
    pub egress_comments: Vec<Vec<String>>,
}

impl From<NetworkPolicy> for AnnotatedPolicy {
    fn from(policy: NetworkPolicy) -> Self {
        Self {
            policy,
            comments: Vec::new(),
            ingress_comments: Vec::new(),
            egress_comments: Vec::new(),
        }
    }
}

/// Writes policies as a multi-document YAML file. `policyTypes` and `podSelector` are always
/// written, in their effective form.
#[must_use]
pub fn to_yaml(policies: &[AnnotatedPolicy]) -> String {
    let mut out = String::new();
    for (index, annotated) in policies.iter().enumerate() {
        if index > 0 {
            out.push_str("---\n");
        }
        document(&mut out, annotated);
    }
    out
}

fn line(out: &mut String, indent: usize, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{:indent$}{text}", "");
}

fn comments(out: &mut String, indent: usize, lines: &[String]) {
    for text in lines.iter().flat_map(|text| text.lines()) {
        // Control characters would not be YAML, not even in a comment.
        let printable: String = text.chars().filter(|c| !c.is_control()).collect();
        line(out, indent, format!("# {printable}").trim_end());
    }
}

fn document(out: &mut String, annotated: &AnnotatedPolicy) {
    let policy = &annotated.policy;
    comments(out, 0, &annotated.comments);
    line(out, 0, &format!("apiVersion: {API_VERSION}"));
    line(out, 0, &format!("kind: {KIND}"));
    line(out, 0, "metadata:");
    line(out, 2, &format!("name: {}", scalar(&policy.metadata.name)));
    if let Some(namespace) = &policy.metadata.namespace {
        line(out, 2, &format!("namespace: {}", scalar(namespace)));
    }
    if let Some(map) = &policy.metadata.labels {
        labels(out, 2, "labels", map);
    }
    if let Some(map) = &policy.metadata.annotations {
        labels(out, 2, "annotations", map);
    }
    let spec = &policy.spec;
    line(out, 0, "spec:");
    let everything = LabelSelector::default();
    let chosen = spec.pod_selector.as_ref().unwrap_or(&everything);
    selector(out, 2, "podSelector", chosen);
    line(out, 2, "policyTypes:");
    for kind in effective_policy_types(spec) {
        line(
            out,
            2,
            match kind {
                PolicyType::Ingress => "- Ingress",
                PolicyType::Egress => "- Egress",
            },
        );
    }
    if let Some(rules) = &spec.ingress {
        let rules: Vec<_> = rules
            .iter()
            .map(|rule| (rule.from.as_deref(), rule.ports.as_deref()))
            .collect();
        direction(out, "ingress", "from", &rules, &annotated.ingress_comments);
    }
    if let Some(rules) = &spec.egress {
        let rules: Vec<_> = rules
            .iter()
            .map(|rule| (rule.to.as_deref(), rule.ports.as_deref()))
            .collect();
        direction(out, "egress", "to", &rules, &annotated.egress_comments);
    }
}

/// The two lists of a rule.
type PeersAndPorts<'a> = (Option<&'a [Peer]>, Option<&'a [Port]>);

fn direction(
    out: &mut String,
    name: &str,
    peers_name: &str,
    rules: &[PeersAndPorts<'_>],
    evidence: &[Vec<String>],
) {
    if rules.is_empty() {
        line(out, 2, &format!("{name}: []"));
        return;
    }
    line(out, 2, &format!("{name}:"));
    for (index, (peers, ports)) in rules.iter().enumerate() {
        comments(out, 2, evidence.get(index).map_or(&[], Vec::as_slice));
        let mut body = String::new();
        if let Some(peers) = peers {
            list(&mut body, 4, peers_name, peers, peer);
        }
        if let Some(ports) = ports {
            list(&mut body, 4, "ports", ports, port);
        }
        item(out, 2, &body);
    }
}

/// Writes `body`, rendered with an indent of `indent + 2`, as a list item at `indent`.
fn item(out: &mut String, indent: usize, body: &str) {
    match body.get(indent + 2..) {
        Some(rest) => {
            let _ = write!(out, "{:indent$}- {rest}", "");
        }
        None => line(out, indent, "- {}"),
    }
}

fn list<T>(
    out: &mut String,
    indent: usize,
    name: &str,
    items: &[T],
    write_item: impl Fn(&mut String, usize, &T),
) {
    if items.is_empty() {
        line(out, indent, &format!("{name}: []"));
        return;
    }
    line(out, indent, &format!("{name}:"));
    for element in items {
        let mut body = String::new();
        write_item(&mut body, indent + 2, element);
        item(out, indent, &body);
    }
}

fn peer(out: &mut String, indent: usize, peer: &Peer) {
    if let Some(chosen) = &peer.namespace_selector {
        selector(out, indent, "namespaceSelector", chosen);
    }
    if let Some(chosen) = &peer.pod_selector {
        selector(out, indent, "podSelector", chosen);
    }
    if let Some(block) = &peer.ip_block {
        line(out, indent, "ipBlock:");
        line(out, indent + 2, &format!("cidr: {}", scalar(&block.cidr)));
        if let Some(except) = &block.except {
            strings(out, indent + 2, "except", except);
        }
    }
}

fn port(out: &mut String, indent: usize, port: &Port) {
    if let Some(protocol) = &port.protocol {
        line(out, indent, &format!("protocol: {}", scalar(protocol)));
    }
    match &port.port {
        Some(IntOrString::Int(number)) => line(out, indent, &format!("port: {number}")),
        Some(IntOrString::String(name)) => line(out, indent, &format!("port: {}", scalar(name))),
        None => {}
    }
    if let Some(end) = port.end_port {
        line(out, indent, &format!("endPort: {end}"));
    }
}

fn selector(out: &mut String, indent: usize, name: &str, selector: &LabelSelector) {
    if selector.match_labels.is_none() && selector.match_expressions.is_none() {
        line(out, indent, &format!("{name}: {{}}"));
        return;
    }
    line(out, indent, &format!("{name}:"));
    if let Some(map) = &selector.match_labels {
        labels(out, indent + 2, "matchLabels", map);
    }
    if let Some(requirements) = &selector.match_expressions {
        list(
            out,
            indent + 2,
            "matchExpressions",
            requirements,
            |out, indent, requirement| {
                line(out, indent, &format!("key: {}", scalar(&requirement.key)));
                line(
                    out,
                    indent,
                    &format!("operator: {:?}", requirement.operator),
                );
                if let Some(values) = &requirement.values {
                    strings(out, indent, "values", values);
                }
            },
        );
    }
}

fn labels(out: &mut String, indent: usize, name: &str, map: &Labels) {
    if map.is_empty() {
        line(out, indent, &format!("{name}: {{}}"));
        return;
    }
    line(out, indent, &format!("{name}:"));
    for (key, value) in map {
        line(
            out,
            indent + 2,
            &format!("{}: {}", scalar(key), scalar(value)),
        );
    }
}

fn strings(out: &mut String, indent: usize, name: &str, values: &[String]) {
    list(out, indent, name, values, |out, indent, value| {
        line(out, indent, &scalar(value));
    });
}

/// A string as a YAML scalar: plain where no YAML 1.1 or 1.2 reader takes it for anything else,
/// double-quoted otherwise.
fn scalar(text: &str) -> String {
    const NOT_STRINGS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let plain = text.parse::<Ipv4Net>().is_ok()
        || (text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
            && !NOT_STRINGS.contains(&text.to_ascii_lowercase().as_str()));
    if plain {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            ' '..='~' => quoted.push(c),
            _ => {
                let _ = write!(quoted, "\\U{:08x}", u32::from(c));
            }
        }
    }
    quoted.push('"');
    quoted
}
