//! The shop at work: listeners, clients, and a ledger of every request and what came of it.
//!
//! Each client is a thread inside its workload's namespace that goes through its calls again and
//! again until the end of the demo. The ledger belongs to nobody: counters are atomic.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testbed::{Connection, Netns, Outcome, Server, probe};

use super::place::Place;
use super::shop::{self, Call, EdgeName, Listener, Manner, Outsider, Replica, Sender, Transport};

/// How long a request may take. Longer than two retransmissions of a lost SYN.
const PATIENCE: Duration = Duration::from_secs(4);
/// Pause of a client between two rounds.
const PAUSE: Duration = Duration::from_millis(60);
/// Failures kept in words.
const FAILURES_KEPT: usize = 20;

/// A part of the story, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// No daemon yet.
    Opening,
    Discover,
    Monitor,
    Protect,
}

const PHASES: usize = 4;

impl Phase {
    const ALL: [Self; PHASES] = [Self::Opening, Self::Discover, Self::Monitor, Self::Protect];
}

/// Requests and how many of them were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Tally {
    pub(super) ok: u64,
    pub(super) total: u64,
}

impl Tally {
    pub(super) const fn all_ok(self) -> bool {
        self.total > 0 && self.ok == self.total
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.ok += other.ok;
        self.total += other.total;
    }
}

#[derive(Debug, Default)]
struct Counter {
    ok: AtomicU64,
    total: AtomicU64,
}

/// What became of every request, by call and phase.
#[derive(Debug)]
pub(super) struct Ledger {
    phase: AtomicUsize,
    calls: Vec<(Call, [Counter; PHASES])>,
    failures: Mutex<Vec<String>>,
}

impl Ledger {
    fn new(calls: Vec<Call>) -> Self {
        Self {
            phase: AtomicUsize::new(Phase::Opening as usize),
            calls: calls
                .into_iter()
                .map(|call| (call, Default::default()))
                .collect(),
            failures: Mutex::default(),
        }
    }

    /// Requests begun from now on belong to `phase`.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as usize, Ordering::SeqCst);
    }

    fn record(&self, index: usize, phase: usize, outcome: &Outcome) {
        let (call, counters) = &self.calls[index];
        if *outcome == Outcome::Replied {
            counters[phase].ok.fetch_add(1, Ordering::SeqCst);
        } else {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            if failures.len() < FAILURES_KEPT {
                let phase = format!("{:?}", Phase::ALL[phase]).to_lowercase();
                failures.push(format!("{} ({}): {outcome} in {phase}", call.edge, call.to));
            }
        }
        // Last, so that `ok` is never more than `total` for a reader that loads it first.
        counters[phase].total.fetch_add(1, Ordering::SeqCst);
    }

    fn tally(&self, index: usize, phase: Phase) -> Tally {
        let counter = &self.calls[index].1[phase as usize];
        let ok = counter.ok.load(Ordering::SeqCst);
        Tally {
            ok,
            total: counter.total.load(Ordering::SeqCst),
        }
    }

    /// Fewest requests any of the calls has finished in a phase; calls of late workloads only if
    /// `late`.
    pub(super) fn rounds(&self, phase: Phase, late: bool) -> u64 {
        (0..self.calls.len())
            .filter(|index| late || !self.calls[*index].0.late)
            .map(|index| self.tally(index, phase).total)
            .min()
            .unwrap_or(0)
    }

    /// All requests of some phases.
    pub(super) fn sum(&self, phases: &[Phase]) -> Tally {
        let mut sum = Tally::default();
        for index in 0..self.calls.len() {
            for phase in phases {
                sum += self.tally(index, *phase);
            }
        }
        sum
    }

    /// Requests over connections older than the daemon.
    pub(super) fn held(&self, phase: Phase) -> Tally {
        let mut sum = Tally::default();
        for index in 0..self.calls.len() {
            if self.calls[index].0.manner == Manner::Held {
                sum += self.tally(index, phase);
            }
        }
        sum
    }

    /// Edges whose every request of a phase was answered.
    pub(super) fn working_edges(&self, phase: Phase) -> usize {
        let mut edges: BTreeMap<&EdgeName, Tally> = BTreeMap::new();
        for index in 0..self.calls.len() {
            *edges.entry(&self.calls[index].0.edge).or_default() += self.tally(index, phase);
        }
        edges.values().filter(|tally| tally.all_ok()).count()
    }

    /// Requests that failed, in words.
    pub(super) fn failures(&self) -> Vec<String> {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The calls.
    pub(super) fn calls(&self) -> impl Iterator<Item = &Call> {
        self.calls.iter().map(|(call, _)| call)
    }
}

