//! Rules of one group while they are collected, and the NetworkPolicy they become.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy::model::{Labels, NAMESPACE_NAME_LABEL, Protocol};
use policy::netpol::{
    API_VERSION, EgressRule, IngressRule, IntOrString, IpBlock, KIND, LabelSelector, Metadata,
    NetworkPolicy, NetworkPolicySpec, Peer, PolicyType, Port,
};

use crate::edge::PeerKey;
use crate::evidence::{PortEvidence, RuleEvidence, SuggestedPolicy};
use crate::selector::Choice;
use crate::text::{count, visible};

/// A port of a protocol NetworkPolicy knows.
pub(crate) type L4Port = (Protocol, u16);

/// Rules of one group while they are collected: by direction (ingress first), peer and port.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) rules: BTreeMap<(PolicyType, PeerKey), DraftRule>,
}

#[derive(Default)]
pub(crate) struct DraftRule {
    /// The peer's selector, or its addresses.
    pub(crate) peers: Vec<Peer>,
    pub(crate) ports: BTreeMap<L4Port, PortEvidence>,
}

impl Draft {
    pub(crate) fn into_policy(
        self,
        group: PeerKey,
        name: String,
        choice: &Choice,
    ) -> SuggestedPolicy {
        let mut evidence = Vec::new();
        let mut ingress = Vec::new();
        let mut egress = Vec::new();
        for (direction, rule) in self.merged() {
            let ports = rule.ports.keys().copied().collect::<BTreeSet<_>>();
            let ports = Some(ports.into_iter().map(port).collect());
            let index = match direction {
                PolicyType::Ingress => {
                    ingress.push(IngressRule {
                        from: Some(rule.peers),
                        ports,
                    });
                    ingress.len() - 1
                }
                PolicyType::Egress => {
                    egress.push(EgressRule {
                        to: Some(rule.peers),
                        ports,
                    });
                    egress.len() - 1
                }
            };
            evidence.push(RuleEvidence {
                direction,
                index,
                ports: rule.evidence,
            });
        }
        let policy = NetworkPolicy {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            metadata: Metadata {
                name,
                namespace: namespace(&group).map(str::to_owned),
                labels: Some(Labels::from([(
                    "app.kubernetes.io/managed-by".to_owned(),
                    "portcullis".to_owned(),
                )])),
                annotations: Some(annotations(&group, choice, &evidence)),
            },
            spec: NetworkPolicySpec {
                pod_selector: Some(choice.selector()),
                policy_types: Some(vec![PolicyType::Ingress, PolicyType::Egress]),
                ingress: Some(ingress),
                egress: Some(egress),
            },
        };
        SuggestedPolicy {
            group,
            policy,
            selector_reason: choice.reason.clone(),
            evidence,
        }
    }

    /// Rules in order. Single addresses with the same ports share a rule.
    fn merged(self) -> Vec<(PolicyType, MergedRule)> {
        let mut rules: Vec<(PolicyType, MergedRule)> = Vec::new();
        for ((direction, peer), rule) in self.rules {
            let is_address = matches!(peer, PeerKey::World { .. });
            let evidence: Vec<_> = rule.ports.values().cloned().collect();
            let ports: BTreeMap<L4Port, ()> = rule.ports.keys().map(|port| (*port, ())).collect();
            let same = rules.iter_mut().find(|(of, merged)| {
                is_address && merged.is_addresses && *of == direction && merged.ports == ports
            });
            match same {
                Some((_, merged)) => {
                    merged.peers.extend(rule.peers);
                    merged.evidence.extend(evidence);
                }
                None => rules.push((
                    direction,
                    MergedRule {
                        is_addresses: is_address,
                        peers: rule.peers,
                        ports,
                        evidence,
                    },
                )),
            }
        }
        rules
    }
}

struct MergedRule {
    is_addresses: bool,
    peers: Vec<Peer>,
    ports: BTreeMap<L4Port, ()>,
    evidence: Vec<PortEvidence>,
}

/// A digest of the evidence, for whoever reads the policy later.
fn annotations(
    group: &PeerKey,
    choice: &Choice,
    evidence: &[RuleEvidence],
) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([
        ("portcullis/group".to_owned(), visible(&group.to_string())),
        ("portcullis/selector".to_owned(), visible(&choice.reason)),
    ]);
    let ports = || evidence.iter().flat_map(|rule| &rule.ports);
    if let (Some(first), Some(last)) = (
        ports().map(|port| port.first_seen).min(),
        ports().map(|port| port.last_seen).max(),
    ) {
        let connections: u64 = ports().map(|port| port.connections).sum();
        let lost = ports().map(|port| port.lost_events).max().unwrap_or(0);
        let text = format!(
            "{} from {}, first {first:.0}, last {last:.0}, {} lost meanwhile",
            count(evidence.len() as u64, "rule"),
            count(connections, "connection"),
            count(lost, "event"),
        );
        annotations.insert("portcullis/evidence".to_owned(), text);
    }
    annotations
}

pub(crate) fn namespace(peer: &PeerKey) -> Option<&str> {
    match peer {
        PeerKey::Group { namespace, .. } | PeerKey::Workload { namespace, .. } => Some(namespace),
        PeerKey::Host | PeerKey::World { .. } => None,
    }
}

/// Adds the namespace to a peer that is not in the policy's own.
pub(crate) fn within(mut peer: Peer, own: Option<&str>, other: &PeerKey) -> Peer {
    if let Some(namespace) = namespace(other)
        && own != Some(namespace)
    {
        peer.namespace_selector = Some(LabelSelector {
            match_labels: Some(Labels::from([(
                NAMESPACE_NAME_LABEL.to_owned(),
                namespace.to_owned(),
            )])),
            match_expressions: None,
        });
    }
    peer
}

/// Exactly one address.
pub(crate) fn block(address: IpAddr) -> Peer {
    let length = if address.is_ipv4() { 32 } else { 128 };
    Peer {
        ip_block: Some(IpBlock {
            cidr: format!("{address}/{length}"),
            except: None,
        }),
        ..Peer::default()
    }
}

fn port((protocol, port): L4Port) -> Port {
    Port {
        protocol: Some(protocol.to_string()),
        port: Some(IntOrString::Int(i64::from(port))),
        end_port: None,
    }
}

/// `learned-NAME`, an RFC 1123 label, unique within the namespace.
pub(crate) fn unique_name(group: &PeerKey, taken: &mut BTreeSet<(String, String)>) -> String {
    /// Longest label (63) less room for `-99999`.
    const LONGEST: usize = 57;
    let (namespace, name) = match group {
        PeerKey::Group { namespace, name } | PeerKey::Workload { namespace, name } => {
            (namespace.clone(), name.as_str())
        }
        PeerKey::Host | PeerKey::World { .. } => (String::new(), "host"),
    };
    let local = name
        .strip_prefix(namespace.as_str())
        .and_then(|rest| rest.strip_prefix('/'))
        .unwrap_or(name);
    let mut base = String::from("learned");
    for part in local
        .to_ascii_lowercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|part| !part.is_empty())
    {
        base.push('-');
        base.push_str(part);
    }
    base.truncate(LONGEST);
    let base = base.trim_end_matches('-');
    let mut name = base.to_owned();
    let mut next = 2;
    while !taken.insert((namespace.clone(), name.clone())) {
        name = format!("{base}-{next}");
        next += 1;
    }
    name
}
