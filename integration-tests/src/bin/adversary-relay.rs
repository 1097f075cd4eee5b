//! One relay of the adversary's tests, to be killed and frozen: `adversary-relay SOURCE WIRE LEASE_MS WINDOW`.
//!
//! Publishes by inserting the payloads into table `wire` of the database at `WIRE`, so that a test sees what
//! arrived in which order, whoever sent it.
#![expect(clippy::print_stderr, reason = "a command-line program")]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use outbox::Message;
use outbox::relay::{Relay, RelayOptions};
use outbox::store::postgres::{PostgresConfig, PostgresStore};
use outbox_broker::{Capabilities, Error, ErrorKind, Outcome, Publisher, Receipt};
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

/// How far the broker is.
const DISTANCE: Duration = Duration::from_millis(2);

struct Table(Client);

#[async_trait]
impl Publisher for Table {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::NONE;
        capabilities.key_order = true;
        capabilities.prefix_order = true;
        capabilities
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        tokio::time::sleep(DISTANCE).await;
        let ids: Vec<String> = batch
            .iter()
            .map(|message| String::from_utf8_lossy(&message.payload).into_owned())
            .collect();
        let insert = "INSERT INTO wire (id) SELECT * FROM unnest($1::text[])";
        let sent = self.0.execute(insert, &[&ids]).await;
        let outcome = |_| match &sent {
            Ok(_) => Ok(Receipt::default()),
            Err(error) => Err(Error::new(
                ErrorKind::OutcomeUnknown,
                "publish",
                error.to_string(),
            )),
        };
        batch.iter().map(outcome).collect()
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

async fn run() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, wire, lease, window] = &arguments[..] else {
        anyhow::bail!("give SOURCE WIRE LEASE_MS WINDOW");
    };
    let (client, connection) = tokio_postgres::connect(wire, NoTls).await?;
    tokio::spawn(connection);
    let store = PostgresStore::connect(PostgresConfig::new(source)).await?;
    let window: usize = window.parse().context("WINDOW")?;
    let options = RelayOptions {
        lease_ttl: Duration::from_millis(lease.parse().context("LEASE_MS")?),
        acquire_interval: Duration::from_millis(100),
        batch_size: window / 4,
        max_in_flight: window,
        ..RelayOptions::default()
    };
    let relay = Relay::builder(Arc::new(store), Arc::new(Table(client)))
        .options(options)
        .build()?;
    relay.run(CancellationToken::new()).await?;
    Ok(())
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run()))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("adversary-relay: {error:#}");
            ExitCode::FAILURE
        }
    }
}
