//! Commands run to their end, with what they said.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

/// What a command said.
#[derive(Clone, Debug)]
pub struct Output {
    /// Command line, for messages.
    pub command: String,
    /// Exit code; `None` when a signal ended it.
    pub status: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Runs a command to its end, with `input` as its standard input.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn of(mut command: Command, input: &str) -> Self {
        let text = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {text}: {error}"));
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let output = std::thread::scope(|scope| {
            // A command may end without reading its input.
            scope.spawn(move || {
                let _ = stdin.write_all(input.as_bytes());
            });
            child.wait_with_output().expect("a child to wait for")
        });
        Self {
            command: text,
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The output of a command that must succeed.
    ///
    /// # Panics
    /// When it did not.
    #[must_use = "look at what it said, or use Daemon::ok"]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, Some(0), "{self:#?}");
        self
    }

    /// Standard output as one JSON document.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error} in the output of {self:#?}"))
    }

    /// Standard output as one JSON document a line.
    ///
    /// # Panics
    /// When a line is none.
    #[must_use]
    pub fn jsonl(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in `{line}`"))
            })
            .collect()
    }
}
