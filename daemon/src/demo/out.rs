//! The demo's voice: the story on standard output, or, when that is for JSON, on standard error.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};

use crate::cli::output;

/// Widest line of the story where there is a choice.
const WIDTH: usize = 100;

/// Where the story goes.
#[derive(Debug)]
pub(super) struct Out {
    to_stderr: bool,
    bold: bool,
    chapter: u32,
}

impl Out {
    /// With `json` standard output is for the summary alone.
    pub(super) fn new(json: bool) -> Self {
        let terminal = if json {
            io::stderr().is_terminal()
        } else {
            io::stdout().is_terminal()
        };
        Self {
            to_stderr: json,
            bold: terminal && std::env::var_os("NO_COLOR").is_none(),
            chapter: 0,
        }
    }

    /// Writes text as it is. Unlike the other commands the demo does not end where its reader does:
    /// it has something to remove first.
    pub(super) fn text(&self, text: &str) -> Result<()> {
        let write =
            |mut to: Box<dyn Write>| to.write_all(text.as_bytes()).and_then(|()| to.flush());
        if self.to_stderr {
            write(Box::new(io::stderr()))
        } else {
            write(Box::new(io::stdout()))
        }
        .context("cannot write the story")
    }

    /// A line.
    pub(super) fn line(&self, text: &str) -> Result<()> {
        self.text(&format!("{text}\n"))
    }

    /// An emphasized line.
    pub(super) fn strong(&self, text: &str) -> Result<()> {
        if self.bold {
            self.line(&format!("\x1b[1m{text}\x1b[0m"))
        } else {
            self.line(text)
        }
    }

    /// The heading of the next part of the story.
    pub(super) fn chapter(&mut self, title: &str) -> Result<()> {
        self.chapter += 1;
        self.line("")?;
        self.strong(&format!("{}. {title}", self.chapter))
    }

    /// A table, indented.
    pub(super) fn table(&self, headings: &[&str], rows: Vec<Vec<String>>) -> Result<()> {
        let headings = headings.iter().map(ToString::to_string).collect();
        let rows: Vec<Vec<String>> = std::iter::once(headings).chain(rows).collect();
        self.indented(&align(&rows))
    }

    /// Lines, indented.
    pub(super) fn indented(&self, text: &str) -> Result<()> {
        let mut indented = String::new();
        for line in text.lines() {
            indented.push_str(&format!("   {line}"));
            indented.truncate(indented.trim_end().len());
            indented.push('\n');
        }
        self.text(&indented)
    }

    /// A sentence or more, indented and wrapped.
    pub(super) fn say(&self, text: &str) -> Result<()> {
        let mut lines = String::new();
        let mut length = 0;
        for word in text.split_whitespace() {
            if length > 0 && length + 1 + word.chars().count() > WIDTH {
                lines.push('\n');
                length = 0;
            } else if length > 0 {
                lines.push(' ');
                length += 1;
            }
            lines.push_str(word);
            length += word.chars().count();
        }
        self.indented(&lines)
    }
}

/// Columns two spaces apart; an empty cell is `-`. Unlike [`output::table`] it never folds a row:
/// it stands indented among sentences.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &[String], column: usize| match row.get(column).map(String::as_str) {
        None | Some("") => "-".to_owned(),
        Some(text) => text.to_owned(),
    };
    let width = |column| {
        let lengths = rows.iter().map(|row| cell(row, column).chars().count());
        lengths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, width) in widths.iter().enumerate() {
            let cell = cell(row, column);
            text.push_str(&format!("{cell:<width$}  "));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// `1 edge`, `2 edges`.
pub(super) fn plural(count: usize, one: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{} {one}{s}", output::count(count as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_no_cell_is_empty() {
        let rows =
            [["A", "B"], ["long", ""], ["x", "y"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(align(&rows), "A     B\nlong  -\nx     y\n");
    }

    #[test]
    fn plurals_follow_the_count() {
        assert_eq!(plural(1, "edge"), "1 edge");
        assert_eq!(plural(0, "edge"), "0 edges");
        assert_eq!(plural(1_000, "edge"), "1,000 edges");
    }
}
