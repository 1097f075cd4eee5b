//! Tells relays of other processes that something was committed.

use std::time::Duration;

use tokio::task::AbortHandle;
use tokio_postgres::{Client, NoTls};

use super::config::{DEFAULT_CHANNEL, PostgresConfig};
use super::listen::identifier;
use crate::{Error, Wakeup};

/// At most one notification in this time. Measured (relay measurements, §9.5): 100 a second from one
/// connection cost producers 8 %, one in every transaction 60 %.
const COALESCE: Duration = Duration::from_millis(20);

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
    loop {
        wakeup.notified().await;
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
        tokio::time::sleep(if sent { COALESCE } else { RECONNECT }).await;
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
