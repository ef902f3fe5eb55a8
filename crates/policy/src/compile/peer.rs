//! Which profiles a selector selects, found through an index over labels.

use std::collections::HashMap;
use std::rc::Rc;

use super::address::AddressSpace;
use crate::model::{Estate, Labels};
use crate::resolve::{NamespaceMatch, ResolvedPolicy, Selector};

type PeerKey = (NamespaceMatch, Selector);

/// Profiles by namespace and by label, and what selectors already resolved to.
pub(super) struct PeerIndex<'a> {
    space: &'a AddressSpace,
    by_namespace: HashMap<&'a str, Vec<usize>>,
    by_label: HashMap<(&'a str, &'a str), Vec<usize>>,
    namespace_labels: HashMap<&'a str, Labels>,
    resolved: HashMap<PeerKey, Rc<[usize]>>,
}

impl<'a> PeerIndex<'a> {
    pub(super) fn new(estate: &Estate, space: &'a AddressSpace) -> Self {
        let mut by_namespace: HashMap<_, Vec<_>> = HashMap::new();
        let mut by_label: HashMap<_, Vec<_>> = HashMap::new();
        let mut namespace_labels = HashMap::new();
        for (index, profile) in space.profiles.iter().enumerate() {
            let namespace = profile.namespace.as_str();
            by_namespace.entry(namespace).or_default().push(index);
            for (key, value) in &profile.labels {
                by_label
                    .entry((key.as_str(), value.as_str()))
                    .or_default()
                    .push(index);
            }
            namespace_labels
                .entry(namespace)
                .or_insert_with(|| estate.namespace_labels(namespace));
        }
        Self {
            space,
            by_namespace,
            by_label,
            namespace_labels,
            resolved: HashMap::new(),
        }
    }

    /// Profiles in matching namespaces with matching labels, ascending.
    pub(super) fn matching(
        &mut self,
        namespaces: &NamespaceMatch,
        labels: &Selector,
    ) -> Rc<[usize]> {
        let key = (namespaces.clone(), labels.clone());
        if let Some(profiles) = self.resolved.get(&key) {
            return Rc::clone(profiles);
        }
        let profiles: Rc<[usize]> = self.search(namespaces, labels).into();
        self.resolved.insert(key, Rc::clone(&profiles));
        profiles
    }

    /// Profiles a policy selects, ascending.
    pub(super) fn selected(&mut self, policy: &ResolvedPolicy) -> Rc<[usize]> {
        let namespace = NamespaceMatch::Named(policy.namespace.clone());
        self.matching(&namespace, &policy.selector)
    }

    fn search(&self, namespaces: &NamespaceMatch, labels: &Selector) -> Vec<usize> {
        let in_namespaces: HashMap<&str, bool> = match namespaces {
            NamespaceMatch::Named(name) => HashMap::from([(name.as_str(), true)]),
            NamespaceMatch::Labelled(selector) => self
                .namespace_labels
                .iter()
                .map(|(&name, labels)| (name, selector.matches(labels)))
                .collect(),
        };
        let matches = |&index: &usize| {
            let profile = &self.space.profiles[index];
            in_namespaces.get(profile.namespace.as_str()) == Some(&true)
                && labels.matches(&profile.labels)
        };
        let mut found: Vec<usize> = match labels.required_pairs() {
            Some(pairs) => pairs
                .filter_map(|pair| self.by_label.get(&pair))
                .flatten()
                .copied()
                .filter(matches)
                .collect(),
            None => in_namespaces
                .iter()
                .filter(|&(_, &matching)| matching)
                .filter_map(|(name, _)| self.by_namespace.get(name))
                .flatten()
                .copied()
                .filter(matches)
                .collect(),
        };
        found.sort_unstable();
        found.dedup();
        found
    }
}
