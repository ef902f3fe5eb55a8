//! The main job, end to end: the real daemon on real namespaces and a real dockerd.

mod bad_input;
mod connections;
mod discover;
mod docker;
mod hosts;
mod learning;
mod lifecycle;
mod modes;
mod netpol;
mod policy;
mod workloads;
