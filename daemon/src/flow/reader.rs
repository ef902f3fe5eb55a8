//! The reader of the event ring: the only consumer, on a task that does nothing slow.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dataplane_common::event::{EventKind, FlowEvent};
use flowgraph::direction::ListenerTable;
use jiff::Timestamp;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::enrich::Enricher;
use super::hub::FlowHub;
use super::listeners;
use crate::controller::ControlState;
use crate::dataplane::{CtSnapshot, EventReader};

/// Events taken before other tasks get a turn.
const BATCH: usize = 2_048;
/// How often the wall clock is looked at again.
const CLOCK_PERIOD: Duration = Duration::from_secs(10);
/// Open flows whose beginning is remembered.
const OPEN_FLOWS: usize = 262_144;

/// A source address without owner on an endpoint that learns its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSeen {
    /// Interface index.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
}

/// What the reader reads with and where its findings go.
#[derive(Debug)]
pub struct Reader {
    /// Policies, workloads and rules in force.
    pub state: watch::Receiver<Arc<ControlState>>,
    /// Listening sockets.
    pub listeners: watch::Receiver<Arc<ListenerTable>>,
    /// Asks for a new reading of the sockets.
    pub listeners_wanted: Arc<Notify>,
    /// Records.
    pub hub: Arc<FlowHub>,
    /// Learned addresses.
    pub addresses: mpsc::Sender<AddressSeen>,
}

impl Reader {
    /// Reads until cancelled.
    ///
    /// # Errors
    /// When the ring cannot be waited on.
    pub async fn run(self, ring: EventReader, cancel: CancellationToken) -> std::io::Result<()> {
        // SAFETY: the descriptor belongs to `ring`, which `AsyncFd` owns and never gives out by value,
        // so it stays open and the same until it is deregistered.
        let mut ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
        let mut clock = Clock::sample();
        let mut clock_timer = tokio::time::interval(CLOCK_PERIOD);
        let mut open = OpenFlows::default();
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                _ = clock_timer.tick() => clock = Clock::sample(),
                ready = ring.readable_mut() => {
                    let mut ready = ready?;
                    let taken = ready.get_inner_mut().drain(BATCH, |event| batch.push(*event));
                    if taken < BATCH {
                        ready.clear_ready();
                    }
                    self.publish(&batch, clock, &mut open);
                    batch.clear();
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn publish(&self, events: &[FlowEvent], clock: Clock, open: &mut OpenFlows) {
        let state = self.state.borrow().clone();
        let listeners = self.listeners.borrow().clone();
        let enricher = Enricher {
            state: &state,
            listeners: &listeners,
            clock,
        };
        for event in events {
            if EventKind::from_u8(event.kind) == Some(EventKind::AddressSeen) {
                // A full channel loses nothing: the next packet reports the address again.
                let _ = self.addresses.try_send(AddressSeen {
                    ifindex: event.ifindex,
                    address: super::enrich::address(event.local),
                });
                continue;
            }
            let first_seen = open.first_seen(event, clock.wall(event.time_ns));
            if let Some(record) = enricher.event(event, first_seen) {
                if listeners::might_tell(&record) {
                    self.listeners_wanted.notify_one();
                }
                self.hub.publish(record);
            }
        }
    }
}

/// When the flows that are open now began, because events do not say.
#[derive(Debug, Default)]
struct OpenFlows {
    began: HashMap<FlowKey, Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FlowKey {
    endpoint: u32,
    local: IpAddr,
    remote: IpAddr,
    ports: (u16, u16),
    protocol: u8,
}

impl OpenFlows {
    fn first_seen(&mut self, event: &FlowEvent, time: Timestamp) -> Option<Timestamp> {
        let key = FlowKey {
            endpoint: event.endpoint,
            local: super::enrich::address(event.local),
            remote: super::enrich::address(event.remote),
            ports: (event.local_port_be, event.remote_port_be),
            protocol: event.protocol,
        };
        match EventKind::from_u8(event.kind)? {
            EventKind::New => {
                if self.began.len() >= OPEN_FLOWS {
                    // Flows that ended without an event (idle, evicted) fill the table in time. To
                    // forget them all costs precision of `first_seen`, nothing else.
                    self.began.clear();
                }
                self.began.insert(key, time);
                Some(time)
            }
            EventKind::Closed => self.began.remove(&key),
            EventKind::Rejudged => self.began.get(&key).copied(),
            EventKind::Denied | EventKind::AddressSeen => None,
        }
    }
}

/// Whether the kernel already reported the end of a flow.
#[must_use]
pub(super) const fn close_was_reported(entry: &CtSnapshot) -> bool {
    entry.entry.flags & dataplane_common::conntrack::flags::CLOSED != 0
}
