//! Where flow records go: the newest ones in memory, the live stream, and the learner.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use flowgraph::record::FlowRecord;
use tokio::sync::broadcast;

use super::learning::Learning;

/// Records kept for queries.
pub const RECENT_RECORDS: usize = 65_536;
/// Records a slow follower may lag behind before it loses some.
const LIVE_RECORDS: usize = 8_192;

/// The distributor of flow records. Cheap to share; never blocks.
#[derive(Debug)]
pub struct FlowHub {
    recent: RwLock<Recent>,
    capacity: usize,
    live: broadcast::Sender<Arc<FlowRecord>>,
    learning: Learning,
    /// Kernel events lost, as the counters said last.
    kernel_lost: AtomicU64,
    /// Of these, already named in a record.
    kernel_lost_told: AtomicU64,
    /// Records the learner had no room for.
    learner_lost: AtomicU64,
    /// Records followers missed.
    follower_lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Recent {
    records: VecDeque<Arc<FlowRecord>>,
    total: u64,
}

impl FlowHub {
    /// A hub that keeps `capacity` records and teaches `learning`.
    #[must_use]
    pub fn new(capacity: usize, learning: Learning) -> Self {
        Self {
            recent: RwLock::default(),
            capacity,
            live: broadcast::channel(LIVE_RECORDS).0,
            learning,
            kernel_lost: AtomicU64::new(0),
            kernel_lost_told: AtomicU64::new(0),
            learner_lost: AtomicU64::new(0),
            follower_lost: AtomicU64::new(0),
        }
    }

    /// Publishes a record. The first one after a loss says how many events are missing before it.
    pub fn publish(&self, mut record: FlowRecord) {
        record.observation.lost_events += self.take_loss();
        let record = Arc::new(record);
        self.teach(vec![record.clone()]);
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        if recent.records.len() == self.capacity {
            recent.records.pop_front();
        }
        recent.records.push_back(record.clone());
        recent.total += 1;
        // Under the same lock, so that a follower gets each record once. An error only means that
        // nobody follows.
        let _ = self.live.send(record);
    }

    /// Gives records to the learner only: totals of flows that go on are no news for people.
    pub fn teach(&self, records: Vec<Arc<FlowRecord>>) {
        let count = records.len() as u64;
        if !self.learning.teach(records) {
            self.learner_lost.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// The newest records, oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Arc<FlowRecord>> {
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        recent.records.iter().cloned().collect()
    }

    /// Records since the start, those no longer kept included.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.recent
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .total
    }

    /// The newest records, oldest first, and every later one.
    #[must_use]
    pub fn follow(&self) -> (Vec<Arc<FlowRecord>>, broadcast::Receiver<Arc<FlowRecord>>) {
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        let live = self.live.subscribe();
        (recent.records.iter().cloned().collect(), live)
    }

    /// The kernel's own count of lost events. Losses from before this process are not told.
    pub fn note_kernel_lost(&self, total: u64, first: bool) {
        self.kernel_lost.store(total, Ordering::Relaxed);
        if first {
            self.kernel_lost_told.store(total, Ordering::Relaxed);
        }
    }

    /// A follower missed records.
    pub fn note_follower_lost(&self, records: u64) {
        self.follower_lost.fetch_add(records, Ordering::Relaxed);
    }

    /// Records lost inside the daemon, by stage.
    #[must_use]
    pub fn lost_by_stage(&self) -> BTreeMap<String, u64> {
        [
            ("learning", &self.learner_lost),
            ("follow", &self.follower_lost),
        ]
        .into_iter()
        .map(|(stage, count)| (stage.to_owned(), count.load(Ordering::Relaxed)))
        .collect()
    }

    fn take_loss(&self) -> u64 {
        let total = self.kernel_lost.load(Ordering::Relaxed);
        // The counter starts again from 0 after `detach`.
        total.saturating_sub(self.kernel_lost_told.swap(total, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::test_flow;
    use crate::store::Store;

    async fn hub(capacity: usize) -> FlowHub {
        let (learning, _) = Learning::open(Store::in_memory().unwrap()).await.unwrap();
        FlowHub::new(capacity, learning)
    }

    #[tokio::test]
    async fn the_newest_records_are_kept_and_all_are_counted() {
        let hub = hub(2).await;
        for port in [1, 2, 3] {
            hub.publish(test_flow(port));
        }
        let kept: Vec<_> = hub
            .recent()
            .iter()
            .map(|record| record.destination.port.unwrap())
            .collect();
        assert_eq!(kept, [2, 3]);
        assert_eq!(hub.total(), 3);
    }

    #[tokio::test]
    async fn the_record_after_a_loss_says_how_much_is_missing_and_only_that_one() {
        let hub = hub(10).await;
        // What was lost before this daemon is not its gap.
        hub.note_kernel_lost(100, true);
        hub.publish(test_flow(1));
        hub.note_kernel_lost(107, false);
        hub.publish(test_flow(2));
        hub.publish(test_flow(3));
        let lost: Vec<_> = hub
            .recent()
            .iter()
            .map(|record| record.observation.lost_events)
            .collect();
        assert_eq!(lost, [0, 7, 0]);
    }

    #[tokio::test]
    async fn a_learner_that_is_gone_or_full_is_counted_and_stops_nobody() {
        let hub = hub(10).await;
        hub.publish(test_flow(1));
        assert_eq!(hub.lost_by_stage()["learning"], 1);
        assert_eq!(hub.recent().len(), 1);
    }

    #[tokio::test]
    async fn a_follower_gets_each_record_once() {
        let hub = hub(10).await;
        hub.publish(test_flow(1));
        let (past, mut live) = hub.follow();
        hub.publish(test_flow(2));
        assert_eq!(past.len(), 1);
        assert_eq!(live.recv().await.unwrap().destination.port, Some(2));
        assert!(live.try_recv().is_err());
    }
}
