//! The inventory's document format: reading it, and finding every mistake that shows without
//! looking at the host. [`super::inventory`] says what becomes of it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;

use policy::model::{Labels, NamedPort, Namespace, Protocol};
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::inventory::{Attachment, DEFAULT_NAMESPACE, Declared, Inventory, InventoryError, Place};

pub(super) fn parse(text: &str, file: &str) -> Result<Inventory, InventoryError> {
    let document: Document = serde_saphyr::from_str(text).map_err(|error| {
        let location = error.location();
        InventoryError {
            place: Place {
                file: file.to_owned(),
                line: location.map_or(0, |l| l.line()),
                column: location.map_or(0, |l| l.column()),
            },
            message: message_of(&error),
        }
    })?;
    Checker {
        file,
        addresses: BTreeMap::new(),
    }
    .check(document)
}

/// The message without the place and the source excerpt that the library adds.
fn message_of(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let end = first.rfind(" at line ").unwrap_or(first.len());
    let begin = match first.find(": ") {
        Some(colon) if first.starts_with("line ") => colon + 2,
        _ => 0,
    };
    let message = first.get(begin..end).unwrap_or(first);
    // The library speaks to programmers here.
    match message.split_once(", set DuplicateKeyPolicy") {
        Some((message, _)) => format!("{message}; keep one of the two"),
        None => match message {
            "invalid i64" => "expected a number".to_owned(),
            "unexpected end of input" => {
                "the document is empty; an inventory begins with `kind: Inventory`".to_owned()
            }
            message => message.to_owned(),
        },
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    kind: Spanned<String>,
    #[serde(default)]
    namespaces: Vec<NamespaceEntry>,
    #[serde(default)]
    workloads: Vec<WorkloadEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamespaceEntry {
    name: Spanned<String>,
    #[serde(default)]
    labels: SpannedLabels,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkloadEntry {
    name: Spanned<String>,
    namespace: Option<Spanned<String>>,
    #[serde(default)]
    labels: SpannedLabels,
    interface: Option<Spanned<String>>,
    netns: Option<Spanned<PathBuf>>,
    #[serde(default)]
    ips: Vec<Spanned<String>>,
    #[serde(default)]
    ports: Vec<PortEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortEntry {
    name: Spanned<String>,
    port: Spanned<i64>,
    protocol: Option<Spanned<String>>,
}

type SpannedLabels = HashMap<Spanned<String>, Spanned<String>>;

struct Checker<'a> {
    file: &'a str,
    /// Who claimed an address, and where.
    addresses: BTreeMap<IpAddr, (String, Place)>,
}

impl Checker<'_> {
    fn place<T>(&self, at: &Spanned<T>) -> Place {
        Place {
            file: self.file.to_owned(),
            line: at.referenced.line(),
            column: at.referenced.column(),
        }
    }

    fn fail<T, V>(&self, at: &Spanned<T>, message: String) -> Result<V, InventoryError> {
        Err(InventoryError {
            place: self.place(at),
            message,
        })
    }

    fn check(mut self, document: Document) -> Result<Inventory, InventoryError> {
        if document.kind.value != "Inventory" {
            let kind = &document.kind.value;
            return self.fail(
                &document.kind,
                format!("kind is `{kind}`; an inventory begins with `kind: Inventory`"),
            );
        }
        let mut inventory = Inventory::default();
        for entry in document.namespaces {
            let name = self.name(&entry.name, "namespace")?;
            let namespace = Namespace {
                labels: self.labels(entry.labels)?,
                name: name.clone(),
            };
            if inventory
                .namespaces
                .insert(name.clone(), namespace)
                .is_some()
            {
                return self.fail(
                    &entry.name,
                    format!("namespace `{name}` is declared twice; merge the two entries"),
                );
            }
        }
        let mut names: BTreeMap<(String, String), Place> = BTreeMap::new();
        let mut interfaces: BTreeMap<String, (String, Place)> = BTreeMap::new();
        for entry in document.workloads {
            let at = self.place(&entry.name);
            let named = entry.name.clone();
            let declared = self.workload(entry)?;
            let key = (declared.namespace.clone(), declared.name.clone());
            if let Some(first) = names.insert(key, at) {
                return self.fail(
                    &named,
                    format!(
                        "workload `{}` is declared twice in namespace `{}` (first at {first}); \
                         rename one, or put it into another namespace",
                        declared.name, declared.namespace
                    ),
                );
            }
            if let Attachment::Interface(interface) = &declared.attachment {
                let claim = (declared.name.clone(), declared.place.clone());
                if let Some((owner, first)) = interfaces.insert(interface.clone(), claim) {
                    return Err(InventoryError {
                        message: format!(
                            "interface `{interface}` of workload `{}` belongs to workload \
                             `{owner}` already ({first}); an interface leads to one workload",
                            declared.name
                        ),
                        place: declared.place,
                    });
                }
            }
            inventory.workloads.push(declared);
        }
        Ok(inventory)
    }

    fn workload(&mut self, entry: WorkloadEntry) -> Result<Declared, InventoryError> {
        let name = self.name(&entry.name, "workload")?;
        let namespace = match &entry.namespace {
            Some(namespace) => self.name(namespace, "namespace")?,
            None => DEFAULT_NAMESPACE.to_owned(),
        };
        let (attachment, place) = match (entry.interface, entry.netns) {
            (Some(interface), None) => {
                let place = self.place(&interface);
                (Attachment::Interface(interface.value), place)
            }
            (None, Some(netns)) if netns.value.is_absolute() => {
                let place = self.place(&netns);
                (Attachment::Netns(netns.value), place)
            }
            (None, Some(netns)) => {
                let relative = netns.value.display();
                return self.fail(
                    &netns,
                    format!(
                        "netns `{relative}` is not an absolute path; write `/run/netns/{relative}`"
                    ),
                );
            }
            (Some(_), Some(netns)) => {
                return self.fail(
                    &netns,
                    format!("workload `{name}` has both `interface` and `netns`; keep one"),
                );
            }
            (None, None) => {
                return self.fail(
                    &entry.name,
                    format!("workload `{name}` has neither `interface` nor `netns`; add one"),
                );
            }
        };
        let mut ips = Vec::with_capacity(entry.ips.len());
        for text in &entry.ips {
            let Ok(ip) = text.value.parse::<IpAddr>() else {
                return self.fail(
                    text,
                    format!(
                        "`{}` is not an IP address; write one such as 10.0.0.2 or fd00::2, \
                         without a prefix length",
                        text.value
                    ),
                );
            };
            if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
                return self.fail(text, format!("{ip} can belong to no workload; remove it"));
            }
            let claim = (name.clone(), self.place(text));
            if let Some((owner, first)) = self.addresses.insert(ip, claim) {
                return self.fail(
                    text,
                    format!(
                        "address {ip} of workload `{name}` belongs to workload `{owner}` already \
                         ({first}); an address belongs to one workload"
                    ),
                );
            }
            ips.push(ip);
        }
        Ok(Declared {
            labels: self.labels(entry.labels)?,
            ports: self.ports(&entry.ports)?,
            name,
            namespace,
            attachment,
            ips,
            place,
        })
    }

    fn ports(&self, entries: &[PortEntry]) -> Result<Vec<NamedPort>, InventoryError> {
        let mut ports: Vec<NamedPort> = Vec::with_capacity(entries.len());
        for entry in entries {
            let port = match u16::try_from(entry.port.value) {
                Ok(port) if port != 0 => port,
                _ => {
                    let port = entry.port.value;
                    return self.fail(
                        &entry.port,
                        format!("{port} is not a port; write a number from 1 to 65535"),
                    );
                }
            };
            let protocol = match &entry.protocol {
                None => Protocol::TCP,
                Some(text) => match text.value.parse() {
                    Ok(protocol @ (Protocol::TCP | Protocol::UDP | Protocol::SCTP)) => protocol,
                    _ => {
                        return self.fail(
                            text,
                            format!("`{}` has no ports; write TCP, UDP or SCTP", text.value),
                        );
                    }
                },
            };
            let name = entry.name.value.clone();
            if !is_port_name(&name) {
                return self.fail(
                    &entry.name,
                    format!(
                        "`{name}` is not a port name; write at most 15 lower-case letters, digits \
                         and `-`, with a letter among them"
                    ),
                );
            }
            if ports
                .iter()
                .any(|p| p.name == name && p.protocol == protocol)
            {
                return self.fail(
                    &entry.name,
                    format!("port `{name}` is declared twice for {protocol}; rename one"),
                );
            }
            ports.push(NamedPort {
                name,
                port,
                protocol,
            });
        }
        Ok(ports)
    }

    fn name(&self, name: &Spanned<String>, what: &str) -> Result<String, InventoryError> {
        if is_name(&name.value) {
            return Ok(name.value.clone());
        }
        self.fail(
            name,
            format!(
                "`{}` cannot name a {what}; write at most 63 letters, digits, `-`, `_` and `.`, \
                 beginning and ending with a letter or digit",
                name.value
            ),
        )
    }

    fn labels(&self, labels: SpannedLabels) -> Result<Labels, InventoryError> {
        let mut checked = Labels::new();
        // In the order written, so that the first mistake is the one reported.
        let mut labels: Vec<_> = labels.into_iter().collect();
        labels.sort_by_key(|(key, _)| (key.referenced.line(), key.referenced.column()));
        for (key, value) in labels {
            if !is_label_key(&key.value) {
                return self.fail(
                    &key,
                    format!(
                        "`{}` is not a label key; write `name` or `prefix/name` with at most 63 \
                         letters, digits, `-`, `_` and `.` in the name",
                        key.value
                    ),
                );
            }
            if !value.value.is_empty() && !is_name(&value.value) {
                return self.fail(
                    &value,
                    format!(
                        "`{}` is not a label value; write at most 63 letters, digits, `-`, `_` \
                         and `.`, beginning and ending with a letter or digit",
                        value.value
                    ),
                );
            }
            checked.insert(key.value, value.value);
        }
        Ok(checked)
    }
}

/// Kubernetes label values and names: 63 characters, alphanumeric at both ends.
fn is_name(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= 63
        && edge(text.as_bytes().first())
        && edge(text.as_bytes().last())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_label_key(text: &str) -> bool {
    match text.rsplit_once('/') {
        None => is_name(text),
        Some((prefix, name)) => {
            is_name(name) && prefix.len() <= 253 && prefix.split('.').all(is_name)
        }
    }
}

/// IANA service names, as Kubernetes requires of port names.
fn is_port_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.bytes().any(|byte| byte.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}
