//! Settings of the RabbitMQ adapter.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Where RabbitMQ is and how it is used. Unknown keys are refused.
///
/// Times are read as whole milliseconds from keys that end in `_ms`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RabbitMqConfig {
    /// `amqp://user:password@host:5672/vhost`, or `amqps://…`. Default `amqp://guest:guest@127.0.0.1:5672/%2f`.
    pub url: RabbitMqUrl,
    /// The durable topic exchange that messages are published to; the routing key is the topic. Default
    /// `outbox`.
    pub exchange: String,
    /// Whether exchange, queues and bindings are declared by the adapter. Default true; with false they
    /// must exist, and the account needs no permission to configure.
    pub declare: bool,
    /// Messages of one publish sent and not yet confirmed, at most. Default 1,000: enough to hide the round
    /// trip and the disk of the broker (more gained nothing when measured on one machine).
    pub window: usize,
    /// Payload bytes of one publish sent and not yet confirmed, at most. Default 16 MiB; a larger single
    /// message goes alone.
    pub window_bytes: usize,
    /// Channels, and so publishes under way at once; further ones wait. Default 8: chosen, RabbitMQ uses
    /// one core for each channel and a relay has few lanes.
    pub channels: usize,
    /// How long a publish may take; then unconfirmed messages count as unknown. Default 10 s: longer than a
    /// restart of the broker (4 s measured), shorter than a relay's lease.
    #[serde(rename = "publish_timeout_ms", deserialize_with = "milliseconds")]
    pub publish_timeout: Duration,
    /// How long a call tries to connect, again and again while the broker refuses. Default 5 s.
    #[serde(rename = "connect_timeout_ms", deserialize_with = "milliseconds")]
    pub connect_timeout: Duration,
    /// Heartbeat interval asked for; a silent broker is given up after twice as long. Default 10 s; whole
    /// seconds, 0 for none. One in the URL wins.
    #[serde(rename = "heartbeat_ms", deserialize_with = "milliseconds")]
    pub heartbeat: Duration,
    /// Largest payload. Default 16 MiB: the default `max_message_size` of RabbitMQ 4. Keep it at or below
    /// the server's, which otherwise closes the channel without saying which message it meant.
    pub max_payload_bytes: usize,
    /// Kind of the queues. Default quorum.
    pub queue: QueueKind,
    /// Whether one consumer at a time reads a queue, so that the order of each key is kept; the others of
    /// the group stand by. Default true. With false the members share the queue and no order is promised.
    pub single_active_consumer: bool,
    /// Redeliveries after which the broker itself moves a message to the dead-letter queue; quorum queues
    /// only. Default none: the server's own default applies (20 from RabbitMQ 4, none before).
    pub delivery_limit: Option<u32>,
    /// Longest delay of a nack; a longer one is cut. Default 10 min: well below the 30 min after which
    /// RabbitMQ ends a consumer that holds a delivery (`consumer_timeout`).
    #[serde(rename = "max_nack_delay_ms", deserialize_with = "milliseconds")]
    pub max_nack_delay: Duration,
}

impl Default for RabbitMqConfig {
    fn default() -> Self {
        Self {
            url: RabbitMqUrl::default(),
            exchange: "outbox".to_owned(),
            declare: true,
            window: 1_000,
            window_bytes: 16 * 1024 * 1024,
            channels: 8,
            publish_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            heartbeat: Duration::from_secs(10),
            max_payload_bytes: 16 * 1024 * 1024,
            queue: QueueKind::Quorum,
            single_active_consumer: true,
            delivery_limit: None,
            max_nack_delay: Duration::from_secs(600),
        }
    }
}

impl RabbitMqConfig {
    /// The defaults for the server at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: RabbitMqUrl::from(url.into()),
            ..Self::default()
        }
    }

    /// Name of the queue that `group` reads `topic` from.
    pub fn queue_name(topic: &str, group: &str) -> String {
        format!("{topic}.{group}")
    }

    /// Name of the queue that keeps the dead letters of `group` on `topic`.
    pub fn dead_queue_name(topic: &str, group: &str) -> String {
        format!("{topic}.{group}.dead")
    }
}

/// The kind of a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueKind {
    /// Replicated, on disk, counts deliveries.
    #[default]
    Quorum,
    /// On the disk of one node, cheaper; deliveries are not counted.
    Classic,
}

/// A URL with credentials; it prints as `***`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct RabbitMqUrl(String);

impl RabbitMqUrl {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl Default for RabbitMqUrl {
    fn default() -> Self {
        Self("amqp://guest:guest@127.0.0.1:5672/%2f".to_owned())
    }
}

impl From<String> for RabbitMqUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl From<&str> for RabbitMqUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl fmt::Debug for RabbitMqUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for RabbitMqUrl {
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
        let config = RabbitMqConfig::new("amqp://user:secret@localhost/%2f");
        assert!(!format!("{config:?} {}", config.url).contains("secret"));
    }

    #[test]
    fn unknown_keys_are_refused_and_missing_ones_are_default() {
        let read = serde_json::from_str::<RabbitMqConfig>;
        let config = read(r#"{"exchange": "shop", "publish_timeout_ms": 1500, "queue": "classic"}"#).unwrap();
        assert_eq!(config.publish_timeout, Duration::from_millis(1500));
        assert_eq!(
            (config.exchange.as_str(), config.queue),
            ("shop", QueueKind::Classic)
        );
        assert_eq!(config.window, 1_000);
        assert!(
            read(r#"{"exhange": "shop"}"#)
                .unwrap_err()
                .to_string()
                .contains("exhange")
        );
    }
}
