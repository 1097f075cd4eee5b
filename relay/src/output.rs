//! Results go to standard output, notes and errors to standard error.

use std::io::{self, Write};

use crate::{Error, ErrorKind};

/// Prints `text` and a line end to standard output. A reader that went away is no error.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::new(
            ErrorKind::Failed,
            "standard output cannot be written; look at where it leads",
        )
        .with_cause(error)),
        _ => Ok(()),
    }
}

/// Prints a note for a person to standard error.
pub(crate) fn note(text: &str) {
    // Nothing can be done where standard error is closed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Lines of columns, padded to the widest cell.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|at| {
            rows.iter()
                .filter_map(|row| row.get(at))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
