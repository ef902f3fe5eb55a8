//! The address space, cut into pieces that no policy can tell apart.
//!
//! Blocks of one family either nest or are disjoint, so the set of blocks around an address is
//! known from the smallest of them. A piece is an owner (a kind of workload, the host, nobody)
//! and that smallest block.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_common::Identity;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::intern::{IdentityInfo, Interner};
use super::{CompileError, Compiled};
use crate::model::{Estate, Labels, NamedPort, Workload};
use crate::resolve::{Block, PeerMatch, Peers, ResolvedPolicy};

/// Workloads that no selector and no named port can tell apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Profile {
    pub(super) namespace: String,
    pub(super) labels: Labels,
    /// Sorted and without duplicates.
    pub(super) ports: Vec<NamedPort>,
}

impl Profile {
    fn new(workload: &Workload) -> Self {
        let mut ports = workload.ports.clone();
        ports.sort();
        ports.dedup();
        Self {
            namespace: workload.namespace.clone(),
            labels: workload.labels.clone(),
            ports,
        }
    }

    fn identity(&self, block: Option<IpNet>) -> IdentityInfo {
        IdentityInfo::Workload {
            namespace: self.namespace.clone(),
            labels: self.labels.clone(),
            ports: self.ports.clone(),
            block,
        }
    }
}

/// One identity in use and, for workloads, the profile behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Piece {
    pub(super) identity: Identity,
    pub(super) profile: Option<usize>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct AddressSpace {
    pub(super) profiles: Vec<Profile>,
    /// Profile of each workload of the estate.
    pub(super) workload_profiles: Vec<usize>,
    /// Identity of the first address of each workload of the estate.
    pub(super) primary_identities: Vec<Identity>,
    /// Identities in use by profile.
    pub(super) profile_identities: Vec<BTreeSet<Identity>>,
    /// Identities of the host, always including the plain one.
    pub(super) host_identities: BTreeSet<Identity>,
    pub(super) addresses: BTreeMap<IpAddr, Identity>,
    pub(super) prefixes: BTreeMap<IpNet, Identity>,
    /// Pieces by smallest block. Its order is such that the blocks inside a block follow it.
    blocks: BTreeMap<IpNet, BTreeSet<Piece>>,
}

impl AddressSpace {
    pub(super) fn new(
        estate: &Estate,
        policies: &[ResolvedPolicy],
        interner: &mut Interner,
    ) -> Result<Self, CompileError> {
        let mut space = Self::default();
        for net in named_blocks(policies) {
            space.blocks.insert(net, BTreeSet::new());
        }
        space.add_world(interner)?;
        let lengths = PrefixLengths::new(space.blocks.keys());
        space.add_host(estate, &lengths, interner)?;
        space.add_workloads(estate, &lengths, interner)?;
        Ok(space)
    }

    fn add_world(&mut self, interner: &mut Interner) -> Result<(), CompileError> {
        let world = interner.intern_identity(IdentityInfo::World)?;
        for net in [
            IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
            IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
        ] {
            self.prefixes.insert(net, world);
        }
        for (&cidr, pieces) in &mut self.blocks {
            let identity = interner.intern_identity(IdentityInfo::Block { cidr })?;
            // A policy that names `0.0.0.0/0` takes it from WORLD: it must not match IPv6.
            self.prefixes.insert(cidr, identity);
            pieces.insert(Piece {
                identity,
                profile: None,
            });
        }
        Ok(())
    }

    fn add_host(
        &mut self,
        estate: &Estate,
        lengths: &PrefixLengths,
        interner: &mut Interner,
    ) -> Result<(), CompileError> {
        let plain = interner.intern_identity(IdentityInfo::Host { block: None })?;
        self.host_identities.insert(plain);
        for &address in &estate.host_addresses {
            let block = lengths.smallest(address, &self.blocks);
            let identity = interner.intern_identity(IdentityInfo::Host { block })?;
            self.host_identities.insert(identity);
            self.addresses.insert(address, identity);
            self.add_piece(block, identity, None);
        }
        Ok(())
    }

    fn add_workloads(
        &mut self,
        estate: &Estate,
        lengths: &PrefixLengths,
        interner: &mut Interner,
    ) -> Result<(), CompileError> {
        let mut known: HashMap<Profile, usize> = HashMap::new();
        let mut identities: HashMap<(usize, Option<IpNet>), Identity> = HashMap::new();
        for workload in &estate.workloads {
            let profile = Profile::new(workload);
            let index = match known.get(&profile) {
                Some(&index) => index,
                None => {
                    let index = self.profiles.len();
                    known.insert(profile.clone(), index);
                    self.profiles.push(profile);
                    self.profile_identities.push(BTreeSet::new());
                    index
                }
            };
            let mut identify = |space: &mut Self, block| {
                let identity = match identities.get(&(index, block)) {
                    Some(&identity) => identity,
                    None => {
                        let info = space.profiles[index].identity(block);
                        let identity = interner.intern_identity(info)?;
                        identities.insert((index, block), identity);
                        identity
                    }
                };
                space.profile_identities[index].insert(identity);
                space.add_piece(block, identity, Some(index));
                Ok(identity)
            };
            let mut primary = None;
            for &address in &workload.addresses {
                let block = lengths.smallest(address, &self.blocks);
                let identity = identify(self, block)?;
                primary.get_or_insert(identity);
                // The host's addresses are the host, and the first claim of an address counts.
                self.addresses.entry(address).or_insert(identity);
            }
            let primary = match primary {
                Some(identity) => identity,
                None => identify(self, None)?,
            };
            self.primary_identities.push(primary);
            self.workload_profiles.push(index);
        }
        Ok(())
    }

