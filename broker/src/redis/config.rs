//! Settings of the Redis adapter.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Where Redis is and how it is used. Unknown keys are refused.
///
/// Times are read as whole milliseconds from keys that end in `_ms`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisConfig {
    /// `redis://user:password@host:6379/0`. Default `redis://127.0.0.1:6379/`.
    pub url: RedisUrl,
    /// What every key begins with. Default `outbox`. It holds neither `{` nor `}`.
    pub prefix: String,
    /// Partitions of a topic that is new, 1 to 1,024. Default 8: as many members of a group as one database's
    /// relay keeps busy. The number is written down with the topic's first use and never changes, since the
    /// key's hash decides the partition.
    pub partitions: u16,
    /// How long an id is remembered; a second publish of it within that time is suppressed. Default 10 min:
    /// well above the time until a crashed relay's successor publishes again; an id costs about 120 bytes
    /// that long. Zero: nothing is suppressed, and the adapter does not claim it.
    #[serde(rename = "dedup_window_ms", deserialize_with = "milliseconds")]
    pub dedup_window: Duration,
    /// Messages of one script call, at most. Default 100: Redis answers nobody else meanwhile (about 1 ms).
    pub batch: usize,
    /// Payload bytes of one script call, at most. Default 1 MiB; a larger single message goes alone.
    pub batch_bytes: usize,
    /// How long a publish may take; then messages without an answer count as unknown. Default 10 s: longer
    /// than a restart of the server, shorter than a relay's lease.
    #[serde(rename = "publish_timeout_ms", deserialize_with = "milliseconds")]
    pub publish_timeout: Duration,
    /// How long a call tries to connect, again and again while the server refuses, and how long it waits for
    /// any other answer. Default 5 s.
    #[serde(rename = "connect_timeout_ms", deserialize_with = "milliseconds")]
    pub connect_timeout: Duration,
    /// Largest payload. Default 16 MiB: Redis takes 512 MB (`proto-max-bulk-len`), and one large value delays
    /// everybody.
    pub max_payload_bytes: usize,
    /// Whether each partition has one owner in a group at a time, so that the order of each key is kept.
    /// Default true; members share the partitions. With false every member reads all of them and no order is
    /// promised.
    pub ordered: bool,
    /// How long an entry is kept after every group has settled it, for replay. Default 1 h; memory is what it
    /// costs. Entries that a group has not settled are never removed.
    #[serde(rename = "retention_ms", deserialize_with = "milliseconds")]
    pub retention: Duration,
    /// Replicas that must have a message before it counts as accepted (`WAIT`). Default 0: the server alone. A
    /// failover may lose what no replica had.
    pub replicas: u32,
    /// How long to wait for them; then the outcome counts as unknown. Default 1 s.
    #[serde(rename = "replicas_timeout_ms", deserialize_with = "milliseconds")]
    pub replicas_timeout: Duration,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            url: RedisUrl::default(),
            prefix: "outbox".to_owned(),
            partitions: 8,
            dedup_window: Duration::from_secs(600),
            batch: 100,
            batch_bytes: 1024 * 1024,
            publish_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            max_payload_bytes: 16 * 1024 * 1024,
            ordered: true,
            retention: Duration::from_secs(3600),
            replicas: 0,
            replicas_timeout: Duration::from_secs(1),
        }
    }
}

impl RedisConfig {
    /// The defaults for the server at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: RedisUrl::from(url.into()),
            ..Self::default()
        }
    }

    /// Key of the stream that holds a partition of `topic`.
    pub fn stream_key(&self, topic: &str, partition: u16) -> String {
        format!("{{{}:{topic}:{partition}}}", self.prefix)
    }

    /// Key of the stream that holds the dead letters of `group` from a partition of `topic`.
    pub fn dead_key(&self, topic: &str, partition: u16, group: &str) -> String {
        format!("{}:dead:{group}", self.stream_key(topic, partition))
    }

    /// Key of the number of partitions of `topic`.
    pub(super) fn partitions_key(&self, topic: &str) -> String {
        format!("{}:{topic}:partitions", self.prefix)
    }

    /// Key of the members of `group` on `topic`.
    pub(super) fn members_key(&self, topic: &str, group: &str) -> String {
        format!("{}:{topic}:members:{group}", self.prefix)
    }
}

/// A URL with credentials; it prints as `***`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct RedisUrl(String);

impl RedisUrl {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl Default for RedisUrl {
    fn default() -> Self {
        Self("redis://127.0.0.1:6379/".to_owned())
    }
}

impl From<String> for RedisUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl From<&str> for RedisUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_never_prints() {
        let config = RedisConfig::new("redis://user:secret@localhost/");
        assert!(!format!("{config:?} {}", config.url).contains("secret"));
    }

    #[test]
    fn unknown_keys_are_refused_and_missing_ones_are_default() {
        let read = serde_json::from_str::<RedisConfig>;
        let config = read(r#"{"prefix": "shop", "dedup_window_ms": 1500, "ordered": false}"#).unwrap();
        assert_eq!(config.dedup_window, Duration::from_millis(1500));
        assert_eq!((config.prefix.as_str(), config.ordered), ("shop", false));
        assert_eq!(config.partitions, 8);
        assert!(
            read(r#"{"prefx": "shop"}"#)
                .unwrap_err()
                .to_string()
                .contains("prefx")
        );
    }

    #[test]
    fn keys_of_one_partition_share_a_slot() {
        let config = RedisConfig::default();
        assert_eq!(config.stream_key("orders", 3), "{outbox:orders:3}");
        assert_eq!(
            config.dead_key("orders", 3, "billing"),
            "{outbox:orders:3}:dead:billing"
        );
    }
}
