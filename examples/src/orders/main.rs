//! `orders`: the main job on the embedded default. No server, one process.
//!
//! Reads orders as JSON lines. Each becomes one transaction on SQLite that writes the order and its message.
//! A relay publishes the messages to a queue in a second SQLite file; a billing consumer writes one invoice
//! an order in a third. At the end a ledger, computed from the files, says what was lost, doubled or out of
//! order. `--crash N` aborts the process N times at random crash points and must end with the same ledger.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod arguments;
mod billing;
mod crash;
mod input;
mod ledger;
mod progress;
mod service;
mod shop;
mod witness;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Output};

/// Exit code when everything ran but input lines were refused or the ledger is not clean.
const FOUND_PROBLEMS: u8 = 2;

fn main() -> ExitCode {
    if let Err(error) = outbox_broker::crash_point::arm_from_environment() {
        eprintln!("orders: {error}");
        return ExitCode::from(64);
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "error".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(clean) if clean => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(FOUND_PROBLEMS),
        Err(error) => {
            eprintln!("orders: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let scratch;
    let directory = match &arguments.directory {
        Some(directory) => {
            std::fs::create_dir_all(directory)?;
            directory.as_path()
        }
        None => {
            scratch = tempfile::tempdir()?;
            scratch.path()
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if arguments.crash > 0 {
        let history = crash::run_until_done(arguments, directory)?;
        let mut ledger = runtime.block_on(ledger::compute(directory))?;
        ledger.crashes = history.crashes;
        ledger.refused_lines = history.refused_lines;
        ledger.seed = Some(history.seed);
        return report(arguments, &ledger);
    }
    let refused_lines = runtime.block_on(service::run(arguments, directory))?;
    if arguments.child {
        return Ok(refused_lines == 0);
    }
    let mut ledger = runtime.block_on(ledger::compute(directory))?;
    ledger.refused_lines = refused_lines;
    report(arguments, &ledger)
}

fn report(arguments: &Arguments, ledger: &ledger::Ledger) -> anyhow::Result<bool> {
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string(ledger)?),
        Output::Text => println!("{ledger}"),
    }
    Ok(ledger.is_clean() && ledger.refused_lines == 0)
}
