//! What the outbox costs a business transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use diesel::{ExpressionMethods, QueryDsl};
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use outbox::relay::{Relay, RelayOptions};
use outbox::store::postgres::{PostgresConfig, PostgresStore};
use outbox::{Message, Outbox};
use outbox_testing::services::{self, postgres::Database};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::report::{Report, rate};
use crate::sink::NullSink;

/// What `enqueue` takes.
#[derive(Args)]
pub(crate) struct Options {
    /// The database of the outbox.
    #[arg(long, value_enum, default_value = "postgres")]
    store: crate::Postgres,
    /// Numbers of clients, each with a connection of its own.
    #[arg(long, value_delimiter = ',', default_value = "8,32")]
    clients: Vec<usize>,
    /// Seconds of each case.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Rounds; every case runs once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 290)]
    payload: usize,
    /// One short round: shows that it runs, measures nothing.
    #[arg(long)]
    quick: bool,
}

/// What a transaction does besides its business.
#[derive(Clone, Copy, PartialEq)]
enum Case {
    /// Nothing.
    Plain,
    /// One message by `enqueue`: a round trip of its own.
    Enqueue,
    /// One message by `outbox.transaction`: pipelined with the commit.
    Buffered,
    /// The same, while a relay keeps the outbox empty.
    WithRelay,
}

const CASES: [Case; 4] = [Case::Plain, Case::Enqueue, Case::Buffered, Case::WithRelay];

impl Case {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "no outbox",
            Self::Enqueue => "enqueue in a transaction",
            Self::Buffered => "outbox.transaction",
            Self::WithRelay => "outbox.transaction, relay running",
        }
    }
}

const TABLES: &str = "
CREATE TABLE accounts (id integer PRIMARY KEY, balance bigint NOT NULL DEFAULT 0) WITH (fillfactor = 50);
INSERT INTO accounts (id) SELECT generate_series(1, 10000);
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account integer NOT NULL, note text NOT NULL);
";

const ACCOUNTS: u64 = 10_000;

/// Runs the rounds.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let crate::Postgres::Postgres = options.store;
    let (rounds, time) = match options.quick {
        true => (1, Duration::from_millis(500)),
        false => (options.rounds, Duration::from_secs_f64(options.seconds)),
    };
    ensure!(
        rounds > 0 && !time.is_zero() && options.clients.iter().all(|clients| *clients > 0),
        "rounds, seconds and clients must be above 0"
    );
    let server = services::own_durable_postgres().await?;
    let mut report = Report::new("enqueue-postgres", "throughput", "transactions/s");
    println!(
        "each transaction updates an account and inserts an order; one message of {} bytes",
        options.payload
    );
    for round in 1..=rounds {
        println!("round {round} of {rounds}");
        for clients in &options.clients {
            let database = server.database().await?;
            let bench = Bench::new(&database, *clients, options.payload).await?;
            bench.run(Case::Plain, time / 4).await?; // warms connections and tables
            let mut measured = Vec::new();
            for case in CASES {
                let value = bench.run(case, time).await?;
                report.add(&format!("{}, {clients} clients", case.name()), value);
                measured.push((case, value));
            }
            let of = |case: Case| {
                measured
                    .iter()
                    .find(|(of, _)| *of == case)
                    .map_or(0.0, |(_, value)| *value)
            };
            let mut compare = |case: Case, with: Case| {
                let name = |case: Case| format!("{}, {clients} clients", case.name());
                report.compare(&name(case), of(case), &name(with), of(with));
            };
            compare(Case::Enqueue, Case::Plain);
            compare(Case::Buffered, Case::Plain);
            compare(Case::WithRelay, Case::Buffered);
        }
    }
    report.finish(&crate::target())
}

struct Bench {
    url: String,
    admin: Client,
    pool: Pool<AsyncPgConnection>,
    outbox: Outbox,
    clients: usize,
    payload: Vec<u8>,
}

impl Bench {
    async fn new(database: &Database, clients: usize, payload: usize) -> Result<Self> {
        let admin = database.client().await?;
        admin
            .batch_execute(outbox::ddl(outbox::Database::Postgres))
            .await?;
        admin.batch_execute(TABLES).await?;
        let manager = AsyncDieselConnectionManager::new(database.url());
        Ok(Self {
            url: database.url().to_owned(),
            admin,
            pool: Pool::builder(manager).max_size(clients).build()?,
            outbox: Outbox::new("/shop"),
            clients,
            payload: vec![b'x'; payload],
        })
    }

