//! The listening sockets of every workload, read again and again: evidence about flows that began
//! before the daemon could see them begin.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flowgraph::direction::ListenerTable;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::workload::listeners;
use crate::workload::model::EstateSnapshot;

/// Time between readings while no workload comes or goes.
const PERIOD: Duration = Duration::from_secs(10);

/// Keeps `table` up to date until cancelled.
pub async fn run(
    mut estate: watch::Receiver<Arc<EstateSnapshot>>,
    table: watch::Sender<Arc<ListenerTable>>,
    cancel: CancellationToken,
) {
    loop {
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
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
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
