//! Least-privilege rules: NetworkPolicies that allow exactly what was seen, each rule with its
//! evidence.
//!
//! One policy per group, isolating both directions. An edge between two groups becomes an egress
//! rule of its source and an ingress rule of its destination. Whatever cannot become a rule, or
//! should not without a person's word, is returned with the reason: the suggestion together with its
//! `undecided` and `skipped` edges accounts for every edge it was given.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy::model::{Estate, Protocol};
use policy::netpol::{Peer, PolicyType};
use serde::{Deserialize, Serialize};

use crate::draft::{Draft, L4Port, block, namespace, unique_name, within};
use crate::edge::{Edge, Passage, PeerKey, Service, Suspicion};
use crate::selector::{Choice, choose};
use crate::text::count;

pub use crate::evidence::{PortEvidence, RuleEvidence, SuggestedPolicy};

/// What to learn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Suggest only for this group ([`policy::model::Workload::group`]); absent means all.
    pub group: Option<String>,
    /// Use edges that passed only because a side is in monitor mode.
    pub learn_from_audit: bool,
    /// Use edges marked [`Suspicion`].
    pub learn_suspicious: bool,
    /// Use TCP edges on which no connection was ever established.
    pub learn_unanswered: bool,
    /// Give a group without any edge a policy that allows nothing.
    pub include_silent: bool,
    /// Where UDP 53 was seen, allow TCP 53 to the same peer. On by default: a resolver whose answer
    /// does not fit in a datagram makes the client ask again over TCP (RFC 7766), which a learning
    /// period easily misses. Every added port is marked in the evidence and warned about.
    pub dns_over_tcp: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            group: None,
            learn_from_audit: false,
            learn_suspicious: false,
            learn_unanswered: false,
            include_silent: false,
            dns_over_tcp: true,
        }
    }
}

/// The outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// Policies, in order of their groups.
    pub policies: Vec<SuggestedPolicy>,
    /// Edges a person must decide about.
    pub undecided: Vec<LeftOut>,
    /// Edges left out on purpose.
    pub skipped: Vec<LeftOut>,
    /// Groups that exist and have no edge a rule could be made of.
    pub silent: Vec<PeerKey>,
    /// What to know before applying the policies.
    pub warnings: Vec<String>,
}

/// An edge that became no rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The edge.
    pub edge: Edge,
    /// Kind of reason.
    pub reason: Reason,
    /// The reason in words, with the way out.
    pub explanation: String,
}

/// Kinds of reasons for which an edge becomes no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nobody saw who opened the flows.
    UnknownDirection,
    /// No label set selects exactly a group.
    NoExactSelector,
    /// The host uses more addresses than are kept.
    TooManyAddresses,
    /// Policy denied it last time.
    Denied,
    /// It passed only because of monitor mode.
    AuditOnly,
    /// It never passed.
    NeverPassed,
    /// [`Suspicion::SuspectedScan`].
    SuspectedScan,
    /// [`Suspicion::OneOff`].
    OneOff,
    /// TCP, and nothing was ever established.
    NeverAnswered,
    /// NetworkPolicy has no word for the protocol.
    NotExpressible,
    /// Neither end is a workload.
    NoWorkload,
}

impl Reason {
    const fn needs_decision(self) -> bool {
        matches!(
            self,
            Self::UnknownDirection | Self::NoExactSelector | Self::TooManyAddresses
        )
    }
}

/// Suggests policies that allow exactly the learnable `edges`.
#[must_use]
pub fn suggest(edges: &[Edge], estate: &Estate, options: &Options) -> Suggestion {
    let mut work = Work {
        estate,
        options,
        choices: BTreeMap::new(),
        drafts: BTreeMap::new(),
        suggestion: Suggestion::default(),
    };
    let mut sorted: Vec<&Edge> = edges.iter().filter(|edge| work.concerns(edge)).collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key));
    for edge in sorted {
        if let Err((reason, explanation)) = work.learn(edge) {
            let left_out = LeftOut {
                edge: edge.clone(),
                reason,
                explanation,
            };
            if reason.needs_decision() {
                work.suggestion.undecided.push(left_out);
            } else {
                work.suggestion.skipped.push(left_out);
            }
        }
    }
    work.finish()
}

struct Work<'a> {
    estate: &'a Estate,
    options: &'a Options,
    choices: BTreeMap<PeerKey, Result<Choice, String>>,
    drafts: BTreeMap<PeerKey, Draft>,
    suggestion: Suggestion,
}

