//! Benchmarks as ratios: what the framework reaches of a limit measured in the same run.
//!
//! Absolute rates vary with the machine and with what else runs on it. Every case is therefore measured
//! next to its baseline, in interleaved rounds; what counts is the median of the rounds' ratios.
#![expect(clippy::print_stdout, reason = "a command line program talks to its terminal")]

mod child;
mod drain;
mod engine;
mod enqueue;
mod latency;
mod lock;
mod memory;
mod pinned;
mod publish;
mod report;
mod rows;
mod sink;
mod usage;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

/// Measures the framework against the limits of its parts.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Rows a second from the outbox to a sink that does nothing, against a COPY of the same rows.
    Drain(drain::Options),
    /// Business transactions a second with an outbox, against the same without one.
    Enqueue(enqueue::Options),
    /// Time of a claim while a forgotten transaction pins the vacuum horizon, against the time before.
    Pinned(pinned::Options),
    /// Time from a commit to the publisher, in the process of the relay and from another one.
    Latency(latency::Options),
    /// The most memory a relay takes: a large backlog drained, and a broker that is away.
    Memory(memory::Options),
    /// Acquisitions and handovers a second of locks in one Redis, against the least a lock must do and a peer.
    Lock(lock::Options),
    /// A process of a benchmark.
    #[command(hide = true, subcommand)]
    Child(child::Role),
    /// Confirmed messages a second from the outbox to a broker, against a bare client with the same window.
    Publish(publish::Options),
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().bench {
        Bench::Drain(options) => drain::run(&options).await,
        Bench::Enqueue(options) => enqueue::run(&options).await,
        Bench::Pinned(options) => pinned::run(&options).await,
        Bench::Latency(options) => latency::run(&options).await,
        Bench::Memory(options) => memory::run(&options).await,
        Bench::Lock(options) => lock::run(&options).await,
        Bench::Child(role) => child::run(&role).await,
        Bench::Publish(options) => publish::run(&options).await,
    }
}

/// The databases of the benchmarks that know one only.
#[derive(Clone, Copy, ValueEnum)]
enum Postgres {
    Postgres,
}

/// The folder that cargo builds into: this program lies in `target/release`.
fn target() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors()
        .nth(2)
        .map_or_else(|| PathBuf::from("target"), Path::to_owned)
}
