//! Rules to entries.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use dataplane_common::policy::{
    Action, Mode, PolicyKey, PolicyValue, class_byte, class_index, rule_id,
};
use dataplane_common::{Direction, Identity};

use super::address::{AddressSpace, Piece};
use super::intern::Interner;
use super::peer::PeerIndex;
use super::{CompileError, Program, level, precedence};
use crate::model::{NamedPort, Protocol, Unselected};
use crate::resolve::{PeerMatch, Peers, PortRange, Ports, ResolvedPolicy, ResolvedRule};

/// A rule with its number and the identities its peers stand for.
struct CompiledRule<'a> {
    id: u32,
    rule: &'a ResolvedRule,
    /// `None`: any peer.
    peers: Option<Vec<Piece>>,
}

/// The rules of every policy by direction; `None` where a policy does not isolate.
type PolicyRules<'a> = [Option<Vec<CompiledRule<'a>>>; 2];

/// Entries and defaults, before a mode makes a [`Program`] of them.
#[derive(Clone)]
struct Body {
    defaults: [(Action, u32); 2],
    entries: Vec<(PolicyKey, PolicyValue)>,
}

/// What a program is made of: the selecting policies, and the workload's own named ports if one of
/// their ingress rules asks for a name.
type BodyKey = (Vec<usize>, Vec<NamedPort>);

pub(super) struct Compiler<'a> {
    space: &'a AddressSpace,
    unselected: Unselected,
    rules: Vec<PolicyRules<'a>>,
    /// Policies that select each profile, ascending.
    selecting: Vec<Vec<usize>>,
    bodies: HashMap<BodyKey, Rc<Body>>,
}

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

impl<'a> Compiler<'a> {
    pub(super) fn new(
        policies: &'a [ResolvedPolicy],
        space: &'a AddressSpace,
        mut index: PeerIndex<'a>,
        unselected: Unselected,
        interner: &mut Interner,
    ) -> Result<Self, CompileError> {
        let mut selecting = vec![Vec::new(); space.profiles.len()];
        let mut rules = Vec::with_capacity(policies.len());
        for (number, policy) in policies.iter().enumerate() {
            for &profile in index.selected(policy).iter() {
                selecting[profile].push(number);
            }
            let mut by_direction: PolicyRules<'a> = [None, None];
            for direction in DIRECTIONS {
                let Some(resolved) = policy.rules(direction) else {
                    continue;
                };
                let mut compiled = Vec::with_capacity(resolved.len());
                for rule in resolved {
                    compiled.push(CompiledRule {
                        id: interner.intern_rule(&rule.reference)?,
                        rule,
                        peers: pieces(&rule.peers, space, &mut index),
                    });
                }
                by_direction[direction as usize] = Some(compiled);
            }
            rules.push(by_direction);
        }
        Ok(Self {
            space,
            unselected,
            rules,
            selecting,
            bodies: HashMap::new(),
        })
    }

    /// The program of a profile in a mode.
    pub(super) fn program(&mut self, profile: usize, mode: Mode) -> Program {
        let body = self.body(profile);
        Program {
            mode,
            ingress_default: body.defaults[Direction::Ingress as usize],
            egress_default: body.defaults[Direction::Egress as usize],
            entries: body.entries.clone(),
        }
    }

    fn body(&mut self, profile: usize) -> Rc<Body> {
        let selecting = &self.selecting[profile];
        let own_ports = &self.space.profiles[profile].ports;
        let asks_for_names = selecting
            .iter()
            .filter_map(|&policy| self.rules[policy][Direction::Ingress as usize].as_ref())
            .flatten()
            .any(|rule| has_names(&rule.rule.ports));
        let ports = if asks_for_names {
            own_ports.clone()
        } else {
            Vec::new()
        };
        let key = (selecting.clone(), ports);
        if let Some(body) = self.bodies.get(&key) {
            return Rc::clone(body);
        }
        let body = Rc::new(self.build(selecting, own_ports));
        self.bodies.insert(key, Rc::clone(&body));
        body
    }

    fn build(&self, selecting: &[usize], own_ports: &[NamedPort]) -> Body {
        let mut entries = Entries::default();
        for &identity in &self.space.host_identities {
            entries.add(
                Direction::Ingress,
                Some(identity),
                None,
                PolicyValue {
                    precedence: precedence(level::BUILTIN, Action::Allow),
                    rule_id: rule_id::HOST_INGRESS,
                },
            );
        }
        let mut defaults = [match self.unselected {
            Unselected::Deny => (Action::Deny, rule_id::UNSELECTED_DENY),
            Unselected::Allow => (Action::Allow, rule_id::UNSELECTED_ALLOW),
        }; 2];
        for &policy in selecting {
            for direction in DIRECTIONS {
                let Some(rules) = &self.rules[policy][direction as usize] else {
                    continue;
                };
                defaults[direction as usize] = (Action::Deny, rule_id::DEFAULT_DENY);
                for rule in rules {
                    self.add_rule(&mut entries, direction, rule, own_ports);
                }
            }
        }
        Body {
            defaults,
            entries: entries.finish(),
        }
    }

