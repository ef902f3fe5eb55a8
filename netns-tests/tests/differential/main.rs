//! The BPF programs against a slow, obvious reference, on random worlds and packets.
//!
//! Every packet must have the verdict, drop reason, counter, events and conntrack entry that
//! [`netns_tests::reference`] predicts. Worlds, packets and their order come from a seed, so a run can
//! be repeated. A disagreement is shrunk and printed as a case; committed to `cases/`, the test
//! replays it before anything else.
//!
//! `DIFFERENTIAL_SEED` (a number) chooses another run, `DIFFERENTIAL_PACKETS` its length.

mod case;
mod random;
mod run;
mod shrink;
mod traffic;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dataplane_common::DropReason;
use dataplane_common::policy::Mode;
use dataplane_common::stats::Verdict;
use netns_tests::kernel::with_configured_kernel;
use testbed::require_root;

use case::Case;
use random::Random;
use run::Runner;

/// What the normal run takes.
const PACKETS: u64 = 100_000;
/// A long run says every so many packets that it is alive.
const MILESTONE: u64 = 500_000;
/// Cases at the same time.
const WORKERS: usize = 4;
/// Seed of the normal run.
const SEED: u64 = 1;
/// Entries of conntrack: far more than a case makes, so that nothing is evicted.
const CONNTRACK_ENTRIES: u32 = 65_536;

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text
            .replace('_', "")
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is a number, not `{text}`")),
        Err(_) => default,
    }
}

fn with_runner(test: impl FnOnce(&mut Runner<'_>) + Send) {
    with_configured_kernel(
        "",
        Mode::Protect,
        |config| config.conntrack_entries = Some(CONNTRACK_ENTRIES),
        |kernel| test(&mut Runner::new(kernel)),
    );
}

fn cases() -> Vec<(PathBuf, Case)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/cases");
    let mut cases: Vec<_> = std::fs::read_dir(&directory)
        .expect("the directory of cases")
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "case")
        })
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a readable case");
            (path, Case::parse(&text))
        })
        .collect();
    cases.sort_by(|(a, _), (b, _)| a.cmp(b));
    cases
}

#[test]
fn disagreements_of_the_past_stay_settled() {
    require_root!();
    with_runner(|runner| {
        for (path, case) in cases() {
            if let Err(found) = runner.run(&case) {
                panic!("{}, step {}: {}", path.display(), found.step, found.text);
            }
        }
    });
}

#[test]
fn kernel_and_reference_agree_on_random_packets() {
    require_root!();
    let seed = number("DIFFERENTIAL_SEED", SEED);
    let packets = number("DIFFERENTIAL_PACKETS", PACKETS);
    let started = Instant::now();
    let progress = Progress::default();
    // A case is mostly waiting, for the kernel to finish with old policies.
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| with_runner(|runner| work(runner, seed, packets, &progress)));
        }
    });
    let Progress {
        cases,
        done,
        met,
        disagreement,
    } = progress;
    if let Some(text) = disagreement.into_inner().expect("no worker panics") {
        panic!(
            "kernel and reference disagree; commit this to netns-tests/tests/differential/cases/ \
             once it is settled:\n{text}"
        );
    }
    let done = done.into_inner();
    println!(
        "seed {seed}: {done} packets in {} cases agree, {:.0} packets/s",
        cases.into_inner(),
        done as f64 / started.elapsed().as_secs_f64()
    );
    let met = met.into_inner().expect("no worker panics");
    for ((verdict, reason), count) in &met {
        let reason = reason.map_or("-", DropReason::as_str);
        println!("{count:>9}  {:<10} {reason}", verdict.as_str());
    }
    if packets >= PACKETS {
        assert_everything_happened(&met);
    }
}

/// Verdicts and reasons, with how often they were met.
type Met = BTreeMap<(Verdict, Option<DropReason>), u64>;

/// What the workers share.
#[derive(Default)]
struct Progress {
    cases: AtomicU64,
    done: AtomicU64,
    met: Mutex<Met>,
    disagreement: Mutex<Option<String>>,
}

/// Runs cases until there are enough packets or one disagrees.
fn work(runner: &mut Runner<'_>, seed: u64, packets: u64, progress: &Progress) {
    let is_over = || {
        progress.done.load(Ordering::Relaxed) >= packets
            || progress
                .disagreement
                .lock()
                .expect("no worker panics")
                .is_some()
    };
    while !is_over() {
        let number = progress.cases.fetch_add(1, Ordering::Relaxed);
        let case = random::case(&mut Random::new(seed, number));
        let more = random::packets_in(&case);
        let before = progress.done.fetch_add(more, Ordering::Relaxed);
        if before / MILESTONE != (before + more) / MILESTONE {
            println!("seed {seed}: {} packets begun", before + more);
        }
        if let Err(found) = runner.run(&case) {
            let (case, found) = shrink::shrink(runner, case, found);
            let text = format!(
                "# seed {seed}, case {number}\n# {}\n{}",
                found.text.replace('\n', "\n# "),
                case.to_text()
            );
            *progress.disagreement.lock().expect("no worker panics") = Some(text);
        }
    }
    let mut met = progress.met.lock().expect("no worker panics");
    for (outcome, count) in &runner.met {
        *met.entry(*outcome).or_default() += count;
    }
}

/// A generator that never reaches a rule proves nothing about it.
fn assert_everything_happened(met: &Met) {
    // No policy denies explicitly; the endpoint and its policy are always there; conntrack never
    // refuses.
    let unreachable = [
        DropReason::PolicyDeny,
        DropReason::NoEndpoint,
        DropReason::NoPolicy,
        DropReason::ConntrackFull,
    ];
    for reason in DropReason::ALL {
        let times = met.get(&(Verdict::Dropped, Some(*reason))).copied();
        assert_eq!(
            times.is_none(),
            unreachable.contains(reason),
            "{} happened {} times",
            reason.as_str(),
            times.unwrap_or_default()
        );
    }
}
