//! Programs on interfaces: TCX links pinned in bpffs, or clsact filters below kernel 6.6.

use std::io;
use std::path::{Path, PathBuf};

use aya::pin::PinError;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
    qdisc_detach_program,
};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use dataplane_common::Direction;

use super::{DataplaneError, sys};

/// Name of the program for a workload's direction.
pub(super) const fn program_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "from_workload",
        Direction::Ingress => "to_workload",
    }
}

/// The TC hook of the host-side interface that sees the direction.
const fn hook(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Egress => TcAttachType::Ingress,
        Direction::Ingress => TcAttachType::Egress,
    }
}

/// Fixed place of our clsact filters, so that a restarted daemon replaces instead of adding.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: u32 = 0x504f; // "PO"

/// How programs are attached on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMethod {
    /// TCX links (kernel 6.6, commit e420bed02507).
    Tcx,
    /// Filters on a clsact qdisc.
    Clsact,
}

impl AttachMethod {
    /// The method this kernel supports, unless the environment asks for the older one
    /// (`PORTCULLIS_ATTACH=clsact`, for tests of the fallback).
    #[must_use]
    pub fn detect() -> Self {
        let forced = std::env::var_os("PORTCULLIS_ATTACH").is_some_and(|value| value == "clsact");
        let has_tcx =
            KernelVersion::current().is_ok_and(|current| current >= KernelVersion::new(6, 6, 0));
        if has_tcx && !forced {
            Self::Tcx
        } else {
            Self::Clsact
        }
    }
}

/// Why one interface could not be protected.
#[derive(Debug, thiserror::Error)]
#[error("cannot attach {program} to {interface}: {cause}")]
pub struct AttachError {
    program: &'static str,
    interface: String,
    cause: String,
}

/// What attaching can fail with inside.
#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Clsact(#[from] TcError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Where the link of an interface's direction is pinned.
fn link_path(links: &Path, ifindex: u32, direction: Direction) -> PathBuf {
    // Dots are reserved in bpffs.
    links.join(format!("{ifindex}-{}", direction.as_str()))
}

/// Attaches the program, or replaces the one of a former daemon without a gap.
pub(super) fn attach(
    program: &mut SchedClassifier,
    method: AttachMethod,
    links: &Path,
    ifindex: u32,
    ifname: &str,
    direction: Direction,
) -> Result<(), AttachError> {
    let result = match method {
        AttachMethod::Tcx => attach_tcx(program, links, ifindex, ifname, direction),
        AttachMethod::Clsact => attach_clsact(program, ifname, direction),
    };
    result.map_err(|error| AttachError {
        program: program_name(direction),
        interface: ifname.to_owned(),
        cause: flatten(&error),
    })
}

fn attach_tcx(
    program: &mut SchedClassifier,
    links: &Path,
    ifindex: u32,
    ifname: &str,
    direction: Direction,
) -> Result<(), Cause> {
    let path = link_path(links, ifindex, direction);
    match PinnedLink::from_pin(&path) {
        Ok(pinned) => match replace(program, pinned) {
            Ok(()) => return Ok(()),
            // The interface of the old link is gone and its index was given to another one.
            Err(Cause::Program(ProgramError::SyscallError(error)))
                if error.io_error.raw_os_error() == Some(libc::ENOLINK) =>
            {
                std::fs::remove_file(&path)?;
            }
            Err(error) => return Err(error),
        },
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
        }
        Err(error) => return Err(error.into()),
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(ifname, hook(direction), order)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(&path)?;
    Ok(())
}

/// Swaps the program of a pinned link (`bpf_link_update`): no packet passes unjudged.
fn replace(program: &mut SchedClassifier, pinned: PinnedLink) -> Result<(), Cause> {
    let link: SchedClassifierLink = FdLink::from(pinned).try_into()?;
    let id = program.attach_to_link(link)?;
    // The pin keeps the link; dropping this reference does not detach it.
    drop(program.take_link(id)?);
    Ok(())
}

fn attach_clsact(
    program: &mut SchedClassifier,
    ifname: &str,
    direction: Direction,
) -> Result<(), Cause> {
    match qdisc_add_clsact(ifname) {
        Ok(()) => {}
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let handle = TcHandle::from(CLSACT_HANDLE);
    let options = NlOptions {
        priority: CLSACT_PRIORITY,
        handle,
        classid: None,
    };
    let id = match program.attach_with_options(
        ifname,
        hook(direction),
        TcAttachOptions::Netlink(options),
    ) {
        Ok(id) => id,
        Err(ProgramError::TcError(TcError::NetlinkError(error)))
            if error.raw_os_error() == Some(libc::EEXIST) =>
        {
            let link = SchedClassifierLink::attached(
                ifname,
                hook(direction),
                CLSACT_PRIORITY,
                handle,
                None,
            )?;
            program.attach_to_link(link)?
        }
        Err(error) => return Err(error.into()),
    };
    // A netlink filter stays until it is deleted; the link object would delete it on drop.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Detaches both programs from an interface; what is not there is not an error.
pub(super) fn detach(method: AttachMethod, links: &Path, ifindex: u32, ifname: Option<&str>) {
    for direction in [Direction::Egress, Direction::Ingress] {
        match method {
            AttachMethod::Tcx => {
                let path = link_path(links, ifindex, direction);
                if let Err(error) = sys::detach_pinned_link(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot detach a link");
                }
            }
            AttachMethod::Clsact => {
                if let Some(ifname) = ifname {
                    detach_clsact(ifname, direction);
                }
            }
        }
    }
}

fn detach_clsact(ifname: &str, direction: Direction) {
    match qdisc_detach_program(ifname, hook(direction), program_name(direction)) {
        Ok(()) => {}
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            // The interface may be gone, and its filters with it.
            tracing::debug!(ifname, %error, "no clsact filter removed");
        }
    }
}

/// Interface indexes that have pinned links.
pub(super) fn attached_interfaces(links: &Path) -> Result<Vec<u32>, DataplaneError> {
    let entries = match std::fs::read_dir(links) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(DataplaneError::Pin {
                operation: "list",
                path: links.to_owned(),
                source,
            });
        }
    };
    let mut indexes: Vec<u32> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.split('-').next()?.parse().ok()
        })
        .collect();
    indexes.sort_unstable();
    indexes.dedup();
    Ok(indexes)
}

/// An error with its causes on one line.
fn flatten(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
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
