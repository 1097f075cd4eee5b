//! Where the database is and how to use it.

use std::fmt;
use std::time::Duration;

use crate::{Error, ErrorKind};

/// Settings of a [`PostgresStore`](super::PostgresStore). `Debug` does not show the URL.
#[derive(Clone)]
#[must_use]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database`, or the `key=value` form.
    pub url: String,
    /// Connections, besides the one that listens. Default 4: a claim, a settle, a lease renewal and a
    /// question from an operator at the same time.
    pub connections: usize,
    /// How long to wait for a connection. Default 5 s: a server that takes longer is as good as away.
    pub connect_timeout: Duration,
    /// How long any call waits for its answer. Default 10 s: a claim of 1,000 rows takes milliseconds; keep
    /// it below the lease's ttl.
    pub statement_timeout: Duration,
    /// Whether a settle waits for the disk. Default false: losing it publishes again.
    pub durable_settles: bool,
    /// Channel of `LISTEN`; `None` only polls. Default `outbox`.
    pub channel: Option<String>,
    /// Poll interval while rows come. Default 5 ms: 1.4 % of a core (measured, relay measurements §6).
    pub poll_min: Duration,
    /// Poll interval after a while without rows. Default 250 ms; the worst latency if a notification is lost.
    pub poll_max: Duration,
}

impl PostgresConfig {
    /// The database at `url`, all else default.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            connections: 4,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
            durable_settles: false,
            channel: Some(DEFAULT_CHANNEL.to_owned()),
            poll_min: Duration::from_millis(5),
            poll_max: Duration::from_millis(250),
        }
    }

    /// The driver's configuration.
    pub(super) fn driver(&self) -> Result<tokio_postgres::Config, Error> {
        let mut driver: tokio_postgres::Config =
            self.url.parse().map_err(|error: tokio_postgres::Error| {
                // The driver's text names the parameter, never its value.
                Error::new(
                    ErrorKind::Invalid,
                    "connect",
                    "the database URL cannot be read; write postgres://user:password@host:port/database",
                )
                .with_cause(error)
            })?;
        if driver.get_application_name().is_none() {
            driver.application_name("outbox-relay");
        }
        driver.connect_timeout(self.connect_timeout);
        Ok(driver)
    }
}

/// Channel of `LISTEN` and `NOTIFY` unless configured.
pub(super) const DEFAULT_CHANNEL: &str = "outbox";

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("url", &"***")
            .field("connections", &self.connections)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("durable_settles", &self.durable_settles)
            .field("channel", &self.channel)
            .field("poll_min", &self.poll_min)
            .field("poll_max", &self.poll_max)
            .finish()
    }
}
