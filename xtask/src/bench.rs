//! `cargo xtask bench`: builds the bench program for speed and runs it.

use anyhow::Result;

use crate::cargo;
use crate::steps::succeed;

/// Runs the benchmark named first in `arguments` with the rest.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let fixed = [
        "run",
        "--release",
        "--quiet",
        "--package",
        "outbox-testing",
        "--bin",
        "outbox-bench",
        "--features",
        "bench",
        "--",
    ];
    succeed(&mut cargo::command(
        fixed.into_iter().chain(arguments.iter().map(String::as_str)),
    ))
}
