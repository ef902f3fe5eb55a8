//! `portcullis demo`: the whole story in namespaces of its own.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cli::args::{DemoArgs, Global};

/// Runs the demo.
///
/// # Errors
/// Always, in builds without the demo.
pub fn run(_global: &Global, _args: &DemoArgs) -> Result<ExitCode> {
    bail!("this build has no demo")
}
