//! First half of the story: what is there, who talks to whom, and the rules that follow.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::graph::{self, Graph};
use super::out::{Out, plural};
use super::shop::{self, REPLICAS};
use super::story::{DEADLINE, POLICY_FILE, ROUNDS, Story, enforced, wait_for_rounds};
use super::summary::Summary;
use super::traffic::{self, Phase};
use crate::api::dto::{
    Change, Document, InventoryRequest, PolicyRequest, SuggestionInfo, WorkloadInfo,
};
use crate::cli::client::Query;
use crate::cli::output::count;

/// The generated policy that is shown.
const POLICY_SHOWN: &str = "learned-postgres";

impl Story {
    pub(super) fn discover(&mut self, out: &mut Out, summary: &mut Summary) -> Result<()> {
        out.chapter("The daemon discovers the services")?;
        out.say(&format!(
            "Ready after {:.1} s; programs are attached, everything passes. Then the shop grows: a \
             second replica of web.",
            self.ready_after.as_secs_f64()
        ))?;
        let late: Vec<_> = REPLICAS.iter().filter(|replica| replica.late).collect();
        for replica in &late {
            self.place.add(replica)?;
            self.traffic.open(&self.place, replica)?;
        }
        if let Some(text) = self.place.inventory() {
            let source = "inventory.yaml".to_owned();
            let request = InventoryRequest {
                document: Document { source, text },
            };
            let _: Change = self.firewall.post("/api/v1/inventory/apply", &request)?;
        }
        let expected: BTreeSet<String> = self
            .place
            .replicas()
            .map(|replica| self.place.workload_name(replica))
            .collect();
        let mut workloads = self.wait("every workload to be found and attached", |story| {
            let workloads: Vec<WorkloadInfo> =
                story.firewall.get(&Query::new("/api/v1/workloads"))?;
            let found: BTreeSet<String> = workloads
                .iter()
                .filter(|workload| workload.enforced && workload.problem.is_none())
                .map(|workload| workload.name.clone())
                .collect();
            Ok((found == expected && workloads.len() == expected.len()).then_some(workloads))
        })?;
        let calls: Vec<_> = self.traffic.ledger().calls().filter(|c| c.late).collect();
        traffic::warm_up(&self.place, &calls, DEADLINE)?;
        self.traffic.start(&self.place, true)?;

        workloads.sort_by(|a, b| (&a.group, &a.name).cmp(&(&b.group, &b.name)));
        summary.workloads = workloads.len();
        let groups: BTreeSet<&str> = workloads.iter().map(|w| w.group.as_str()).collect();
        summary.services = groups.len();
        let rows = workloads
            .iter()
            .map(|workload| {
                let addresses: Vec<String> = workload
                    .addresses
                    .iter()
                    .filter(|address| !is_link_local(**address))
                    .map(ToString::to_string)
                    .collect();
                vec![
                    workload.group.clone(),
                    workload.name.clone(),
                    workload.source.clone().unwrap_or_default(),
                    workload.identity.to_string(),
                    addresses.join(" "),
                ]
            })
            .collect();
        out.table(
            &["SERVICE", "WORKLOAD", "FOUND BY", "IDENTITY", "ADDRESSES"],
            rows,
        )
    }

