//! Writes down every delivery the broker hands out, so that the ledger can count wire duplicates.
//!
//! It wraps the subscriber from outside: what it counts does not depend on the consumer's own bookkeeping.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use diesel::ExpressionMethods;
use diesel_async::SimpleAsyncConnection;
use outbox_broker::{
    Capabilities, Delivery, Error, ErrorKind, Lag, SubscribeOptions, Subscriber, Subscription,
};
use tokio::sync::Mutex;

use crate::shop::Connection;

/// File of the witness' own database.
pub(crate) const FILE: &str = "witness.sqlite";

diesel::table! {
    deliveries (number) {
        number -> BigInt,
        message_id -> Text,
    }
}

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS deliveries (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id TEXT NOT NULL
)";

/// A subscriber that keeps a record of what passes through it.
pub(crate) struct Witness {
    inner: Arc<dyn Subscriber>,
    connection: Arc<Mutex<Connection>>,
}

impl Witness {
    pub(crate) async fn open(directory: &Path, inner: Arc<dyn Subscriber>) -> anyhow::Result<Self> {
        let mut connection = crate::service::connect(&directory.join(FILE)).await?;
        // An abort of the process loses nothing that was handed to the operating system.
        connection.batch_execute("PRAGMA synchronous = OFF").await?;
        connection.batch_execute(SCHEMA).await?;
        Ok(Self {
            inner,
            connection: Arc::new(Mutex::new(connection)),
        })
    }
}

#[async_trait]
impl Subscriber for Witness {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn subscribe(&self, options: SubscribeOptions) -> Result<Box<dyn Subscription>, Error> {
        let inner = self.inner.subscribe(options).await?;
        Ok(Box::new(Witnessed {
            inner,
            connection: Arc::clone(&self.connection),
        }))
    }

    async fn close(&self) -> Result<(), Error> {
        self.inner.close().await
    }
}

struct Witnessed {
    inner: Box<dyn Subscription>,
    connection: Arc<Mutex<Connection>>,
}

#[async_trait]
impl Subscription for Witnessed {
    async fn receive(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>, Error> {
        let received = self.inner.receive(max, wait).await?;
        let ids: Vec<String> = received
            .iter()
            .filter_map(|delivery| delivery.content().ok())
            .map(|message| message.id.to_string())
            .collect();
        if !ids.is_empty() {
            let mut connection = self.connection.lock().await;
            let written = connection
                .spawn_blocking(move |connection| {
                    let rows: Vec<_> = ids.iter().map(|id| deliveries::message_id.eq(id)).collect();
                    diesel::RunQueryDsl::execute(
                        diesel::insert_into(deliveries::table).values(rows),
                        connection,
                    )
                })
                .await;
            written.map_err(|error| {
                Error::new(
                    ErrorKind::Broker,
                    "receive",
                    "the witness could not write its record",
                )
                .with_cause(error)
            })?;
        }
        Ok(received)
    }

    async fn pause(&mut self) -> Result<(), Error> {
        self.inner.pause().await
    }

    async fn resume(&mut self) -> Result<(), Error> {
        self.inner.resume().await
    }

    async fn lag(&mut self) -> Result<Lag, Error> {
        self.inner.lag().await
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        self.inner.close().await
    }
}
