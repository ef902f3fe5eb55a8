//! Who is who: the kernel's view, the inventory and Docker become one list of workloads. Pure.
//!
//! A namespace or interface belongs to the first source that names it: inventory, then Docker, then
//! the bare namespace. All interfaces of one namespace belong to one workload unless the inventory
//! gives them to several.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use policy::model::Labels;

use super::docker::{Container, DockerState, NetworkMode};
use super::inventory::{Attachment, Declared, Inventory};
use super::model::{
    APP_LABEL, EstateSnapshot, GROUP_LABEL, Problem, Source, Workload, WorkloadId,
    WorkloadInterface, WorkloadState,
};
use super::netlink::{HostLink, KernelView, NetnsView, VethPair};

/// Policy namespace of workloads that are nothing but a network namespace.
pub const NETNS_NAMESPACE: &str = "netns";
/// Routing domain of everything on this host.
const NETWORK: u32 = 0;

/// Everything known at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The kernel's view, scanned with the paths of the other two.
    pub view: &'a KernelView,
    /// The inventory in force.
    pub inventory: &'a Inventory,
    /// Docker's containers; default without Docker.
    pub docker: &'a DockerState,
}

/// Decides. Revisions are left 0 for the caller to fill.
#[must_use]
pub fn merge(inputs: Inputs<'_>) -> EstateSnapshot {
    let mut merge = Merge {
        inputs,
        claimed: BTreeSet::new(),
        owners: BTreeMap::new(),
        workloads: Vec::new(),
        problems: inputs.docker.problem.iter().cloned().collect(),
    };
    merge.inventory();
    merge.docker();
    merge.bare();
    merge.orphans();
    merge.unify();
    let Merge {
        mut workloads,
        mut problems,
        ..
    } = merge;
    workloads.sort_by(|a, b| a.id.cmp(&b.id));
    problems.sort();
    problems.dedup();
    EstateSnapshot {
        workloads,
        problems,
        namespaces: inputs.inventory.namespaces.clone(),
        host_addresses: inputs.view.host_addresses.iter().copied().collect(),
        ..EstateSnapshot::default()
    }
}

struct Merge<'a> {
    inputs: Inputs<'a>,
    /// Host-side interfaces that belong to a workload.
    claimed: BTreeSet<u32>,
    /// Index in `workloads` of the owner of a namespace.
    owners: BTreeMap<u64, usize>,
    workloads: Vec<Workload>,
    problems: Vec<Problem>,
}

impl<'a> Merge<'a> {
    fn inventory(&mut self) {
        // Interfaces first: a namespace entry takes what no interface entry has named.
        let by_interface = |d: &&Declared| matches!(d.attachment, Attachment::Interface(_));
        let (interfaces, netnses): (Vec<_>, Vec<_>) = self
            .inputs
            .inventory
            .workloads
            .iter()
            .partition(by_interface);
        for declared in interfaces.into_iter().chain(netnses) {
            self.declared(declared);
        }
        // What is left of a namespace goes to the workload that is in it.
        let owners: Vec<(u64, usize)> = self.owners.iter().map(|(&i, &w)| (i, w)).collect();
        for (inode, owner) in owners {
            let Some(netns) = self.inputs.view.netnses.get(&inode) else {
                continue;
            };
            for pair in self.unclaimed(netns) {
                self.attach(owner, netns, pair);
            }
        }
    }

    fn declared(&mut self, declared: &Declared) {
        let view = self.inputs.view;
        let owner = self.workloads.len();
        let group = declared
            .labels
            .get(GROUP_LABEL)
            .cloned()
            .unwrap_or_else(|| {
                let app = declared.labels.get(APP_LABEL).unwrap_or(&declared.name);
                format!("{}/{app}", declared.namespace)
            });
        self.workloads.push(Workload {
            id: WorkloadId(format!(
                "inventory:{}/{}",
                declared.namespace, declared.name
            )),
            source: Source::Inventory,
            spec: policy::model::Workload {
                name: declared.name.clone(),
                namespace: declared.namespace.clone(),
                labels: declared.labels.clone(),
                addresses: Vec::new(),
                ports: declared.ports.clone(),
                group,
            },
            image: None,
            container_id: None,
            interfaces: Vec::new(),
            netns_path: None,
            learn_addresses: false,
            state: WorkloadState::Present,
        });
        let absent = match &declared.attachment {
            Attachment::Interface(name) => match (view.pair_of(name), view.links.get(name)) {
                (Some((netns, pair)), _) => {
                    self.owners.entry(netns.inode).or_insert(owner);
                    self.attach(owner, netns, pair);
                    None
                }
                // No veth, or one whose other end cannot be found: a tap, say.
                (None, Some(link)) => {
                    self.attach_blind(owner, link);
                    None
                }
                (None, None) => Some(format!("interface {name} is gone")),
            },
            Attachment::Netns(path) => {
                let netns = view
                    .paths
                    .get(path)
                    .and_then(|inode| view.netnses.get(inode));
                match netns {
                    Some(netns) => {
                        self.owners.entry(netns.inode).or_insert(owner);
                        for pair in self.unclaimed(netns) {
                            self.attach(owner, netns, pair);
                        }
                        None
                    }
                    None => Some(format!(
                        "network namespace {} is gone, or no veth leads there any more",
                        path.display()
                    )),
                }
            }
        };
        let workload = &mut self.workloads[owner];
        match absent {
            Some(cause) => {
                workload.state = WorkloadState::Absent;
                self.problems.push(Problem::new(
                    format!("workload {}/{}", declared.namespace, declared.name),
                    cause,
                    format!("recreate it, or remove the entry at {}", declared.place),
                ));
            }
            None if !declared.ips.is_empty() => {
                workload.spec.addresses.clone_from(&declared.ips);
                workload.learn_addresses = false;
            }
            None => {}
        }
    }

