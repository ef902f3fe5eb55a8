//! The steps behind `cargo xtask`: what runs, in which order, under which conditions.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{ebpf, say};

/// Packages whose tests need root, namespaces, BPF or Docker.
const PRIVILEGED: &[&str] = &["testbed", "daemon", "netns-tests"];

/// Set for the privileged suites: a suite that cannot run fails instead of being skipped.
const REQUIRE_PRIVILEGED: &str = "REQUIRE_PRIVILEGED";

/// Tells the privileged suites which `portcullis` binary to run.
const BINARY_ENV: &str = "PORTCULLIS_BIN";

/// `build`: the release binary with the BPF object inside.
pub(crate) fn build(root: &Path) -> Result<()> {
    ebpf::build(root)?;
    cargo(
        root,
        "release build",
        ["build", "--release", "--package", "daemon"],
    )?;
    say(format_args!("{}", binary(root, "release").display()));
    Ok(())
}

/// `lint`: formatting, clippy, and cargo-deny where it is installed.
pub(crate) fn lint(root: &Path) -> Result<()> {
    cargo(root, "format", ["fmt", "--all", "--check"])?;
    // The BPF crate is not a default member: it is for another target.
    cargo(
        root,
        "clippy",
        ["clippy", "--all-targets", "--", "-D", "warnings"],
    )?;
    if installed("cargo-deny") {
        let deny = ["deny", "--offline", "check", "bans", "licenses", "sources"];
        cargo(root, "cargo-deny", deny)
    } else {
        say(format_args!(
            "SKIP: cargo-deny: not installed (cargo install cargo-deny)"
        ));
        Ok(())
    }
}

/// `test-unit`: everything that needs neither root nor a BPF toolchain.
pub(crate) fn test_unit(root: &Path) -> Result<()> {
    let mut arguments = vec!["test", "--workspace", "--exclude", "dataplane-ebpf"];
    for package in PRIVILEGED {
        arguments.extend(["--exclude", package]);
    }
    cargo(root, "unprivileged tests", arguments)
}

/// `test-root`: the privileged suites, one test at a time, none of them skipped.
pub(crate) fn test_root(root: &Path, arguments: &[String]) -> Result<()> {
    require_root()?;
    ebpf::build(root)?;
    cargo(
        root,
        "binary under test",
        ["build", "--package", "daemon", "--bin", "portcullis"],
    )?;
    let mut test = vec!["test"];
    for package in PRIVILEGED {
        test.extend(["--package", package]);
    }
    test.extend(["--", "--test-threads=1"]);
    test.extend(arguments.iter().map(String::as_str));
    let environment = [
        (REQUIRE_PRIVILEGED, OsString::from("1")),
        (BINARY_ENV, binary(root, "debug").into_os_string()),
    ];
    step(
        "privileged tests",
        cargo_command(root, test).envs(environment),
    )
}

/// `test`: what CI runs.
pub(crate) fn test(root: &Path) -> Result<()> {
    require_root()?;
    ebpf::build(root)?;
    lint(root)?;
    test_unit(root)?;
    test_root(root, &[])
}

/// `bench`: the benchmarks, against the release binary.
pub(crate) fn bench(root: &Path, arguments: &[String]) -> Result<()> {
    require_root()?;
    build(root)?;
    let run = ["run", "--release", "--package", "benches", "--"].map(str::to_owned);
    let environment = [(BINARY_ENV, binary(root, "release"))];
    let mut command = cargo_command(root, run.iter().chain(arguments));
    step("benchmarks", command.envs(environment))
}

/// Where cargo puts `portcullis` for `profile`.
fn binary(root: &Path, profile: &str) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root.join(target).join(profile).join("portcullis")
}

fn require_root() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")
        .context("cannot read /proc/self/status to learn the user id")?;
    match effective_uid(&status) {
        Some(0) => Ok(()),
        Some(uid) => bail!(
            "this step loads BPF programs and makes network namespaces; it needs root, not user {uid}\n\
             hint: sudo env PATH=\"$PATH\" make test; without root, `cargo test` and \
             `cargo xtask test-unit` run what needs no privileges"
        ),
        None => bail!("/proc/self/status has no Uid line"),
    }
}

/// The second number of the `Uid:` line (real, effective, saved, file system).
fn effective_uid(status: &str) -> Option<u32> {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_whitespace().nth(1)?.parse().ok()
}

fn installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

fn cargo<I, S>(root: &Path, name: &str, arguments: I) -> Result<()>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    step(name, &mut cargo_command(root, arguments))
}

/// The cargo that runs this very program.
fn cargo_command<I, S>(root: &Path, arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root).args(arguments);
    command
}

/// Runs one step and reports how long it took.
fn step(name: &str, command: &mut Command) -> Result<()> {
    say(format_args!("==> {name}"));
    let started = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("{name}: cannot run {}", command.get_program().display()))?;
    let seconds = started.elapsed().as_secs();
    if !status.success() {
        bail!("{name} failed after {seconds} s ({status})");
    }
    say(format_args!("==> {name}: ok, {seconds} s"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_id_is_read() {
        let status = "Name:\tcargo\nUid:\t1000\t0\t1000\t1000\nGid:\t5\t6\t5\t5\n";
        assert_eq!(effective_uid(status), Some(0));
        assert_eq!(effective_uid("Uid:\t1000\t1000\t1000\t1000\n"), Some(1000));
        assert_eq!(effective_uid("Name:\tcargo\n"), None);
        assert_eq!(effective_uid("Uid:\n"), None);
    }

    #[test]
    fn a_failing_step_names_itself() {
        let error = step("shell", Command::new("false").current_dir("/")).unwrap_err();
        assert!(
            error.to_string().starts_with("shell failed after "),
            "{error}"
        );
        let error = step("absent", &mut Command::new("/nonexistent/program")).unwrap_err();
        assert_eq!(error.to_string(), "absent: cannot run /nonexistent/program");
        step("shell", &mut Command::new("true")).unwrap();
    }
}