/// An open port.
#[derive(Debug)]
struct Open {
    listener: Listener,
    server: Server,
}

/// What reached listeners it should not have reached, as the listeners themselves count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    /// Connections and datagrams.
    pub(super) contacts: u64,
    /// Payload bytes.
    pub(super) bytes: u64,
}

impl std::ops::Sub for Touched {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            contacts: self.contacts - before.contacts,
            bytes: self.bytes - before.bytes,
        }
    }
}

/// All listeners and clients. Dropping it stops them.
#[derive(Debug)]
pub(super) struct Traffic {
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Result<(), testbed::Error>>>,
    open: Vec<Open>,
}

impl Traffic {
    /// Opens the outside's listeners. Workloads open with [`Traffic::open`].
    pub(super) fn new(place: &Place) -> Result<Self> {
        let mut traffic = Self {
            ledger: Arc::new(Ledger::new(shop::calls(&place.shop_front()))),
            stop: Arc::default(),
            clients: Vec::new(),
            open: Vec::new(),
        };
        for outsider in [shop::PAYMENTS, shop::DROP_ZONE] {
            traffic.listen(outsider.name, place.outside(), &outsider.addresses())?;
        }
        Ok(traffic)
    }

    /// The ledger.
    pub(super) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Opens the ports of a workload.
    pub(super) fn open(&mut self, place: &Place, replica: &Replica) -> Result<()> {
        self.listen(replica.app, place.netns(replica.name), &[])
    }

    fn listen(&mut self, owner: &str, netns: &Netns, addresses: &[IpAddr]) -> Result<()> {
        for listener in shop::listeners().into_iter().filter(|l| l.owner == owner) {
            let server = Server::new(owner).bind(addresses.iter().copied());
            let server = match listener.transport {
                Transport::Tcp => server.tcp(listener.port),
                Transport::Udp => server.udp(listener.port),
            };
            let server = server.start(netns)?;
            self.open.push(Open { listener, server });
        }
        Ok(())
    }

    /// Starts the clients: those of workloads there from the beginning, or the late ones.
    pub(super) fn start(&mut self, place: &Place, late: bool) -> Result<()> {
        let mut senders: Vec<Sender> = Vec::new();
        for call in self.ledger.calls().filter(|call| call.late == late) {
            if !senders.contains(&call.sender) {
                senders.push(call.sender);
            }
        }
        for sender in senders {
            let netns = match sender {
                Sender::Workload(name) => place.netns(name),
                Sender::Outside => place.outside(),
            };
            let indices: Vec<usize> = (0..self.ledger.calls.len())
                .filter(|index| {
                    let call = &self.ledger.calls[*index].0;
                    call.sender == sender && call.late == late
                })
                .collect();
            let (netns, ledger, stop) = (netns.clone(), self.ledger.clone(), self.stop.clone());
            let client = std::thread::Builder::new()
                .name(format!("client {sender:?}"))
                .spawn(move || netns.run(|| client(&ledger, &indices, &stop)))
                .context("cannot start a client")?;
            self.clients.push(client);
        }
        Ok(())
    }

    /// What the intruder's addresses, or packets in somebody else's name, brought to listeners that
    /// they have no business with.
    pub(super) fn touched(&self, intruder: &Replica, spoofed: &Replica) -> Touched {
        let mut touched = Touched::default();
        for Open { listener, server } in &self.open {
            let clients = if listener.owner == shop::DROP_ZONE.name {
                // Nobody has any business there, whatever address the host gave the packets.
                server.clients()
            } else if listener.port == shop::STATSD {
                [intruder.addresses(), spoofed.addresses()].concat()
            } else if shop::is_legitimate(intruder.app, listener) {
                Vec::new()
            } else {
                intruder.addresses()
            };
            for client in clients {
                touched.contacts += server.reached_by(client);
                touched.bytes += server.bytes_from(client);
            }
        }
        touched
    }

