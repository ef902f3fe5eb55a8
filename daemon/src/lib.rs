//! The daemon and command line of portcullis, as a library so that tests and benches can drive it.

pub mod bpf_object;
pub mod dataplane;
pub mod api;
pub mod cli;
pub mod controller;
pub mod flow;
pub mod preflight;
pub mod store;
pub mod workload;
