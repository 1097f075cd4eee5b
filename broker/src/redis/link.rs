//! The one connection of a publisher or a subscriber, opened when needed and again when lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, Pipeline, RedisResult};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

use super::error::Failure;
use super::{RedisConfig, scripts};
use crate::ErrorKind;

/// First pause between two attempts to connect; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Chosen: a restarted server is found within a second.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection that is opened by whoever needs it first.
pub(super) struct Link {
    pub(super) config: Arc<RedisConfig>,
    client: Client,
    connection: Mutex<Option<MultiplexedConnection>>,
    closed: AtomicBool,
}

impl Link {
    pub(super) fn new(config: Arc<RedisConfig>, client: Client) -> Self {
        Self {
            config,
            client,
            connection: Mutex::new(None),
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The time by which an ordinary question is answered.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.config.connect_timeout
    }

    /// The shared connection, scripts loaded, by `deadline` and within the connect timeout.
    pub(super) async fn connection(&self, deadline: Instant) -> Result<MultiplexedConnection, Failure> {
        let deadline = deadline.min(self.deadline());
        let shared = async {
            let mut slot = self.connection.lock().await;
            if let Some(connection) = &*slot {
                return Ok(connection.clone());
            }
            let connection = self.dedicated(deadline).await?;
            *slot = Some(connection.clone());
            Ok(connection)
        };
        timeout_at(deadline, shared)
            .await
            .unwrap_or(Err(Failure::silent()))
    }

    /// A connection that nobody else uses.
    pub(super) async fn dedicated(&self, deadline: Instant) -> Result<MultiplexedConnection, Failure> {
        let deadline = deadline.min(self.deadline());
        let mut pause = FIRST_PAUSE;
        loop {
            if self.is_closed() {
                return Err(Failure::closed());
            }
            let failure = match timeout_at(deadline, self.open()).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(cause)) => Failure::from(cause),
                Err(_) => return Err(Failure::silent()),
            };
            if failure.is_refusal() || Instant::now() + pause >= deadline {
                return Err(failure);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn open(&self) -> RedisResult<MultiplexedConnection> {
        // Timeouts belong to the calls: a call that waits for entries waits longer than one that sends.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let mut connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        for script in scripts::ALL {
            script.load_async(&mut connection).await?;
        }
        Ok(connection)
    }

    /// Asks one question on the shared connection.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let mut pipeline = Pipeline::new();
        pipeline.add_command(command.clone());
        let mut answers: Vec<T> = self.ask_all(&pipeline).await?;
        answers.pop().ok_or(Failure::garbled())
    }

    /// Asks several at once; the answers keep their order.
    pub(super) async fn ask_all<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<Vec<T>, Failure> {
        let deadline = self.deadline();
        let mut connection = self.connection(deadline).await?;
        let answers = timeout_at(deadline, pipeline.query_async(&mut connection)).await;
        let failure = match answers {
            Ok(Ok(answers)) => return Ok(answers),
            Ok(Err(cause)) => Failure::from(cause),
            Err(_) => Failure::silent(),
        };
        self.discard_after(&failure).await;
        Err(failure)
    }

    /// Gives up a connection that failed or does not answer: the next call opens another one.
    pub(super) async fn discard_after(&self, failure: &Failure) {
        if failure.kind != ErrorKind::UnknownDestination {
            *self.connection.lock().await = None;
        }
    }

    /// Refuses further connections.
    pub(super) fn refuse(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Closes the connection.
    pub(super) async fn close(&self) {
        self.refuse();
        *self.connection.lock().await = None;
    }
}
