//! Network labs for the demo and the privileged tests: namespaces, veths, bridges, small servers
//! and clients with typed outcomes.
//!
//! A [`Lab`] owns everything it makes and removes it on drop, also when a test panics. By default
//! its "host" is a network namespace of its own, so the machine's own network is never touched.
//!
//! ```no_run
//! # fn main() -> Result<(), testbed::Error> {
//! use std::time::Duration;
//! use testbed::{Lab, Outcome, Server, probe};
//!
//! let lab = Lab::new("shop")?;
//! let front = lab.bridge("front", "10.1.0.1/24", "fd01::1/64")?;
//! let web = lab.workload("web-1").on(&front).v4("10.1.0.2").v6("fd01::2").build()?;
//! let api = lab.workload("api-1").on(&front).v4("10.1.0.3").v6("fd01::3").build()?;
//! let _server = Server::new("api").tcp(8080).start(&api.netns)?;
//! let outcome = web.run(|| probe::tcp("10.1.0.3:8080", Duration::from_secs(1)))?;
//! assert_eq!(outcome, Outcome::Replied);
//! # Ok(()) }
//! ```

mod command;
mod docker;
mod error;
mod lab;
mod netns;
mod ping;
mod privilege;
pub mod probe;
mod server;
mod wait;
mod workload;

pub use command::ip_batch;
pub use docker::Dockerd;
pub use error::Error;
pub use lab::{Bridge, Lab, LabKind};
pub use netns::{Netns, Process};
pub use privilege::privileged;
pub use probe::{Connection, Outcome};
pub use server::{Server, ServerBuilder, serve};
pub use wait::{wait_for, wait_until};
pub use workload::{Interface, InterfaceAddress, Workload, WorkloadBuilder};

/// Returns from the calling test with `SKIP: why` on stderr unless it runs as root.
///
/// With `REQUIRE_PRIVILEGED=1` in the environment it panics instead, so that a suite that must run
/// cannot pass by skipping.
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::privileged(module_path!()) {
            return;
        }
    };
}
