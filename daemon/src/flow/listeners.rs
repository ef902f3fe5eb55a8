//! The listening sockets of every workload, read again and again: evidence about flows that began
//! before the daemon could see them begin.
//!
//! A socket opens without any event. A workload that has just appeared opens its sockets after its
//! interface, so besides the period and changes of the estate there is a third cause to read: a
//! flow between workloads whose opener the present table does not tell.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flowgraph::direction::ListenerTable;
use flowgraph::record::{FlowRecord, Opener};
use policy::model::Protocol;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::workload::listeners;
use crate::workload::model::EstateSnapshot;

/// Time between readings while no workload comes or goes and every flow has an opener.
const PERIOD: Duration = Duration::from_secs(10);
/// Least time between a reading and the next one on request.
const SPACING: Duration = Duration::from_millis(100);
/// Readings on request take at most one part in this many of a processor's time.
const SHARE: u32 = 20;

/// Whether newer sockets might tell who opened a flow: it runs between workloads with ports and its
/// opener is not known.
#[must_use]
pub fn might_tell(record: &FlowRecord) -> bool {
    record.opener == Opener::Unknown
        && record.source.workload.is_some()
        && record.destination.workload.is_some()
        && record
            .l4
            .as_ref()
            .is_some_and(|l4| matches!(l4.protocol, Protocol::TCP | Protocol::UDP))
}

/// Keeps `table` up to date until cancelled; `wanted` asks for a reading before its time.
pub async fn run(
    mut estate: watch::Receiver<Arc<EstateSnapshot>>,
    table: watch::Sender<Arc<ListenerTable>>,
    wanted: Arc<Notify>,
    cancel: CancellationToken,
) {
    loop {
        let began = Instant::now();
        let snapshot = estate.borrow_and_update().clone();
        match tokio::task::spawn_blocking(move || read(&snapshot)).await {
            Ok(read) => {
                table.send_if_modified(|current| {
                    let modified = **current != read;
                    if modified {
                        *current = Arc::new(read);
                    }
                    modified
                });
            }
            Err(error) => tracing::error!(%error, "reading sockets failed"),
        }
        let spacing = SPACING.max(began.elapsed() * SHARE);
        let asked = async {
            tokio::time::sleep(spacing).await;
            wanted.notified().await;
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(PERIOD.max(spacing)) => {}
            () = asked => {}
            changed = estate.changed() => if changed.is_err() { return },
        }
    }
}

/// Reads the sockets of every workload with a namespace of its own. A namespace that cannot be read
/// is left out: its flows stay undecided, never "without listener".
#[must_use]
pub fn read(snapshot: &EstateSnapshot) -> ListenerTable {
    let mut table = ListenerTable::default();
    let places = snapshot.workloads.iter().filter_map(|workload| {
        let path: &PathBuf = workload.netns_path.as_ref()?;
        Some((
            format!("{}/{}", workload.spec.namespace, workload.spec.name),
            path,
        ))
    });
    for (name, path) in places {
        match listeners::read(path) {
            Ok(sockets) => table.set(name, sockets),
            Err(error) => tracing::debug!(workload = name, %error, "sockets not read"),
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_flow_between_workloads_without_opener_asks_for_sockets() {
        let undecided = FlowRecord {
            opener: Opener::Unknown,
            ..crate::flow::test_flow(53)
        };
        assert!(might_tell(&undecided));
        assert!(
            !might_tell(&crate::flow::test_flow(53)),
            "its opener is certain"
        );
        let mut outside = undecided.clone();
        outside.destination.workload = None;
        assert!(
            !might_tell(&outside),
            "nobody can read the sockets of the world"
        );
        let mut ping = undecided;
        ping.l4.as_mut().unwrap().protocol = Protocol::ICMP;
        assert!(!might_tell(&ping), "no socket listens for ICMP");
    }
}
