//! `[source.NAME]`: a database whose outbox is emptied.

use std::time::Duration;

use outbox::relay::{RelayOptions, RetryPolicy};
use serde::{Deserialize, Serialize};

use super::secret::Secret;
use super::units;

/// A database, chosen by `kind`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Source {
    /// PostgreSQL 13 or later.
    #[cfg(feature = "postgres")]
    Postgres(Database),
    /// MariaDB 10.6 or MySQL 8.0, or later.
    #[cfg(feature = "mysql")]
    Mysql(Database),
    /// A SQLite file.
    #[cfg(feature = "sqlite")]
    Sqlite(Database),
}

impl Source {
    /// The settings that every database has.
    pub const fn database(&self) -> &Database {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => database,
            #[cfg(feature = "mysql")]
            Self::Mysql(database) => database,
            #[cfg(feature = "sqlite")]
            Self::Sqlite(database) => database,
        }
    }

    /// The same, to change.
    pub(super) const fn database_mut(&mut self) -> &mut Database {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => database,
            #[cfg(feature = "mysql")]
            Self::Mysql(database) => database,
            #[cfg(feature = "sqlite")]
            Self::Sqlite(database) => database,
        }
    }

    /// The value of `kind`.
    pub const fn kind(&self) -> &'static str {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => "postgres",
            #[cfg(feature = "mysql")]
            Self::Mysql(_) => "mysql",
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => "sqlite",
        }
    }

    /// The beginnings a URL of this kind may have.
    pub const fn schemes(&self) -> &'static [&'static str] {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => &["postgres", "postgresql"],
            #[cfg(feature = "mysql")]
            Self::Mysql(_) => &["mysql", "mariadb"],
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => &["sqlite"],
        }
    }
}

/// How one outbox is read. The defaults are those of [`RelayOptions`].
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Database {
    /// Where the database is: `postgres://user@host/database`, `mysql://user@host/database`, or
    /// `sqlite:PATH` for a file.
    pub url: Secret,
    /// Rows read by one claim, and messages handed over in one publish, at most. Default 1,000.
    #[serde(
        default = "defaults::batch_size",
        deserialize_with = "units::between::<1, 10_000, _, _>"
    )]
    pub batch_size: usize,
    /// Records in memory, from claim to settle. Default 8,000: bounds the duplicates after a crash.
    #[serde(
        default = "defaults::max_in_flight",
        deserialize_with = "units::between::<1, 1_000_000, _, _>"
    )]
    pub max_in_flight: usize,
    /// Bytes of messages in memory. Default 64 MiB.
    #[serde(default = "defaults::max_bytes", with = "units::size")]
    pub max_bytes: usize,
    /// Publish calls under way at once, each with its own keys. Default 8, and 1 to a sink of kind `sql`,
    /// where every publish is a transaction.
    #[serde(default, deserialize_with = "lanes")]
    pub lanes: Option<usize>,
    /// Longest time between two looks at an idle outbox; a notification ends it earlier. Default 250 ms.
    #[serde(default = "defaults::poll_interval", with = "units::duration")]
    pub poll_interval: Duration,
    /// The lease that makes one relay the only publisher of a shard.
    #[serde(default)]
    pub lease: Lease,
    /// What happens to a message that the broker does not take.
    #[serde(default)]
    pub retry: Retry,
}

fn lanes<'a, D: serde::Deserializer<'a>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    units::between::<1, 1_024, _, _>(deserializer).map(Some)
}

/// `lease = { … }`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default)]
pub struct Lease {
    /// How long a relay that died keeps its shards. Default 12 s: the time a standby waits to take over.
    #[serde(with = "units::duration")]
    pub ttl: Duration,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            ttl: RelayOptions::default().lease_ttl,
        }
    }
}

/// `[source.NAME.retry]`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default)]
pub struct Retry {
    /// Publishes of one message before it is a dead letter, where the message itself is at fault. Default 12.
    #[serde(deserialize_with = "units::between::<1, 1_000_000, _, _>")]
    pub max_attempts: u32,
    /// The waits between them.
    pub backoff: Backoff,
    /// Whether the later messages of a dead letter's key wait for it. Default `block`.
    pub on_exhausted: OnExhausted,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: RetryPolicy::default().max_attempts,
            backoff: Backoff::default(),
            on_exhausted: OnExhausted::Block,
        }
    }
}

/// `backoff = { initial = "200ms", max = "1m" }`: each wait is longer than the one before.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default)]
pub struct Backoff {
    /// The first wait. Default 200 ms.
    #[serde(with = "units::duration")]
    pub initial: Duration,
    /// The longest wait. Default 1 min: what a repaired broker keeps waiting at worst.
    #[serde(with = "units::duration")]
    pub max: Duration,
    /// Random part of each wait, 0 to 1, so that relays do not return in step. Default 0.2.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        let policy = RetryPolicy::default();
        Self {
            initial: policy.initial,
            max: policy.max,
            jitter: policy.jitter,
        }
    }
}

/// What a dead letter means for its ordering key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExhausted {
    /// The key waits until a person redrives or discards the dead letter.
    Block,
    /// The key goes on without it.
    Skip,
}

mod defaults {
    use std::time::Duration;

    use super::RelayOptions;

    pub(super) fn batch_size() -> usize {
        RelayOptions::default().batch_size
    }

    pub(super) fn max_in_flight() -> usize {
        RelayOptions::default().max_in_flight
    }

    pub(super) fn max_bytes() -> usize {
        RelayOptions::default().max_bytes
    }

    pub(super) fn poll_interval() -> Duration {
        RelayOptions::default().poll_interval
    }
}
