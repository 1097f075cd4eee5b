//! How fast a full outbox is emptied when the broker costs nothing.

mod postgres;
mod sqlite;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use outbox::relay::RelayOptions;

/// What `drain` takes.
#[derive(Args, Clone)]
pub(crate) struct Options {
    /// The database of the outbox.
    #[arg(long, value_enum)]
    store: Store,
    /// Rows in the outbox before each case.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Rows a claim reads at most.
    #[arg(long, default_value_t = 1_000)]
    batch: usize,
    /// Rounds; every case runs once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Also the rate of this many rows against that of 100,000 (PostgreSQL).
    #[arg(long)]
    large: Option<u64>,
    /// One round of 100,000 rows: shows that it runs, measures little.
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Store {
    Postgres,
    Sqlite,
}

/// Runs the benchmark and reports.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let mut options = options.clone();
    if options.quick {
        options.rows = options.rows.min(100_000);
        options.rounds = 1;
    }
    let options = &options;
    ensure!(
        options.rows > 0 && options.rounds > 0 && options.batch > 0,
        "rows, batch and rounds must be above 0"
    );
    match options.store {
        Store::Postgres => postgres::run(options).await,
        Store::Sqlite => sqlite::run(options).await,
    }
}

/// The relay's defaults with another batch.
fn relay_options(batch: usize) -> RelayOptions {
    let standard = RelayOptions::default();
    RelayOptions {
        batch_size: batch,
        max_in_flight: standard.max_in_flight.max(8 * batch),
        ..standard
    }
}
