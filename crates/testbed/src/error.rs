use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What can go wrong while building or using a lab.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command ended with an error.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// Command line, or the batch it was given.
        command: String,
        /// Exit status.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// A command could not be started.
    #[error("cannot start `{command}`: {source} (is the package that provides it installed?)")]
    Start {
        /// Program.
        command: String,
        /// Cause.
        source: io::Error,
    },
    /// A namespace cannot be opened or entered.
    #[error("cannot enter network namespace {path}: {source}")]
    Enter {
        /// Path of the namespace file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A server cannot bind.
    #[error("server {server}: cannot listen on {address}: {source}")]
    Listen {
        /// Name of the server.
        server: String,
        /// Address and transport.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// A socket operation failed.
    #[error("{what}: {source}")]
    Io {
        /// Operation.
        what: String,
        /// Cause.
        source: io::Error,
    },
    /// An address that cannot be parsed.
    #[error("`{text}` is not an address: {expected}")]
    Address {
        /// The text.
        text: String,
        /// What would be.
        expected: &'static str,
    },
    /// A name that is taken, or cannot be used as the name of an interface or namespace.
    #[error("`{name}` cannot name {what}: {reason}")]
    Name {
        /// The name.
        name: String,
        /// What it was to name.
        what: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// A condition did not come true in time.
    #[error("timed out after {waited:?} waiting for {what}")]
    TimedOut {
        /// The condition.
        what: String,
        /// How long.
        waited: Duration,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
