//! The daemon and command line of portcullis, as a library so that tests and benches can drive it.

pub mod api;
pub mod app;
pub mod bpf_object;
pub mod cli;
pub mod config;
pub mod controller;
pub mod dataplane;
pub mod demo;
pub mod documents;
pub mod flow;
pub mod preflight;
pub mod store;
pub mod workload;
