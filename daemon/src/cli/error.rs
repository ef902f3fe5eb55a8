//! What a command says when it fails, and with which exit code.

use std::process::ExitCode;

use super::output;

/// Exit codes, as the interface documents them.
pub mod exit {
    /// Something failed.
    pub const ERROR: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// The command worked and found differences or denials.
    pub const DIFFERENCES: u8 = 3;
    /// Only a part was done.
    pub const PARTIAL: u8 = 4;
}

/// A failed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliError {
    /// What failed and why.
    pub message: String,
    /// The way out.
    pub hint: Option<String>,
    /// Single findings, one a line.
    pub details: Vec<String>,
    /// Exit code.
    pub code: u8,
}

impl CliError {
    /// An error with exit code 1.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            details: Vec::new(),
            code: exit::ERROR,
        }
    }

    /// A wrong command line: exit code 2.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            code: exit::USAGE,
            ..Self::new(message)
        }
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds findings.
    #[must_use]
    pub fn details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }

    /// Prints the error and gives the exit code.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        output::note(&format!("error: {}", self.message));
        for detail in &self.details {
            output::note(&format!("  {detail}"));
        }
        if let Some(hint) = &self.hint {
            output::note(&format!("hint: {hint}"));
        }
        ExitCode::from(self.code)
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::new(crate::app::describe(&error))
    }
}
