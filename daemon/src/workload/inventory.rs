//! The static inventory: workloads that no runtime vouches for.
//!
//! All or nothing: a document with one mistake changes nothing, and the error names the line.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use policy::model::{Labels, NamedPort, Namespace};

use super::netlink::KernelView;

/// Namespace of workloads that name none, as in Kubernetes.
pub const DEFAULT_NAMESPACE: &str = "default";

/// A place in an inventory document, 1-based.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// File, or `-`.
    pub file: String,
    /// Line; 0 when unknown.
    pub line: u64,
    /// Column in characters; 0 when unknown.
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (0, _) => f.write_str(&self.file),
            (line, column) => write!(f, "{}:{line}:{column}", self.file),
        }
    }
}

/// A mistake in an inventory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct InventoryError {
    /// Where.
    pub place: Place,
    /// What is wrong and the way out.
    pub message: String,
}

/// How a workload of the inventory is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// By its host-side interface.
    Interface(String),
    /// By its network namespace.
    Netns(PathBuf),
}

/// A workload of the inventory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Name, unique within the namespace.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Labels.
    pub labels: Labels,
    /// How it is found.
    pub attachment: Attachment,
    /// Addresses; empty when they are to be found.
    pub ips: Vec<IpAddr>,
    /// Named ports.
    pub ports: Vec<NamedPort>,
    /// Where the interface or namespace is named.
    pub place: Place,
}

/// A whole inventory, checked in itself. Whether its interfaces and namespaces exist is checked
/// against the kernel when it is put in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Namespaces with labels.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Workloads in the order written.
    pub workloads: Vec<Declared>,
}

impl Inventory {
    /// Reads and checks a YAML or JSON document. `file` names it in errors.
    ///
    /// # Errors
    /// The first mistake, with its line.
    pub fn parse(text: &str, file: &str) -> Result<Self, InventoryError> {
        super::inventory_format::parse(text, file)
    }

    /// Paths of namespaces it names.
    #[must_use]
    pub fn netns_paths(&self) -> Vec<PathBuf> {
        let path = |workload: &Declared| match &workload.attachment {
            Attachment::Netns(path) => Some(path.clone()),
            Attachment::Interface(_) => None,
        };
        self.workloads.iter().filter_map(path).collect()
    }

    /// Checks that every interface and namespace exists, leads somewhere, and is named once.
    ///
    /// # Errors
    /// The first that does not, with its line.
    pub fn check_against(&self, view: &KernelView) -> Result<(), InventoryError> {
        let mut by_netns: BTreeMap<u64, &Declared> = BTreeMap::new();
        for declared in &self.workloads {
            let fail = |message: String| {
                Err(InventoryError {
                    place: declared.place.clone(),
                    message,
                })
            };
            match &declared.attachment {
                Attachment::Interface(name) => {
                    let Some(link) = view.links.get(name) else {
                        return fail(format!(
                            "interface `{name}` of workload `{}` does not exist in the daemon's \
                             network namespace; `ip -br link` there lists those that do",
                            declared.name
                        ));
                    };
                    if view.uplinks.contains(&link.ifindex) {
                        return fail(format!(
                            "interface `{name}` of workload `{}` carries this host's default \
                             route, so it is not a workload's; name the host-side veth",
                            declared.name
                        ));
                    }
                }
                Attachment::Netns(path) => {
                    let Some(inode) = view.paths.get(path) else {
                        return fail(format!(
                            "network namespace `{}` of workload `{}` does not exist; `ip netns` \
                             lists the named ones",
                            path.display(),
                            declared.name
                        ));
                    };
                    if *inode == view.own_inode {
                        return fail(format!(
                            "network namespace `{}` of workload `{}` is the daemon's own; its \
                             traffic crosses no interface that could be protected",
                            path.display(),
                            declared.name
                        ));
                    }
                    if !view.netnses.contains_key(inode) {
                        return fail(format!(
                            "no veth leads from the daemon's network namespace to `{}` of workload \
                             `{}`; create it first, or name the host-side `interface`",
                            path.display(),
                            declared.name
                        ));
                    }
                    if let Some(other) = by_netns.insert(*inode, declared) {
                        return fail(format!(
                            "workloads `{}` and `{}` ({}) are the same network namespace; give \
                             each its own, or name interfaces instead",
                            declared.name, other.name, other.place
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Reads an inventory file.
///
/// # Errors
/// The file cannot be read, or the first mistake in it.
pub fn read(path: &Path) -> Result<Inventory, InventoryError> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Inventory::parse(&text, &file),
        Err(error) => Err(InventoryError {
            message: format!("cannot read the inventory: {error}"),
            place: Place {
                file,
                line: 0,
                column: 0,
            },
        }),
    }
}

#[cfg(test)]
#[path = "inventory_tests.rs"]
mod tests;
