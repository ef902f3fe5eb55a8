//! The policies in force, by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::netpol::NetworkPolicy;
use crate::parse::{ParseErrors, PolicyDocument, PolicyName};

/// A set of policies, iterated in the order of namespace and name.
///
/// Serializes as a list of documents with their text, source and lines, so that verdicts name the
/// same file and line after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<PolicyDocument>", into = "Vec<PolicyDocument>")]
pub struct PolicySet {
    documents: BTreeMap<PolicyName, PolicyDocument>,
}

impl PolicySet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A set of policies made by a program.
    ///
    /// # Errors
    ///
    /// When a policy is not valid.
    pub fn from_policies(
        policies: impl IntoIterator<Item = NetworkPolicy>,
        source: &str,
    ) -> Result<Self, ParseErrors> {
        policies
            .into_iter()
            .map(|policy| PolicyDocument::new(policy, source))
            .collect()
    }

    /// Adds a policy or replaces the one of the same name, which is returned.
    pub fn insert(&mut self, document: PolicyDocument) -> Option<PolicyDocument> {
        self.documents.insert(document.name().clone(), document)
    }

    /// Removes a policy.
    pub fn remove(&mut self, name: &PolicyName) -> Option<PolicyDocument> {
        self.documents.remove(name)
    }

    /// A policy by name.
    #[must_use]
    pub fn get(&self, name: &PolicyName) -> Option<&PolicyDocument> {
        self.documents.get(name)
    }

    /// Policies in order of namespace and name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &PolicyDocument> {
        self.documents.values()
    }

    /// Number of policies.
    #[must_use]
    pub fn len(&self) -> usize {
        self.documents.len()
    }

    /// Whether there is no policy.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }
}

impl Extend<PolicyDocument> for PolicySet {
    fn extend<I: IntoIterator<Item = PolicyDocument>>(&mut self, documents: I) {
        for document in documents {
            self.insert(document);
        }
    }
}

impl FromIterator<PolicyDocument> for PolicySet {
    fn from_iter<I: IntoIterator<Item = PolicyDocument>>(documents: I) -> Self {
        let mut set = Self::new();
        set.extend(documents);
        set
    }
}

impl From<Vec<PolicyDocument>> for PolicySet {
    fn from(documents: Vec<PolicyDocument>) -> Self {
        documents.into_iter().collect()
    }
}

impl From<PolicySet> for Vec<PolicyDocument> {
    fn from(set: PolicySet) -> Self {
        set.documents.into_values().collect()
    }
}
