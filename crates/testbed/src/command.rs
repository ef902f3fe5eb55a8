//! The one place that starts `ip`.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::{Error, Netns};

/// Runs a command and returns its stdout.
pub(crate) fn checked(mut command: Command) -> Result<String, Error> {
    let line = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Start {
            command: line.clone(),
            source,
        })?;
    if !output.status.success() {
        return Err(Error::Command {
            command: line,
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs lines of `ip` commands (without the leading `ip`) inside a namespace with one process;
/// stops at the first that fails.
///
/// # Errors
/// [`Error::Command`] with the lines and what `ip` said.
pub fn ip_batch(netns: &Netns, lines: &[String]) -> Result<(), Error> {
    let mut command = netns.command("ip")?;
    command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| Error::Start {
        command: "ip -batch -".to_owned(),
        source,
    })?;
    let text = lines.join("\n") + "\n";
    // A write error means that `ip` stopped early; its own message is the better one.
    let _ = child
        .stdin
        .take()
        .expect("stdin is piped above")
        .write_all(text.as_bytes());
    let output = child
        .wait_with_output()
        .map_err(Error::io("waiting for ip -batch"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!("ip -batch - <<< {text:?} in {netns}"),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
