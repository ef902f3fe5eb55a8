//! CPU time per packet, connection and MiB between two workloads, against no firewall and against
//! the firewalls of the kernel, in alternation. The method is in `README.md`.

mod bed;
mod cpu;
mod firewall;
mod goals;
mod paired;
mod portcullis;
mod report;
mod work;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use bed::{Bed, Topology, Variant};
use cpu::Cpu;
use firewall::Firewall;
use paired::Random;
pub use report::{EndToEnd, print};
use report::{Setting, Skipped};
use work::Work;

/// Copies of "no firewall". What they seem to differ by is the error of everything else.
const COPIES: usize = 3;
/// Rounds without which no interval is worth its name.
const LEAST_ROUNDS: usize = 9;

/// Measures both topologies. `quick` takes fewer variants and rounds.
///
/// # Errors
/// No privileges, a firewall that does not filter, a lost packet. Nothing is left behind.
pub fn run(quick: bool) -> Result<EndToEnd> {
    portcullis::sweep()?;
    let cpu = Cpu::choose()?;
    let plan: &[(Topology, &[u32], u64)] = if quick {
        &[(Topology::Bridged, &[1000], 15)]
    } else {
        &[
            (Topology::Bridged, &[10, 1000, 10_000], 110),
            (Topology::Routed, &[1000], 45),
        ]
    };
    let mut settings = Vec::new();
    for &(topology, rules, seconds) in plan {
        settings.push(measure(
            &cpu,
            topology,
            rules,
            Duration::from_secs(seconds),
        )?);
    }
    Ok(EndToEnd {
        cpu: cpu.number(),
        goals: settings.iter().flat_map(goals::judge).collect(),
        settings,
    })
}

fn measure(cpu: &Cpu, topology: Topology, rules: &[u32], budget: Duration) -> Result<Setting> {
    let (mut beds, skipped) = build(topology, rules)?;
    let mut order: Vec<usize> = (0..beds.len()).collect();
    let mut random = Random::new(0x2545_f491_4f6c_dd1d);
    let start = Instant::now();
    let mut rounds = 0;
    while rounds < LEAST_ROUNDS || start.elapsed() < budget {
        for work in Work::ALL {
            random.shuffle(&mut order);
            for &index in &order {
                beds[index].sample(cpu, work)?;
            }
        }
        rounds += 1;
    }
    Setting::of(topology, &mut beds, skipped)
}

/// Sets every variant up; what this machine cannot do is named, not dropped. Portcullis is the
/// subject, so its failure is an error.
fn build(topology: Topology, rules: &[u32]) -> Result<(Vec<Bed>, Vec<Skipped>)> {
    let mut beds = Vec::new();
    for _ in 0..COPIES {
        let variant = Variant {
            firewall: Firewall::None,
            rules: 0,
        };
        let bed = Bed::build(topology, variant, beds.len());
        beds.push(bed.context("setting up without a firewall")?);
    }
    let mut skipped = Vec::new();
    for firewall in [
        Firewall::Portcullis,
        Firewall::NftBridge,
        Firewall::NftSet,
        Firewall::Ipset,
        Firewall::IptablesLegacy,
        Firewall::IptablesNft,
    ] {
        if firewall == Firewall::NftBridge && topology == Topology::Routed {
            continue;
        }
        for &rules in rules {
            match Bed::build(topology, Variant { firewall, rules }, beds.len()) {
                Ok(bed) => beds.push(bed),
                Err(error) if firewall == Firewall::Portcullis => {
                    return Err(error.context("setting up Portcullis"));
                }
                Err(error) => skipped.push(Skipped {
                    firewall,
                    rules,
                    reason: format!("{error:#}"),
                }),
            }
        }
    }
    Ok((beds, skipped))
}
