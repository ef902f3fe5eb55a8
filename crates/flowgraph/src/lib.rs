//! From flow records to a service graph and least-privilege rules, pure: no I/O, no clock, no async.
//!
//! A flow record ([`record::FlowRecord`]) is one judgement or one count of one flow by one
//! workload's policy. Records become edges, edges become a graph and a suggestion:
//!
//! ```text
//! kernel event ──> direction::decide ──> FlowRecord ──> EdgeStore ──> Edge ──> ServiceGraph
//!                  who opened it?        + FlowFilter   (one owner)      └───> suggest ──> policy
//! ```
//!
//! | Question | Module |
//! |---|---|
//! | What does a flow record look like, and how is it filtered? | [`record`], [`filter`] |
//! | Who opened this flow, and how do we know? | [`direction`] |
//! | Which edges exist, since when, how often, seen by whom? | [`edge`], [`aggregate`] |
//! | Who depends on whom, what can a compromised service reach? | [`graph`], [`render`] |
//! | Which rules would allow exactly what was seen? | [`suggest`], [`selector`] |
//!
//! # Rules that hold everywhere
//!
//! - **Unknown direction never becomes a rule.** [`direction::decide`] answers from evidence or says
//!   [`direction::OpenerDecision::Unknown`]; an edge of such flows has [`edge::Service::Undecided`],
//!   carries no port, and [`suggest::suggest`] lists it instead of using it.
//! - **One flow is counted once**, however many workloads report it and however often: every record
//!   but a denial is idempotent ([`aggregate::EdgeStore::apply`]).
//! - **Nothing is widened.** Addresses stay addresses, ports stay single ports, a selector selects
//!   exactly the group or there is no rule. What cannot be said is listed with its reason.
//! - **The same edges give the same bytes**: every output is ordered.

#![forbid(unsafe_code)]

pub mod aggregate;
pub mod direction;
mod draft;
pub mod edge;
mod evidence;
pub mod filter;
mod flow;
pub mod graph;
pub mod record;
pub mod render;
pub mod selector;
pub mod suggest;
mod text;

pub use policy::evaluate::RuleRef;
pub use policy::model::Protocol;
