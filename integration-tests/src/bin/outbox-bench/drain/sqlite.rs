//! Draining SQLite: the limit, the engine, and the usual design.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use diesel::connection::SimpleConnection;
use diesel::sql_types::{BigInt, Binary, Nullable, Text};
use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query};
use outbox::store::sqlite::{SqliteConfig, SqliteStore};
use outbox_testing::services;

use super::Options;
use crate::report::{Report, rate};
use crate::sink::NullSink;
use crate::{engine, rows};

/// The table of the usual design: as the outbox, and a column to mark what was published.
const MARKED: &str = "
CREATE TABLE published_at_outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT, shard INTEGER NOT NULL DEFAULT 0,
  msg_id TEXT NOT NULL DEFAULT (lower(hex(randomblob(16)))), topic TEXT NOT NULL, key TEXT, type TEXT NOT NULL,
  source TEXT NOT NULL DEFAULT '', content_type TEXT NOT NULL DEFAULT 'application/json', headers TEXT,
  payload BLOB NOT NULL, created_at INTEGER NOT NULL DEFAULT 0, expires_at INTEGER, published_at INTEGER);
CREATE INDEX published_at_pending ON published_at_outbox (id) WHERE published_at IS NULL;
";

const READ: &str = "SELECT of all rows";
const MARK: &str = "UPDATE published_at … RETURNING";
const RELAY: &str = "relay";
const DURABLE: &str = "relay, durable settle";

/// Runs the rounds.
pub(super) async fn run(options: &Options) -> Result<()> {
    let mut report = Report::new("drain-sqlite", "throughput", "rows/s");
    println!("baselines: `{READ}` is the limit, `{MARK}` the usual design");
    for round in 1..=options.rounds {
        println!("round {round} of {}, {} rows", options.rounds, options.rows);
        let file = services::sqlite()?;
        let marked = blocking(file.path(), {
            let (rows, payload, batch) = (options.rows, options.payload, options.batch);
            move |connection| {
                connection.batch_execute(outbox::ddl(outbox::Database::Sqlite))?;
                connection.batch_execute(MARKED)?;
                load(connection, "published_at_outbox", rows, payload)?;
                mark(connection, rows, batch)
            }
        })
        .await?;
        let usual = rate(options.rows, marked);
        report.add(MARK, usual);
        for (case, durable) in [(RELAY, false), (DURABLE, true)] {
            if !case.contains(&options.only) {
                continue;
            }
            let read = blocking(file.path(), {
                let (rows, payload) = (options.rows, options.payload);
                move |connection| {
                    load(connection, "outbox", rows, payload)?;
                    read(connection, rows)
                }
            })
            .await?;
            let limit = rate(options.rows, read);
            report.add(READ, limit);
            let mut config = SqliteConfig::new(file.path());
            config.durable_settles = durable;
            let store = SqliteStore::connect(config).await?;
            let behaviour = super::relay_options(options.batch);
            let drained = engine::drain(Arc::new(store), Arc::new(NullSink), options.rows, behaviour).await?;
            let value = rate(options.rows, drained.whole);
            report.add(case, value);
            report.compare(case, value, MARK, usual);
            report.compare(case, value, READ, limit);
        }
    }
    report.finish(&crate::target())
}

/// Runs `work` on a connection of its own, away from the runtime's threads.
async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&mut SqliteConnection) -> Result<T> + Send + 'static,
) -> Result<T> {
    let path = path.to_string_lossy().into_owned();
    tokio::task::spawn_blocking(move || {
        let mut connection = SqliteConnection::establish(&path).context("cannot open the database")?;
        // The store of the case before closes its connections away from this thread.
        connection.batch_execute(
            "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL",
        )?;
        work(&mut connection)
    })
    .await
    .context("the work panicked")?
}

/// Fills `table` anew and leaves no checkpoint for later.
fn load(connection: &mut SqliteConnection, table: &str, count: u64, payload: usize) -> Result<()> {
    connection.batch_execute(&format!("DELETE FROM {table}"))?;
    connection.batch_execute(&rows::sqlite(table, count, payload))?;
    connection.batch_execute("ANALYZE; PRAGMA wal_checkpoint(TRUNCATE)")?;
    Ok(())
}

/// One row with every field decoded.
#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = BigInt)]
    shard: i64,
    #[diesel(sql_type = Text)]
    msg_id: String,
    #[diesel(sql_type = Text)]
    topic: String,
    #[diesel(sql_type = Nullable<Text>)]
    key: Option<String>,
    #[diesel(sql_type = Text, column_name = "type")]
    kind: String,
    #[diesel(sql_type = Text)]
    source: String,
    #[diesel(sql_type = Text)]
    content_type: String,
    #[diesel(sql_type = Nullable<Text>)]
    headers: Option<String>,
    #[diesel(sql_type = Binary)]
    payload: Vec<u8>,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    expires_at: Option<i64>,
}

impl Row {
    fn touch(&self) -> usize {
        let numbers = self.id ^ self.shard ^ self.created_at ^ self.expires_at.unwrap_or(0);
        usize::from(numbers != 0)
            + [
                &self.msg_id,
                &self.topic,
                &self.kind,
                &self.source,
                &self.content_type,
            ]
            .iter()
            .map(|text| text.len())
            .sum::<usize>()
            + self.key.as_ref().map_or(0, String::len)
            + self.headers.as_ref().map_or(0, String::len)
            + self.payload.len()
    }
}

/// The limit: reads every row once, in order.
fn read(connection: &mut SqliteConnection, rows: u64) -> Result<Duration> {
    let start = Instant::now();
    let query = sql_query(format!("SELECT {} FROM outbox ORDER BY id", rows::COLUMNS));
    let mut count = 0;
    for row in query.load_iter::<Row, _>(connection)? {
        black_box(row?.touch());
        count += 1;
    }
    ensure!(count == rows, "{count} rows were read, not {rows}");
    Ok(start.elapsed())
}

/// The usual design: marks batches as published and takes what it marked.
fn mark(connection: &mut SqliteConnection, rows: u64, batch: usize) -> Result<Duration> {
    let statement = format!(
        "UPDATE published_at_outbox SET published_at = unixepoch() WHERE id IN
           (SELECT id FROM published_at_outbox WHERE published_at IS NULL ORDER BY id LIMIT {batch})
         RETURNING {}",
        rows::COLUMNS
    );
    let start = Instant::now();
    let mut count = 0;
    while count < rows {
        let taken: Vec<Row> = sql_query(&statement).load(connection)?;
        if taken.is_empty() {
            break;
        }
        black_box(taken.iter().map(Row::touch).sum::<usize>());
        count += taken.len() as u64;
    }
    ensure!(count == rows, "{count} rows were marked, not {rows}");
    Ok(start.elapsed())
}
