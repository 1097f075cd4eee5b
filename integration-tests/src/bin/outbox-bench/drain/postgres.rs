//! Draining PostgreSQL: the limit, the engine, and three designs in common use.

mod designs;
mod pairs;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use outbox::store::postgres::{PostgresConfig, PostgresStore};
use outbox_testing::services;
use tokio_postgres::Client;

use super::Options;
use crate::report::{Report, rate};
use crate::sink::NullSink;
use crate::{engine, rows, usage};
use designs::Design;

const OUTBOX: &str = "outbox";

/// One way to empty the table.
#[derive(Clone, Copy)]
enum Case {
    /// The relay; whether its settles wait for the disk.
    Relay { durable: bool },
    /// A design in common use, as a plain loop.
    Design(Design),
}

const CASES: [Case; 5] = [
    Case::Relay { durable: false },
    Case::Relay { durable: true },
    Case::Design(Design::SkipLocked),
    Case::Design(Design::PublishedAt),
    Case::Design(Design::LeaseColumn),
];

impl Case {
    const fn name(self) -> &'static str {
        match self {
            Self::Relay { durable: false } => "relay",
            Self::Relay { durable: true } => "relay, durable settle",
            Self::Design(design) => design.name(),
        }
    }

    const fn table(self) -> &'static str {
        match self {
            Self::Relay { .. } => OUTBOX,
            Self::Design(design) => design.table(),
        }
    }
}

/// Runs the rounds.
pub(super) async fn run(options: &Options) -> Result<()> {
    let server = services::own_durable_postgres().await?;
    let database = server.database().await?;
    let client = database.client().await?;
    prepare(&client).await?;
    let server_pid = server.pid().context("the server is not ours")?;
    let mut report = Report::new("drain-postgres", "throughput", "rows/s");
    let mut cpu = Report::new("drain-postgres-cpu", "cpu", "µs/row");
    let copy = format!("COPY (SELECT {} FROM outbox ORDER BY shard, id)", rows::COLUMNS);
    println!("limit: {copy} TO STDOUT (FORMAT binary), of the same rows right before each case");
    for round in 1..=options.rounds {
        println!("round {round} of {}, {} rows", options.rounds, options.rows);
        for case in CASES
            .into_iter()
            .filter(|case| case.name().contains(&options.only))
        {
            load(&client, case.table(), options.rows, options.payload).await?;
            let limit = copy_out(&client, case.table(), options.rows).await?;
            report.add("copy", limit);
            let used = usage::cpu(server_pid)? + usage::own_cpu()?;
            let time = match case {
                Case::Relay { durable } => {
                    let store = store(database.url(), durable).await?;
                    let behaviour = super::relay_options(options.batch);
                    engine::drain(Arc::new(store), Arc::new(NullSink), options.rows, behaviour)
                        .await?
                        .whole
                }
                Case::Design(design) => design.drain(&client, options.rows, options.batch).await?,
            };
            let used = usage::cpu(server_pid)? + usage::own_cpu()? - used;
            let value = rate(options.rows, time);
            report.add(case.name(), value);
            cpu.add(case.name(), 1e6 / rate(options.rows, used));
            report.compare(case.name(), value, "copy", limit);
            ensure!(
                is_drained(&client, case).await?,
                "`{}` left rows behind",
                case.name()
            );
        }
        pairs::run(&client, database.url(), options, &mut report).await?;
    }
    cpu.finish(&crate::target())?;
    report.finish(&crate::target())
}

/// Makes the outbox and the tables of the other designs.
async fn prepare(client: &Client) -> Result<()> {
    client
        .batch_execute(outbox::ddl(outbox::Database::Postgres))
        .await
        .context("cannot make the outbox")?;
    client
        .batch_execute(designs::TABLES)
        .await
        .context("cannot make the tables")?;
    client
        .batch_execute("ALTER TABLE outbox SET (autovacuum_enabled = false)")
        .await
        .context("cannot switch autovacuum off")
}

/// Fills `table` anew and leaves nothing for later: no vacuum, no checkpoint falls into the measurement.
async fn load(client: &Client, table: &str, count: u64, payload: usize) -> Result<()> {
    client.batch_execute(&format!("TRUNCATE {table}")).await?;
    client
        .batch_execute(&rows::postgres(table, count, payload))
        .await?;
    client.batch_execute(&format!("VACUUM ANALYZE {table}")).await?;
    client.batch_execute("CHECKPOINT").await?;
    Ok(())
}

/// The limit: the same rows as fast as the server gives them out. Rows a second.
async fn copy_out(client: &Client, table: &str, rows: u64) -> Result<f64> {
    let statement = format!(
        "COPY (SELECT {} FROM {table} ORDER BY shard, id) TO STDOUT (FORMAT binary)",
        rows::COLUMNS
    );
    let start = Instant::now();
    let stream = client.copy_out(&statement).await?;
    let bytes = stream
        .try_fold(0, |sum, chunk| std::future::ready(Ok(sum + chunk.len())))
        .await?;
    let time = start.elapsed();
    ensure!(bytes > 0, "the COPY gave nothing");
    Ok(rate(rows, time))
}

async fn is_drained(client: &Client, case: Case) -> Result<bool> {
    let pending = match case {
        Case::Relay { .. } => "SELECT FROM outbox",
        Case::Design(design) => design.pending(),
    };
    let row = client
        .query_one(&format!("SELECT EXISTS ({pending})"), &[])
        .await?;
    let pending: bool = row.get(0);
    Ok(!pending)
}

async fn store(url: &str, durable: bool) -> Result<PostgresStore> {
    let mut config = PostgresConfig::new(url);
    config.durable_settles = durable;
    Ok(PostgresStore::connect(config).await?)
}
