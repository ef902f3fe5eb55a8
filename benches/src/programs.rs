//! Nanoseconds per packet inside the programs, over an empty program run in alternation.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use daemon::dataplane::{self, Dataplane, DataplaneConfig, Desired, DesiredEndpoint, EventReader};
use dataplane_common::policy::{Action, Mode, PolicyKey, PolicyValue, class_byte, class_index};
use dataplane_common::{Direction, identity, proto};
use netns_tests::frames::{self, end};
use policy::compile::{Compiled, CompiledWorkload, Program};
use testbed::Netns;

use crate::empty::EmptyProgram;
use crate::sample::Figure;

/// Packets per sample of a repeatable case.
const REPEAT: u32 = 200_000;
/// Samples per figure.
const SAMPLES: usize = 25;
/// First identity given to peers.
const FIRST_PEER: u32 = 1000;

/// Runs every case and returns the figures.
///
/// # Errors
/// No privileges, or a kernel that refuses the programs.
pub fn run() -> Result<Vec<Figure>> {
    let name = format!("pc-bench-{}", std::process::id());
    let netns = Netns::create(&name).context("a namespace for the bench")?;
    let bpffs = PathBuf::from(format!("/sys/fs/bpf/{name}"));
    let figures = netns
        .run(|| measure(&bpffs))
        .map_err(anyhow::Error::from)
        .and_then(|inner| inner);
    dataplane::detach(&bpffs).context("removing the bench's pins")?;
    netns.remove().context("removing the bench's namespace")?;
    figures
}

fn measure(bpffs: &std::path::Path) -> Result<Vec<Figure>> {
    let empty = EmptyProgram::load().context("loading the empty program")?;
    let mut bench = Bench::open(bpffs)?;
    let mut figures = Vec::new();
    for rules in [10, 1_000, 10_000, 100_000] {
        let commit = bench.load_rules(rules)?;
        figures.push(Figure::of(
            format!("commit of {rules} rules"),
            "ms",
            &[commit.as_secs_f64() * 1e3],
        ));
        let v4 = ("10.0.0.2", "10.0.0.3");
        let v6 = ("fd00::2", "fd00::3");
        for (family, (web, peer)) in [("IPv4", v4), ("IPv6", v6)] {
            let established = frames::tcp(end(web, 4000), end(peer, 443), "A");
            bench
                .dataplane
                .test_run(Direction::Egress, &established, 1)?;
            let samples = over_empty(&empty, &mut bench, &established, REPEAT, false)?;
            figures.push(Figure::of(
                format!("established TCP {family}, {rules} rules"),
                "ns over empty",
                &samples,
            ));
        }
        let denied = frames::tcp(end("10.0.0.2", 4000), end("10.0.0.3", 22), "S");
        let samples = over_empty(&empty, &mut bench, &denied, 20_000, true)?;
        figures.push(Figure::of(
            format!("denied TCP IPv4 with event, {rules} rules"),
            "ns over empty",
            &samples,
        ));
        let samples = new_flows(&empty, &mut bench)?;
        figures.push(Figure::of(
            format!("new allowed TCP IPv4 with event, {rules} rules"),
            "ns over empty",
            &samples,
        ));
    }
    Ok(figures)
}

/// Alternates short runs of both programs and returns the differences.
fn over_empty(
    empty: &EmptyProgram,
    bench: &mut Bench,
    frame: &[u8],
    repeat: u32,
    events: bool,
) -> Result<Vec<f64>> {
    (0..SAMPLES)
        .map(|_| {
            let anchor = empty.run(frame, repeat)?;
            let (_, ours) = bench.dataplane.test_run(Direction::Egress, frame, repeat)?;
            if events {
                bench.reader.drain(usize::MAX, |_| {});
            }
            Ok(ours.as_nanos() as f64 - anchor.as_nanos() as f64)
        })
        .collect()
}

