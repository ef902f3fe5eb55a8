//! Tests of the flow graph through its public interface, in one binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod aggregate;
mod build;
mod direction;
mod filter;
mod graph;
mod record;
mod selector;
mod simulate;
mod suggest;
