//! Commands that need no daemon: run, doctor, detach, demo.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use super::args::{DetachArgs, Global, Output, RunArgs};
use super::client::Client;
use super::error::{CliError, exit};
use super::output;
use crate::api::dto::{Detached, DoctorInfo};
use crate::app;
use crate::config::{Config, places};
use crate::dataplane;
use crate::preflight::{self, Finding, Level};
use crate::workload::docker::DockerConfig;

pub(super) fn run(global: &Global, args: RunArgs) -> Result<ExitCode, CliError> {
    let config = Config::new(global, args).map_err(|error| {
        CliError::usage(error.to_string())
            .hint("leave --listen away and use the socket, e.g. with `curl --unix-socket`")
    })?;
    app::run(&config).map_err(|error| CliError {
        hint: error.hint,
        details: error.details,
        ..CliError::new(error.message)
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn detach(global: &Global, args: &DetachArgs) -> Result<ExitCode, CliError> {
    let daemon_runs = UnixStream::connect(&global.socket).is_ok();
    if !args.force && daemon_runs {
        return Err(CliError::new(format!(
            "a daemon is running on {}: it would attach again",
            global.socket.display()
        ))
        .hint("stop it first, or use --force"));
    }
    let report = dataplane::detach(&global.bpffs).map_err(|error| {
        CliError::new(error.to_string())
            .hint("run as root; what is left is below the --bpffs directory")
    })?;
    if daemon_runs {
        output::note(&format!(
            "warning: the daemon on {} goes on and does not know: its status stays as it was, and \
             its next change attaches again; stop it",
            global.socket.display()
        ));
    }
    let mut removed: Vec<String> = report
        .interfaces
        .iter()
        .map(|ifindex| format!("programs on interface {ifindex}"))
        .collect();
    if report.maps > 0 {
        removed.push(format!("{} pinned maps", report.maps));
    }
    let answer = Detached { removed };
    if !output::machine_one(args.output.format, &answer)? {
        if answer.removed.is_empty() {
            output::line("nothing was attached")?;
        } else {
            for removed in &answer.removed {
                output::line(&format!("removed {removed}"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The daemon's own findings if one runs, else those of this process.
pub(super) async fn doctor(
    client: &Client,
    global: &Global,
    format: Output,
) -> Result<ExitCode, CliError> {
    let findings = if UnixStream::connect(&global.socket).is_ok() {
        let answer: DoctorInfo = client.get("/api/v1/doctor").await?;
        answer.findings
    } else {
        let mut findings = preflight::check(&places(global, &DockerConfig::Auto));
        findings.push(Finding::warn(
            preflight::SUBJECT_DAEMON,
            format!("none answers on {}", global.socket.display()),
            "start it with `portcullis run`",
        ));
        findings
    };
    if !output::machine(format.format, &findings, &findings)? {
        print_findings(&findings)?;
    }
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    Ok(if failed {
        ExitCode::from(exit::ERROR)
    } else {
        ExitCode::SUCCESS
    })
}

fn print_findings(findings: &[Finding]) -> Result<(), CliError> {
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        output::line(&format!("{level}  {}: {}", finding.subject, finding.cause))?;
        if let Some(hint) = &finding.hint {
            output::line(&format!("      hint: {hint}"))?;
        }
    }
    let count = |level| {
        findings
            .iter()
            .filter(|finding| finding.level == level)
            .count()
    };
    output::line(&format!(
        "{} ok, {} warnings, {} failures",
        count(Level::Ok),
        count(Level::Warn),
        count(Level::Fail)
    ))
}
