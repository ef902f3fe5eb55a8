//! `cargo xtask`: build and test steps that plain cargo cannot express.
//!
//! Everything the Makefile and CI do goes through here, so that a step has one definition.

mod bpf_stamp;
#[cfg(test)]
mod bpf_stamp_tests;
mod ebpf;
mod steps;

use std::env;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

const USAGE: &str = "\
usage: cargo xtask COMMAND [ARGUMENT...]

  build-ebpf         build the BPF object from source if it is not current
  bpf-toolchain      print the compiler and linker that build-ebpf would use
  build              build-ebpf, then the release binary with the object inside
  lint               formatting, clippy, cargo-deny where installed
  test-unit          tests that need neither root nor a BPF toolchain
  test-root [ARG..]  the privileged suites (root); ARGs go to the test binaries
  test               build-ebpf, lint, test-unit, test-root: what CI runs (root)
  bench [ARG..]      the benchmarks (root); ARGs go to the benchmark binary
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("", [].as_slice()),
    };
    match run(command, rest) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            say(format_args!("{}", USAGE.trim_end()));
            ExitCode::from(2)
        }
        Err(error) => {
            say(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs a command; `false` if there is none of that name, or it takes no arguments and got some.
fn run(command: &str, rest: &[String]) -> Result<bool> {
    let root = workspace_root()?;
    match (command, rest) {
        ("build-ebpf", []) => ebpf::build(&root).map(drop)?,
        ("bpf-toolchain", []) => writeln!(io::stdout(), "{}", ebpf::describe_toolchain()?)?,
        ("build", []) => steps::build(&root)?,
        ("lint", []) => steps::lint(&root)?,
        ("test-unit", []) => steps::test_unit(&root)?,
        ("test-root", arguments) => steps::test_root(&root, arguments)?,
        ("test", []) => steps::test(&root)?,
        ("bench", arguments) => steps::bench(&root, arguments)?,
        ("help" | "--help" | "-h", _) => io::stdout().write_all(USAGE.as_bytes())?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// `cargo run` says at run time where the package lies, which survives moving the checkout.
fn workspace_root() -> Result<PathBuf> {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = package
        .ancestors()
        .nth(2)
        .context("xtask is not in crates/xtask")?;
    Ok(root.to_owned())
}

/// Progress for people. A closed stderr is no reason to stop a build.
fn say(message: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}
