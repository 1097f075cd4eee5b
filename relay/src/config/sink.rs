//! `[sink.NAME]`: a broker that messages are published to.

#[cfg(any(feature = "rabbitmq", feature = "redis", feature = "sql"))]
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::secret::Secret;
#[cfg(any(feature = "rabbitmq", feature = "redis", feature = "sql"))]
use super::units;

/// A broker, chosen by `kind`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Sink {
    /// RabbitMQ, AMQP 0.9.1.
    #[cfg(feature = "rabbitmq")]
    RabbitMq(RabbitMq),
    /// Redis Streams.
    #[cfg(feature = "redis")]
    Redis(Redis),
    /// A database as the broker.
    #[cfg(feature = "sql")]
    Sql(Sql),
    /// The memory of this process: for trying out, everything is gone when it ends.
    Memory(Memory),
    /// JSON lines on standard output.
    Stdout(Stdout),
}

/// `kind = "rabbitmq"`.
#[cfg(feature = "rabbitmq")]
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct RabbitMq {
    /// `amqp://user:password@host:5672/vhost`.
    pub url: Secret,
    /// The durable topic exchange messages are published to; the routing key is the topic. Default `outbox`.
    #[serde(default = "RabbitMq::default_exchange")]
    pub exchange: String,
    /// Whether the relay declares the exchange. Default true; with false it must exist, and the account
    /// needs no permission to configure.
    #[serde(default = "RabbitMq::default_declare")]
    pub declare: bool,
    /// Messages of one publish sent and not yet confirmed, at most. Default 1,000.
    #[serde(
        default = "RabbitMq::default_window",
        deserialize_with = "units::between::<1, 65_535, _, _>"
    )]
    pub max_in_flight: usize,
    /// How long a publish may take before its outcome counts as unknown. Default 10 s.
    #[serde(default = "default_timeout", with = "units::duration")]
    pub timeout: Duration,
}

#[cfg(feature = "rabbitmq")]
impl RabbitMq {
    fn default_exchange() -> String {
        "outbox".to_owned()
    }

    const fn default_declare() -> bool {
        true
    }

    const fn default_window() -> usize {
        1_000
    }
}

/// `kind = "redis"`.
#[cfg(feature = "redis")]
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Redis {
    /// `redis://user:password@host:6379/0`.
    pub url: Secret,
    /// What every key begins with. Default `outbox`.
    #[serde(default = "Redis::default_prefix")]
    pub prefix: String,
    /// Partitions of a topic that is new. Default 8.
    #[serde(
        default = "Redis::default_partitions",
        deserialize_with = "units::between::<1, 1_024, _, _>"
    )]
    pub partitions: usize,
    /// How long an id is remembered and a second publish of it suppressed. Default 10 min; 0 for not at all.
    #[serde(default = "Redis::default_dedup_window", with = "units::duration")]
    pub dedup_window: Duration,
    /// Replicas that must have a message before it counts as published. Default 0: the server alone.
    #[serde(default)]
    pub replicas: u32,
    /// How long a publish may take before its outcome counts as unknown. Default 10 s.
    #[serde(default = "default_timeout", with = "units::duration")]
    pub timeout: Duration,
}

#[cfg(feature = "redis")]
impl Redis {
    fn default_prefix() -> String {
        "outbox".to_owned()
    }

    const fn default_partitions() -> usize {
        8
    }

    const fn default_dedup_window() -> Duration {
        Duration::from_secs(600)
    }
}

/// `kind = "sql"`.
#[cfg(feature = "sql")]
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Sql {
    /// `postgres://…`, or `sqlite:PATH` for a file.
    pub url: Secret,
    /// How long a publish may take. Default 10 s.
    #[serde(default = "default_timeout", with = "units::duration")]
    pub timeout: Duration,
}

/// `kind = "memory"`; it has no settings.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Memory {}

/// `kind = "stdout"`; it has no settings.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Stdout {}

#[cfg(any(feature = "rabbitmq", feature = "redis", feature = "sql"))]
const fn default_timeout() -> Duration {
    Duration::from_secs(10)
}

impl Sink {
    /// The value of `kind`.
    pub const fn kind(&self) -> &'static str {
        match self {
            #[cfg(feature = "rabbitmq")]
            Self::RabbitMq(_) => "rabbitmq",
            #[cfg(feature = "redis")]
            Self::Redis(_) => "redis",
            #[cfg(feature = "sql")]
            Self::Sql(_) => "sql",
            Self::Memory(_) => "memory",
            Self::Stdout(_) => "stdout",
        }
    }

    /// The connection string and the beginnings it may have, where there is one.
    pub const fn url(&self) -> Option<(&Secret, &'static [&'static str])> {
        match self {
            #[cfg(feature = "rabbitmq")]
            Self::RabbitMq(sink) => Some((&sink.url, &["amqp", "amqps"])),
            #[cfg(feature = "redis")]
            Self::Redis(sink) => Some((&sink.url, &["redis"])),
            #[cfg(feature = "sql")]
            Self::Sql(sink) => Some((&sink.url, &["postgres", "postgresql", "sqlite"])),
            Self::Memory(_) | Self::Stdout(_) => None,
        }
    }
}
