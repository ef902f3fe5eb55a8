//! The story: open, discover, learn, generate, watch, protect, attack, count.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flowgraph::record::FlowRecord;
use jiff::Timestamp;
use policy::model::Mode;

use super::firewall::{Firewall, Places};
use super::intruder::{self, Intruder};
use super::out::{Out, plural};
use super::place::Place;
use super::shop::{self, INTRUDER, REPLICAS};
use super::stop;
use super::summary::Summary;
use super::traffic::{self, Phase, Traffic};
use crate::api::dto::{Change, ModeRequest};
use crate::cli::client::Query;

/// How long a condition may take to come true.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// Requests of every call that each phase must see.
pub(super) const ROUNDS: u64 = 5;
/// Where the generated policies are.
pub(super) const POLICY_FILE: &str = "networkpolicy.yaml";

/// Everything that runs. Fields drop in order: the firewall first, the place it stands in last.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) firewall: Firewall,
    pub(super) traffic: Traffic,
    pub(super) place: Place,
    pub(super) directory: PathBuf,
    pub(super) ready_after: Duration,
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

    /// Sets the mode of all groups. Gives the time from which on it is in force.
    pub(super) fn switch(&mut self, mode: Mode, phase: Phase) -> Result<Timestamp> {
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

    pub(super) fn records(
        &self,
        filters: &[(&str, &str)],
        since: Timestamp,
    ) -> Result<Vec<FlowRecord>> {
        let mut query = Query::new("/api/v1/flows").with("since", since.to_string());
        for (name, value) in filters {
            query = query.with(name, value);
        }
        self.firewall.get(&query)
    }

    /// Waits until the daemon has read what happened until now: records come in order, and the shop
    /// opens connections all the time.
    pub(super) fn wait_for_records(&self) -> Result<()> {
        let now = Timestamp::now();
        stop::wait(DEADLINE, "newer flow records", || {
            Ok((!self.records(&[("last", "1")], now)?.is_empty()).then_some(()))
        })
    }

    pub(super) fn wait<T>(
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

/// Waits until every client has made its requests so many times in a phase.
pub(super) fn wait_for_rounds(
    traffic: &Traffic,
    phase: Phase,
    rounds: u64,
    late: bool,
) -> Result<()> {
    let ledger = traffic.ledger();
    stop::wait(DEADLINE, "every client to have made its requests", || {
        Ok((ledger.rounds(phase, late) >= rounds).then_some(()))
    })
}

/// Fails when a change is not in force everywhere.
pub(super) fn enforced(change: &Change) -> Result<()> {
    if !change.failed.is_empty() {
        bail!(
            "a change is not enforced everywhere: {}",
            change.failed.join("; ")
        );
    }
    Ok(())
}
