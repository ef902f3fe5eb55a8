//! Second half of the story: the rules in force, and an intruder.

use std::time::{Duration, Instant};

use anyhow::Result;
use flowgraph::record::{FlowRecord, Verdict};
use jiff::Timestamp;
use policy::model::Mode;
use testbed::Outcome;

use super::intruder::{self, Account, Attack, Intruder, Means};
use super::out::Out;
use super::shop::{self, INTRUDER, SPOOFED};
use super::stop;
use super::story::{ROUNDS, Story, wait_for_rounds};
use super::summary::Summary;
use super::traffic::{self, Phase};
use crate::api::dto::Status;
use crate::cli::client::Query;
use crate::cli::output::count;

/// How long a datagram may be under way inside one kernel.
const ARRIVAL: Duration = Duration::from_secs(1);
/// How long a record may take from the kernel to the API.
const RECORDED: Duration = Duration::from_secs(5);
/// The kernel's coarse clock, which stamps events, lags behind by up to a timer tick.
const CLOCK_GRAIN: Duration = Duration::from_millis(50);

impl Story {
    pub(super) fn monitor(
        &mut self,
        out: &mut Out,
        summary: &mut Summary,
        attacks: &[Attack],
        intruder: &mut Intruder,
    ) -> Result<()> {
        out.chapter("Monitor: everything passes, what policy would deny is recorded")?;
        let since = self.switch(Mode::Monitor, Phase::Monitor)?;
        wait_for_rounds(&self.traffic, Phase::Monitor, ROUNDS, true)?;
        self.wait_for_records()?;
        let would_deny = self.records(&[("verdict", "audit")], since)?;
        summary.would_deny = would_deny.len();
        out.say(&format!(
            "Legitimate requests so far: {}. Of these policy would deny: {}.",
            count(self.traffic.ledger().sum(&[Phase::Monitor]).total),
            would_deny.len()
        ))?;
        for record in would_deny.iter().take(5) {
            out.say(&format!("Would deny: {}", brief(record)))?;
        }
        out.line("")?;
        out.say(
            "Meanwhile an intruder owns a shell in web-1. In monitor mode nothing stops him, which \
             shows that each attempt works:",
        )?;
        let accounts = self.attack(attacks, intruder, Verdict::Audit)?.0;
        summary.attacks.rehearsed = accounts.len();
        summary.attacks.rehearsed_reached = accounts
            .iter()
            .filter(|account| {
                account.reached == account.probes && account.recorded == account.probes
            })
            .count();
        let rows = accounts
            .iter()
            .map(|account| {
                vec![
                    account.attempt.to_owned(),
                    account.target.clone(),
                    account.outcome.clone(),
                    match account.recorded {
                        recorded if recorded == account.probes => "audit".to_owned(),
                        recorded => format!("audit {recorded} of {}", account.probes),
                    },
                    account.drop_reason.clone(),
                ]
            })
            .collect();
        out.table(
            &[
                "ATTEMPT",
                "TARGET",
                "OUTCOME",
                "RECORDED",
                "WOULD BE DENIED FOR",
            ],
            rows,
        )
    }

    pub(super) fn protect(
        &mut self,
        out: &mut Out,
        summary: &mut Summary,
        attacks: &[Attack],
        intruder: &mut Intruder,
    ) -> Result<()> {
        out.chapter("Protect: policy decides")?;
        let since = self.switch(Mode::Protect, Phase::Protect)?;
        wait_for_rounds(&self.traffic, Phase::Protect, ROUNDS, true)?;
        self.wait_for_records()?;
        let collateral = self.records(&[("verdict", "dropped")], since)?;
        out.say(
            "The legitimate requests go on. The intruder tries everything again, also over the \
             connections he opened before:",
        )?;
        let (accounts, leaked) = self.attack(attacks, intruder, Verdict::Dropped)?;
        let attacks_of = &mut summary.attacks;
        attacks_of.tried = accounts.len();
        attacks_of.denied = accounts
            .iter()
            .filter(|account| account.is_denied())
            .count();
        attacks_of.probes = accounts.iter().map(|account| account.probes).sum();
        attacks_of.probes_denied = accounts
            .iter()
            .map(|account| account.recorded.min(account.probes - account.reached))
            .sum();
        let answers: usize = accounts.iter().map(|account| account.reached).sum();
        attacks_of.leaked = leaked.contacts + answers as u64;
        attacks_of.leaked_bytes = leaked.bytes;
        let rows = accounts
            .iter()
            .map(|account| {
                let verdict = if account.is_denied() {
                    "denied"
                } else {
                    "NOT DENIED"
                };
                vec![
                    account.attempt.to_owned(),
                    account.target.clone(),
                    account.outcome.clone(),
                    verdict.to_owned(),
                    account.drop_reason.clone(),
                    account.rule.clone(),
                ]
            })
            .collect();
        out.table(
            &["ATTEMPT", "TARGET", "OUTCOME", "VERDICT", "REASON", "RULE"],
            rows,
        )?;
        attacks_of.accounts = accounts;

        // As many rounds again after the attack as before it.
        wait_for_rounds(&self.traffic, Phase::Protect, 2 * ROUNDS, true)?;
        self.wait_for_records()?;
        let drops = self.records(&[("verdict", "dropped")], since)?;
        let mut others = collateral;
        others.extend(drops.into_iter().filter(|record| {
            let mut probes = attacks.iter().flat_map(|attack| &attack.probes);
            !probes.any(|probe| intruder::concerns(record, probe))
        }));
        summary.collateral_drops = others.len();
        for record in others.iter().take(5) {
            summary.failures.push(format!("dropped: {}", brief(record)));
        }

        let ledger = self.traffic.ledger();
        summary.requests.before = ledger.sum(&[Phase::Discover, Phase::Monitor]);
        summary.requests.after = ledger.sum(&[Phase::Protect]);
        summary.requests.edges_before = ledger
            .working_edges(Phase::Discover)
            .min(ledger.working_edges(Phase::Monitor));
        summary.requests.edges_after = ledger.working_edges(Phase::Protect);
        summary.old_connections.opened = ledger
            .calls()
            .filter(|call| call.manner == shop::Manner::Held)
            .count();
        summary.old_connections.requests = ledger.held(Phase::Protect);
        summary.failures.extend(ledger.failures());
        let status: Status = self.firewall.get(&Query::new("/api/v1/status"))?;
        summary.lost_events = status.lost_events;
        for problem in status.problems {
            summary
                .failures
                .push(format!("the daemon reports: {problem}"));
        }
        Ok(())
    }

