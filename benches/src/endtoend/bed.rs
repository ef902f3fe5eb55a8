//! One variant under test: a lab of its own with two workloads, a firewall between, and sockets.
//!
//! All variants exist at once, so that a sample of one can follow a sample of another directly.

use std::fs;
use std::io;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use testbed::{Lab, Workload};

use super::cpu::Cpu;
use super::firewall::{CLIENT, Firewall, SERVER};
use super::portcullis::Enforcement;
use super::work::{Wires, Work, reaches_closed_port};

/// How the host carries packets between its workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    /// Both host-side veths are ports of one bridge.
    Bridged,
    /// The host routes from veth to veth.
    Routed,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    pub(super) firewall: Firewall,
    pub(super) rules: u32,
}

/// A variant, set up. Fields are dropped in order: sockets, programs, namespaces.
#[derive(Debug)]
pub(super) struct Bed {
    pub(super) variant: Variant,
    /// CPU nanoseconds per unit, by work, one entry a round.
    pub(super) samples: [Vec<f64>; Work::ALL.len()],
    wires: Wires,
    enforcement: Option<Enforcement>,
    client: Workload,
    server: Workload,
    _lab: Lab,
}

impl Bed {
    /// Sets a variant up and makes sure that it filters.
    pub(super) fn build(topology: Topology, variant: Variant, number: usize) -> Result<Self> {
        let Variant { firewall, rules } = variant;
        let lab = Lab::new("pc-e2e")?;
        let bridge = match topology {
            Topology::Bridged => Some(lab.bridge("br0", "10.70.0.1/24", "")?),
            Topology::Routed => None,
        };
        let workload = |name: &str, address: std::net::Ipv4Addr| {
            let builder = lab.workload(name);
            let builder = match &bridge {
                Some(bridge) => builder.on(bridge),
                None => builder.routed(),
            };
            let workload = builder.v4(&address.to_string()).build()?;
            for (key, value) in [
                // Connections of some minutes fit the range, and a lost packet ends the bench soon.
                ("net/ipv4/ip_local_port_range", "10000 65535"),
                ("net/ipv4/tcp_tw_reuse", "1"),
                ("net/ipv4/tcp_syn_retries", "2"),
                ("net/ipv4/tcp_retries2", "4"),
            ] {
                workload.netns.sysctl(key, value)?;
            }
            Ok::<_, testbed::Error>(workload)
        };
        let client = workload("client", CLIENT)?;
        let server = workload("server", SERVER)?;
        firewall.load(lab.host(), rules)?;
        let enforcement = match firewall {
            Firewall::Portcullis => {
                Some(Enforcement::start(&lab, &client, &server, rules, number)?)
            }
            _ => None,
        };
        let wires = Wires::open(&client, &server).context("nothing passes that should")?;
        let open = reaches_closed_port(&client, &server)?;
        ensure!(
            open == (firewall == Firewall::None),
            "a port without a rule is {}",
            if open { "open" } else { "closed" }
        );
        Ok(Self {
            variant,
            samples: Default::default(),
            wires,
            enforcement,
            client,
            server,
            _lab: lab,
        })
    }

    /// Takes one sample of some work, after a little of it that warms the caches.
    pub(super) fn sample(&mut self, cpu: &Cpu, work: Work) -> Result<()> {
        let units = work.units();
        let Self {
            wires, enforcement, ..
        } = self;
        let took = self
            .client
            .run(|| {
                cpu.pin()?;
                wires.run(work, units / 16)?;
                cpu.time(|| {
                    wires.run(work, units)?;
                    // Events are part of the price of a connection.
                    if let Some(enforcement) = enforcement {
                        enforcement.drain();
                    }
                    Ok(())
                })
            })?
            .with_context(|| format!("{} with {}", work.name(), self.variant.firewall.name()))?;
        self.samples[work as usize].push(took.as_secs_f64() * 1e9 / f64::from(units));
        Ok(())
    }

    /// Mean length in bytes of the packets the server receives of a stream: above the MTU only
    /// while segmentation offload survives the way.
    pub(super) fn mean_stream_packet(&mut self) -> Result<f64> {
        let before = self.server.run(received)??;
        let wires = &mut self.wires;
        self.client.run(|| wires.run(Work::Stream, 16))??;
        let after = self.server.run(received)??;
        Ok((after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64)
    }
}

/// Bytes and packets `eth0` of the calling thread's namespace has received.
fn received() -> io::Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    let numbers = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("eth0:"))
        .map(|rest| rest.split_whitespace().flat_map(str::parse::<u64>));
    numbers
        .and_then(|mut numbers| Some((numbers.next()?, numbers.next()?)))
        .ok_or_else(|| io::Error::other("no eth0 in /proc/thread-self/net/dev"))
}
