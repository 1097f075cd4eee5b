//! How to reach the database and how to use it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::Deserializer;

use crate::{Error, ErrorKind, Limits};

/// Settings of a [`SqlBroker`](super::SqlBroker). Unknown keys are refused.
///
/// ```toml
/// url = "sqlite:/var/lib/shop/queue.db"   # or postgres://user:password@localhost/shop
/// pool_size = 8
/// publish_timeout_ms = 10000
/// poll_interval_ms = 250
/// retention_seconds = 86400
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SqlConfig {
    /// `sqlite:PATH` or `postgres://…`. May hold a password, so it never appears in output.
    pub url: DatabaseUrl,
    /// Connections to PostgreSQL. Default 8: chosen, a publisher, a few members and the settlements each
    /// hold one for a few milliseconds. SQLite has one writer whatever this says.
    #[serde(default = "default_pool_size")]
    pub pool_size: u16,
    /// Longest a publish, a claim or a settlement may take. Default 10 s: chosen, longer than a database
    /// restart on one machine, shorter than a relay's lease.
    #[serde(
        default = "default_publish_timeout",
        rename = "publish_timeout_ms",
        deserialize_with = "millis"
    )]
    pub publish_timeout: Duration,
    /// Longest pause between two looks for messages of other processes. Default 250 ms: chosen, an idle
    /// look costs some 50 µs, so this is noise. Messages of the same [`SqlBroker`](super::SqlBroker) wake a
    /// waiting subscription at once.
    #[serde(
        default = "default_poll_interval",
        rename = "poll_interval_ms",
        deserialize_with = "millis"
    )]
    pub poll_interval: Duration,
    /// How long a message is kept: for suppressing a second publish of its id, and for groups that begin
    /// later. Default 24 h: chosen, a relay that was down over night still finds its duplicates. A message
    /// that a group has not read or not settled is kept beyond it.
    #[serde(
        default = "default_retention",
        rename = "retention_seconds",
        deserialize_with = "seconds"
    )]
    pub retention: Duration,
    /// Largest payload in bytes. Default that of [`Limits::payload_bytes`].
    #[serde(default = "default_max_payload_bytes")]
    pub max_payload_bytes: usize,
}

impl SqlConfig {
    /// Settings for the database at `url`, all else default.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: DatabaseUrl(url.into()),
            pool_size: default_pool_size(),
            publish_timeout: default_publish_timeout(),
            poll_interval: default_poll_interval(),
            retention: default_retention(),
            max_payload_bytes: default_max_payload_bytes(),
        }
    }

    /// Settings for the SQLite file at `path`, all else default.
    pub fn sqlite(path: impl AsRef<Path>) -> Self {
        Self::new(format!("sqlite:{}", path.as_ref().display()))
    }

    /// The same with another retention.
    #[must_use]
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// The same with another longest pause between two looks.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    /// The same with another time limit for one call.
    #[must_use]
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = timeout;
        self
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            payload_bytes: self.max_payload_bytes,
            ..Limits::default()
        }
    }

    /// The settings, checked, and the place the url names.
    pub(super) fn place(&self) -> Result<Place, Error> {
        let refuse = |context: &'static str| Err(Error::new(ErrorKind::Invalid, "connect", context));
        if self.pool_size == 0 {
            return refuse("`pool_size` is 0; allow at least one connection");
        }
        if self.publish_timeout.is_zero() || self.poll_interval.is_zero() {
            return refuse("`publish_timeout_ms` and `poll_interval_ms` must be above 0");
        }
        self.url.place()
    }
}

/// A database URL; prints as `***`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    fn place(&self) -> Result<Place, Error> {
        let refuse = |context: &'static str| Err(Error::new(ErrorKind::Invalid, "connect", context));
        if self.0.starts_with("postgres://") || self.0.starts_with("postgresql://") {
            return Ok(Place::Postgres(self.0.clone()));
        }
        match self.0.strip_prefix("sqlite:") {
            None => refuse("`url` must be `sqlite:PATH` or `postgres://…`"),
            Some("") => refuse("`url` names no file; write `sqlite:PATH`"),
            Some(path) if path.contains(":memory:") || path.contains("mode=memory") => {
                refuse("a SQLite database in memory is not durable; use a file, or the memory adapter")
            }
            Some(path) => Ok(Place::Sqlite(PathBuf::from(
                path.strip_prefix("//").unwrap_or(path),
            ))),
        }
    }
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl From<&str> for DatabaseUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where the queue lives.
pub(super) enum Place {
    Sqlite(PathBuf),
    Postgres(String),
}

const fn default_pool_size() -> u16 {
    8
}

const fn default_publish_timeout() -> Duration {
    Duration::from_secs(10)
}

const fn default_poll_interval() -> Duration {
    Duration::from_millis(250)
}

const fn default_retention() -> Duration {
    Duration::from_secs(24 * 60 * 60)
}

fn default_max_payload_bytes() -> usize {
    Limits::default().payload_bytes
}

fn millis<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(url: &str) -> ErrorKind {
        SqlConfig::new(url).place().map(|_| ()).unwrap_err().kind()
    }

    #[test]
    fn a_url_that_names_no_durable_database_is_refused() {
        for url in [
            "",
            "queue.db",
            "mysql://localhost/x",
            "sqlite:",
            "sqlite::memory:",
            "sqlite:file:x?mode=memory",
        ] {
            assert_eq!(kind_of(url), ErrorKind::Invalid, "{url}");
        }
    }

    #[test]
    fn the_url_is_never_printed() {
        let config = SqlConfig::new("postgres://shop:hunter2@localhost/shop");
        assert!(!format!("{config:?} {}", config.url).contains("hunter2"));
    }

    #[test]
    fn an_unknown_key_is_refused_and_the_rest_has_defaults() {
        let config: SqlConfig =
            serde_json::from_str(r#"{"url":"sqlite:q.db","retention_seconds":60}"#).unwrap();
        assert_eq!(config.retention, Duration::from_secs(60));
        assert_eq!(config.pool_size, 8);
        let error = serde_json::from_str::<SqlConfig>(r#"{"url":"sqlite:q.db","retension":60}"#).unwrap_err();
        assert!(error.to_string().contains("retension"), "{error}");
    }
}