impl Work<'_> {
    fn is_wanted(&self, peer: &PeerKey) -> bool {
        match (&self.options.group, peer) {
            (_, PeerKey::Host | PeerKey::World { .. }) => false,
            (None, _) => true,
            (Some(group), PeerKey::Group { name, .. } | PeerKey::Workload { name, .. }) => {
                name == group
            }
        }
    }

    fn concerns(&self, edge: &Edge) -> bool {
        self.options.group.is_none()
            || self.is_wanted(&edge.key.source)
            || self.is_wanted(&edge.key.destination)
    }

    /// Makes rules of an edge, or says why not.
    fn learn(&mut self, edge: &Edge) -> Result<(), (Reason, String)> {
        let port = self.learnable_port(edge)?;
        let source_peers = self.peers(edge, &edge.key.source, &edge.source_ips.members)?;
        let destination_peers =
            self.peers(edge, &edge.key.destination, &edge.destination_ips.members)?;
        let evidence = |direction: PolicyType, peer: &PeerKey| PortEvidence {
            direction,
            peer: peer.clone(),
            protocol: port.0,
            port: port.1,
            edge: edge.key.id(),
            connections: edge.connections,
            first_seen: edge.first_seen,
            last_seen: edge.last_seen,
            days: edge.days.count(),
            sources: edge.sources.count(),
            destinations: edge.destinations.count(),
            openers: edge.openers,
            lost_events: edge.lost_events,
            note: note(edge, peer),
        };
        for (owner, direction, other, peers) in [
            (
                &edge.key.source,
                PolicyType::Egress,
                &edge.key.destination,
                destination_peers,
            ),
            (
                &edge.key.destination,
                PolicyType::Ingress,
                &edge.key.source,
                source_peers,
            ),
        ] {
            if !self.is_wanted(owner) {
                continue;
            }
            let namespace = namespace(owner);
            let draft = self.drafts.entry(owner.clone()).or_default();
            let rule = draft.rules.entry((direction, other.clone())).or_default();
            for peer in peers {
                let peer = within(peer, namespace, other);
                if !rule.peers.contains(&peer) {
                    rule.peers.push(peer);
                }
            }
            rule.ports.insert(port, evidence(direction, other));
        }
        Ok(())
    }

    fn learnable_port(&self, edge: &Edge) -> Result<L4Port, (Reason, String)> {
        let no = |reason, explanation: &str| Err((reason, explanation.to_owned()));
        let key = &edge.key;
        if key.service == Service::Undecided {
            return no(
                Reason::UnknownDirection,
                "nobody saw who opened these flows and the listening sockets do not tell: restart a \
                 client so that its next connection is seen from the start",
            );
        }
        if !key.source.is_workload() && !key.destination.is_workload() {
            return no(
                Reason::NoWorkload,
                "neither end is a workload: there is nothing here a policy could select",
            );
        }
        if edge.connections == 0 {
            return no(
                Reason::NeverPassed,
                "every packet of it was dropped: write a rule by hand if it is wanted",
            );
        }
        match edge.passage() {
            Passage::Passed => {}
            Passage::Audited if self.options.learn_from_audit => {}
            Passage::Audited => {
                return no(
                    Reason::AuditOnly,
                    "policy denies it and only monitor mode let it pass: `policy suggest \
                     --include-audited` accepts it",
                );
            }
            Passage::Denied => {
                return no(
                    Reason::Denied,
                    "policy denied it last time: write a rule by hand if it is wanted",
                );
            }
            Passage::Unjudged => {
                return no(
                    Reason::NeverPassed,
                    "no policy let it pass: only drops for other reasons were seen",
                );
            }
        }
        let port = match (key.protocol, key.service) {
            (protocol @ (Protocol::TCP | Protocol::UDP | Protocol::SCTP), Service::Port(port))
                if port != 0 =>
            {
                (protocol, port)
            }
            _ => {
                return no(
                    Reason::NotExpressible,
                    "NetworkPolicy allows ports of TCP, UDP and SCTP only, so this is denied wherever \
                     policy is enforced",
                );
            }
        };
        if !self.options.learn_suspicious {
            match edge.suspicion {
                Some(Suspicion::SuspectedScan) => {
                    return no(
                        Reason::SuspectedScan,
                        "its source tries many destinations that do not answer, and this edge looks \
                         like one of the tries",
                    );
                }
                Some(Suspicion::OneOff) => {
                    return no(
                        Reason::OneOff,
                        "a single connection without an answer: learn on, or accept it by hand",
                    );
                }
                None => {}
            }
        }
        if key.protocol == Protocol::TCP && edge.is_unanswered() && !self.options.learn_unanswered {
            return no(
                Reason::NeverAnswered,
                "no connection was ever established: a rule would open a port for a service that \
                 was not there",
            );
        }
        Ok(port)
    }

    /// How rules name an end of an edge.
    fn peers(
        &mut self,
        edge: &Edge,
        key: &PeerKey,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<Vec<Peer>, (Reason, String)> {
        match key {
            PeerKey::Group { .. } | PeerKey::Workload { .. } => match self.choice(key) {
                Ok(choice) => Ok(vec![Peer {
                    pod_selector: Some(choice.selector()),
                    ..Peer::default()
                }]),
                Err(why) => Err((Reason::NoExactSelector, format!("{key}: {why}"))),
            },
            PeerKey::World { address } => Ok(vec![block(*address)]),
            PeerKey::Host => {
                let more = if edge.key.source == PeerKey::Host {
                    edge.source_ips.more
                } else {
                    edge.destination_ips.more
                };
                if more {
                    return Err((
                        Reason::TooManyAddresses,
                        "the host used more addresses than are kept: write a CIDR by hand"
                            .to_owned(),
                    ));
                }
                Ok(addresses.iter().copied().map(block).collect())
            }
        }
    }

    fn choice(&mut self, key: &PeerKey) -> Result<Choice, String> {
        self.choices
            .entry(key.clone())
            .or_insert_with(|| choose(self.estate, key).map_err(|why| why.to_string()))
            .clone()
    }

    fn finish(mut self) -> Suggestion {
        if self.options.dns_over_tcp {
            self.add_dns_over_tcp();
        }
        self.note_silent();
        self.warn();
        let mut names = BTreeSet::new();
        for (group, draft) in std::mem::take(&mut self.drafts) {
            // A group gets here through `peers` or `note_silent`, and both ask for its choice.
            let Ok(choice) = self.choice(&group) else {
                continue;
            };
            let name = unique_name(&group, &mut names);
            self.suggestion
                .policies
                .push(draft.into_policy(group, name, &choice));
        }
        self.suggestion
    }

    fn add_dns_over_tcp(&mut self) {
        const DNS: u16 = 53;
        for (owner, draft) in &mut self.drafts {
            for ((direction, other), rule) in &mut draft.rules {
                if rule.ports.contains_key(&(Protocol::TCP, DNS)) {
                    continue;
                }
                let Some(udp) = rule.ports.get(&(Protocol::UDP, DNS)) else {
                    continue;
                };
                let added = PortEvidence {
                    protocol: Protocol::TCP,
                    note: Some(
                        "not seen: added because DNS answers that do not fit in UDP come over TCP"
                            .to_owned(),
                    ),
                    connections: 0,
                    ..udp.clone()
                };
                rule.ports.insert((Protocol::TCP, DNS), added);
                if *direction == PolicyType::Egress {
                    self.suggestion.warnings.push(format!(
                        "{owner} -> {other}: TCP 53 was not seen and is allowed next to UDP 53, for \
                         answers that do not fit in a datagram"
                    ));
                }
            }
        }
    }

    fn note_silent(&mut self) {
        let groups: BTreeSet<PeerKey> = self
            .estate
            .workloads
            .iter()
            .filter(|workload| !workload.group.is_empty())
            .map(|workload| PeerKey::Group {
                namespace: workload.namespace.clone(),
                name: workload.group.clone(),
            })
            .collect();
        for group in groups {
            if !self.is_wanted(&group) || self.drafts.contains_key(&group) {
                continue;
            }
            if self.options.include_silent {
                match self.choice(&group) {
                    Ok(_) => {
                        self.drafts.insert(group.clone(), Draft::default());
                    }
                    Err(why) => self
                        .suggestion
                        .warnings
                        .push(format!("{group} gets no policy: {why}")),
                }
            }
            self.suggestion.silent.push(group);
        }
    }

    fn warn(&mut self) {
        /// Single addresses after which a reviewer is better served by a CIDR.
        const MANY_ADDRESSES: usize = 20;
        let mut undecided: BTreeMap<&PeerKey, usize> = BTreeMap::new();
        for left_out in &self.suggestion.undecided {
            let key = &left_out.edge.key;
            for peer in BTreeSet::from([&key.source, &key.destination]) {
                if peer.is_workload() {
                    *undecided.entry(peer).or_default() += 1;
                }
            }
        }
        let mut warnings: Vec<String> = undecided
            .into_iter()
            .map(|(peer, edges)| {
                let edges = count(edges as u64, "undecided edge");
                format!("{peer} has {edges}, which its policy would deny")
            })
            .collect();
        for (group, draft) in &self.drafts {
            let evidence = || draft.rules.values().flat_map(|rule| rule.ports.values());
            let lost = evidence().map(|port| port.lost_events).max().unwrap_or(0);
            if lost > 0 {
                warnings.push(format!(
                    "{group}: {} lost while its edges were learned, so rules may be missing",
                    count(lost, "event")
                ));
            }
            for (direction, word) in [
                (PolicyType::Ingress, "reached from"),
                (PolicyType::Egress, "reaches"),
            ] {
                let addresses = draft
                    .rules
                    .keys()
                    .filter(|(of, peer)| *of == direction && matches!(peer, PeerKey::World { .. }))
                    .count();
                if addresses > MANY_ADDRESSES {
                    warnings.push(format!(
                        "{group} is {word} {addresses} single addresses: a CIDR chosen by you may \
                         say better what is meant"
                    ));
                }
            }
        }
        self.suggestion.warnings.append(&mut warnings);
    }
}

fn note(edge: &Edge, peer: &PeerKey) -> Option<String> {
    match peer {
        PeerKey::Host => Some("addresses of the host itself".to_owned()),
        PeerKey::World { .. } if !edge.names.members.is_empty() => {
            let names: Vec<_> = edge.names.members.iter().map(String::as_str).collect();
            Some(format!("resolved from {}", names.join(", ")))
        }
        _ if edge.is_unanswered() => Some("never answered".to_owned()),
        _ => None,
    }
}