    pub(super) fn learn(&mut self, out: &mut Out, summary: &mut Summary) -> Result<()> {
        out.chapter("It learns who talks to whom")?;
        let expected = shop::edges(&self.traffic.ledger().calls().cloned().collect::<Vec<_>>());
        summary.edges_expected = expected.len();
        wait_for_rounds(&self.traffic, Phase::Discover, ROUNDS, true)?;
        // What began in the daemon's first moments may be undecided until it has looked at every
        // socket, so extra edges get time to go as missing ones get time to come.
        let mut difference = String::new();
        let learned = self.wait("exactly the relations in use to be learned", |story| {
            let graph: Graph = story.firewall.get(&Query::new("/api/v1/graph"))?;
            let edges = graph.learned();
            let missing = expected
                .iter()
                .filter(|name| edges.get(name).is_none_or(|edge| edge.answered == 0))
                .map(|name| format!("not learned: {name}"));
            let extra = edges
                .keys()
                .filter(|name| !expected.contains(name))
                .map(|name| format!("learned though nobody opened it: {name}"));
            // A request that was under way when its interface was attached may have shown its end
            // only. It stays undecided, and is about a relation in use or somebody made it up.
            let stranger = graph
                .undecided()
                .into_keys()
                .filter(|name| !expected.iter().any(|known| known.joins_the_same(name)))
                .map(|name| format!("seen though nobody uses it: {name}"))
                .collect::<Vec<_>>();
            difference = missing
                .chain(extra)
                .chain(stranger)
                .collect::<Vec<_>>()
                .join("\n");
            Ok(difference.is_empty().then_some(graph))
        });
        let graph = learned.with_context(|| difference)?;
        let edges = graph.learned();
        summary.edges = edges.len();
        let rows = edges
            .iter()
            .map(|(name, edge)| {
                let opener = match (edge.openers.certain, edge.openers.inferred) {
                    (0, 0) => "unknown",
                    (0, _) => "open sockets",
                    (_, 0) => "first packet",
                    (_, _) => "both",
                };
                vec![
                    describe(&name.source),
                    describe(&name.destination),
                    name.service.clone(),
                    count(edge.connections),
                    clock(edge.first_seen),
                    clock(edge.last_seen),
                    opener.to_owned(),
                ]
            })
            .collect();
        out.table(
            &[
                "SOURCE",
                "DESTINATION",
                "PORT",
                "COUNT",
                "FIRST SEEN",
                "LAST SEEN",
                "DIRECTION FROM",
            ],
            rows,
        )?;
        out.chapter("The service graph")?;
        out.indented(&graph::tree(edges.keys(), describe))
    }

    pub(super) fn generate(&mut self, out: &mut Out, summary: &mut Summary) -> Result<()> {
        out.chapter("It generates least-privilege rules")?;
        let suggestion: SuggestionInfo =
            self.firewall.get(&Query::new("/api/v1/policies/suggest"))?;
        summary.policies = suggestion.policies.len();
        summary.rules = suggestion.rules.len();
        let file = self.directory.join(POLICY_FILE);
        fs::write(&file, &suggestion.yaml).context("cannot write the policies")?;
        out.say(&format!(
            "{} in {} Kubernetes NetworkPolicies, each with its evidence. The one of the database:",
            plural(summary.rules, "rule"),
            summary.policies
        ))?;
        out.line("")?;
        let documents = suggestion.yaml.split("\n---\n");
        let shown = format!("name: {POLICY_SHOWN}\n");
        out.indented(
            documents
                .into_iter()
                .find(|d| d.contains(&shown))
                .unwrap_or_default(),
        )?;
        out.line("")?;
        out.say(&format!(
            "All of them ({} lines) are in {} while the demo runs; --save DIR keeps them.",
            suggestion.yaml.lines().count(),
            file.display()
        ))?;
        for note in join_notes(&suggestion.left_out) {
            out.say(&format!("Note: {note}"))?;
        }
        let request = PolicyRequest {
            documents: vec![Document {
                source: POLICY_FILE.to_owned(),
                text: suggestion.yaml,
            }],
        };
        let change: Change = self.firewall.post("/api/v1/policies/replace", &request)?;
        enforced(&change)?;
        out.say(&format!(
            "Applied: generation {} is in force in the kernel.",
            change.generation
        ))
    }
}

/// Notes that say the same of several edges become one.
fn join_notes(notes: &[String]) -> Vec<String> {
    let mut joined: Vec<(Vec<&str>, &str)> = Vec::new();
    for note in notes {
        let (subject, text) = note.split_once(": ").unwrap_or(("", note));
        match joined.iter_mut().find(|(_, known)| *known == text) {
            Some((subjects, _)) => subjects.push(subject),
            None => joined.push((vec![subject], text)),
        }
    }
    let sentence = |(subjects, text): (Vec<&str>, &str)| match subjects[..] {
        [""] => text.to_owned(),
        _ => format!("{}: {text}", subjects.join("; ")),
    };
    joined.into_iter().map(sentence).collect()
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// A node's name, with a word for those that are nothing but an address.
fn describe(label: &str) -> String {
    match label.parse().ok().and_then(traffic::outsider_name) {
        Some(name) => format!("{label} ({name})"),
        None => label.to_owned(),
    }
}

fn clock(time: Timestamp) -> String {
    let time = time.to_zoned(TimeZone::system());
    time.strftime("%H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::join_notes;

    #[test]
    fn notes_that_say_the_same_are_joined() {
        let notes = ["a -> b: x", "a -> c: x", "d: y", "z"].map(str::to_owned);
        assert_eq!(join_notes(&notes), ["a -> b; a -> c: x", "d: y", "z"]);
    }
}
