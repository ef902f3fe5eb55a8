//! What can go wrong between the daemon and the kernel.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

/// An error of the dataplane. Nothing was changed in the kernel unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The binary carries no BPF object.
    #[error(transparent)]
    Object(#[from] crate::bpf_object::MissingObject),
    /// The kernel refused the object.
    #[error("cannot load the BPF object: {}", explain_load(.0))]
    Load(#[source] Box<EbpfError>),
    /// The object lacks something this daemon was built against.
    #[error("the BPF object has no {kind} named `{name}`; rebuild with `make build`")]
    Missing {
        /// `map` or `program`.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A program was refused.
    #[error("cannot load BPF program `{name}`: {source}")]
    Program {
        /// Program name.
        name: &'static str,
        /// Cause.
        source: Box<ProgramError>,
    },
    /// A map operation failed.
    #[error("cannot {operation} BPF map `{map}`: {source}")]
    Map {
        /// What was tried.
        operation: &'static str,
        /// Map name.
        map: &'static str,
        /// Cause.
        source: MapError,
    },
    /// A file operation on bpffs failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Pin {
        /// What was tried.
        operation: &'static str,
        /// Path.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The directory for pins is not on a BPF file system.
    #[error(
        "{} is not on a BPF file system; mount one with `mount -t bpf bpf /sys/fs/bpf` or choose another --bpffs", .0.display()
    )]
    NotBpffs(PathBuf),
    /// The compiled policy does not fit. Nothing was changed.
    #[error(
        "policy needs {needed} entries of BPF map `{map}` while the old one is still in force, {available} are available; split groups less finely or raise the map size"
    )]
    DoesNotFit {
        /// Map name.
        map: &'static str,
        /// Entries the change needs.
        needed: usize,
        /// Entries free for it.
        available: usize,
    },
    /// The state array could not be mapped.
    #[error("cannot map BPF array `endpoint_states`: {0}")]
    Mmap(#[source] io::Error),
}

/// The last lines of the verifier's log hold the reason; the rest is a transcript.
fn explain_load(error: &EbpfError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