    /// Lets the intruder try everything, and waits until the firewall has a record of each part.
    /// Gives the accounts and what the victims counted meanwhile.
    fn attack(
        &self,
        attacks: &[Attack],
        intruder: &mut Intruder,
        verdict: Verdict,
    ) -> Result<(Vec<Account>, traffic::Touched)> {
        let (web, spoofed) = (shop::replica(INTRUDER), shop::replica(SPOOFED));
        let since = Timestamp::now() - CLOCK_GRAIN;
        let before = self.traffic.touched(web, spoofed);
        let arrived_before = self.traffic.arrived_in_the_name_of(spoofed);
        let mut outcomes = intruder.run(attacks)?;

        // Only the victim knows whether a spoofed datagram arrived.
        let expected = attacks
            .iter()
            .flat_map(|attack| &attack.probes)
            .filter(|probe| matches!(probe.means, Means::Spoof(_)))
            .count() as u64;
        let end = Instant::now() + ARRIVAL;
        let arrived = || self.traffic.arrived_in_the_name_of(spoofed);
        let all_arrived = loop {
            stop::check()?;
            let all: u64 = arrived().values().sum::<u64>() - arrived_before.values().sum::<u64>();
            if all >= expected || Instant::now() >= end {
                break arrived();
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        for (attack, outcomes) in attacks.iter().zip(&mut outcomes) {
            for (probe, outcome) in attack.probes.iter().zip(outcomes) {
                if let (Means::Spoof(source), Outcome::Connected) = (probe.means, &*outcome)
                    && all_arrived.get(&source) == arrived_before.get(&source)
                {
                    *outcome = Outcome::TimedOut;
                }
            }
        }

        let name = verdict.as_str();
        let complete = |records: &[FlowRecord]| {
            attacks
                .iter()
                .flat_map(|attack| &attack.probes)
                .all(|probe| {
                    records
                        .iter()
                        .any(|record| intruder::concerns(record, probe))
                })
        };
        let end = Instant::now() + RECORDED;
        let records = loop {
            stop::check()?;
            let records = self.records(&[("verdict", name)], since)?;
            // What is missing at the end shows in the accounts.
            if complete(&records) || Instant::now() >= end {
                break records;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let accounts = attacks
            .iter()
            .zip(&outcomes)
            .map(|(attack, outcomes)| Account::new(attack, outcomes, &records))
            .collect();
        Ok((accounts, self.traffic.touched(web, spoofed) - before))
    }
}

/// A record in one line.
fn brief(record: &FlowRecord) -> String {
    let end = |peer: &flowgraph::record::Peer| {
        let address = peer.ip.map_or_else(|| "?".to_owned(), |ip| ip.to_string());
        match (&peer.workload, peer.port) {
            (Some(workload), Some(port)) => format!("{workload} ({address} port {port})"),
            (Some(workload), None) => format!("{workload} ({address})"),
            (None, Some(port)) => format!("{address} port {port}"),
            (None, None) => address,
        }
    };
    format!(
        "{} {} -> {} {} {} {}",
        record.event,
        end(&record.source),
        end(&record.destination),
        record
            .protocol()
            .map_or_else(String::new, |p| p.to_string()),
        record.direction,
        record.drop_reason.as_deref().unwrap_or_default(),
    )
}
