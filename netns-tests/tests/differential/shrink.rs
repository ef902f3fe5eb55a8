//! Makes a disagreement small: drops steps while some disagreement remains.

use crate::case::{Case, Step};
use crate::run::{Disagreement, Runner};

/// Runs at most this often.
const ATTEMPTS: usize = 400;

/// The smallest case found that still disagrees, and how.
pub fn shrink(runner: &mut Runner<'_>, case: Case, found: Disagreement) -> (Case, Disagreement) {
    let mut best = case;
    let mut found = found;
    best.steps.truncate(found.step + 1);
    let mut attempts = 0;
    let mut size = best.steps.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < best.steps.len() && attempts < ATTEMPTS {
            let mut candidate = best.clone();
            let end = (at + size).min(candidate.steps.len());
            candidate.steps.drain(at..end);
            attempts += 1;
            match disagreement(runner, &candidate) {
                Some(still) => {
                    candidate.steps.truncate(still.step + 1);
                    (best, found) = (candidate, still);
                }
                None => at += size,
            }
        }
        size /= 2;
    }
    (best, found)
}

fn disagreement(runner: &mut Runner<'_>, case: &Case) -> Option<Disagreement> {
    let first = case.steps.first()?;
    let attach = case
        .steps
        .iter()
        .position(|step| matches!(step, Step::Attach { .. }))?;
    let packet = case
        .steps
        .iter()
        .position(|step| matches!(step, Step::Packet { .. }))?;
    // A world, then an endpoint, then packets: anything else is no case.
    if !matches!(first, Step::World(_)) || packet < attach {
        return None;
    }
    runner.run(case).err()
}
