//! The one connection of a publisher or a subscriber, opened when needed and again when lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::options::ExchangeDeclareOptions;
use lapin::types::FieldTable;
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

use super::RabbitMqConfig;
use super::error::Failure;
use crate::Error;

/// First pause between two attempts to connect; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Chosen: a restarted broker is found within a second.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection that is opened by whoever needs it first.
pub(super) struct Link {
    pub(super) config: Arc<RabbitMqConfig>,
    uri: AMQPUri,
    name: &'static str,
    connection: Mutex<Option<Arc<Connection>>>,
    closed: AtomicBool,
}

impl Link {
    pub(super) fn new(config: Arc<RabbitMqConfig>, uri: AMQPUri, name: &'static str) -> Self {
        Self {
            config,
            uri,
            name,
            connection: Mutex::new(None),
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// A new channel with the exchange declared, by `deadline` and within the connect timeout.
    pub(super) async fn channel(&self, deadline: Instant) -> Result<Channel, Failure> {
        let deadline = deadline.min(Instant::now() + self.config.connect_timeout);
        let mut pause = FIRST_PAUSE;
        loop {
            if self.is_closed() {
                return Err(Failure::closed());
            }
            let failure = match timeout_at(deadline, self.open()).await {
                Ok(Ok(channel)) => return Ok(channel),
                Ok(Err(cause)) => Failure::from(cause),
                Err(_) => {
                    self.discard().await;
                    return Err(Failure::silent());
                }
            };
            if failure.is_refusal() || Instant::now() + pause >= deadline {
                return Err(failure);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn open(&self) -> lapin::Result<Channel> {
        let channel = self.connection().await?.create_channel().await?;
        if self.config.declare {
            let options = ExchangeDeclareOptions {
                durable: true,
                ..ExchangeDeclareOptions::default()
            };
            let name = self.config.exchange.as_str().into();
            channel
                .exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default())
                .await?;
        }
        Ok(channel)
    }

    async fn connection(&self) -> lapin::Result<Arc<Connection>> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = &*slot
            && connection.status().connected()
        {
            return Ok(Arc::clone(connection));
        }
        *slot = None;
        let properties = ConnectionProperties::default().with_connection_name(self.name.into());
        let connection = Arc::new(Connection::connect_uri(self.uri.clone(), properties).await?);
        *slot = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Gives up a connection that does not answer: the next call opens another one.
    pub(super) async fn discard(&self) {
        let Some(connection) = self.connection.lock().await.take() else {
            return;
        };
        let deadline = Instant::now() + self.config.connect_timeout;
        // Not waited for. lapin keeps a dropped connection as long as a channel of it is open, so it is told.
        tokio::spawn(async move {
            let _ = timeout_at(deadline, connection.close(200, "given up".into())).await;
        });
    }

    /// Refuses further channels.
    pub(super) fn refuse(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Closes the connection, and with it every channel.
    pub(super) async fn close(&self) -> Result<(), Error> {
        self.refuse();
        let Some(connection) = self.connection.lock().await.take() else {
            return Ok(());
        };
        if !connection.status().connected() {
            return Ok(());
        }
        let deadline = Instant::now() + self.config.connect_timeout;
        match timeout_at(deadline, connection.close(200, "closed".into())).await {
            Ok(Err(cause)) if connection.status().connected() => Err(Failure::from(cause).during("close")),
            Ok(_) => Ok(()), // closed, or lost meanwhile, which is as closed
            Err(_) => Err(Failure::silent().during("close")),
        }
    }
}
