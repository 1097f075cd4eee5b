//! The most memory a relay takes, in a process of its own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use outbox_testing::services::{self, postgres::Database};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::Client;

use crate::child::{self, Sink};
use crate::report::Report;
use crate::{rows, usage};

/// What `memory` takes.
#[derive(Args)]
pub(crate) struct Options {
    /// The database of the outbox.
    #[arg(long, value_enum, default_value = "postgres")]
    store: crate::Postgres,
    /// Rows of the backlog.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Minutes that the broker is away.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Messages a second meanwhile.
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// Rounds. Memory varies little.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Short cases: show that it runs, measure nothing.
    #[arg(long)]
    quick: bool,
}

/// A backlog that takes longer ends the benchmark with an error.
const LIMIT: Duration = Duration::from_secs(600);

/// Messages arrive in portions, this many a second.
const PORTIONS: u32 = 20;

/// Runs the rounds.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let crate::Postgres::Postgres = options.store;
    ensure!(
        options.rows > 0 && options.rounds > 0 && options.minutes > 0.0,
        "rows, rounds and minutes must be above 0"
    );
    let (backlog, away) = match options.quick {
        true => (options.rows.min(50_000), Duration::from_secs(5)),
        false => (options.rows, Duration::from_secs_f64(options.minutes * 60.0)),
    };
    let server = services::own_durable_postgres().await?;
    let mut report = Report::new("memory-postgres", "peak_memory", "MiB");
    for round in 1..=options.rounds {
        println!("round {round} of {}", options.rounds);
        let database = outbox(&server).await?;
        let peak = drained(&database, backlog, options.payload).await?;
        report.add(&format!("{backlog} rows drained"), peak);
        let database = outbox(&server).await?;
        let peak = broker_away(&database, away, options).await?;
        let case = format!(
            "broker away for {} s at {} messages/s",
            away.as_secs(),
            options.rate
        );
        report.add(&case, peak);
    }
    report.finish(&crate::target())
}

async fn outbox(server: &services::Postgres) -> Result<Database> {
    let database = server.database().await?;
    let client = database.client().await?;
    client
        .batch_execute(outbox::ddl(outbox::Database::Postgres))
        .await?;
    Ok(database)
}

async fn drained(database: &Database, count: u64, payload: usize) -> Result<f64> {
    let client = database.client().await?;
    client
        .batch_execute(&rows::postgres("outbox", count, payload))
        .await?;
    let relay = child::relay(database.url(), Sink::Null)?;
    let pid = relay.id().context("the relay ended")?;
    let deadline = Instant::now() + LIMIT;
    while !is_empty(&client).await? {
        ensure!(
            Instant::now() < deadline,
            "the backlog was not drained within {LIMIT:?}"
        );
        sleep(Duration::from_millis(20)).await;
    }
    usage::peak_memory(pid)
}

async fn is_empty(client: &Client) -> Result<bool> {
    let row = client
        .query_one("SELECT NOT EXISTS (SELECT FROM outbox)", &[])
        .await?;
    Ok(row.get(0))
}

async fn broker_away(database: &Database, time: Duration, options: &Options) -> Result<f64> {
    let client = database.client().await?;
    let relay = child::relay(database.url(), Sink::Away)?;
    let pid = relay.id().context("the relay ended")?;
    let portion = rows::postgres(
        "outbox",
        u64::from((options.rate / PORTIONS).max(1)),
        options.payload,
    );
    let start = Instant::now();
    let mut portions = 0;
    while start.elapsed() < time {
        client.batch_execute(&portion).await?;
        portions += 1;
        sleep_until(start + Duration::from_secs(1) * portions / PORTIONS).await;
    }
    usage::peak_memory(pid)
}