    /// Datagrams that came to the metrics service in the name of a workload that sends none, by
    /// address.
    pub(super) fn arrived_in_the_name_of(&self, spoofed: &Replica) -> BTreeMap<IpAddr, u64> {
        let servers = self
            .open
            .iter()
            .filter(|open| open.listener.port == shop::STATSD);
        let mut arrived = BTreeMap::new();
        for Open { server, .. } in servers {
            for address in spoofed.addresses() {
                *arrived.entry(address).or_default() += server.reached_by(address);
            }
        }
        arrived
    }

    /// Stops clients and listeners.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        let mut result = Ok(());
        for client in self.clients.drain(..) {
            match client.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => result = Err(error.into()),
                Err(_) => result = Err(anyhow::anyhow!("a client panicked")),
            }
        }
        self.open.clear();
        result
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // Reported by whoever stops it in order.
        let _ = self.stop();
    }
}

/// The life of a client.
fn client(ledger: &Ledger, indices: &[usize], stop: &AtomicBool) {
    let mut held: Vec<Option<Connection>> = indices.iter().map(|_| None).collect();
    let mut opened = vec![false; indices.len()];
    let mut number = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        for (place, index) in indices.iter().enumerate() {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            let call = &ledger.calls[*index].0;
            if call.manner == Manner::Held && !opened[place] {
                // Once: a connection that is lost stays lost, and every later request fails.
                opened[place] = true;
                held[place] = Connection::open(call.to, PATIENCE).ok();
            }
            number += 1;
            let phase = ledger.phase.load(Ordering::SeqCst);
            let outcome = request(call, held[place].as_mut(), number);
            ledger.record(*index, phase, &outcome);
        }
        std::thread::sleep(PAUSE);
    }
}

fn request(call: &Call, held: Option<&mut Connection>, number: u64) -> Outcome {
    match (call.manner, held) {
        (Manner::Http, _) => probe::http_get(call.to, &format!("/{number}"), PATIENCE).0,
        (Manner::Line, _) => probe::tcp(call.to, PATIENCE),
        (Manner::Held, Some(connection)) => {
            connection.exchange(&format!("request {number}"), PATIENCE)
        }
        (Manner::Held, None) => Outcome::Closed,
        (Manner::Datagram, _) => probe::udp(call.to, PATIENCE),
        (Manner::DatagramFrom(port), _) => probe::udp_from(port, call.to, PATIENCE),
    }
}

/// Waits until one request of every call is answered, before any is counted: a container's address
/// may take a moment to be usable.
pub(super) fn warm_up(place: &Place, calls: &[&Call], deadline: Duration) -> Result<()> {
    let end = Instant::now() + deadline;
    for call in calls {
        let netns = match call.sender {
            Sender::Workload(name) => place.netns(name),
            Sender::Outside => place.outside(),
        };
        // Connections to be held are opened by their client; whether the port answers shows here.
        let manner = match call.manner {
            Manner::Held | Manner::DatagramFrom(_) => continue,
            other => other,
        };
        let call = Call {
            manner,
            ..(*call).clone()
        };
        let outcome = netns.run(|| {
            loop {
                let outcome = request(&call, None, 0);
                if outcome == Outcome::Replied || Instant::now() >= end {
                    return outcome;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        })?;
        if outcome != Outcome::Replied {
            anyhow::bail!(
                "the shop does not open: {} ({}): {outcome}",
                call.edge,
                call.to
            );
        }
    }
    Ok(())
}

/// Names of the outside's members, for tables.
pub(super) fn outsider_name(address: IpAddr) -> Option<&'static str> {
    [shop::CUSTOMERS, shop::PAYMENTS, shop::DROP_ZONE]
        .into_iter()
        .find(|outsider: &Outsider| outsider.addresses().contains(&address))
        .map(|outsider| outsider.name)
}
