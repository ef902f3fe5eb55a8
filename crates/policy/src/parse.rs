//! Policy files to policies: multi-document YAML or JSON, with every mistake named by place.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::document::Reader;
use crate::evaluate::RuleRef;
use crate::export;
use crate::netpol::{API_VERSION, KIND, NetworkPolicy};
use crate::syntax::{self, Fault};
use crate::yaml::{self, Node, Position, Value};

pub use crate::set::PolicySet;

/// Something wrong, or surprising, at one place of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// File name as given to [`parse_documents`].
    pub source: String,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// Path of the field, e.g. `spec.ingress[0].ports[1].port`; empty for the document itself.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// The way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    /// `file:line:column: field: message; hint`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.source, self.line, self.column)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Everything wrong with an input, in the order of the text. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParseErrors(pub Vec<Problem>);

impl fmt::Display for ParseErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ParseErrors {}

/// Name of a policy object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyName {
    /// Namespace; what the document leaves out is `default`.
    pub namespace: String,
    /// Name within the namespace.
    pub name: String,
}

impl PolicyName {
    /// From `namespace/name`, or `name` in the namespace `default`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A valid policy together with where it came from.
///
/// Serialized for storage; deserializing validates again, so a value of this type is always valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredDocument", into = "StoredDocument")]
pub struct PolicyDocument {
    policy: NetworkPolicy,
    name: PolicyName,
    source: String,
    line: u32,
    ingress_lines: Vec<u32>,
    egress_lines: Vec<u32>,
    text: String,
}

impl PolicyDocument {
    /// A policy made by a program. It is checked like a file; its text and lines are those of
    /// [`export::to_yaml`].
    ///
    /// # Errors
    ///
    /// When the policy is not valid; the problems point into the exported text.
    pub fn new(policy: NetworkPolicy, source: &str) -> Result<Self, ParseErrors> {
        let text = export::to_yaml(&[policy.into()]);
        let parsed = parse_documents(source, &text)?;
        Ok(parsed
            .policies
            .into_iter()
            .next()
            .expect("one policy was exported"))
    }

    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> &NetworkPolicy {
        &self.policy
    }

    /// Namespace and name.
    #[must_use]
    pub const fn name(&self) -> &PolicyName {
        &self.name
    }

    /// File or other source.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Line of the document in its source, from 1.
    #[must_use]
    pub const fn line(&self) -> u32 {
        self.line
    }

    /// The document as it was written, comments included.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Reference to `ingress[index]`.
    #[must_use]
    pub fn ingress_rule(&self, index: usize) -> RuleRef {
        self.rule("ingress", index, &self.ingress_lines)
    }

    /// Reference to `egress[index]`.
    #[must_use]
    pub fn egress_rule(&self, index: usize) -> RuleRef {
        self.rule("egress", index, &self.egress_lines)
    }

    /// Reference to the policy as a whole.
    #[must_use]
    pub fn reference(&self) -> RuleRef {
        RuleRef {
            policy: self.name.to_string(),
            file: Some(self.source.clone()),
            line: Some(self.line),
            rule: None,
        }
    }

    fn rule(&self, direction: &str, index: usize, lines: &[u32]) -> RuleRef {
        RuleRef {
            line: Some(lines.get(index).copied().unwrap_or(self.line)),
            rule: Some(format!("{direction}[{index}]")),
            ..self.reference()
        }
    }
}

/// [`PolicyDocument`] as it is stored.
#[derive(Clone, Serialize, Deserialize)]
struct StoredDocument {
    source: String,
    line: u32,
    ingress_lines: Vec<u32>,
    egress_lines: Vec<u32>,
    policy: NetworkPolicy,
    text: String,
}

impl From<PolicyDocument> for StoredDocument {
    fn from(document: PolicyDocument) -> Self {
        Self {
            source: document.source,
            line: document.line,
            ingress_lines: document.ingress_lines,
            egress_lines: document.egress_lines,
            policy: document.policy,
            text: document.text,
        }
    }
}

impl TryFrom<StoredDocument> for PolicyDocument {
    type Error = ParseErrors;

