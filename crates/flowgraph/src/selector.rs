//! Which labels say a group: the smallest set that selects exactly its members.
//!
//! A label set that also selects a bystander would widen every rule that names the group, and one
//! that misses a member would break it, so there is no second best: no exact set, no selector.

use policy::model::{Estate, Labels, Workload};
use policy::netpol::LabelSelector;

use crate::edge::PeerKey;
use crate::text::count;

/// A group's selector and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Labels, never empty.
    pub labels: Labels,
    /// A sentence for people who review the policy.
    pub reason: String,
}

impl Choice {
    /// As NetworkPolicy writes it.
    #[must_use]
    pub fn selector(&self) -> LabelSelector {
        LabelSelector {
            match_labels: Some(self.labels.clone()),
            match_expressions: None,
        }
    }
}

/// Why there is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSelector {
    /// Nothing to select.
    #[error("no workload of it exists now: its rules would select nothing or, later, a stranger")]
    NoMembers,
    /// The members have no usable label in common.
    #[error("its workloads have no label in common that NetworkPolicy accepts: give them one")]
    NoCommonLabel,
    /// Every set of common labels selects others too.
    #[error(
        "every label its workloads have in common also selects {others}: give the group a label of its own",
        others = .0.join(", ")
    )]
    NotExact(Vec<String>),
}

/// Keys people use to name a service, best first.
const NAMING_KEYS: [&str; 10] = [
    "app.kubernetes.io/name",
    "app",
    "com.docker.compose.service",
    "k8s-app",
    "app.kubernetes.io/component",
    "component",
    "app.kubernetes.io/instance",
    "com.docker.compose.project",
    "name",
    "role",
];

/// Keys whose values change with every rollout or differ by replica: a selector built on them stops
/// matching by itself.
const VOLATILE_KEYS: [&str; 6] = [
    "pod-template-hash",
    "pod-template-generation",
    "controller-revision-hash",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
];

/// Also labels that docker compose and image builds change with every build or write per container.
fn is_volatile(key: &str) -> bool {
    VOLATILE_KEYS.contains(&key)
        || key
            .strip_prefix("com.docker.compose.")
            .is_some_and(|rest| rest != "service" && rest != "project")
        || key.starts_with("org.opencontainers.image.")
        || key == "helm.sh/chart"
        || ["version", "revision", "hash", "checksum"]
            .iter()
            .any(|end| key.ends_with(end))
}

/// Chooses the labels of a peer made of workloads.
///
/// # Errors
///
/// There is no label set that selects exactly the peer's workloads within their namespace.
pub fn choose(estate: &Estate, peer: &PeerKey) -> Result<Choice, NoSelector> {
    let (members, others) = members(estate, peer);
    let Some((first, rest)) = members.split_first() else {
        return Err(NoSelector::NoMembers);
    };
    let mut common: Vec<Label<'_>> = first
        .labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .filter(|(key, value)| is_label_key(key) && is_label_value(value) && !is_volatile(key))
        .filter(|(key, value)| rest.iter().all(|member| has(member, key, value)))
        .collect();
    common.sort_by_key(|&(key, value)| (naming_rank(key), key, value));
    if common.is_empty() {
        return Err(NoSelector::NoCommonLabel);
    }
    let caught = |labels: &[Label<'_>]| {
        others
            .iter()
            .filter(|other| labels.iter().all(|(key, value)| has(other, key, value)))
            .map(|other| other.name.clone())
            .collect::<Vec<_>>()
    };
    // Fewer labels select more, so if all of them are not exact, no subset is.
    let bystanders = caught(&common);
    if !bystanders.is_empty() {
        return Err(NoSelector::NotExact(bystanders));
    }
    let chosen = smallest_exact(&common, |labels| caught(labels).is_empty());
    let text: Vec<_> = chosen
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let reason = format!(
        "{} selects exactly the {} of {peer} and none of {} beside it in the namespace",
        text.join(" and "),
        count(members.len() as u64, "workload"),
        count(others.len() as u64, "workload"),
    );
    Ok(Choice {
        labels: chosen
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        reason,
    })
}

/// A label key and value.
type Label<'a> = (&'a str, &'a str);

/// The smallest exact subset; among equally small ones the one whose keys stand first. Up to three
/// labels every subset is tried, beyond that labels are taken away from the end while the rest stays
/// exact.
fn smallest_exact<'a>(
    labels: &[Label<'a>],
    is_exact: impl Fn(&[Label<'a>]) -> bool,
) -> Vec<Label<'a>> {
    let mut chosen = Vec::new();
    if (1..=3).any(|size| first_exact(labels, size, &mut chosen, &is_exact)) {
        return chosen;
    }
    let mut chosen = labels.to_vec();
    for index in (0..labels.len()).rev() {
        let left = chosen.remove(index);
        if !is_exact(&chosen) {
            chosen.insert(index, left);
        }
    }
    chosen
}

/// Extends `chosen` by `size` of `labels` so that it is exact, or leaves it as it was.
fn first_exact<'a>(
    labels: &[Label<'a>],
    size: usize,
    chosen: &mut Vec<Label<'a>>,
    is_exact: &impl Fn(&[Label<'a>]) -> bool,
) -> bool {
    if size == 0 {
        return is_exact(chosen);
    }
    labels.iter().enumerate().any(|(at, label)| {
        chosen.push(*label);
        let found = first_exact(&labels[at + 1..], size - 1, chosen, is_exact);
        if !found {
            chosen.pop();
        }
        found
    })
}

/// The workloads of a peer, and the others of the namespace.
fn members<'a>(estate: &'a Estate, peer: &PeerKey) -> (Vec<&'a Workload>, Vec<&'a Workload>) {
    let (namespace, name, by_group) = match peer {
        PeerKey::Group { namespace, name } => (namespace, name, true),
        PeerKey::Workload { namespace, name } => (namespace, name, false),
        PeerKey::Host | PeerKey::World { .. } => return (Vec::new(), Vec::new()),
    };
    estate
        .workloads
        .iter()
        .filter(|workload| workload.namespace == *namespace)
        .partition(|workload| {
            *name
                == if by_group {
                    &workload.group
                } else {
                    &workload.name
                }[..]
        })
}

fn has(workload: &Workload, key: &str, value: &str) -> bool {
    workload.labels.get(key).is_some_and(|own| own == value)
}

fn naming_rank(key: &str) -> usize {
    NAMING_KEYS
        .iter()
        .position(|known| *known == key)
        .unwrap_or(NAMING_KEYS.len())
}

/// Kubernetes label value: at most 63 characters, alphanumeric at both ends, `-_.` between. Empty
/// values are legal but select too easily by accident.
fn is_label_value(value: &str) -> bool {
    is_label_name(value)
}

/// Kubernetes label key: a name, optionally after a DNS subdomain and a slash.
fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => {
            is_label_name(name)
                && prefix.len() <= 253
                && prefix.split('.').all(|label| {
                    !label.is_empty()
                        && label
                            .bytes()
                            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                        && !label.starts_with('-')
                        && !label.ends_with('-')
                })
        }
        None => is_label_name(key),
    }
}

fn is_label_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    (1..=63).contains(&bytes.len())
        && ends
            .iter()
            .all(|b| b.is_some_and(|b| b.is_ascii_alphanumeric()))
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}