    /// Keeps identities known that the addresses in force still have, so that programs may take
    /// effect before the addresses move on. They stand for nothing new: no address, no prefix.
    pub(super) fn keep(&mut self, in_force: &Compiled, interner: &Interner) {
        let assigned: BTreeSet<Identity> = identities(&self.addresses, &self.prefixes).collect();
        let retired: BTreeSet<Identity> = identities(&in_force.addresses, &in_force.prefixes)
            .filter(|identity| !assigned.contains(identity))
            .collect();
        if retired.is_empty() {
            return;
        }
        let profiles = self.profiles.iter().cloned().enumerate();
        let mut known: HashMap<Profile, usize> =
            profiles.map(|(index, profile)| (profile, index)).collect();
        for identity in retired {
            let (block, profile) = match interner.identity(identity) {
                Some(IdentityInfo::Workload {
                    namespace,
                    labels,
                    ports,
                    block,
                }) => {
                    let profile = Profile {
                        namespace,
                        labels,
                        ports,
                    };
                    let index = *known.entry(profile).or_insert_with_key(|profile| {
                        self.profiles.push(profile.clone());
                        self.profile_identities.push(BTreeSet::new());
                        self.profiles.len() - 1
                    });
                    self.profile_identities[index].insert(identity);
                    (block, Some(index))
                }
                Some(IdentityInfo::Host { block }) => {
                    self.host_identities.insert(identity);
                    (block, None)
                }
                Some(IdentityInfo::Block { cidr }) => (Some(cidr), None),
                Some(IdentityInfo::World) | None => continue,
            };
            if let Some(block) = block {
                let pieces = self.blocks.entry(block).or_default();
                pieces.insert(Piece { identity, profile });
            }
        }
    }

    fn add_piece(&mut self, block: Option<IpNet>, identity: Identity, profile: Option<usize>) {
        if let Some(pieces) = block.and_then(|block| self.blocks.get_mut(&block)) {
            pieces.insert(Piece { identity, profile });
        }
    }

    /// Everything whose addresses lie in the block and in none of its exceptions.
    pub(super) fn inside<'s>(&'s self, block: &'s Block) -> impl Iterator<Item = Piece> + 's {
        self.blocks
            .range(block.cidr..)
            .take_while(|(net, _)| block.cidr.contains(*net))
            .filter(|(net, _)| !block.except.iter().any(|except| except.contains(*net)))
            .flat_map(|(_, pieces)| pieces.iter().copied())
    }
}

fn identities<'m>(
    addresses: &'m BTreeMap<IpAddr, Identity>,
    prefixes: &'m BTreeMap<IpNet, Identity>,
) -> impl Iterator<Item = Identity> + 'm {
    addresses.values().chain(prefixes.values()).copied()
}

/// Every block and exception that a policy names.
fn named_blocks(policies: &[ResolvedPolicy]) -> HashSet<IpNet> {
    let rules = policies
        .iter()
        .flat_map(|policy| [&policy.ingress, &policy.egress])
        .flatten()
        .flatten();
    let mut nets = HashSet::new();
    for rule in rules {
        let Peers::Of(peers) = &rule.peers else {
            continue;
        };
        for peer in peers {
            if let PeerMatch::Block(block) = peer {
                nets.insert(block.cidr);
                nets.extend(&block.except);
            }
        }
    }
    nets
}

/// Prefix lengths in use, longest first.
struct PrefixLengths {
    v4: Vec<u8>,
    v6: Vec<u8>,
}

impl PrefixLengths {
    fn new<'n>(nets: impl Iterator<Item = &'n IpNet>) -> Self {
        let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
        for net in nets {
            match net {
                IpNet::V4(net) => v4.insert(net.prefix_len()),
                IpNet::V6(net) => v6.insert(net.prefix_len()),
            };
        }
        Self {
            v4: v4.into_iter().rev().collect(),
            v6: v6.into_iter().rev().collect(),
        }
    }

    /// The smallest of `blocks` around an address.
    fn smallest<T>(&self, address: IpAddr, blocks: &BTreeMap<IpNet, T>) -> Option<IpNet> {
        let lengths = match address {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        lengths
            .iter()
            .filter_map(|&length| IpNet::new(address, length).ok())
            .map(|net| net.trunc())
            .find(|net| blocks.contains_key(net))
    }
}
