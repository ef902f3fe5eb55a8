//! The story: open, discover, learn, generate, watch, protect, attack, count.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flowgraph::record::{FlowRecord, Verdict};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use policy::model::Mode;
use testbed::Outcome;

use super::firewall::{Firewall, Places};
use super::graph::{self, Graph};
use super::intruder::{self, Account, Attack, Intruder, Means};
use super::out::{Out, plural};
use super::place::Place;
use super::shop::{self, INTRUDER, REPLICAS, SPOOFED};
use super::stop;
use super::summary::Summary;
use super::traffic::{self, Phase, Traffic};
use crate::api::dto::{
    Change, Document, InventoryRequest, ModeRequest, PolicyRequest, Status, SuggestionInfo,
    WorkloadInfo,
};
use crate::cli::client::Query;
use crate::cli::output::count;

/// How long a condition may take to come true.
const DEADLINE: Duration = Duration::from_secs(30);
/// Requests of every call that each phase must see.
const ROUNDS: u64 = 5;
/// How long a datagram may be under way inside one kernel.
const ARRIVAL: Duration = Duration::from_secs(1);
/// The kernel's coarse clock, which stamps events, lags behind by up to a timer tick.
const CLOCK_GRAIN: Duration = Duration::from_millis(50);
/// The generated policy that is shown.
const POLICY_SHOWN: &str = "learned-postgres";
const POLICY_FILE: &str = "networkpolicy.yaml";

/// Everything that runs. Fields drop in order: the firewall first, the place it stands in last.
#[derive(Debug)]
pub(super) struct Story {
    firewall: Firewall,
    traffic: Traffic,
    place: Place,
    directory: std::path::PathBuf,
    ready_after: Duration,
    docker: bool,
}

impl Story {
    /// Builds the place, opens the shop, and only then starts the daemon.
    pub(super) fn begin(
        out: &mut Out,
        docker: bool,
        directory: &Path,
        places: Places,
    ) -> Result<Self> {
        let what = if docker {
            "Docker containers and networks"
        } else {
            "network namespaces"
        };
        out.strong(&format!("Portcullis demo: a shop in {what}"))?;
        out.chapter("The shop opens")?;
        let mut place = Place::build(docker)?;
        for replica in REPLICAS.iter().filter(|replica| !replica.late) {
            stop::check()?;
            place.add(replica)?;
        }
        let mut traffic = Traffic::new(&place)?;
        for replica in place.replicas() {
            traffic.open(&place, replica)?;
        }
        let first: Vec<_> = traffic.ledger().calls().filter(|call| !call.late).collect();
        traffic::warm_up(&place, &first, DEADLINE)?;
        let held = first
            .iter()
            .filter(|call| call.manner == shop::Manner::Held)
            .count();
        out.say(&format!(
            "{} on two networks, IPv4 and IPv6, customers and a payment provider outside. {} \
             relations are in use, {held} of them over connections that were opened before the \
             daemon starts and never will be again.",
            plural(place.replicas().count(), "workload"),
            first.len(),
        ))?;
        traffic.start(&place, false)?;
        wait_for_rounds(&traffic, Phase::Opening, 2, false)?;

        let inventory = match place.inventory() {
            Some(text) => {
                let path = directory.join("inventory.yaml");
                fs::write(&path, text).context("cannot write the inventory")?;
                Some(path)
            }
            None => None,
        };
        let begun = Instant::now();
        let firewall = Firewall::start(
            place.host(),
            places,
            inventory.as_deref(),
            place.docker_socket().as_deref(),
        )?;
        traffic.ledger().enter(Phase::Discover);
        Ok(Self {
            ready_after: begun.elapsed(),
            firewall,
            traffic,
            place,
            directory: directory.to_owned(),
            docker,
        })
    }

    /// Tells the story and gives its numbers, not yet judged.
    pub(super) fn tell(&mut self, out: &mut Out) -> Result<Summary> {
        let mut summary = Summary {
            place: if self.docker { "docker" } else { "namespaces" },
            ..Summary::default()
        };
        self.discover(out, &mut summary)?;
        self.learn(out, &mut summary)?;
        self.generate(out, &mut summary)?;
        let attacks = intruder::attacks(self.place.routes_between_networks());
        let mut intruder = Intruder::new(self.place.netns(INTRUDER).clone());
        self.monitor(out, &mut summary, &attacks, &mut intruder)?;
        self.protect(out, &mut summary, &attacks, &mut intruder)?;
        out.chapter("Summary")?;
        summary.print(out)?;
        Ok(summary)
    }

