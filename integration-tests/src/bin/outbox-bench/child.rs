//! The parts of a benchmark that run in a process of their own.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use outbox::Outbox;
use outbox::relay::{Relay, RelayOptions};
use outbox::store::postgres::{PostgresConfig, PostgresNotifier, PostgresStore};
use outbox_broker::Publisher;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::sink::{AwaySink, NullSink, TimingSink};

/// What a child does.
#[derive(Subcommand)]
pub(crate) enum Role {
    /// Runs a relay until it is killed.
    Relay {
        /// The outbox.
        #[arg(long)]
        url: String,
        /// Its broker.
        #[arg(long, value_enum)]
        sink: Sink,
    },
    /// Commits transactions at a steady rate, then ends.
    Producer {
        /// The outbox.
        #[arg(long)]
        url: String,
        /// Transactions a second.
        #[arg(long)]
        rate: u32,
        /// Transactions.
        #[arg(long)]
        count: u32,
    },
}

/// The broker of a relay in a child.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Sink {
    /// Takes everything.
    Null,
    /// Is away.
    Away,
}

impl Sink {
    const fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Away => "away",
        }
    }
}

/// Starts a relay; it is killed when the value is dropped.
pub(crate) fn relay(url: &str, sink: Sink) -> Result<Child> {
    spawn(&["relay", "--url", url, "--sink", sink.name()])
}

/// Starts a producer; it is killed when the value is dropped.
pub(crate) fn producer(url: &str, rate: u32, count: u32) -> Result<Child> {
    let (rate, count) = (rate.to_string(), count.to_string());
    spawn(&["producer", "--url", url, "--rate", &rate, "--count", &count])
}

fn spawn(arguments: &[&str]) -> Result<Child> {
    Command::new(std::env::current_exe().context("this program has no path")?)
        .arg("child")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a child")
}

/// Does what the child is for.
pub(crate) async fn run(role: &Role) -> Result<()> {
    match role {
        Role::Relay { url, sink } => {
            let store = PostgresStore::connect(PostgresConfig::new(url)).await?;
            let publisher: Arc<dyn Publisher> = match sink {
                Sink::Null => Arc::new(NullSink),
                Sink::Away => Arc::new(AwaySink),
            };
            let relay = Relay::builder(Arc::new(store), publisher)
                .options(RelayOptions::default())
                .build()?;
            relay.run(CancellationToken::new()).await?;
        }
        Role::Producer { url, rate, count } => {
            let notifier = PostgresNotifier::start(&PostgresConfig::new(url))?;
            let outbox = Outbox::builder("/shop").also_wakes(notifier.wakeup()).build()?;
            produce(&outbox, url, *rate, *count).await?;
        }
    }
    Ok(())
}

/// Commits `count` transactions of one message, `rate` a second.
pub(crate) async fn produce(outbox: &Outbox, url: &str, rate: u32, count: u32) -> Result<()> {
    let mut connection = AsyncPgConnection::establish(url).await?;
    let start = Instant::now();
    for number in 0..count {
        sleep_until(start + Duration::from_secs(1) * number / rate.max(1)).await;
        outbox
            .transaction(&mut connection, async |tx| {
                let message = outbox
                    .message("orders", "order.placed")
                    .key(format!("account-{}", number % 100))
                    // The commit follows at once.
                    .payload(TimingSink::stamp(), "text/plain");
                tx.enqueue(message.build()?)?;
                anyhow::Ok(())
            })
            .await?;
    }
    Ok(())
}
