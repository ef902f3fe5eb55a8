//! Which workloads are on this host, where they are attached and which addresses they own.
//!
//! ```text
//! netlink ── links, namespaces ──┐
//! inventory ── declared ─────────┼──> registry (one task) ──> watch: EstateSnapshot
//! docker ── containers, labels ──┘        merge
//! ```
//!
//! [`registry`] owns the state; [`merge`] is the pure part that decides who is who. The kernel is
//! the truth about interfaces and addresses; Docker and the inventory give names, labels and groups.

pub mod docker;
pub mod inventory;
mod inventory_format;
pub mod listeners;
pub mod merge;
pub mod model;
pub mod netlink;
pub mod netns;
pub mod registry;