    fn discover(&mut self, out: &mut Out, summary: &mut Summary) -> Result<()> {
        out.chapter("The daemon discovers the services")?;
        out.say(&format!(
            "Ready after {:.1} s; programs are attached, everything passes. Then the shop grows: a \
             second replica of web.",
            self.ready_after.as_secs_f64()
        ))?;
        let late: Vec<_> = REPLICAS.iter().filter(|replica| replica.late).collect();
        for replica in &late {
            self.place.add(replica)?;
            self.traffic.open(&self.place, replica)?;
        }
        if let Some(text) = self.place.inventory() {
            let source = "inventory.yaml".to_owned();
            let request = InventoryRequest {
                document: Document { source, text },
            };
            let _: Change = self.firewall.post("/api/v1/inventory/apply", &request)?;
        }
        let expected: BTreeSet<String> = self
            .place
            .replicas()
            .map(|replica| self.place.workload_name(replica))
            .collect();
        let mut workloads = self.wait("every workload to be found and attached", |story| {
            let workloads: Vec<WorkloadInfo> =
                story.firewall.get(&Query::new("/api/v1/workloads"))?;
            let found: BTreeSet<String> = workloads
                .iter()
                .filter(|workload| workload.enforced && workload.problem.is_none())
                .map(|workload| workload.name.clone())
                .collect();
            Ok((found == expected && workloads.len() == expected.len()).then_some(workloads))
        })?;
        let calls: Vec<_> = self.traffic.ledger().calls().filter(|c| c.late).collect();
        traffic::warm_up(&self.place, &calls, DEADLINE)?;
        self.traffic.start(&self.place, true)?;

        workloads.sort_by(|a, b| (&a.group, &a.name).cmp(&(&b.group, &b.name)));
        summary.workloads = workloads.len();
        let groups: BTreeSet<&str> = workloads.iter().map(|w| w.group.as_str()).collect();
        summary.services = groups.len();
        let rows = workloads
            .iter()
            .map(|workload| {
                let addresses: Vec<String> = workload
                    .addresses
                    .iter()
                    .filter(|address| !is_link_local(**address))
                    .map(ToString::to_string)
                    .collect();
                vec![
                    workload.group.clone(),
                    workload.name.clone(),
                    workload.source.clone().unwrap_or_default(),
                    workload.identity.to_string(),
                    addresses.join(" "),
                ]
            })
            .collect();
        out.table(
            &["SERVICE", "WORKLOAD", "FOUND BY", "IDENTITY", "ADDRESSES"],
            rows,
        )
    }

    fn learn(&mut self, out: &mut Out, summary: &mut Summary) -> Result<()> {
        out.chapter("It learns who talks to whom")?;
        let expected = shop::edges(&self.traffic.ledger().calls().cloned().collect::<Vec<_>>());
        summary.edges_expected = expected.len();
        wait_for_rounds(&self.traffic, Phase::Discover, ROUNDS, true)?;
        // What began in the daemon's first moments may be undecided until it has looked at every
        // socket, so extra edges get time to go as missing ones get time to come.
        let mut difference = String::new();
        let learned = self.wait("exactly the relations in use to be learned", |story| {
            let graph: Graph = story.firewall.get(&Query::new("/api/v1/graph"))?;
            let edges = graph.named();
            let missing = expected
                .iter()
                .filter(|name| edges.get(name).is_none_or(|edge| edge.answered == 0))
                .map(|name| format!("not learned: {name}"));
            let extra = edges
                .keys()
                .filter(|name| !expected.contains(name))
                .map(|name| format!("learned though nobody opened it: {name}"));
            difference = missing.chain(extra).collect::<Vec<_>>().join("\n");
            Ok(difference.is_empty().then_some(graph))
        });
        let graph = learned.with_context(|| difference)?;
        let edges = graph.named();
        summary.edges = edges.len();
        let rows = edges
            .iter()
            .map(|(name, edge)| {
                let opener = match (edge.openers.certain, edge.openers.inferred) {
                    (0, 0) => "unknown",
                    (0, _) => "listening sockets",
                    (_, 0) => "first packet",
                    (_, _) => "both",
                };
                vec![
                    describe(&name.source),
                    describe(&name.destination),
                    name.service.clone(),
                    count(edge.connections),
                    clock(edge.first_seen),
                    clock(edge.last_seen),
                    opener.to_owned(),
                ]
            })
            .collect();
        out.table(
            &[
                "SOURCE",
                "DESTINATION",
                "PORT",
                "COUNT",
                "FIRST SEEN",
                "LAST SEEN",
                "OPENER KNOWN BY",
            ],
            rows,
        )?;
        out.chapter("The service graph")?;
        out.indented(&graph::tree(edges.keys(), describe))
    }

