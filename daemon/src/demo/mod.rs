//! `portcullis demo`: the whole story in namespaces of its own.
//!
//! A shop of real services and clients; a real daemon beside it that learns, suggests rules and
//! enforces them; an intruder; and the numbers that say whether it worked. Everything is in a host
//! namespace of the demo's own and is removed at the end, also after Ctrl-C, an error or a panic.

mod enforcing;
mod firewall;
mod graph;
mod intruder;
mod learning;
mod out;
mod place;
mod shop;
mod stop;
mod story;
mod summary;
mod traffic;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;

use crate::cli::args::{DemoArgs, Format};
use crate::cli::error::CliError;
use crate::cli::output;
use firewall::Places;
use out::Out;
use story::Story;
use summary::Summary;

/// Directories of demos. Only root writes here, and it is gone after a reboot.
const RUN: &str = "/run";

/// Runs the demo. Exit code 0 only if everything it shows holds.
///
/// # Errors
/// It could not be shown: no privileges, something is missing, the daemon does not start.
pub fn run(args: &DemoArgs) -> Result<ExitCode, CliError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(CliError::new(
            "the demo makes network namespaces and loads BPF programs, which takes root",
        )
        .hint("sudo portcullis demo"));
    }
    let started = Instant::now();
    let json = args.output.format != Format::Table;
    let mut summary = show(args, json, started).map_err(|error| {
        let message = if stop::requested() {
            "the demo was interrupted; everything it made is removed".to_owned()
        } else {
            format!("the demo failed: {error:#}")
        };
        CliError::new(message)
    })?;
    summary.judge();
    output::machine_one(args.output.format, &summary)?;
    summary.conclude(&Out::new(json))?;
    Ok(if summary.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn show(args: &DemoArgs, json: bool, started: Instant) -> anyhow::Result<Summary> {
    stop::catch_signals()?;
    sweep();
    let tag = format!("{}-{}", place::LAB, std::process::id());
    let directory = Directory::create(Path::new(RUN).join(&tag))?;
    let places = Places::new(&directory.path, &tag);
    let mut out = Out::new(json);
    let mut story = Story::begin(&mut out, args.docker, &directory.path, places)?;
    let mut summary = story.tell(&mut out)?;
    if let Some(to) = &args.save {
        story.save(to)?;
        out.say(&format!("Policies and graph are in {}.", to.display()))?;
    }
    if args.keep {
        story.keep(&mut out)?;
    }
    let removed = story.end().and_then(|()| directory.remove());
    if let Err(error) = &removed {
        summary.failures.push(format!("{error:#}"));
    } else {
        out.line("")?;
        out.say("Removed: programs, maps and pins, the daemon, all clients and servers, namespaces, files.")?;
    }
    summary.cleaned_up = Some(removed.is_ok());
    summary.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(summary)
}

/// A directory that goes with the demo.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
}

impl Directory {
    fn create(path: PathBuf) -> anyhow::Result<Self> {
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path })
    }

    fn remove(self) -> anyhow::Result<()> {
        std::fs::remove_dir_all(&self.path)
            .with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // After `remove` there is nothing left.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes what a demo that was killed left behind. Its namespaces the lab sweeps.
fn sweep() {
    let is_orphan = |name: &str| {
        name.strip_prefix(place::LAB)
            .and_then(|rest| rest.strip_prefix('-'))
            .and_then(|pid| pid.parse::<u32>().ok())
            .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
    };
    Places::sweep(is_orphan);
    for entry in std::fs::read_dir(RUN).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_orphan) {
            // Two demos may sweep at once; who comes second has nothing to do.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
