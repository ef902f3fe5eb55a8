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