    fn generate(&mut self, out: &mut Out, summary: &mut Summary) -> Result<()> {
        out.chapter("It generates least-privilege rules")?;
        let suggestion: SuggestionInfo =
            self.firewall.get(&Query::new("/api/v1/policies/suggest"))?;
        summary.policies = suggestion.policies.len();
        summary.rules = suggestion.rules.len();
        let file = self.directory.join(POLICY_FILE);
        fs::write(&file, &suggestion.yaml).context("cannot write the policies")?;
        out.say(&format!(
            "{} in {} Kubernetes NetworkPolicies, each with its evidence. The one of the database:",
            plural(summary.rules, "rule"),
            summary.policies
        ))?;
        out.line("")?;
        let documents = suggestion.yaml.split("\n---\n");
        let shown = format!("name: {POLICY_SHOWN}\n");
        out.indented(
            documents
                .into_iter()
                .find(|d| d.contains(&shown))
                .unwrap_or_default(),
        )?;
        out.line("")?;
        out.say(&format!(
            "All of them ({} lines) are in {} while the demo runs; --save DIR keeps them.",
            suggestion.yaml.lines().count(),
            file.display()
        ))?;
        for note in join_notes(&suggestion.left_out) {
            out.say(&format!("Note: {note}"))?;
        }
        let request = PolicyRequest {
            documents: vec![Document {
                source: POLICY_FILE.to_owned(),
                text: suggestion.yaml,
            }],
        };
        let change: Change = self.firewall.post("/api/v1/policies/replace", &request)?;
        enforced(&change)?;
        out.say(&format!(
            "Applied: generation {} is in force in the kernel.",
            change.generation
        ))
    }