    fn docker(&mut self) {
        for container in self.inputs.docker.containers.values() {
            self.container(container);
        }
    }

    fn container(&mut self, container: &Container) {
        let view = self.inputs.view;
        let subject = format!("container {}", container.name);
        let inode = container
            .netns_paths()
            .iter()
            .find_map(|path| view.paths.get(path));
        match (&container.network, inode) {
            (NetworkMode::Host, _) => return self.host_network(subject),
            (_, Some(inode)) if *inode == view.own_inode => return self.host_network(subject),
            // One network namespace, one workload: the container that owns the namespace.
            (NetworkMode::Container, _) | (NetworkMode::None, _) => return,
            (NetworkMode::Own, _) => {}
        }
        let Some(netns) = inode.and_then(|inode| view.netnses.get(inode)) else {
            self.problems.push(Problem::new(
                subject,
                "no veth leads from the daemon's network namespace to it, so it is not protected",
                "macvlan, ipvlan and rootless networks bypass the host; use a bridge network, and \
                 start the daemon in the network namespace that dockerd uses",
            ));
            return;
        };
        if let Some(owner) = self.owners.get(&netns.inode) {
            let owner = &mut self.workloads[*owner];
            owner.image.get_or_insert_with(|| container.image.clone());
            owner
                .container_id
                .get_or_insert_with(|| container.id.clone());
            return;
        }
        let pairs = self.unclaimed(netns);
        if pairs.is_empty() {
            return;
        }
        let owner = self.workloads.len();
        self.owners.insert(netns.inode, owner);
        self.workloads.push(Workload {
            id: container.workload_id(),
            source: Source::Docker,
            spec: container.spec(),
            image: Some(container.image.clone()),
            container_id: Some(container.id.clone()),
            interfaces: Vec::new(),
            netns_path: None,
            learn_addresses: false,
            state: WorkloadState::Present,
        });
        for pair in pairs {
            self.attach(owner, netns, pair);
        }
        let addresses = &mut self.workloads[owner].spec.addresses;
        if addresses.is_empty() {
            addresses.extend(&container.addresses);
        }
    }

    fn host_network(&mut self, subject: String) {
        self.problems.push(Problem::new(
            subject,
            "it shares the host's network, so its traffic is the host's and is not protected",
            "give it a bridge network of its own",
        ));
    }

    fn bare(&mut self) {
        for netns in self.inputs.view.netnses.values() {
            if self.owners.contains_key(&netns.inode) {
                continue;
            }
            // Docker will name it in a moment.
            if netns.container && netns.name.is_none() && self.inputs.docker.connected {
                continue;
            }
            let pairs = self.unclaimed(netns);
            if pairs.is_empty() {
                continue;
            }
            let name = match (&netns.name, &netns.command) {
                (Some(name), _) => name.clone(),
                (None, Some(command)) => format!("{command}-{}", netns.inode),
                (None, None) => netns.inode.to_string(),
            };
            let owner = self.workloads.len();
            self.owners.insert(netns.inode, owner);
            self.workloads.push(Workload {
                id: WorkloadId(format!("netns:{name}")),
                source: Source::Netns,
                spec: policy::model::Workload {
                    labels: Labels::from([(APP_LABEL.to_owned(), name.clone())]),
                    group: format!("{NETNS_NAMESPACE}/{name}"),
                    namespace: NETNS_NAMESPACE.to_owned(),
                    addresses: Vec::new(),
                    ports: Vec::new(),
                    name,
                },
                image: None,
                container_id: None,
                interfaces: Vec::new(),
                netns_path: None,
                learn_addresses: false,
                state: WorkloadState::Present,
            });
            for pair in pairs {
                self.attach(owner, netns, pair);
            }
        }
    }

