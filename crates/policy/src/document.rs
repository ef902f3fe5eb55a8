//! From a YAML tree to a [`NetworkPolicy`], naming every mistake on the way.

mod rule;

use crate::model::Labels;
use crate::netpol::{
    API_VERSION, EgressRule, IngressRule, KIND, Metadata, NetworkPolicy, NetworkPolicySpec,
    PolicyType,
};
use crate::parse::Problem;
use crate::syntax::{self, Fault};
use crate::yaml::{Key, Node, Position, Value};

/// ObjectMeta fields: the first four are read, the rest is filled in by the API server or means
/// nothing here.
const METADATA: &[&str] = &[
    "name",
    "namespace",
    "labels",
    "annotations",
    "generateName",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// A decoded policy and the lines of its rules.
pub(crate) struct Decoded {
    pub(crate) policy: NetworkPolicy,
    pub(crate) ingress_lines: Vec<u32>,
    pub(crate) egress_lines: Vec<u32>,
}

/// Decodes documents of one source and keeps what is wrong with them.
pub(crate) struct Reader<'a> {
    source: &'a str,
    path: Vec<String>,
    pub(crate) errors: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
}

type Fields<'n> = Vec<(&'static str, &'n Key, &'n Node)>;

fn get<'n>(fields: &Fields<'n>, name: &str) -> Option<(&'n Key, &'n Node)> {
    fields
        .iter()
        .find(|(field, ..)| *field == name)
        .map(|&(_, key, node)| (key, node))
        // `field: null` is an absent field, as in the API server's JSON.
        .filter(|(_, node)| !matches!(node.value, Value::Null))
}

impl<'a> Reader<'a> {
    pub(crate) fn new(source: &'a str) -> Self {
        Self {
            source,
            path: Vec::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn problem(&self, at: Position, fault: Fault) -> Problem {
        Problem {
            source: self.source.to_owned(),
            line: at.line,
            column: at.column,
            field: self.path.concat().trim_start_matches('.').to_owned(),
            message: fault.message,
            hint: fault.hint,
        }
    }

    pub(crate) fn error(&mut self, at: Position, fault: Fault) {
        let problem = self.problem(at, fault);
        self.errors.push(problem);
    }

    fn warn(&mut self, at: Position, fault: Fault) {
        let problem = self.problem(at, fault);
        self.warnings.push(problem);
    }

    /// Goes one step deeper in the field path, until [`Self::leave`].
    pub(crate) fn enter(&mut self, step: String) {
        self.path.push(step);
    }

    /// Undoes [`Self::enter`].
    pub(crate) fn leave(&mut self) {
        self.path.pop();
    }

    /// Runs `read` one step deeper in the field path.
    fn within<T>(&mut self, step: String, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(step);
        let result = read(self);
        self.path.pop();
        result
    }

    fn field<T>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        self.within(format!(".{name}"), read)
    }

    fn check<T>(&mut self, at: Position, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.error(at, fault)).ok()
    }

