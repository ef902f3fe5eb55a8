//! The policy engine, pure: files in, verdicts and map entries out. No I/O, no clock, no async.
//!
//! `evaluate` is the truth: a slow, obvious reading of the rules. `compile` is the fast form the
//! kernel looks up. Tests hold the two equal on random input.

#![forbid(unsafe_code)]

mod document;
mod set;
mod syntax;
mod yaml;

pub mod compile;
pub mod evaluate;
pub mod explain;
pub mod export;
pub mod model;
pub mod netpol;
pub mod parse;
pub mod resolve;
