//! The learner: the one owner of the edge store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flowgraph::aggregate::{Changes, Edge, EdgeRow, EdgeStore, Limits, Snapshot};
use flowgraph::record::FlowRecord;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError, StoredLearning};

/// Batches that may wait for the learner.
const QUEUE: usize = 16_384;
/// Time between saves.
const SAVE_PERIOD: Duration = Duration::from_secs(15);

enum Message {
    Records {
        records: Vec<Arc<FlowRecord>>,
        /// Records for which there was no room before these.
        lost_before: u64,
    },
    Edges(oneshot::Sender<Arc<Vec<Edge>>>),
}

/// A handle to the learner.
#[derive(Clone, Debug)]
pub struct Learning {
    sender: mpsc::Sender<Message>,
    /// Records for which there was no room, not told to the learner yet.
    lost: Arc<AtomicU64>,
}

/// The learner before it runs.
pub struct Learner {
    receiver: mpsc::Receiver<Message>,
    store: Store,
    edges: EdgeStore,
    /// What [`Learning::edges`] answered last, until something changes.
    answer: Option<Arc<Vec<Edge>>>,
    /// Something was learned since the last save.
    learned: bool,
    /// Changes that could not be saved yet.
    unsaved: Changes,
}

impl std::fmt::Debug for Learner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Learner").finish_non_exhaustive()
    }
}

impl Learning {
    /// Restores what was learned before.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub async fn open(store: Store) -> Result<(Self, Learner), StoreError> {
        let stored = store.learning().await?;
        let edges = EdgeStore::restore(Limits::default(), snapshot(stored)?);
        let (sender, receiver) = mpsc::channel(QUEUE);
        let learner = Learner {
            receiver,
            store,
            edges,
            answer: None,
            learned: false,
            unsaved: Changes::default(),
        };
        let lost = Arc::default();
        Ok((Self { sender, lost }, learner))
    }

    /// Hands records over; `false` if there was no room for them. The edges say later that events
    /// are missing.
    #[must_use]
    pub fn teach(&self, records: Vec<Arc<FlowRecord>>) -> bool {
        let count = records.len() as u64;
        let lost_before = self.lost.swap(0, Ordering::Relaxed);
        let sent = self.sender.try_send(Message::Records {
            records,
            lost_before,
        });
        if sent.is_err() {
            self.lost.fetch_add(lost_before + count, Ordering::Relaxed);
        }
        sent.is_ok()
    }

    /// Every edge; records taught before the call are in them. `None` after the learner has ended.
    pub async fn edges(&self) -> Option<Arc<Vec<Edge>>> {
        let (reply, answer) = oneshot::channel();
        self.sender.send(Message::Edges(reply)).await.ok()?;
        answer.await.ok()
    }
}

impl Learner {
    /// Learns until cancelled or every [`Learning`] is gone, saving from time to time and at the end.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut timer = tokio::time::interval(SAVE_PERIOD);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                message = self.receiver.recv() => match message {
                    Some(message) => self.handle(message),
                    None => break,
                },
                _ = timer.tick() => {
                    self.edges.expire(Timestamp::now());
                    self.save().await;
                }
                () = cancel.cancelled() => break,
            }
        }
        while let Ok(message) = self.receiver.try_recv() {
            self.handle(message);
        }
        self.save().await;
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Records {
                records,
                lost_before,
            } => {
                if lost_before > 0 {
                    self.edges.note_loss(Timestamp::now(), lost_before);
                }
                for record in &records {
                    self.edges.apply(record);
                }
                self.answer = None;
                self.learned = true;
            }
            Message::Edges(reply) => {
                let edges = &self.edges;
                let answer = self.answer.get_or_insert_with(|| Arc::new(edges.edges()));
                // The one who asked may have gone away.
                let _ = reply.send(answer.clone());
            }
        }
    }

    async fn save(&mut self) {
        if !self.learned {
            return;
        }
        let changes = merge(std::mem::take(&mut self.unsaved), self.edges.take_changes());
        let rest = Snapshot {
            edges: Vec::new(),
            ..self.edges.snapshot()
        };
        match write(&self.store, changes.clone(), &rest).await {
            Ok(()) => self.learned = false,
            Err(error) => {
                tracing::error!(%error, "what was learned could not be saved, trying again");
                self.unsaved = changes;
            }
        }
    }
}

/// Changes one after the other as one.
fn merge(mut earlier: Changes, later: Changes) -> Changes {
    let ids = |changes: &Changes| -> BTreeSet<String> {
        let changed = changes.changed.iter().map(|row| row.id.clone());
        changed.chain(changes.removed.iter().cloned()).collect()
    };
    let later_ids = ids(&later);
    earlier.changed.retain(|row| !later_ids.contains(&row.id));
    earlier.removed.retain(|id| !later_ids.contains(id));
    earlier.changed.extend(later.changed);
    earlier.removed.extend(later.removed);
    earlier
}

async fn write(store: &Store, changes: Changes, rest: &Snapshot) -> Result<(), StoreError> {
    let json = |value: Result<String, serde_json::Error>| {
        value.map_err(|error| StoreError::Value {
            what: "learned edges",
            detail: error.to_string(),
        })
    };
    let edges = changes
        .changed
        .into_iter()
        .map(|row| Ok((row.id, json(serde_json::to_string(&row.edge))?)))
        .collect::<Result<_, StoreError>>()?;
    let rest = Some(json(serde_json::to_string(rest))?);
    store
        .save_learning(StoredLearning { edges, rest }, changes.removed)
        .await
}

fn snapshot(stored: StoredLearning) -> Result<Snapshot, StoreError> {
    let value = |what, error: serde_json::Error| StoreError::Value {
        what,
        detail: error.to_string(),
    };
    let mut snapshot = match stored.rest {
        Some(rest) => {
            serde_json::from_str(&rest).map_err(|error| value("state of learning", error))?
        }
        None => Snapshot::default(),
    };
    snapshot.edges = stored
        .edges
        .into_iter()
        .map(|(id, body)| {
            let edge = serde_json::from_str(&body).map_err(|error| value("learned edge", error))?;
            Ok(EdgeRow { id, edge })
        })
        .collect::<Result<_, StoreError>>()?;
    Ok(snapshot)
}

#[cfg(test)]
mod tests;