    /// The known fields of a mapping; unknown and repeated ones are reported.
    pub(crate) fn fields<'n>(
        &mut self,
        node: &'n Node,
        known: &'static [&'static str],
    ) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            self.expected(node, "a mapping");
            return None;
        };
        let mut fields: Fields<'n> = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let Some(name) = known.iter().find(|name| **name == key.name) else {
                let fault = Fault::new(format!("unknown field `{}`", key.name));
                let nearest = syntax::nearest(&key.name, known.iter().copied());
                self.error(
                    key.at,
                    match nearest {
                        Some(name) => fault.hint(format!("did you mean `{name}`?")),
                        None => fault.hint(format!("known here: {}", known.join(", "))),
                    },
                );
                continue;
            };
            if let Some((_, first, _)) = fields.iter().find(|(field, ..)| field == name) {
                let line = first.at.line;
                self.error(
                    key.at,
                    Fault::new(format!("field `{name}` stands twice"))
                        .hint(format!("merge it with the one on line {line}")),
                );
                continue;
            }
            fields.push((name, key, value));
        }
        Some(fields)
    }

    fn expected(&mut self, node: &Node, what: &str) {
        let found = node.value.kind();
        self.error(
            node.at,
            Fault::new(format!("expected {what}, found {found}")),
        );
    }

    fn string(&mut self, node: &Node) -> Option<String> {
        match &node.value {
            Value::String(text) => Some(text.clone()),
            Value::Int(number) => {
                let fault = Fault::new("expected a string, found a number")
                    .hint(format!("write it in quotes: \"{number}\""));
                self.error(node.at, fault);
                None
            }
            Value::Bool(_) => {
                let fault = Fault::new("expected a string, found a boolean").hint(
                    "write it in quotes: YAML reads true, yes, y, on and their opposites as booleans",
                );
                self.error(node.at, fault);
                None
            }
            Value::Number => {
                let fault = Fault::new("expected a string, found a number");
                self.error(node.at, fault.hint("write it in quotes"));
                None
            }
            Value::Null | Value::Seq(_) | Value::Map(_) => {
                self.expected(node, "a string");
                None
            }
        }
    }

    fn list<'n>(&mut self, node: &'n Node) -> Option<&'n [Node]> {
        match &node.value {
            Value::Seq(items) => Some(items),
            _ => {
                self.expected(node, "a list");
                None
            }
        }
    }

    /// Decodes every element; elements with mistakes are reported and left out.
    fn each<T>(
        &mut self,
        node: &Node,
        mut read: impl FnMut(&mut Self, &Node) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items = self.list(node)?;
        let mut values = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let value = self.within(format!("[{index}]"), |reader| read(reader, item));
            values.extend(value);
        }
        Some(values)
    }

    /// Decodes a NetworkPolicy document whose `kind` was already looked at.
    pub(crate) fn network_policy(&mut self, node: &Node) -> Option<Decoded> {
        let errors = self.errors.len();
        let fields = self.fields(node, &["apiVersion", "kind", "metadata", "spec", "status"])?;
        match get(&fields, "apiVersion") {
            Some((_, value)) => self.field("apiVersion", |reader| {
                if let Some(version) = reader.string(value)
                    && version != API_VERSION
                {
                    let fault = Fault::new(format!("`{version}` is not supported"))
                        .hint(format!("use `{API_VERSION}`"));
                    reader.error(value.at, fault);
                }
            }),
            None => self.missing(
                node.at,
                "apiVersion",
                &format!("add `apiVersion: {API_VERSION}`"),
            ),
        }
        let metadata = match get(&fields, "metadata") {
            Some((_, value)) => self.field("metadata", |reader| reader.metadata(value)),
            None => {
                self.missing(node.at, "metadata", "add `metadata: {name: ...}`");
                None
            }
        };
        let spec = match get(&fields, "spec") {
            Some((_, value)) => self.field("spec", |reader| reader.spec(value)),
            None => {
                self.missing(
                    node.at,
                    "spec",
                    "add `spec` with `podSelector` and `policyTypes`",
                );
                None
            }
        };
        let (spec, ingress_lines, egress_lines) = spec?;
        let metadata = metadata?;
        (self.errors.len() == errors).then(|| Decoded {
            policy: NetworkPolicy {
                api_version: API_VERSION.to_owned(),
                kind: KIND.to_owned(),
                metadata,
                spec,
            },
            ingress_lines,
            egress_lines,
        })
    }

    fn missing(&mut self, at: Position, name: &str, hint: &str) {
        self.error(at, Fault::new(format!("`{name}` is missing")).hint(hint));
    }

    fn metadata(&mut self, node: &Node) -> Option<Metadata> {
        let fields = self.fields(node, METADATA)?;
        let mut metadata = Metadata::default();
        match get(&fields, "name") {
            Some((_, value)) => self.field("name", |reader| {
                if let Some(name) = reader.string(value) {
                    reader.check(value.at, syntax::object_name(&name));
                    metadata.name = name;
                }
            }),
            None => self.missing(
                node.at,
                "name",
                "add `name`; `generateName` is not supported",
            ),
        }
        if let Some((_, value)) = get(&fields, "namespace") {
            self.field("namespace", |reader| {
                // The API server reads an empty namespace as absent.
                if let Some(namespace) = reader.string(value).filter(|text| !text.is_empty()) {
                    reader.check(value.at, syntax::namespace(&namespace));
                    metadata.namespace = Some(namespace);
                }
            });
        }
        if let Some((_, value)) = get(&fields, "labels") {
            metadata.labels = self.field("labels", |reader| reader.labels(value, true));
        }
        if let Some((_, value)) = get(&fields, "annotations") {
            metadata.annotations = self.field("annotations", |reader| reader.labels(value, false));
        }
        Some(metadata)
    }

    fn labels(&mut self, node: &Node, check_values: bool) -> Option<Labels> {
        let Value::Map(entries) = &node.value else {
            self.expected(node, "a mapping of strings");
            return None;
        };
        let mut labels = Labels::new();
        for (key, value) in entries {
            self.field(&key.name, |reader| {
                // Annotation keys may have upper-case prefixes.
                let spelling = if check_values {
                    key.name.clone()
                } else {
                    key.name.to_ascii_lowercase()
                };
                reader.check(key.at, syntax::label_key(&spelling));
                let Some(text) = reader.string(value) else {
                    return;
                };
                if check_values {
                    reader.check(value.at, syntax::label_value(&text));
                }
                if labels.insert(key.name.clone(), text).is_some() {
                    reader.error(
                        key.at,
                        Fault::new(format!("key `{}` stands twice", key.name))
                            .hint("remove one of them"),
                    );
                }
            });
        }
        Some(labels)
    }

    fn spec(&mut self, node: &Node) -> Option<(NetworkPolicySpec, Vec<u32>, Vec<u32>)> {
        let fields = self.fields(node, &["podSelector", "policyTypes", "ingress", "egress"])?;
        let mut spec = NetworkPolicySpec::default();
        if let Some((_, value)) = get(&fields, "podSelector") {
            spec.pod_selector = self.field("podSelector", |reader| reader.selector(value));
        }
        if let Some((_, value)) = get(&fields, "policyTypes") {
            spec.policy_types = self.field("policyTypes", |reader| {
                reader.each(value, |reader, item| reader.policy_type(item))
            });
        }
        let mut lines = [Vec::new(), Vec::new()];
        if let Some((_, value)) = get(&fields, "ingress") {
            lines[0] = item_lines(value);
            spec.ingress = self.field("ingress", |reader| {
                reader.each(value, |reader, item| {
                    let (from, ports) = reader.rule(item, &["from", "ports"], "from")?;
                    Some(IngressRule { from, ports })
                })
            });
        }
        if let Some((_, value)) = get(&fields, "egress") {
            lines[1] = item_lines(value);
            spec.egress = self.field("egress", |reader| {
                reader.each(value, |reader, item| {
                    let (to, ports) = reader.rule(item, &["to", "ports"], "to")?;
                    Some(EgressRule { to, ports })
                })
            });
        }
        self.surprises(node, &fields, &spec);
        let [ingress, egress] = lines;
        Some((spec, ingress, egress))
    }

    /// Warns about specs that are valid and mean something else than they seem to.
    fn surprises(&mut self, node: &Node, fields: &Fields<'_>, spec: &NetworkPolicySpec) {
        let at = |name: &str| get(fields, name).map_or(node.at, |(key, _)| key.at);
        let ingress = spec.ingress.as_deref().unwrap_or_default();
        let egress = spec.egress.as_deref().unwrap_or_default();
        let selects_all = spec.pod_selector.as_ref().is_none_or(|selector| {
            selector.match_labels.as_ref().is_none_or(Labels::is_empty)
                && selector
                    .match_expressions
                    .as_ref()
                    .is_none_or(Vec::is_empty)
        });
        if spec.pod_selector.is_none() {
            self.warn(
                at("podSelector"),
                Fault::new(
                    "without podSelector the policy selects every workload of its namespace",
                )
                .hint("write `podSelector: {}` if that is meant"),
            );
        } else if selects_all && !(ingress.is_empty() && egress.is_empty()) {
            self.warn(
                at("podSelector"),
                Fault::new(
                    "the empty podSelector selects every workload of the namespace, so its rules \
                     are granted to all of them",
                ),
            );
        }
        match spec.policy_types.as_deref() {
            None | Some([]) => {
                if !egress.is_empty() && ingress.is_empty() {
                    self.warn(
                        at("egress"),
                        Fault::new("without policyTypes this policy also denies all ingress").hint(
                            "write `policyTypes: [Egress]`, or `[Ingress, Egress]` if that is meant",
                        ),
                    );
                }
                if egress.is_empty() && get(fields, "egress").is_some() {
                    self.warn(
                        at("egress"),
                        Fault::new("without policyTypes an empty egress list isolates nothing")
                            .hint("write `policyTypes: [Ingress, Egress]` to deny all egress"),
                    );
                }
            }
            Some(types) => {
                for (name, kind, rules) in [
                    ("ingress", PolicyType::Ingress, ingress.len()),
                    ("egress", PolicyType::Egress, egress.len()),
                ] {
                    if rules > 0 && !types.contains(&kind) {
                        self.warn(
                            at(name),
                            Fault::new(format!(
                                "the {name} rules have no effect, policyTypes does not list {kind:?}"
                            ))
                            .hint(format!("add `{kind:?}` to policyTypes or remove the rules")),
                        );
                    }
                }
            }
        }
    }

    fn policy_type(&mut self, node: &Node) -> Option<PolicyType> {
        let text = self.string(node)?;
        self.choice(
            node.at,
            &text,
            "policy type",
            &[
                ("Ingress", PolicyType::Ingress),
                ("Egress", PolicyType::Egress),
            ],
        )
    }

    fn choice<T: Copy>(
        &mut self,
        at: Position,
        text: &str,
        what: &str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*value);
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        let fault = Fault::new(format!("`{text}` is not a {what}"));
        self.error(
            at,
            match syntax::nearest(text, names.iter().copied()) {
                Some(name) => fault.hint(format!("did you mean `{name}`?")),
                None => fault.hint(format!("use one of: {}", names.join(", "))),
            },
        );
        None
    }
}

fn item_lines(node: &Node) -> Vec<u32> {
    match &node.value {
        Value::Seq(items) => items.iter().map(|item| item.at.line).collect(),
        _ => Vec::new(),
    }
}
