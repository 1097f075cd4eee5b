//! Waits for producers: notifications on a connection of their own, polling as the backstop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_postgres::{AsyncMessage, NoTls};
use uuid::Uuid;

use super::config::PostgresConfig;
use crate::Error;

/// Pause before a lost listening connection is made anew. Chosen: polling bridges it.
const RECONNECT: Duration = Duration::from_secs(1);

/// Within this a connection hears the notification it is tried with. Chosen: it takes a millisecond.
const HEARD_WITHIN: Duration = Duration::from_secs(3);

/// Pause after a trial that was not heard: a pooler stays, an overloaded server does not.
const TRY_AGAIN: Duration = Duration::from_secs(60);

pub(super) struct Listener {
    driver: tokio_postgres::Config,
    channel: Option<String>,
    poll_min: Duration,
    poll_max: Duration,
    /// Microseconds until the next poll: grows while nothing is found.
    interval: AtomicU64,
    signal: Arc<Notify>,
    task: Mutex<Option<AbortHandle>>,
}

impl Listener {
    pub(super) fn new(config: &PostgresConfig) -> Result<Self, Error> {
        Ok(Self {
            driver: config.driver()?,
            channel: config.channel.clone(),
            poll_min: config.poll_min,
            poll_max: config.poll_max.max(config.poll_min),
            interval: AtomicU64::new(micros(config.poll_min)),
            signal: Arc::new(Notify::new()),
            task: Mutex::new(None),
        })
    }

    /// A claim found rows: more are likely, poll eagerly again.
    pub(super) fn found_rows(&self) {
        self.interval.store(micros(self.poll_min), Ordering::Relaxed);
    }

    /// Waits for a notification, the next poll, or `at_most`, whichever is first.
    pub(super) async fn wait(&self, at_most: Duration) {
        self.start();
        let interval = Duration::from_micros(self.interval.load(Ordering::Relaxed));
        let pause = interval.min(at_most);
        if tokio::time::timeout(pause, self.signal.notified()).await.is_err() {
            let longer = (interval * 2).min(self.poll_max);
            self.interval.store(micros(longer), Ordering::Relaxed);
        }
    }

    /// Starts the listening task on the first wait.
    fn start(&self) {
        let Some(channel) = &self.channel else {
            return;
        };
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.is_none() {
            let listening = listen(self.driver.clone(), channel.clone(), Arc::clone(&self.signal));
            *task = Some(tokio::spawn(listening).abort_handle());
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let task = self.task.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = task.take() {
            task.abort();
        }
    }
}

async fn listen(driver: tokio_postgres::Config, channel: String, signal: Arc<Notify>) {
    let mut warned = false;
    loop {
        match listen_once(&driver, &channel, &signal).await {
            Ok(Ended::Deaf) => {
                if !warned {
                    tracing::warn!(
                        channel,
                        "notifications do not arrive, so the relay polls; with a transaction pooler \
                         (pgbouncer) in between, give the store the server's own address, or no channel"
                    );
                }
                warned = true;
                tokio::time::sleep(TRY_AGAIN).await;
            }
            Ok(Ended::Closed) => tokio::time::sleep(RECONNECT).await,
            Err(error) => {
                tracing::debug!(%error, "the listening connection ended; polling until it is back");
                tokio::time::sleep(RECONNECT).await;
            }
        }
    }
}

/// How a listening connection ended.
enum Ended {
    /// The server closed it.
    Closed,
    /// It did not hear its trial.
    Deaf,
}

/// Signals every notification until the connection ends. First it tries itself: a pooler takes `LISTEN`, and
/// then no notification ever comes.
async fn listen_once(
    driver: &tokio_postgres::Config,
    channel: &str,
    signal: &Notify,
) -> Result<Ended, tokio_postgres::Error> {
    let (client, mut connection) = driver.connect(NoTls).await?;
    let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
    let (trial, heard) = (Uuid::new_v4().to_string(), Notify::new());
    let listening = async {
        client
            .batch_execute(&format!("LISTEN {}", identifier(channel)))
            .await?;
        // What was committed before the connection stood may have been notified to nobody.
        signal.notify_one();
        send(driver, channel, &trial).await?;
        if tokio::time::timeout(HEARD_WITHIN, heard.notified())
            .await
            .is_err()
        {
            return Ok(Ended::Deaf);
        }
        std::future::pending::<Result<Ended, tokio_postgres::Error>>().await
    };
    let receiving = async {
        while let Some(message) = messages.next().await {
            if let AsyncMessage::Notification(notification) = message? {
                if notification.payload() == trial {
                    heard.notify_one();
                }
                signal.notify_one();
            }
        }
        Ok(Ended::Closed)
    };
    tokio::select! {
        ended = listening => ended,
        ended = receiving => ended,
    }
}

/// Notifies from another connection: behind a pooler one's own would come back by chance.
async fn send(
    driver: &tokio_postgres::Config,
    channel: &str,
    trial: &str,
) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = driver.connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    let sent = client
        .batch_execute(&format!("NOTIFY {}, '{trial}'", identifier(channel)))
        .await;
    drop(client);
    let _ = connection.await;
    sent
}

/// Quoted, so that any channel name works.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
