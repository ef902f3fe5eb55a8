//! The scanner of conntrack: totals of flows that go on, and the end of those that fell silent.

use std::sync::Arc;
use std::time::Duration;

use flowgraph::direction::ListenerTable;
use flowgraph::record::Event;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::clock::{Clock, monotonic_ns};
use super::enrich::Enricher;
use super::hub::FlowHub;
use super::reader::close_was_reported;
use crate::controller::{ControlError, Controller};

/// Time between scans.
pub const PERIOD: Duration = Duration::from_secs(3);

/// What the scanner reads with and where its findings go.
#[derive(Debug)]
pub struct Scanner {
    /// The owner of the kernel maps.
    pub controller: Controller,
    /// Listening sockets.
    pub listeners: watch::Receiver<Arc<ListenerTable>>,
    /// Records.
    pub hub: Arc<FlowHub>,
}

impl Scanner {
    /// Scans until cancelled, and once more then, so that the last totals are learned.
    pub async fn run(self, cancel: CancellationToken) {
        let mut timer = tokio::time::interval(PERIOD);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_scan_ns = 0;
        loop {
            let stopping = tokio::select! {
                () = cancel.cancelled() => true,
                _ = timer.tick() => false,
            };
            match self.scan(last_scan_ns).await {
                Ok(scanned_ns) => last_scan_ns = scanned_ns,
                Err(ControlError::Stopped) => return,
                Err(error) => tracing::warn!(%error, "cannot read conntrack"),
            }
            if stopping {
                return;
            }
        }
    }

    /// Reads everything that changed since the last scan and returns the time of this one.
    async fn scan(&self, last_scan_ns: u64) -> Result<u64, ControlError> {
        let counters = self.controller.counters().await?;
        self.hub
            .note_kernel_lost(counters.lost_events, last_scan_ns == 0);
        let now_ns = monotonic_ns();
        let expired = self.controller.expire(now_ns).await?;
        let flows = self.controller.conntrack().await?;
        let state = self.controller.state();
        let listeners = self.listeners.borrow().clone();
        let enricher = Enricher {
            state: &state,
            listeners: &listeners,
            clock: Clock::sample(),
        };
        for entry in &expired {
            let record = enricher.conntrack(entry, Event::Closed, now_ns);
            if close_was_reported(entry) {
                self.hub.teach(vec![Arc::new(record)]);
            } else {
                self.hub.publish(record);
            }
        }
        // The coarse clock of the kernel may lag by a tick; a flow told twice counts once.
        let since_ns = last_scan_ns.saturating_sub(1_000_000_000);
        let totals: Vec<_> = flows
            .iter()
            .filter(|entry| entry.entry.last_seen_ns >= since_ns)
            .map(|entry| Arc::new(enricher.conntrack(entry, Event::Summary, now_ns)))
            .collect();
        if !totals.is_empty() {
            self.hub.teach(totals);
        }
        Ok(now_ns)
    }
}
