//! The main job, end to end: the real daemon on real namespaces and a real dockerd.

mod connections;
mod discover;
mod hosts;
mod lifecycle;
mod modes;
mod netpol;
mod policy;
mod workloads;