    fn try_from(stored: StoredDocument) -> Result<Self, Self::Error> {
        let valid = Self::new(stored.policy.clone(), &stored.source)?;
        Ok(Self {
            policy: stored.policy,
            name: valid.name,
            source: stored.source,
            line: stored.line,
            ingress_lines: stored.ingress_lines,
            egress_lines: stored.egress_lines,
            text: stored.text,
        })
    }
}

/// What an input holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedDocuments {
    /// Policies in file order.
    pub policies: Vec<PolicyDocument>,
    /// What is valid and probably not meant.
    pub warnings: Vec<Problem>,
}

/// Reads every NetworkPolicy of one file. `source` is the name shown in messages.
///
/// # Errors
///
/// Every mistake in the file, each with line and column. A syntax error hides what follows it.
pub fn parse_documents(source: &str, text: &str) -> Result<ParsedDocuments, ParseErrors> {
    parse_files([(source, text)])
}

/// Reads several files as one set, e.g. a directory: a policy may stand in one of them only.
///
/// # Errors
///
/// Every mistake in every file, as in [`parse_documents`].
pub fn parse_files<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<ParsedDocuments, ParseErrors> {
    let mut parsed = ParsedDocuments::default();
    let mut errors = Vec::new();
    let mut first_places: BTreeMap<PolicyName, (String, u32)> = BTreeMap::new();
    for (source, text) in files {
        let mut file = File {
            reader: Reader::new(source),
            source,
            lines: text.lines().collect(),
            policies: Vec::new(),
        };
        match yaml::read(text) {
            Ok(documents) => documents.iter().for_each(|node| file.document(node)),
            Err(error) => file.reader.error(error.at, Fault::new(error.message)),
        }
        let mut file_errors = std::mem::take(&mut file.reader.errors);
        parsed.warnings.append(&mut file.reader.warnings);
        for (document, at) in file.policies {
            let place = (source.to_owned(), document.line);
            if let Some((other, line)) = first_places.get(&document.name) {
                file_errors.push(Problem {
                    source: source.to_owned(),
                    line: at.line,
                    column: at.column,
                    field: "metadata.name".to_owned(),
                    message: format!("policy `{}` is already defined", document.name),
                    hint: Some(format!("rename it or remove the one at {other}:{line}")),
                });
                continue;
            }
            first_places.insert(document.name.clone(), place);
            parsed.policies.push(document);
        }
        file_errors.sort_by_key(|problem| (problem.line, problem.column));
        errors.append(&mut file_errors);
    }
    if errors.is_empty() {
        Ok(parsed)
    } else {
        Err(ParseErrors(errors))
    }
}

struct File<'a> {
    reader: Reader<'a>,
    source: &'a str,
    lines: Vec<&'a str>,
    policies: Vec<(PolicyDocument, Position)>,
}

