//! x
pub mod args;
pub mod client;
pub mod error;
pub mod output;