    /// Transactions a second of all clients.
    async fn run(&self, case: Case, time: Duration) -> Result<f64> {
        for statement in ["TRUNCATE outbox, orders", "VACUUM accounts", "CHECKPOINT"] {
            self.admin.batch_execute(statement).await?;
        }
        let relay = match case {
            Case::WithRelay => Some(self.relay().await?),
            _ => None,
        };
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = Vec::new();
        for number in 0..self.clients {
            let client = BusinessClient {
                connection: self.pool.get().await?,
                outbox: self.outbox.clone(),
                payload: self.payload.clone(),
                random: number as u64 + 1,
            };
            clients.push(tokio::spawn(client.work(
                case,
                Arc::clone(&stop),
                Arc::clone(&done),
            )));
        }
        let start = Instant::now();
        tokio::time::sleep(time).await;
        let (count, took) = (done.load(Ordering::Relaxed), start.elapsed());
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.context("a client panicked")??;
        }
        if let Some((relay, shutdown)) = relay {
            let pending = self.pending().await?;
            println!("    backlog at the end: {pending}");
            shutdown.cancel();
            relay
                .await
                .context("the relay panicked")?
                .context("the relay ended")?;
        }
        Ok(rate(count, took))
    }

    async fn pending(&self) -> Result<i64> {
        let row = self.admin.query_one("SELECT count(*) FROM outbox", &[]).await?;
        Ok(row.get(0))
    }

    async fn relay(&self) -> Result<(Running, CancellationToken)> {
        let store = PostgresStore::connect(PostgresConfig::new(&self.url)).await?;
        let relay = Relay::builder(Arc::new(store), Arc::new(NullSink))
            .options(RelayOptions::default())
            .wakeup(self.outbox.wakeup())
            .build()?;
        let shutdown = CancellationToken::new();
        Ok((tokio::spawn(relay.run(shutdown.clone())), shutdown))
    }
}

type Running = tokio::task::JoinHandle<Result<outbox::relay::Summary, outbox::Error>>;

struct BusinessClient {
    connection: Object<AsyncPgConnection>,
    outbox: Outbox,
    payload: Vec<u8>,
    random: u64,
}

impl BusinessClient {
    async fn work(mut self, case: Case, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            self.random = self
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let account = i32::try_from((self.random >> 33) % ACCOUNTS)? + 1;
            let outbox = &self.outbox;
            match case {
                Case::Plain => {
                    self.connection
                        .transaction::<(), anyhow::Error, _>(async |tx| business(tx, account).await)
                        .await?;
                }
                Case::Enqueue => {
                    let message = message(outbox, account, &self.payload)?;
                    self.connection
                        .transaction::<(), anyhow::Error, _>(async |tx| {
                            business(tx, account).await?;
                            outbox.enqueue(tx, message).await?;
                            Ok(())
                        })
                        .await?;
                    outbox.notify();
                }
                Case::Buffered | Case::WithRelay => {
                    let message = message(outbox, account, &self.payload)?;
                    outbox
                        .transaction(&mut self.connection, async |tx| {
                            business(tx.connection(), account).await?;
                            tx.enqueue(message)?;
                            anyhow::Ok(())
                        })
                        .await?;
                }
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn message(outbox: &Outbox, account: i32, payload: &[u8]) -> Result<Message> {
    Ok(outbox
        .message("orders", "order.placed")
        .key(format!("account-{account}"))
        .trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None)
        .payload(payload.to_vec(), "application/octet-stream")
        .build()?)
}

/// One update and one insert, both prepared once a connection.
async fn business(connection: &mut AsyncPgConnection, account: i32) -> Result<()> {
    use diesel_async::RunQueryDsl; // its `load` would hide that of the atomics

    diesel::update(accounts::table.find(account))
        .set(accounts::balance.eq(accounts::balance + 1))
        .execute(connection)
        .await?;
    diesel::insert_into(orders::table)
        .values((orders::account.eq(account), orders::note.eq("two of the usual")))
        .execute(connection)
        .await?;
    Ok(())
}

diesel::table! {
    accounts (id) {
        id -> Integer,
        balance -> BigInt,
    }
}

diesel::table! {
    orders (id) {
        id -> BigInt,
        account -> Integer,
        note -> Text,
    }
}
