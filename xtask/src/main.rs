//! The project's own commands: `cargo xtask test`, `cargo xtask ci`, `cargo xtask bench`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program talks to its terminal"
)]

mod bench;
mod cargo;
mod ci;
mod dependencies;
mod features;
mod licence;
mod machine;
mod steps;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use steps::Steps;

/// Tests, checks and benchmarks of this workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the machine ready (as root on Debian: install what is missing), then run every test.
    Test {
        /// Run only the tests whose name contains one of these.
        filters: Vec<String>,
        /// Take the machine as it is: neither look for servers nor install any.
        #[arg(long)]
        as_is: bool,
    },
    /// Everything a change must pass: format, lints, documents, dependencies, then `test`.
    Ci {
        /// Take the machine as it is: neither look for servers nor install any.
        #[arg(long)]
        as_is: bool,
    },
    /// Build and run one benchmark, such as `drain --store postgres`; `bench help` lists them.
    Bench {
        /// The benchmark's name and its own arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let mut steps = Steps::default();
    let result = match Arguments::parse().command {
        Command::Test { filters, as_is } => test::run(&mut steps, &filters, as_is),
        Command::Ci { as_is } => ci::run(&mut steps, as_is),
        Command::Bench { arguments } => bench::run(&arguments),
    };
    if let Err(error) = &result {
        eprintln!("error: {error:#}");
    }
    if let Some(line) = &steps.closing {
        println!("{line}");
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
