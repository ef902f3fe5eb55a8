//! What the demo proved, in numbers; the one place that decides whether it succeeded.

use anyhow::Result;
use serde::Serialize;

use super::intruder::Account;
use super::out::{Out, plural};
use super::traffic::Tally;
use crate::cli::output::count;

/// The outcome, as `-o json` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    /// Everything holds.
    pub(super) ok: bool,
    /// `namespaces` or `docker`.
    pub(super) place: &'static str,
    pub(super) duration_ms: u64,
    /// Groups and workloads found.
    pub(super) services: usize,
    pub(super) workloads: usize,
    /// Edges learned, and those that should have been.
    pub(super) edges: usize,
    pub(super) edges_expected: usize,
    pub(super) policies: usize,
    pub(super) rules: usize,
    pub(super) requests: Requests,
    /// Records of legitimate traffic that policy would have denied in monitor mode.
    pub(super) would_deny: usize,
    /// Drops in protect mode that are not the intruder's.
    pub(super) collateral_drops: usize,
    pub(super) lost_events: u64,
    /// Requests in protect mode over connections older than the daemon.
    pub(super) old_connections: OldConnections,
    pub(super) attacks: Attacks,
    /// Nothing of the demo is left. Absent while it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cleaned_up: Option<bool>,
    /// What does not hold, in words.
    pub(super) failures: Vec<String>,
}

/// Legitimate requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Requests {
    /// While everything passed: discover and monitor.
    pub(super) before: Tally,
    /// In protect.
    pub(super) after: Tally,
    /// Edges whose every request was answered, before and after.
    pub(super) edges_before: usize,
    pub(super) edges_after: usize,
}

/// Connections opened before the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct OldConnections {
    pub(super) opened: usize,
    /// Requests over them in protect.
    pub(super) requests: Tally,
}

/// The intruder's part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Attacks {
    /// In monitor mode, where nothing stops them: how many were tried and reached their target.
    pub(super) rehearsed: usize,
    pub(super) rehearsed_reached: usize,
    /// In protect mode.
    pub(super) tried: usize,
    pub(super) denied: usize,
    /// Single connections and packets of these.
    pub(super) probes: usize,
    pub(super) probes_denied: usize,
    /// Contacts and bytes the victims themselves counted, and answers the intruder got.
    pub(super) leaked: u64,
    pub(super) leaked_bytes: u64,
    /// Each one.
    pub(super) accounts: Vec<Account>,
}

impl Summary {
    /// Checks every promise and notes what does not hold.
    pub(super) fn judge(&mut self) {
        let mut failures = Vec::new();
        let mut require = |holds: bool, otherwise: String| {
            if !holds {
                failures.push(otherwise);
            }
        };
        let Requests { before, after, .. } = self.requests;
        require(
            self.edges == self.edges_expected,
            format!(
                "{} edges learned, {} expected",
                self.edges, self.edges_expected
            ),
        );
        require(self.rules > 0, "no rule was generated".to_owned());
        for (when, tally) in [("before", before), ("in", after)] {
            require(
                tally.all_ok(),
                format!(
                    "{} of {} legitimate requests answered {when} protect",
                    tally.ok, tally.total
                ),
            );
        }
        require(
            self.requests.edges_before == self.requests.edges_after
                && self.requests.edges_after == self.edges_expected,
            format!(
                "{} edges worked before protect, {} in protect",
                self.requests.edges_before, self.requests.edges_after
            ),
        );
        require(
            self.would_deny == 0,
            format!(
                "policy would have denied {} legitimate flows",
                self.would_deny
            ),
        );
        require(
            self.collateral_drops == 0,
            format!("{} drops are not the intruder's", self.collateral_drops),
        );
        require(
            self.lost_events == 0,
            format!(
                "{} events were lost, so records are missing",
                self.lost_events
            ),
        );
        require(
            self.old_connections.opened > 0 && self.old_connections.requests.all_ok(),
            "a connection older than the daemon did not survive".to_owned(),
        );
        let attacks = &self.attacks;
        require(
            attacks.rehearsed > 0 && attacks.rehearsed == attacks.rehearsed_reached,
            format!(
                "{} of {} attacks work without protection: the others prove nothing",
                attacks.rehearsed_reached, attacks.rehearsed
            ),
        );
        require(
            attacks.tried > 0 && attacks.tried == attacks.denied,
            format!("{} of {} attacks denied", attacks.denied, attacks.tried),
        );
        require(
            attacks.leaked == 0 && attacks.leaked_bytes == 0,
            format!(
                "{} contacts and {} bytes leaked",
                attacks.leaked, attacks.leaked_bytes
            ),
        );
        require(
            self.cleaned_up != Some(false),
            "something was left behind".to_owned(),
        );
        failures.append(&mut self.failures);
        self.failures = failures;
        self.ok = self.failures.is_empty();
    }