impl File<'_> {
    fn document(&mut self, node: &Node) {
        match kind(node) {
            Some("List" | "NetworkPolicyList") => self.list(node),
            _ => self.policy(node, document_text(&self.lines, node.at.line)),
        }
    }

    fn list(&mut self, node: &Node) {
        let fields = self
            .reader
            .fields(node, &["apiVersion", "kind", "metadata", "items"]);
        let Some(items) = fields.and_then(|fields| {
            fields
                .iter()
                .find(|(name, ..)| *name == "items")
                .map(|&(_, _, node)| node)
        }) else {
            return;
        };
        let items = match &items.value {
            Value::Seq(items) => items,
            Value::Null => return,
            other => {
                let fault = Fault::new(format!("items: expected a list, found {}", other.kind()));
                self.reader.error(items.at, fault);
                return;
            }
        };
        let end = document_lines(&self.lines, node.at.line).end;
        let mut previous = node.at.line;
        for (index, item) in items.iter().enumerate() {
            let first = (item.at.line as usize).saturating_sub(1);
            let next = items
                .get(index + 1)
                .map_or(end, |next| (next.at.line as usize).saturating_sub(1));
            // Items that share a line (JSON) have no text of their own; it is written anew.
            let text = match self.lines.get(first..next) {
                Some(lines) if item.at.line > previous && !lines.is_empty() => {
                    lines.join("\n") + "\n"
                }
                _ => String::new(),
            };
            previous = item.at.line;
            self.reader.enter(format!(".items[{index}]"));
            self.policy(item, text);
            self.reader.leave();
        }
    }

    fn policy(&mut self, node: &Node, text: String) {
        match kind(node) {
            Some(KIND) => {}
            Some(other) => {
                let fault = Fault::new(format!("kind `{other}` is not supported"));
                let hint = match other {
                    "AdminNetworkPolicy"
                    | "BaselineAdminNetworkPolicy"
                    | "ClusterNetworkPolicy"
                    | "CiliumNetworkPolicy"
                    | "CiliumClusterwideNetworkPolicy"
                    | "GlobalNetworkPolicy"
                    | "StagedNetworkPolicy" => {
                        format!("rewrite it as `kind: {KIND}` of `{API_VERSION}`")
                    }
                    _ => match syntax::nearest(other, [KIND]) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("only `{KIND}` is read here; move it to another file"),
                    },
                };
                self.reader.error(place(node, "kind"), fault.hint(hint));
                return;
            }
            None => {
                let fault = if matches!(node.value, Value::Map(_)) {
                    Fault::new("`kind` is missing")
                } else {
                    Fault::new(format!("expected a policy, found {}", node.value.kind()))
                };
                let fault = fault.hint(format!(
                    "a policy begins with `apiVersion: {API_VERSION}` and `kind: {KIND}`"
                ));
                self.reader.error(node.at, fault);
                return;
            }
        }
        let Some(decoded) = self.reader.network_policy(node) else {
            return;
        };
        let metadata = &decoded.policy.metadata;
        let name = PolicyName {
            namespace: metadata
                .namespace
                .clone()
                .unwrap_or_else(|| "default".to_owned()),
            name: metadata.name.clone(),
        };
        let text = if text.is_empty() {
            export::to_yaml(&[decoded.policy.clone().into()])
        } else {
            text
        };
        let document = PolicyDocument {
            policy: decoded.policy,
            name,
            source: self.source.to_owned(),
            line: node.at.line,
            ingress_lines: decoded.ingress_lines,
            egress_lines: decoded.egress_lines,
            text,
        };
        self.policies.push((document, node.at));
    }
}

fn kind(node: &Node) -> Option<&str> {
    let Value::Map(entries) = &node.value else {
        return None;
    };
    entries.iter().find_map(|(key, value)| match &value.value {
        Value::String(text) if key.name == "kind" => Some(text.as_str()),
        _ => None,
    })
}

fn place(node: &Node, field: &str) -> Position {
    match &node.value {
        Value::Map(entries) => entries
            .iter()
            .find(|(key, _)| key.name == field)
            .map_or(node.at, |(_, value)| value.at),
        _ => node.at,
    }
}

/// Indices of the lines of the document that `line` (from 1) lies in. A line that begins with
/// `---` or `...` is a document marker wherever it stands (YAML 1.2.2 section 9.1.2).
fn document_lines(lines: &[&str], line: u32) -> std::ops::Range<usize> {
    let is_marker = |text: &&str| {
        (text.starts_with("---") || text.starts_with("..."))
            && text[3..].chars().next().is_none_or(char::is_whitespace)
    };
    let at = (line as usize).saturating_sub(1).min(lines.len());
    let start = lines[..at]
        .iter()
        .rposition(is_marker)
        .map_or(0, |index| index + 1);
    let end = lines[at..]
        .iter()
        .skip(1)
        .position(is_marker)
        .map_or(lines.len(), |offset| at + 1 + offset);
    start..end
}

fn document_text(lines: &[&str], line: u32) -> String {
    lines[document_lines(lines, line)]
        .join("\n")
        .trim()
        .to_owned()
        + "\n"
}
