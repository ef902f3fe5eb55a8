//! What the kernel holds: BPF objects behind interfaces, and the network configuration around them.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};
use serde_json::Value;
use testbed::{Lab, Netns, Workload, wait_for};

use crate::output::Output;

/// Programs and maps by their kernel ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Ids of programs.
    pub programs: BTreeSet<u32>,
    /// Ids of maps these use.
    pub maps: BTreeSet<u32>,
}

impl Objects {
    /// What is attached to the host side of these workloads, as TCX links or clsact filters.
    ///
    /// # Panics
    /// When the kernel cannot be asked.
    #[must_use]
    pub fn attached(lab: &Lab, workloads: &[&Workload]) -> Self {
        let mut objects = Self::default();
        for interface in workloads.iter().flat_map(|workload| &workload.interfaces) {
            let (tcx, clsact) = lab
                .host()
                .run(|| (tcx(&interface.host_name), clsact(&interface.host_name)))
                .expect("the host namespace");
            objects.programs.extend(tcx);
            objects.programs.extend(clsact);
        }
        for program in programs() {
            if objects.programs.contains(&program.id()) {
                let maps = program.map_ids().expect("ids of a program's maps");
                objects.maps.extend(maps.into_iter().flatten());
            }
        }
        objects
    }

    /// Those of them that still exist.
    ///
    /// # Panics
    /// When the kernel cannot be asked.
    #[must_use]
    pub fn alive(&self) -> Self {
        let programs: BTreeSet<u32> = programs().iter().map(ProgramInfo::id).collect();
        let maps: BTreeSet<u32> = aya::maps::loaded_maps()
            .filter_map(Result::ok)
            .map(|map| map.id())
            .collect();
        Self {
            programs: &self.programs & &programs,
            maps: &self.maps & &maps,
        }
    }

    /// Nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty()
    }

    /// Waits until none of them exists any more: the kernel frees them after a grace period.
    ///
    /// # Panics
    /// When some stay.
    pub fn wait_until_gone(&self) {
        let gone = wait_for(Duration::from_secs(20), "BPF objects to be freed", || {
            self.alive().is_empty().then_some(())
        });
        assert!(gone.is_ok(), "left in the kernel: {:?}", self.alive());
    }
}

/// Programs that exist. One may go while the list is read.
fn programs() -> Vec<ProgramInfo> {
    loaded_programs().filter_map(Result::ok).collect()
}

fn tcx(interface: &str) -> Vec<u32> {
    [TcAttachType::Ingress, TcAttachType::Egress]
        .into_iter()
        .flat_map(|hook| {
            let (_, programs) = SchedClassifier::query_tcx(interface, hook)
                .unwrap_or_else(|error| panic!("TCX programs of {interface}: {error}"));
            programs
        })
        .map(|program| program.id())
        .collect()
}

fn clsact(interface: &str) -> Vec<u32> {
    ["ingress", "egress"]
        .into_iter()
        .flat_map(|hook| {
            let mut command = Command::new("tc");
            command.args(["-json", "filter", "show", "dev", interface, hook]);
            let output = Output::of(command, "").ok();
            let filters: Value = match output.stdout.trim() {
                "" => Value::Array(Vec::new()),
                _ => output.json(),
            };
            let ids: Vec<u32> = filters
                .as_array()
                .expect("a list of filters")
                .iter()
                .filter_map(|filter| filter["options"]["prog"]["id"].as_u64())
                .filter_map(|id| u32::try_from(id).ok())
                .collect();
            ids
        })
        .collect()
}

/// Routing rules, routes, packet filter rules and queueing disciplines of a namespace: everything a
/// firewall might leave behind outside BPF.
///
/// # Panics
/// When a command fails.
#[must_use]
pub fn network_configuration(netns: &Netns) -> Vec<String> {
    const COMMANDS: [&str; 8] = [
        "ip -4 rule show",
        "ip -6 rule show",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip link show",
        "ip address show",
        "nft list ruleset",
        "tc qdisc show",
    ];
    COMMANDS
        .iter()
        .flat_map(|line| {
            let mut words = line.split(' ');
            let mut command = Command::new(words.next().expect("a program"));
            command.args(words);
            let output = netns
                .run(|| Output::of(command, ""))
                .expect("the namespace")
                .ok();
            let mut lines: Vec<String> = output
                .stdout
                .lines()
                .map(|found| format!("{line}: {found}"))
                .collect();
            lines.sort();
            lines
        })
        .collect()
}
