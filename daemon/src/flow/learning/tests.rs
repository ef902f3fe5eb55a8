use super::*;
use crate::flow::test_flow;
use flowgraph::record::Event;

struct Running {
    learning: Learning,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn start(store: &Store) -> Running {
    let (learning, learner) = Learning::open(store.clone()).await.unwrap();
    let cancel = CancellationToken::new();
    let task = tokio::spawn(learner.run(cancel.clone()));
    Running {
        learning,
        cancel,
        task,
    }
}

impl Running {
    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

/// A flow that begins now: the learner forgets flows that were silent for hours.
fn opened(port: u16) -> FlowRecord {
    let now = Timestamp::now();
    FlowRecord {
        time: now,
        first_seen: now,
        last_seen: now,
        ..test_flow(port)
    }
}

/// The end of an opened flow.
fn closed(opened: &FlowRecord) -> FlowRecord {
    FlowRecord {
        event: Event::Closed,
        packets: 12,
        reply_packets: 6,
        bytes: 1_200,
        reply_bytes: 600,
        ..opened.clone()
    }
}

#[tokio::test]
async fn edges_survive_a_restart_and_a_flow_told_again_counts_once() {
    let store = Store::in_memory().unwrap();
    let first = start(&store).await;
    let flow = opened(8080);
    assert!(first.learning.teach(vec![Arc::new(flow.clone())]));
    assert!(first.learning.teach(vec![Arc::new(opened(9090))]));
    let before = first.learning.edges().await.unwrap();
    assert_eq!(before.len(), 2);
    assert_eq!(before[0].connections, 1);
    first.stop().await;

    let second = start(&store).await;
    assert_eq!(second.learning.edges().await.unwrap(), before);
    assert!(second.learning.teach(vec![Arc::new(closed(&flow))]));
    let after = second.learning.edges().await.unwrap();
    assert_eq!(after[0].connections, 1, "the same flow");
    assert_eq!(after[0].traffic.packets, [6, 6]);
    assert_eq!(after[1], before[1]);
    second.stop().await;
    assert_eq!(start(&store).await.learning.edges().await.unwrap(), after);
}

#[tokio::test]
async fn what_could_not_be_saved_is_saved_later() {
    let store = Store::in_memory().unwrap();
    let rename = |from: &'static str, to: &'static str| {
        store.call(move |connection| {
            connection.execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}"))?;
            Ok(())
        })
    };
    let (learning, mut learner) = Learning::open(store.clone()).await.unwrap();
    rename("learning", "elsewhere").unwrap();
    assert!(learning.teach(vec![Arc::new(test_flow(8080))]));
    let message = learner.receiver.recv().await.unwrap();
    learner.handle(message);
    learner.save().await;
    assert!(learner.learned, "still to do");
    rename("elsewhere", "learning").unwrap();
    learner.save().await;
    assert!(!learner.learned);
    assert_eq!(start(&store).await.learning.edges().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_stored_edge_that_cannot_be_read_is_an_error_and_not_forgotten() {
    let store = Store::in_memory().unwrap();
    store
        .save_learning(
            StoredLearning {
                edges: vec![("x".into(), "{".into())],
                rest: None,
            },
            Vec::new(),
        )
        .await
        .unwrap();
    let error = Learning::open(store.clone()).await.unwrap_err();
    assert!(error.to_string().contains("learned edge"), "{error}");
    assert_eq!(store.learning().await.unwrap().edges.len(), 1);
}

#[test]
fn later_changes_win_over_earlier_ones() {
    let mut edges = EdgeStore::new(Limits::default());
    edges.apply(&test_flow(8080));
    let written = edges.take_changes();
    let id = written.changed[0].id.clone();
    let removed = Changes {
        changed: Vec::new(),
        removed: vec![id.clone()],
    };
    assert_eq!(merge(written.clone(), removed.clone()), removed);
    assert_eq!(merge(removed, written.clone()), written);
}

#[tokio::test]
async fn records_without_room_are_counted_and_told_with_the_next_ones() {
    let store = Store::in_memory().unwrap();
    let (learning, mut learner) = Learning::open(store).await.unwrap();
    // Nobody learns meanwhile.
    while learning.teach(vec![Arc::new(test_flow(8080))]) {}
    let two = [1, 2].map(|port| Arc::new(test_flow(port)));
    assert!(!learning.teach(two.to_vec()));
    while let Ok(message) = learner.receiver.try_recv() {
        learner.handle(message);
    }
    assert_eq!(learner.edges.stats().lost_events, 0);
    assert!(learning.teach(vec![Arc::new(test_flow(8080))]));
    let message = learner.receiver.recv().await.unwrap();
    learner.handle(message);
    assert_eq!(learner.edges.stats().lost_events, 3);
}
