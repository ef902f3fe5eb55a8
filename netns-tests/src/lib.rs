//! The privileged suites: real BPF, network namespaces, Docker.
//!
//! `frames` and `kernel` serve the packet tables that run in the kernel without a daemon. The other
//! modules are what the end-to-end suites share: the daemon as a process, a test bed, and the
//! kernel's own word for what is attached. These suites run the real binary in the host namespace of
//! a lab and assert the verdict of a probe, what the server at the other end saw of it, and what
//! must not have changed.

pub mod bed;
pub mod bpffs;
pub mod documents;
pub mod frames;
pub mod kernel;
pub mod objects;
pub mod output;
pub mod portcullis;
pub mod reference;