/// Every packet opens a flow of its own, so each is run once; the anchor pays the same clock reads.
fn new_flows(empty: &EmptyProgram, bench: &mut Bench) -> Result<Vec<f64>> {
    (0..SAMPLES as u16)
        .map(|sample| {
            let mut anchor = 0;
            let mut ours = 0;
            let flows = 1000_u16;
            for flow in 0..flows {
                let source = end("10.0.0.2", 1024 + flow + 1000 * sample);
                let frame = frames::tcp(source, end("10.0.0.3", 443), "S");
                anchor += empty.run(&frame, 1)?.as_nanos();
                ours += bench
                    .dataplane
                    .test_run(Direction::Egress, &frame, 1)?
                    .1
                    .as_nanos();
            }
            bench.reader.drain(usize::MAX, |_| {});
            Ok((ours as f64 - anchor as f64) / f64::from(flows))
        })
        .collect()
}

struct Bench {
    dataplane: Dataplane,
    reader: EventReader,
}

impl Bench {
    fn open(bpffs: &std::path::Path) -> Result<Self> {
        let (dataplane, reader) = Dataplane::open(&DataplaneConfig::new(bpffs))?;
        Ok(Self { dataplane, reader })
    }

    /// Enforces a policy of `rules` egress entries (one of which allows the peer on 443/tcp) and
    /// returns how long the commit took.
    fn load_rules(&mut self, rules: u32) -> Result<Duration> {
        let peer = FIRST_PEER;
        let addresses: BTreeMap<IpAddr, u32> = [
            ("10.0.0.2", identity::FIRST_DYNAMIC),
            ("fd00::2", identity::FIRST_DYNAMIC),
            ("10.0.0.3", peer),
            ("fd00::3", peer),
        ]
        .into_iter()
        .map(|(address, identity)| (address.parse().expect("a valid address"), identity))
        .collect();
        let mut entries: Vec<(PolicyKey, PolicyValue)> = (0..rules)
            .map(|number| {
                let key = PolicyKey {
                    policy: 0,
                    peer: peer + number % 1000,
                    port_be: (443 + (number / 1000) as u16).to_be(),
                    protocol: proto::TCP,
                    class: class_byte(Direction::Egress, class_index(false, Some(16))),
                };
                let value = PolicyValue {
                    precedence: (1 << 16) << 2 | Action::Allow as u32,
                    rule_id: 256,
                };
                (key, value)
            })
            .collect();
        // The shapes of a real policy: a port range, a port for anyone, everything to one peer.
        for (class, protocol) in [
            (class_index(false, Some(10)), proto::UDP),
            (class_index(true, Some(16)), proto::UDP),
            (class_index(false, None), 0),
        ] {
            let key = PolicyKey {
                policy: 0,
                peer: if class >= dataplane_common::policy::L4_CLASSES {
                    0
                } else {
                    peer + 1
                },
                port_be: 0,
                protocol,
                class: class_byte(Direction::Egress, class),
            };
            entries.push((
                key,
                PolicyValue {
                    precedence: (1 << 16) << 2 | 1,
                    rule_id: 257,
                },
            ));
        }
        entries.sort_by_key(|(key, _)| *key);
        let program = Program {
            mode: Mode::Protect,
            ingress_default: (Action::Deny, 1),
            egress_default: (Action::Deny, 1),
            entries,
        };
        let compiled = Compiled {
            addresses,
            prefixes: BTreeMap::from([
                ("0.0.0.0/0".parse()?, identity::WORLD),
                ("::/0".parse()?, identity::WORLD),
            ]),
            workloads: vec![CompiledWorkload {
                identity: identity::FIRST_DYNAMIC,
                program: 0,
            }],
            programs: vec![program],
        };
        let endpoint = DesiredEndpoint {
            workload: 0,
            ifindex: 1,
            ifname: "lo".to_owned(),
            network: 0,
            addresses: vec!["10.0.0.2".parse()?, "fd00::2".parse()?],
            learn_addresses: false,
            unsure_for: Duration::ZERO,
        };
        let desired = Desired {
            compiled: Arc::new(compiled),
            endpoints: vec![endpoint],
        };
        let start = Instant::now();
        let applied = self.dataplane.apply(&desired)?;
        let took = start.elapsed();
        applied.endpoints[0]
            .result
            .clone()
            .map_err(anyhow::Error::msg)?;
        Ok(took)
    }
}
