//! `check-then-act`: the classic race, wrong without a lock, right with one, and right with a paused holder.
//!
//! Two workers charge payments: each reads a payment's status and, if it is open, charges it. Between the
//! two steps the other worker may have done the same. Four parts, each counted in the database at its end:
//!
//! 1. without a lock both workers find the payment open, and the customer pays twice;
//! 2. with a lock the second worker finds it paid;
//! 3. with a lock whose holder is frozen for longer than its lease, the lock has passed on, the holder does
//!    not know, and the customer pays twice again;
//! 4. with the fencing token shown to the database first, the late write is refused.
//!
//! Embedded by default: SQLite, and a lock service in this process. With the feature `servers`,
//! `--redis URL --postgres URL` runs the same code on the real thing.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod arguments;
mod places;
mod proof;
mod shop;
mod worker;

use std::process::ExitCode;

use clap::Parser as _;

use crate::arguments::{Arguments, Output};
use crate::places::Places;
use crate::proof::Proof;

/// Exit code when everything ran and did not show what it should.
const NOT_PROVEN: u8 = 2;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "error".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NOT_PROVEN),
        Err(error) => {
            eprintln!("check-then-act: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let scratch = tempfile::tempdir()?;
    let places = Places::new(arguments, scratch.path())?;
    let proof = Proof::of(&places, arguments.payments)?;
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string(&proof)?),
        Output::Text => println!("{proof}"),
    }
    Ok(proof.holds())
}