    fn monitor(
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
                "INTRUDER SEES",
                "RECORDED",
                "WOULD BE DENIED FOR",
            ],
            rows,
        )
    }

    fn protect(
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
            &[
                "ATTEMPT",
                "TARGET",
                "INTRUDER SEES",
                "VERDICT",
                "REASON",
                "RULE",
            ],
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
        let end = Instant::now() + Duration::from_secs(5);
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

    /// Sets the mode of all groups. Gives the time from which on it is in force.
    fn switch(&mut self, mode: Mode, phase: Phase) -> Result<Timestamp> {
        self.firewall.check_alive()?;
        let request = ModeRequest {
            group: None,
            mode,
            confirm_within_seconds: None,
        };
        // Taken before: nothing that the change causes may be missed.
        let since = Timestamp::now();
        let change: Change = self.firewall.post("/api/v1/modes", &request)?;
        enforced(&change)?;
        self.traffic.ledger().enter(phase);
        Ok(since)
    }

    fn records(&self, filters: &[(&str, &str)], since: Timestamp) -> Result<Vec<FlowRecord>> {
        let mut query = Query::new("/api/v1/flows").with("since", since.to_string());
        for (name, value) in filters {
            query = query.with(name, value);
        }
        self.firewall.get(&query)
    }

    /// Waits until the daemon has read what happened until now: records come in order, and the shop
    /// opens connections all the time.
    fn wait_for_records(&self) -> Result<()> {
        let now = Timestamp::now();
        stop::wait(DEADLINE, "newer flow records", || {
            Ok((!self.records(&[("last", "1")], now)?.is_empty()).then_some(()))
        })
    }

    fn wait<T>(
        &mut self,
        what: &str,
        mut probe: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        stop::wait(DEADLINE, what, || {
            self.firewall.check_alive()?;
            probe(self)
        })
    }

    /// Writes policies and graph for later.
    pub(super) fn save(&self, to: &Path) -> Result<()> {
        let write = |name: &str, text: &str| {
            let path = to.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
        let policies = fs::read_to_string(self.directory.join(POLICY_FILE))
            .context("cannot read the policies")?;
        write(POLICY_FILE, &policies)?;
        for (format, name) in [
            ("mermaid", "graph.mmd"),
            ("dot", "graph.dot"),
            ("svg", "graph.svg"),
        ] {
            let query = Query::new("/api/v1/graph").with("format", format);
            write(name, &self.firewall.get_text(&query)?)?;
        }
        Ok(())
    }

    /// Leaves everything running until somebody asks to stop.
    pub(super) fn keep(&mut self, out: &mut Out) -> Result<()> {
        let socket = self.firewall.places().socket.display().to_string();
        out.chapter("It goes on until Ctrl-C, which removes everything")?;
        let mut text = format!("export PORTCULLIS_SOCKET={socket}\n");
        for command in [
            "portcullis status",
            "portcullis flows --follow --verdict dropped",
            "portcullis graph -o mermaid",
            "portcullis policy explain --from web-1 --to postgres --port 5432/tcp",
            "portcullis mode set --all monitor",
        ] {
            text.push_str(command);
            text.push('\n');
        }
        if let Some(socket) = self.place.docker_socket() {
            text.push_str(&format!("docker --host unix://{} ps\n", socket.display()));
        }
        out.indented(&text)?;
        out.line("")?;
        out.say("Inside the namespaces:")?;
        out.indented(&self.place.how_to_enter())?;
        stop::wait_for_request();
        Ok(())
    }

    /// Stops and removes everything, and says what could not be removed.
    pub(super) fn end(self) -> Result<()> {
        let Self {
            firewall,
            mut traffic,
            place,
            ..
        } = self;
        let stopped = firewall.stop();
        let quiet = traffic.stop();
        let removed = place.destroy();
        stopped.and(quiet).and(removed)
    }
}

fn wait_for_rounds(traffic: &Traffic, phase: Phase, rounds: u64, late: bool) -> Result<()> {
    let ledger = traffic.ledger();
    stop::wait(DEADLINE, "every client to have made its requests", || {
        Ok((ledger.rounds(phase, late) >= rounds).then_some(()))
    })
}

fn enforced(change: &Change) -> Result<()> {
    if !change.failed.is_empty() {
        bail!(
            "a change is not enforced everywhere: {}",
            change.failed.join("; ")
        );
    }
    Ok(())
}

/// Notes that say the same of several edges become one.
fn join_notes(notes: &[String]) -> Vec<String> {
    let mut joined: Vec<(Vec<&str>, &str)> = Vec::new();
    for note in notes {
        let (subject, text) = note.split_once(": ").unwrap_or(("", note));
        match joined.iter_mut().find(|(_, known)| *known == text) {
            Some((subjects, _)) => subjects.push(subject),
            None => joined.push((vec![subject], text)),
        }
    }
    let sentence = |(subjects, text): (Vec<&str>, &str)| match subjects[..] {
        [""] => text.to_owned(),
        _ => format!("{}: {text}", subjects.join("; ")),
    };
    joined.into_iter().map(sentence).collect()
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// A node's name, with a word for those that are nothing but an address.
fn describe(label: &str) -> String {
    match label.parse().ok().and_then(traffic::outsider_name) {
        Some(name) => format!("{label} ({name})"),
        None => label.to_owned(),
    }
}

fn clock(time: Timestamp) -> String {
    let time = time.to_zoned(TimeZone::system());
    time.strftime("%H:%M:%S%.3f").to_string()
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

#[cfg(test)]
mod tests {
    use super::join_notes;

    #[test]
    fn notes_that_say_the_same_are_joined() {
        let notes = ["a -> b: x", "a -> c: x", "d: y", "z"].map(str::to_owned);
        assert_eq!(join_notes(&notes), ["a -> b; a -> c: x", "d: y", "z"]);
    }
}
