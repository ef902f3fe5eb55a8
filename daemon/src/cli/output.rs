//! Data to standard output, in the format asked for; errors to standard error.

use std::io::{self, IsTerminal, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, ContentArrangement, Table};
use serde::Serialize;

use super::args::Format;
use super::error::CliError;

/// Writes to standard output. A reader that went away ends the program quietly with success, as
/// `| head` expects.
///
/// # Errors
/// Every other write error.
pub fn write(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(CliError::new(format!(
            "cannot write to standard output: {error}"
        ))),
    }
}

/// [`write`] with a line end.
///
/// # Errors
/// As [`write`].
pub fn line(text: &str) -> Result<(), CliError> {
    write(&format!("{text}\n"))
}

/// Writes a line to standard error; that it cannot be written is of no use to anyone.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints `value` in a machine format; `items` are its elements for `jsonl`. Returns `false` for
/// [`Format::Table`], which the caller draws.
///
/// # Errors
/// When the value cannot be written.
pub fn machine<T: Serialize, I: Serialize>(
    format: Format,
    value: &T,
    items: &[I],
) -> Result<bool, CliError> {
    match format {
        Format::Table => return Ok(false),
        Format::Json => line(&json(value, true)?)?,
        Format::Yaml => write(&yaml(value)?)?,
        Format::Jsonl => {
            let mut text = String::new();
            for item in items {
                text.push_str(&json(item, false)?);
                text.push('\n');
            }
            write(&text)?;
        }
    }
    Ok(true)
}

/// [`machine`] for a value that is one item.
///
/// # Errors
/// As [`machine`].
pub fn machine_one<T: Serialize>(format: Format, value: &T) -> Result<bool, CliError> {
    machine(format, value, std::slice::from_ref(&value))
}

fn json<T: Serialize + ?Sized>(value: &T, pretty: bool) -> Result<String, CliError> {
    if pretty {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    }
    .map_err(|error| CliError::new(format!("cannot write JSON: {error}")))
}

fn yaml<T: Serialize>(value: &T) -> Result<String, CliError> {
    let mut text = serde_saphyr::to_string(value)
        .map_err(|error| CliError::new(format!("cannot write YAML: {error}")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Draws a table: upper-case headings, two spaces between columns, no lines, no colour. On a
/// terminal long cells wrap; in a pipe every row stays one line so that `grep` and `awk` work.
#[must_use]
pub fn table(headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(headings.iter().map(Cell::new));
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.force_no_tty();
    }
    for row in rows {
        table.add_row(row.into_iter().map(|cell| {
            Cell::new(if cell.is_empty() {
                "-".to_owned()
            } else {
                cell
            })
        }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A count with thousands separated, for people.
#[must_use]
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun, for people.
#[must_use]
pub fn counted(value: u64, noun: &str) -> String {
    let s = if value == 1 { "" } else { "s" };
    format!("{} {noun}{s}", count(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_by_thousands() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(12_345_678), "12,345,678");
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(counted(0, "packet"), "0 packets");
        assert_eq!(counted(1, "packet"), "1 packet");
        assert_eq!(counted(1_500, "packet"), "1,500 packets");
    }

    #[test]
    fn a_table_in_a_pipe_has_one_line_a_row_and_no_empty_cell() {
        let text = table(
            &["NAME", "LABELS"],
            vec![
                vec!["web".into(), String::new()],
                vec!["api".into(), "x".repeat(400)],
            ],
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "NAME  LABELS");
        assert_eq!(lines[1], "web   -");
        assert!(!text.contains('\u{1b}'));
    }
}