    fn add_rule(
        &self,
        entries: &mut Entries,
        direction: Direction,
        rule: &CompiledRule<'_>,
        own_ports: &[NamedPort],
    ) {
        let value = PolicyValue {
            precedence: precedence(level::NETWORK_POLICY, Action::Allow),
            rule_id: rule.id,
        };
        let Ports::Of(ports) = &rule.rule.ports else {
            entries.add_peers(direction, rule.peers.as_deref(), None, value);
            return;
        };
        for port in ports {
            let protocol = port.protocol;
            let is_name = matches!(port.port, PortRange::Named(_));
            if !is_name || direction == Direction::Ingress {
                // The destination is known: this workload, or any where no name is asked for.
                for (first, last) in port.ranges(own_ports) {
                    for shape in prefixes(first, last) {
                        let l4 = Some((protocol, shape));
                        entries.add_peers(direction, rule.peers.as_deref(), l4, value);
                    }
                }
                continue;
            }
            // Every destination has its own number for the name, and only workloads have one.
            let every_workload;
            let peers = match &rule.peers {
                Some(peers) => peers.as_slice(),
                None => {
                    every_workload = self.every_workload();
                    &every_workload
                }
            };
            for peer in peers {
                let Some(profile) = peer.profile else {
                    continue;
                };
                for (first, last) in port.ranges(&self.space.profiles[profile].ports) {
                    for shape in prefixes(first, last) {
                        entries.add(
                            direction,
                            Some(peer.identity),
                            Some((protocol, shape)),
                            value,
                        );
                    }
                }
            }
        }
    }

    fn every_workload(&self) -> Vec<Piece> {
        profile_pieces(self.space, 0..self.space.profiles.len()).collect()
    }
}

fn has_names(ports: &Ports) -> bool {
    match ports {
        Ports::Any => false,
        Ports::Of(ports) => ports
            .iter()
            .any(|port| matches!(port.port, PortRange::Named(_))),
    }
}

fn profile_pieces(
    space: &AddressSpace,
    profiles: impl IntoIterator<Item = usize>,
) -> impl Iterator<Item = Piece> {
    profiles.into_iter().flat_map(|profile| {
        space.profile_identities[profile]
            .iter()
            .map(move |&identity| Piece {
                identity,
                profile: Some(profile),
            })
    })
}

/// The identities a rule's peers stand for; `None` for any peer.
fn pieces(peers: &Peers, space: &AddressSpace, index: &mut PeerIndex<'_>) -> Option<Vec<Piece>> {
    let Peers::Of(peers) = peers else {
        return None;
    };
    let mut found = BTreeSet::new();
    for peer in peers {
        match peer {
            PeerMatch::Block(block) => found.extend(space.inside(block)),
            PeerMatch::Workloads { namespaces, labels } => {
                let profiles = index.matching(namespaces, labels);
                found.extend(profile_pieces(space, profiles.iter().copied()));
            }
        }
    }
    Some(found.into_iter().collect())
}

/// A port and how many of its leading bits count.
type PortPrefix = (u16, u8);

/// The fewest prefixes that cover the inclusive range, ascending.
fn prefixes(first: u16, last: u16) -> impl Iterator<Item = PortPrefix> {
    let (mut next, end) = (u32::from(first), u32::from(last));
    std::iter::from_fn(move || {
        let start = u16::try_from(next).ok().filter(|_| next <= end)?;
        let aligned = if start == 0 {
            16
        } else {
            start.trailing_zeros()
        };
        let fitting = (end - next + 1).ilog2();
        let free = aligned.min(fitting);
        next += 1 << free;
        let bits = u8::try_from(16 - free).expect("free is at most 16");
        Some((start, bits))
    })
}

/// Entries under construction.
#[derive(Default)]
struct Entries(Vec<(PolicyKey, PolicyValue)>);

impl Entries {
    fn add_peers(
        &mut self,
        direction: Direction,
        peers: Option<&[Piece]>,
        l4: Option<(Protocol, PortPrefix)>,
        value: PolicyValue,
    ) {
        match peers {
            None => self.add(direction, None, l4, value),
            Some(peers) => {
                for peer in peers {
                    self.add(direction, Some(peer.identity), l4, value);
                }
            }
        }
    }

    fn add(
        &mut self,
        direction: Direction,
        peer: Option<Identity>,
        l4: Option<(Protocol, PortPrefix)>,
        value: PolicyValue,
    ) {
        let index = class_index(peer.is_none(), l4.map(|(_, (_, bits))| bits));
        let key = PolicyKey {
            policy: 0,
            peer: peer.unwrap_or(0),
            port_be: l4.map_or(0, |(_, (port, _))| port.to_be()),
            protocol: l4.map_or(0, |(protocol, _)| protocol.0),
            class: class_byte(direction, index),
        };
        self.0.push((key, value));
    }

    /// Sorted, one entry per key: the highest precedence, then the rule that came first.
    fn finish(mut self) -> Vec<(PolicyKey, PolicyValue)> {
        // Stable: among equals the first rule stays in front.
        self.0
            .sort_by(|(left, a), (right, b)| left.cmp(right).then(b.precedence.cmp(&a.precedence)));
        self.0.dedup_by_key(|(key, _)| *key);
        self.0.shrink_to_fit();
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_become_the_fewest_prefixes() {
        let cover = |first, last| prefixes(first, last).collect::<Vec<_>>();
        assert_eq!(cover(80, 80), [(80, 16)]);
        assert_eq!(cover(0, u16::MAX), [(0, 0)]);
        assert_eq!(cover(8000, 8003), [(8000, 14)]);
        assert_eq!(cover(1, 4), [(1, 16), (2, 15), (4, 16)]);
        assert_eq!(cover(65535, 65535), [(65535, 16)]);
        assert_eq!(cover(1, u16::MAX).len(), 16);
    }

    #[test]
    fn prefixes_cover_exactly_the_range() {
        for (first, last) in [
            (1, 1023),
            (30000, 32767),
            (5, 5),
            (0, 6),
            (1023, 1025),
            (1, 65535),
        ] {
            let covered: Vec<u32> = prefixes(first, last)
                .flat_map(|(port, bits)| {
                    let start = u32::from(port);
                    start..start + (1 << (16 - bits))
                })
                .collect();
            let expected: Vec<u32> = (u32::from(first)..=u32::from(last)).collect();
            assert_eq!(covered, expected, "{first}-{last}");
        }
    }
}
