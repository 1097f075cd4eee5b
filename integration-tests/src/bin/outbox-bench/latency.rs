//! How long a message takes from its commit to the broker's adapter.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use outbox::Outbox;
use outbox::relay::{Relay, RelayOptions};
use outbox::store::postgres::{PostgresConfig, PostgresStore};
use outbox_broker::Publisher;
use outbox_testing::services;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::child;
use crate::report::{Report, percentile};
use crate::sink::TimingSink;

/// What `latency` takes.
#[derive(Args)]
pub(crate) struct Options {
    /// The database of the outbox.
    #[arg(long, value_enum, default_value = "postgres")]
    store: crate::Postgres,
    /// Transactions a second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Transactions of each case.
    #[arg(long, default_value_t = 2_000)]
    transactions: u32,
    /// Rounds; every case runs once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// One short round: shows that it runs, measures nothing.
    #[arg(long)]
    quick: bool,
}

/// Where the producer is.
#[derive(Clone, Copy)]
enum Case {
    InProcess,
    OtherProcess,
}

impl Case {
    const fn name(self) -> &'static str {
        match self {
            Self::InProcess => "in process",
            Self::OtherProcess => "from another process",
        }
    }
}

/// The first messages find cold connections; they are not counted.
const WARM_UP: u32 = 50;

/// A message that takes longer ends the benchmark with an error.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs the rounds.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let crate::Postgres::Postgres = options.store;
    let (rounds, count) = match options.quick {
        true => (1, 200),
        false => (options.rounds, options.transactions),
    };
    ensure!(
        rounds > 0 && count > 0 && options.rate > 0,
        "rounds, transactions and rate must be above 0"
    );
    let server = services::own_durable_postgres().await?;
    let mut report = Report::new("latency-postgres", "latency", "µs");
    println!("from the moment before INSERT and COMMIT are sent to the call of the publisher");
    for round in 1..=rounds {
        println!(
            "round {round} of {rounds}, {} transactions a second",
            options.rate
        );
        for case in [Case::InProcess, Case::OtherProcess] {
            let database = server.database().await?;
            let client = database.client().await?;
            client
                .batch_execute(outbox::ddl(outbox::Database::Postgres))
                .await?;
            let times = measure(database.url(), case, options.rate, count + WARM_UP).await?;
            for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
                let micros: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
                report.add(&format!("{}, {name}", case.name()), percentile(&micros, share));
            }
        }
    }
    report.finish(&crate::target())
}

async fn measure(url: &str, case: Case, rate: u32, count: u32) -> Result<Vec<Duration>> {
    let store = PostgresStore::connect(PostgresConfig::new(url)).await?;
    let sink = Arc::new(TimingSink::default());
    let outbox = Outbox::new("/shop");
    let mut builder = Relay::builder(Arc::new(store), Arc::clone(&sink) as Arc<dyn Publisher>)
        .options(RelayOptions::default());
    if matches!(case, Case::InProcess) {
        builder = builder.wakeup(outbox.wakeup());
    }
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(builder.build()?.run(shutdown.clone()));
    match case {
        Case::InProcess => child::produce(&outbox, url, rate, count).await?,
        Case::OtherProcess => {
            let ended = child::producer(url, rate, count)?.wait().await?;
            ensure!(ended.success(), "the producer failed");
        }
    }
    let deadline = Instant::now() + LIMIT;
    while sink.taken().len() < count as usize {
        ensure!(
            Instant::now() < deadline,
            "messages were not published within {LIMIT:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    shutdown.cancel();
    running
        .await
        .context("the relay panicked")?
        .context("the relay ended")?;
    Ok(sink.taken().split_off(WARM_UP as usize))
}
