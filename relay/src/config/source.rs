//! `[source.NAME]`: a database whose outbox is emptied.

use std::time::Duration;

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
            #[cfg(feature = "sqlite")]
            Self::Sqlite(database) => database,
        }
    }

    /// The value of `kind`.
    pub const fn kind(&self) -> &'static str {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => "postgres",
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => "sqlite",
        }
    }

    /// The beginnings a URL of this kind may have.
    pub const fn schemes(&self) -> &'static [&'static str] {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => &["postgres", "postgresql"],
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => &["sqlite"],
        }
    }
}

/// How one outbox is read.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Database {
    /// Where the database is: `postgres://user@host/database`, or `sqlite:PATH` for a file.
    pub url: Secret,
    /// Rows read at once. Default 500; 1 to 10,000.
    #[serde(
        default = "defaults::batch_size",
        deserialize_with = "units::between::<1, 10_000, _, _>"
    )]
    pub batch_size: usize,
    /// Longest wait between two looks at an idle outbox; a notification ends it earlier. Default 1 s.
    #[serde(default = "defaults::poll_interval", with = "units::duration")]
    pub poll_interval: Duration,
    /// The lease that makes one relay the only publisher of a shard.
    #[serde(default)]
    pub lease: Lease,
    /// What happens to a message that the broker does not take.
    #[serde(default)]
    pub retry: Retry,
}

/// `lease = { … }`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default)]
pub struct Lease {
    /// How long a relay that died keeps its shards. Default 15 s: the time a standby waits to take over.
    #[serde(with = "units::duration")]
    pub ttl: Duration,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(15),
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
            max_attempts: 12,
            backoff: Backoff::default(),
            on_exhausted: OnExhausted::Block,
        }
    }
}

/// `backoff = { initial = "200ms", max = "5m" }`: each wait is longer than the one before.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default)]
pub struct Backoff {
    /// The first wait. Default 200 ms.
    #[serde(with = "units::duration")]
    pub initial: Duration,
    /// The longest wait. Default 5 min.
    #[serde(with = "units::duration")]
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(200),
            max: Duration::from_secs(300),
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

    pub(super) const fn batch_size() -> usize {
        500
    }

    pub(super) const fn poll_interval() -> Duration {
        Duration::from_secs(1)
    }
}
