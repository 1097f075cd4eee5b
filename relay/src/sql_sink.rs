//! The sink `sql`, connected when it is first needed, so that a relay starts while the database is away.

use async_trait::async_trait;
use outbox_broker::sql::{SqlBroker, SqlConfig, SqlPublisher};
use outbox_broker::{Capabilities, Error, Message, Outcome, Publisher};
use tokio::sync::OnceCell;

use crate::error;

/// Publishes to a [`SqlBroker`] that is connected at the first publish that finds the database.
pub(crate) struct SqlSink {
    config: SqlConfig,
    connected: OnceCell<SqlPublisher>,
}

impl SqlSink {
    /// A sink for `config`; nothing is connected yet.
    pub(crate) fn new(config: SqlConfig) -> Self {
        Self {
            config,
            connected: OnceCell::new(),
        }
    }
}

#[async_trait]
impl Publisher for SqlSink {
    fn capabilities(&self) -> Capabilities {
        if let Some(publisher) = self.connected.get() {
            return publisher.capabilities();
        }
        // What the adapter declares for either database; it does not depend on the connection.
        let mut capabilities = Capabilities::NONE;
        capabilities.key_order = true;
        capabilities.prefix_order = true;
        capabilities.deduplicates = true;
        capabilities.nack_delay = true;
        capabilities.durable = true;
        capabilities.shared = true;
        capabilities.counts_attempts = true;
        capabilities.dead_letters = true;
        capabilities.max_payload = Some(self.config.max_payload_bytes);
        capabilities
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        let connect = || async {
            let broker = SqlBroker::connect(self.config.clone()).await?;
            Ok::<_, Error>(broker.publisher())
        };
        match self.connected.get_or_try_init(connect).await {
            Ok(publisher) => publisher.publish(batch).await,
            Err(failed) => {
                let text = error::chain(&failed);
                batch
                    .iter()
                    .map(|_| Err(Error::new(failed.kind(), "publish", text.clone())))
                    .collect()
            }
        }
    }

    async fn close(&self) -> Result<(), Error> {
        match self.connected.get() {
            Some(publisher) => publisher.close().await,
            None => Ok(()),
        }
    }
}
