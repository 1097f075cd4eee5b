//! What a forgotten transaction does to a claim: it pins the vacuum horizon, and dead rows pile up.

mod timed;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use outbox::relay::{Relay, RelayOptions};
use outbox::store::postgres::{PostgresConfig, PostgresStore};
use outbox_testing::services::{self, postgres::Database};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::report::{Report, percentile};
use crate::rows;
use crate::sink::NullSink;
use timed::Timed;

/// What `pinned` takes.
#[derive(Args)]
pub(crate) struct Options {
    /// The database of the outbox.
    #[arg(long, value_enum, default_value = "postgres")]
    store: crate::Postgres,
    /// Rows inserted a second.
    #[arg(long, default_value_t = 5_000)]
    rate: u32,
    /// Seconds that the horizon stays pinned.
    #[arg(long, default_value_t = 100)]
    seconds: u64,
    /// Seconds measured before the pin and at its end.
    #[arg(long, default_value_t = 10)]
    window: u64,
    /// Rounds; every case runs once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// One short round: shows that it runs, measures little.
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy)]
enum Case {
    Relay,
    /// The usual design, as a loop with the relay's linger.
    SkipLocked,
}

impl Case {
    const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::SkipLocked => "SKIP LOCKED, then DELETE",
        }
    }
}

/// Rows are inserted in portions, this many a second.
const PORTIONS: u32 = 100;

/// Rows that the usual design takes at most at a time.
const BATCH: usize = 500;

/// Its pause when there was less.
const LINGER: Duration = Duration::from_millis(5);

/// Runs the rounds.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let crate::Postgres::Postgres = options.store;
    let (rounds, seconds, window) = match options.quick {
        true => (1, 6, 2),
        false => (options.rounds, options.seconds, options.window),
    };
    ensure!(
        rounds > 0 && options.rate > 0 && window > 0 && seconds >= window,
        "rounds, rate and window must be above 0, seconds no less than the window"
    );
    let (seconds, window) = (Duration::from_secs(seconds), Duration::from_secs(window));
    let server = services::own_durable_postgres().await?;
    let mut report = Report::new("pinned-postgres", "claim_p50", "µs");
    println!("{} rows/s, the horizon pinned for {seconds:?}", options.rate);
    for round in 1..=rounds {
        println!("round {round} of {rounds}");
        for case in [Case::Relay, Case::SkipLocked] {
            let database = server.database().await?;
            let (before, after) = measure(&database, case, options, seconds, window).await?;
            let (calm, pinned) = (
                format!("{}, before", case.name()),
                format!("{}, pinned", case.name()),
            );
            report.add(&calm, before);
            report.add(&pinned, after);
            report.compare(&pinned, after, &calm, before);
        }
    }
    report.finish(&crate::target())
}

/// The median time of a claim before the pin, and at its end, in microseconds.
async fn measure(
    database: &Database,
    case: Case,
    options: &Options,
    seconds: Duration,
    window: Duration,
) -> Result<(f64, f64)> {
    let admin = database.client().await?;
    admin
        .batch_execute(outbox::ddl(outbox::Database::Postgres))
        .await?;
    let store = PostgresStore::connect(PostgresConfig::new(database.url())).await?;
    let timed = Arc::new(Timed::new(store));
    let shutdown = CancellationToken::new();
    let producer = tokio::spawn(produce(
        database.client().await?,
        options.rate,
        options.payload,
        shutdown.clone(),
    ));
    let consumer = match case {
        Case::Relay => {
            let relay = Relay::builder(Arc::clone(&timed) as _, Arc::new(NullSink))
                .options(RelayOptions::default())
                .build()?;
            let running = relay.run(shutdown.clone());
            tokio::spawn(async move { running.await.map(|_| ()).context("the relay ended") })
        }
        Case::SkipLocked => tokio::spawn(skip_locked(
            database.client().await?,
            Arc::clone(&timed),
            shutdown.clone(),
        )),
    };
    tokio::time::sleep(Duration::from_secs(2)).await; // tables and caches warm up
    let before = timed.median_over(window).await?;
    let pin = database.client().await?;
    pin.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM outbox LIMIT 1")
        .await?;
    tokio::time::sleep(seconds - window).await;
    let after = timed.median_over(window).await?;
    pin.batch_execute("ROLLBACK").await?;
    shutdown.cancel();
    consumer.await.context("the consumer panicked")??;
    producer.await.context("the producer panicked")??;
    Ok((before, after))
}

/// Inserts rows at a steady rate.
async fn produce(client: Client, rate: u32, payload: usize, shutdown: CancellationToken) -> Result<()> {
    let portion = rows::postgres("outbox", u64::from((rate / PORTIONS).max(1)), payload);
    let start = tokio::time::Instant::now();
    let mut portions = 0;
    while !shutdown.is_cancelled() {
        client.batch_execute(&portion).await?;
        portions += 1;
        tokio::time::sleep_until(start + Duration::from_secs(1) * portions / PORTIONS).await;
    }
    Ok(())
}

/// The usual design: lock a batch, skip what others locked, delete it.
async fn skip_locked(client: Client, timed: Arc<Timed>, shutdown: CancellationToken) -> Result<()> {
    let take = format!(
        "SELECT {} FROM outbox ORDER BY shard, id LIMIT {BATCH} FOR UPDATE SKIP LOCKED",
        rows::COLUMNS
    );
    let (take, delete) = (
        client.prepare(&take).await?,
        client
            .prepare("DELETE FROM outbox WHERE shard = 0 AND id = ANY($1)")
            .await?,
    );
    while !shutdown.is_cancelled() {
        client.batch_execute("BEGIN").await?;
        let start = Instant::now();
        let rows = client.query(&take, &[]).await?;
        if !rows.is_empty() {
            timed.note(start.elapsed());
        }
        let ids: Vec<i64> = rows.iter().map(|row| row.get(1)).collect();
        client.execute(&delete, &[&ids]).await?;
        client.batch_execute("COMMIT").await?;
        if rows.len() < BATCH {
            tokio::time::sleep(LINGER).await;
        }
    }
    Ok(())
}

/// The middle of `times` in microseconds.
fn median(times: &[Duration]) -> Result<f64> {
    ensure!(!times.is_empty(), "no claim found rows");
    let micros: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
    Ok(percentile(&micros, 0.5))
}
