//! From kernel events to flow records, recent flows and learned edges.
//!
//! ```text
//! ring buffer ──> reader ──> FlowHub (recent, live) ──> API
//! conntrack ────> scanner ─┐     │
//! sockets ──> listeners ───┴─────┴──> learning (EdgeStore) ──> API, store
//! ```
//!
//! One task owns each state: the reader the event ring, the learner the edge store. What a slow
//! receiver misses is counted and shows in the next record it gets.

pub mod clock;
pub mod enrich;
pub mod hub;
pub mod learning;
pub mod listeners;
pub mod reader;
pub mod scanner;

pub use hub::FlowHub;
pub use learning::Learning;

/// `shop/web` opens a connection to a port of `shop/api`.
#[cfg(test)]
pub(crate) fn test_flow(port: u16) -> flowgraph::record::FlowRecord {
    serde_json::from_value(serde_json::json!({
        "time": "2026-01-01T00:00:00Z", "event": "new", "verdict": "forwarded",
        "direction": "egress", "opener": "certain", "is_reply": false,
        "source": {"workload": "web", "namespace": "shop", "group": "shop/web",
                   "identity": 300, "ip": "10.0.0.3", "port": 40000},
        "destination": {"workload": "api", "namespace": "shop", "group": "shop/api",
                        "identity": 301, "ip": "10.0.0.2", "port": port},
        "l4": {"protocol": "TCP", "port": port},
        "packets": 1, "bytes": 60, "first_seen": "2026-01-01T00:00:00Z",
        "last_seen": "2026-01-01T00:00:00Z", "observation": {}
    }))
    .expect("the fields are those of a record")
}
