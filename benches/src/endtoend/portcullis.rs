//! The dataplane of this project on the veths of a lab, driven by the daemon's own code.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use daemon::dataplane::{self, Dataplane, DataplaneConfig, Desired, DesiredEndpoint, EventReader};
use dataplane_common::policy::{Action, Mode, PolicyKey, PolicyValue, class_byte, class_index};
use dataplane_common::{Direction, identity, proto};
use policy::compile::{Compiled, CompiledWorkload, Program, level};
use testbed::{Lab, Workload};

use super::firewall::{CLIENT, SERVER, TCP_PORT, UDP_PORT};

const PINS: &str = "/sys/fs/bpf";
const PREFIX: &str = "pc-endtoend-";
const CLIENT_ID: u32 = identity::FIRST_DYNAMIC;
const SERVER_ID: u32 = CLIENT_ID + 1;
const FIRST_PEER: u32 = 1000;
const PEERS: u32 = 1000;

/// A dataplane in force. Dropped, it leaves no program, map or pin.
#[derive(Debug)]
pub(super) struct Enforcement {
    // Declared first, so closed first.
    _dataplane: Dataplane,
    reader: EventReader,
    _pins: Pins,
}

#[derive(Debug)]
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        // What is left, `sweep` of the next run removes.
        let _ = dataplane::detach(&self.0);
    }
}

impl Enforcement {
    /// Enforces `rules` rules on either workload: egress of the client, ingress of the server.
    pub(super) fn start(
        lab: &Lab,
        client: &Workload,
        server: &Workload,
        rules: u32,
        number: usize,
    ) -> Result<Self> {
        let pins = Pins(Path::new(PINS).join(format!("{PREFIX}{}-{number}", std::process::id())));
        let desired = Desired {
            compiled: Arc::new(compiled(rules)?),
            endpoints: vec![endpoint(0, client), endpoint(1, server)],
        };
        // Interface indices are those of the lab's host.
        let (dataplane, reader) = lab.host().run(|| -> Result<_> {
            let (mut dataplane, reader) = Dataplane::open(&DataplaneConfig::new(&pins.0))?;
            let applied = dataplane.apply(&desired)?;
            for endpoint in applied.endpoints {
                endpoint.result.map_err(anyhow::Error::msg)?;
            }
            Ok((dataplane, reader))
        })??;
        Ok(Self {
            _dataplane: dataplane,
            reader,
            _pins: pins,
        })
    }

    /// Takes the events out of the ring, as the daemon would.
    pub(super) fn drain(&mut self) {
        self.reader.drain(usize::MAX, |_| {});
    }
}

/// Removes pins of earlier runs that were killed.
pub(super) fn sweep() -> Result<()> {
    let Ok(entries) = std::fs::read_dir(PINS) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            dataplane::detach(&entry.path()).context("removing pins of an earlier run")?;
        }
    }
    Ok(())
}

fn endpoint(number: usize, workload: &Workload) -> DesiredEndpoint {
    let interface = &workload.interfaces[0];
    DesiredEndpoint {
        workload: number,
        ifindex: interface.host_ifindex,
        ifname: interface.host_name.clone(),
        network: 0,
        addresses: workload.addresses(),
        learn_addresses: false,
        unsure_for: Duration::ZERO,
    }
}

fn compiled(rules: u32) -> Result<Compiled> {
    let mut addresses = BTreeMap::from([
        (IpAddr::V4(CLIENT), CLIENT_ID),
        (IpAddr::V4(SERVER), SERVER_ID),
    ]);
    for peer in 0..rules.min(PEERS) {
        let [_, _, high, low] = peer.to_be_bytes();
        addresses.insert(Ipv4Addr::new(10, 72, high, low).into(), FIRST_PEER + peer);
    }
    let workload = |number| CompiledWorkload {
        identity: CLIENT_ID + number as u32,
        program: number,
    };
    Ok(Compiled {
        addresses,
        prefixes: BTreeMap::from([
            ("0.0.0.0/0".parse()?, identity::WORLD),
            ("::/0".parse()?, identity::WORLD),
        ]),
        workloads: vec![workload(0), workload(1)],
        programs: vec![
            program(Direction::Egress, SERVER_ID, rules),
            program(Direction::Ingress, CLIENT_ID, rules),
        ],
    })
}

/// `rules` entries in the shapes of a real policy: mostly one port of one peer, and also a port
/// range, a port for anyone and everything to one peer.
fn program(direction: Direction, partner: u32, rules: u32) -> Program {
    let key = |peer, protocol, port: u16, class| PolicyKey {
        policy: 0,
        peer,
        port_be: port.to_be(),
        protocol,
        class: class_byte(direction, class),
    };
    let one_port = class_index(false, Some(16));
    let mut keys = vec![
        key(partner, proto::TCP, TCP_PORT, one_port),
        key(partner, proto::UDP, UDP_PORT, one_port),
        key(FIRST_PEER, proto::UDP, 1024, class_index(false, Some(10))),
        key(0, proto::UDP, 53, class_index(true, Some(16))),
        key(FIRST_PEER, 0, 0, class_index(false, None)),
    ];
    let filling = (rules as usize).saturating_sub(keys.len()) as u32;
    keys.extend((0..filling).map(|number| {
        let port = 1024 + (number / PEERS) as u16;
        key(FIRST_PEER + number % PEERS, proto::TCP, port, one_port)
    }));
    keys.sort_unstable();
    let value = PolicyValue {
        precedence: level::NETWORK_POLICY << 2 | Action::Allow as u32,
        rule_id: dataplane_common::policy::FIRST_RULE_ID,
    };
    Program {
        mode: Mode::Protect,
        ingress_default: (Action::Deny, 1),
        egress_default: (Action::Deny, 1),
        entries: keys.into_iter().map(|key| (key, value)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_exactly_the_rules_asked_for() {
        for rules in [10, 1000, 10_000] {
            let compiled = compiled(rules).unwrap();
            for program in &compiled.programs {
                assert_eq!(program.entries.len(), rules as usize);
                assert!(program.entries.is_sorted_by(|a, b| a.0 < b.0));
            }
        }
    }
}