    /// Veths that lead out of this namespace to nobody we can name.
    fn orphans(&mut self) {
        let view = self.inputs.view;
        let known: BTreeSet<u32> = view
            .netnses
            .values()
            .flat_map(|netns| &netns.pairs)
            .map(|pair| pair.host.ifindex)
            .collect();
        for link in view.links.values() {
            let ours = self.claimed.contains(&link.ifindex)
                || view.uplinks.contains(&link.ifindex)
                || known.contains(&link.ifindex);
            if link.peer.is_some() && !ours {
                self.problems.push(Problem::new(
                    format!("interface {}", link.name),
                    "its other end is in a network namespace without a name and without a process \
                     the daemon can see, so it is not protected",
                    "declare it in the inventory by `interface`",
                ));
            }
        }
    }

    /// Pairs of a namespace that nobody has claimed and that are not the way out.
    fn unclaimed(&self, netns: &'a NetnsView) -> Vec<&'a VethPair> {
        let free = |pair: &&VethPair| {
            !self.claimed.contains(&pair.host.ifindex)
                && !self.inputs.view.uplinks.contains(&pair.host.ifindex)
        };
        netns.pairs.iter().filter(free).collect()
    }

    fn attach(&mut self, owner: usize, netns: &NetnsView, pair: &VethPair) {
        self.claimed.insert(pair.host.ifindex);
        let workload = &mut self.workloads[owner];
        workload.interfaces.push(WorkloadInterface {
            ifindex: pair.host.ifindex,
            name: pair.host.name.clone(),
            mac: pair.inner.as_ref().and_then(|inner| inner.mac),
            network: NETWORK,
            netns: Some(netns.inode),
        });
        workload.interfaces.sort();
        workload.netns_path = Some(netns.path.clone());
        match &pair.inner {
            Some(inner) => {
                for address in &inner.addresses {
                    if !workload.spec.addresses.contains(address) {
                        workload.spec.addresses.push(*address);
                    }
                }
            }
            None => workload.learn_addresses = true,
        }
        if let Some(error) = &netns.error {
            self.problems.push(Problem::new(
                format!("workload {}", self.workloads[owner].id),
                format!("its addresses cannot be read: {error}"),
                "run the daemon with CAP_SYS_ADMIN, or declare the addresses in the inventory",
            ));
        }
    }

    fn attach_blind(&mut self, owner: usize, link: &HostLink) {
        self.claimed.insert(link.ifindex);
        let workload = &mut self.workloads[owner];
        workload.interfaces.push(WorkloadInterface {
            ifindex: link.ifindex,
            name: link.name.clone(),
            mac: None,
            network: NETWORK,
            netns: None,
        });
        workload.learn_addresses = true;
    }

    /// One owner per address and per name. Workloads are in order of precedence here.
    fn unify(&mut self) {
        let mut owners: BTreeMap<IpAddr, WorkloadId> = BTreeMap::new();
        let mut names: BTreeSet<(String, String)> = BTreeSet::new();
        let mut ids: BTreeSet<WorkloadId> = BTreeSet::new();
        // Declared addresses win over those merely seen.
        for workload in &mut self.workloads {
            let id = workload.id.clone();
            if !ids.insert(id.clone()) {
                let inode = workload.interfaces.first().and_then(|i| i.netns);
                let suffix = match (&workload.container_id, inode) {
                    (Some(container), _) => container.chars().take(12).collect(),
                    (None, inode) => inode.unwrap_or_default().to_string(),
                };
                workload.id = WorkloadId(format!("{id}@{suffix}"));
                ids.insert(workload.id.clone());
                self.problems.push(Problem::new(
                    format!("workload {}", workload.id),
                    format!("another running workload is {id} already"),
                    "give one of them another name",
                ));
            }
            let spec = &mut workload.spec;
            let taken = (spec.namespace.clone(), spec.name.clone());
            if !names.insert(taken) {
                let old = spec.name.clone();
                spec.name = workload.id.0.replace([':', '/'], "-");
                names.insert((spec.namespace.clone(), spec.name.clone()));
                self.problems.push(Problem::new(
                    format!("workload {}", workload.id),
                    format!(
                        "the name {}/{old} is taken; it is called {} here",
                        spec.namespace, spec.name
                    ),
                    "rename one of the two",
                ));
            }
            let host = &self.inputs.view.host_addresses;
            let problems = &mut self.problems;
            spec.addresses.retain(|address| {
                let owner = match owners.get(address) {
                    Some(owner) => owner.to_string(),
                    None if host.contains(address) => "the host".to_owned(),
                    None => {
                        owners.insert(*address, id.clone());
                        return true;
                    }
                };
                problems.push(Problem::new(
                    format!("workload {id}"),
                    format!("its address {address} belongs to {owner} already"),
                    "give every workload addresses of its own",
                ));
                false
            });
            workload
                .spec
                .addresses
                .sort_by_key(|address| (link_local(*address), *address));
        }
    }
}

fn link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Paths of namespaces that a scan must look up for these sources.
#[must_use]
pub fn netns_paths(inventory: &Inventory, docker: &DockerState) -> Vec<PathBuf> {
    let mut paths = inventory.netns_paths();
    paths.extend(docker.containers.values().flat_map(Container::netns_paths));
    paths
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