    /// Prints it for people.
    pub(super) fn print(&self, out: &Out) -> Result<()> {
        let of = |tally: Tally| {
            // Rounded down: 100 % is all of them.
            let percent = tally.ok * 100 / tally.total.max(1);
            format!(
                "{} of {} ({percent} %)",
                count(tally.ok),
                count(tally.total)
            )
        };
        let attacks = &self.attacks;
        let rows = [
            (
                "services found",
                format!("{} ({})", self.services, plural(self.workloads, "workload")),
            ),
            (
                "edges learned",
                format!("{} of {}", self.edges, self.edges_expected),
            ),
            (
                "rules generated",
                format!("{} in {} policies", self.rules, self.policies),
            ),
            (
                "requests allowed",
                format!(
                    "before protect {}, in protect {}",
                    of(self.requests.before),
                    of(self.requests.after)
                ),
            ),
            (
                "edges working",
                format!(
                    "before protect {}, in protect {}",
                    self.requests.edges_before, self.requests.edges_after
                ),
            ),
            (
                "old connections",
                format!(
                    "{} opened before the daemon; requests over them in protect {}",
                    self.old_connections.opened,
                    of(self.old_connections.requests)
                ),
            ),
            (
                "attacks denied",
                format!(
                    "{} of {} ({} of {} connections and packets)",
                    attacks.denied, attacks.tried, attacks.probes_denied, attacks.probes
                ),
            ),
            (
                "leaked",
                match (attacks.leaked, attacks.leaked_bytes) {
                    (0, 0) => "0 (by the victims' own counters)".to_owned(),
                    (contacts, bytes) => format!("{contacts} contacts, {bytes} bytes"),
                },
            ),
        ];
        let mut text = String::new();
        for (name, value) in rows {
            text.push_str(&format!("{name:<17} {value}\n"));
        }
        out.indented(&text)
    }

    /// Says how it ended.
    pub(super) fn conclude(&self, out: &Out) -> Result<()> {
        out.line("")?;
        let seconds = self.duration_ms as f64 / 1_000.0;
        if self.ok {
            return out.strong(&format!(
                "The demo succeeded in {seconds:.0} s: everything above holds."
            ));
        }
        out.strong("The demo FAILED:")?;
        for failure in &self.failures {
            out.line(&format!(" - {failure}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Summary {
        let tally = Tally { ok: 9, total: 9 };
        Summary {
            edges: 2,
            edges_expected: 2,
            rules: 4,
            requests: Requests {
                before: tally,
                after: tally,
                edges_before: 2,
                edges_after: 2,
            },
            old_connections: OldConnections {
                opened: 1,
                requests: tally,
            },
            attacks: Attacks {
                rehearsed: 1,
                rehearsed_reached: 1,
                tried: 1,
                denied: 1,
                ..Attacks::default()
            },
            cleaned_up: Some(true),
            ..Summary::default()
        }
    }

    #[test]
    fn everything_must_hold() {
        let mut summary = good();
        summary.judge();
        assert!(summary.ok, "{:?}", summary.failures);
        let spoil: [fn(&mut Summary); 13] = [
            |s| s.edges = 1,
            |s| s.rules = 0,
            |s| s.requests.before.ok -= 1,
            |s| s.requests.after = Tally::default(),
            |s| s.requests.edges_after = 1,
            |s| s.would_deny = 1,
            |s| s.collateral_drops = 1,
            |s| s.lost_events = 1,
            |s| s.old_connections.requests.ok -= 1,
            |s| s.attacks.rehearsed_reached = 0,
            |s| s.attacks.denied = 0,
            |s| s.attacks.leaked = 1,
            |s| s.cleaned_up = Some(false),
        ];
        for (index, spoil) in spoil.into_iter().enumerate() {
            let mut summary = good();
            spoil(&mut summary);
            summary.judge();
            assert!(!summary.ok, "{index}");
            assert_eq!(summary.failures.len(), 1, "{index}: {:?}", summary.failures);
        }
    }

    #[test]
    fn failures_noted_on_the_way_count() {
        let mut summary = good();
        summary.failures.push("x".to_owned());
        summary.judge();
        assert!(!summary.ok);
    }
}
