//! Tests of the flow graph through its public interface, in one binary.

mod aggregate;
mod build;
mod direction;
mod filter;
mod graph;
mod record;
mod selector;
mod simulate;
mod suggest;
