//! Tells relays of other processes that something was committed.

use std::time::Duration;

use futures::FutureExt;
use tokio::task::AbortHandle;
use tokio_postgres::{Client, NoTls};

use super::config::{DEFAULT_CHANNEL, PostgresConfig};
use super::listen::identifier;
use crate::{Error, Wakeup};

/// Least time between two notifications while commits are rare: each is told of at once.
const COALESCE_MIN: Duration = Duration::from_millis(1);

/// Least time while they are many. Measured: 100 notifications a second from one connection cost producers at
/// their limit 8 %, one in every transaction 60 %.
const COALESCE_MAX: Duration = Duration::from_millis(20);

/// Pause before a lost connection is made anew. Relays poll meanwhile.
const RECONNECT: Duration = Duration::from_secs(1);

/// Sends `NOTIFY` after commits, coalesced, on one connection of its own.
///
/// Never inside the business transaction: there it takes a global lock at commit and costs most of the
/// throughput. Give its [`wakeup`](PostgresNotifier::wakeup) to
/// [`OutboxBuilder::also_wakes`](crate::OutboxBuilder::also_wakes). Dropping it ends the task.
#[derive(Debug)]
pub struct PostgresNotifier {
    wakeup: Wakeup,
    task: AbortHandle,
}

impl PostgresNotifier {
    /// Starts the task that sends. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): the URL cannot be read. That the server is away is no error.
    pub fn start(config: &PostgresConfig) -> Result<Self, Error> {
        let wakeup = Wakeup::new();
        let channel = config
            .channel
            .clone()
            .unwrap_or_else(|| DEFAULT_CHANNEL.to_owned());
        let task = tokio::spawn(run(config.driver()?, channel, wakeup.clone())).abort_handle();
        Ok(Self { wakeup, task })
    }

    /// The signal to send after a commit.
    pub fn wakeup(&self) -> Wakeup {
        self.wakeup.clone()
    }
}

impl Drop for PostgresNotifier {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(driver: tokio_postgres::Config, channel: String, wakeup: Wakeup) {
    let statement = format!("NOTIFY {}", identifier(&channel));
    let mut connected: Option<Client> = None;
    let mut pause = COALESCE_MIN;
    loop {
        let came_meanwhile = wakeup.notified().now_or_never().is_some();
        if !came_meanwhile {
            wakeup.notified().await;
        }
        pause = next_pause(pause, came_meanwhile);
        if connected.as_ref().is_none_or(Client::is_closed) {
            connected = connect(&driver).await;
        }
        let sent = match &connected {
            Some(client) => client.batch_execute(&statement).await.is_ok(),
            None => false,
        };
        if !sent {
            connected = None;
        }
        tokio::time::sleep(if sent { pause } else { RECONNECT }).await;
    }
}

/// Longer while every pause ends with a commit waiting, back to the shortest as soon as one does not.
fn next_pause(pause: Duration, came_meanwhile: bool) -> Duration {
    if came_meanwhile {
        (pause * 2).min(COALESCE_MAX)
    } else {
        COALESCE_MIN
    }
}

async fn connect(driver: &tokio_postgres::Config) -> Option<Client> {
    match driver.connect(NoTls).await {
        Ok((client, connection)) => {
            tokio::spawn(connection);
            Some(client)
        }
        Err(error) => {
            tracing::debug!(%error, "cannot notify relays of other processes; they poll");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_commits_are_told_at_once_and_many_are_told_together() {
        let mut pause = COALESCE_MIN;
        for _ in 0..10 {
            pause = next_pause(pause, true);
        }
        assert_eq!(pause, COALESCE_MAX);
        assert_eq!(next_pause(pause, false), COALESCE_MIN);
    }
}
