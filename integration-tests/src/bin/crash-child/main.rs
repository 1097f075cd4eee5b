//! One life of the crash matrix: producer, relay and consumer in one process that a test aborts.
//!
//! `crash-child --store URL --broker URL --topic NAME [--keys 4] [--per-key 10] [--lapse-lease]` continues
//! where the last life was cut off, and leaves with 0 when every produced message has had its effect and the
//! outbox is empty. Both sides write to the one database at `--store`: `produced` rows with their messages,
//! `effects` rows from the handler. The test reads them afterwards.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod faults;
mod life;
mod workload;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// What a life works on.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// `sqlite:PATH` or `postgres://…`: outbox, inbox, produced and effects.
    #[arg(long)]
    store: String,
    /// `sqlite:PATH`, `postgres://…` (the SQL broker) or `amqp://…`.
    #[arg(long)]
    broker: String,
    /// Topic of the messages, unique to the run.
    #[arg(long)]
    topic: String,
    /// Ordering keys.
    #[arg(long, default_value_t = 4)]
    keys: u32,
    /// Messages of each key.
    #[arg(long, default_value_t = 10)]
    per_key: i64,
    /// Which parts live in this process.
    #[arg(long, value_enum, default_value = "all")]
    role: Role,
    /// Renewals fail and the first publish lasts longer than the lease.
    #[arg(long)]
    lapse_lease: bool,
}

/// The parts of a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Producer, relay and consumer.
    All,
    /// The relay alone, with the default lease, until it is killed.
    Relay,
    /// Producer and consumer: some other process relays.
    Services,
}

fn main() -> ExitCode {
    if let Err(error) = outbox_broker::crash_point::arm_from_environment() {
        eprintln!("crash-child: {error}");
        return ExitCode::from(64);
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("crash-child: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let lived = if arguments.store.starts_with("sqlite:") {
        runtime.block_on(life::sqlite(&arguments))
    } else {
        runtime.block_on(life::postgres(&arguments))
    };
    match lived {
        Ok(duplicates) => {
            println!("done, {duplicates} duplicates absorbed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("crash-child: {error:#}");
            ExitCode::FAILURE
        }
    }
}
