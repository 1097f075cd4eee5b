//! Settings of the Redis backend.

use std::fmt;
use std::time::Duration;

/// Where Redis is and how it is used.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// One server, Sentinels or a cluster: [`RedisConfig::node`], [`RedisConfig::sentinel`],
    /// [`RedisConfig::cluster`].
    pub topology: Topology,
    /// What the Redis keys of this crate begin with; without braces, at most 64 bytes. Default `lock`. All
    /// processes that lock the same things state the same.
    pub prefix: String,
    /// How long an answer may take; then the outcome is unknown. Default 1 s: longer than the pauses of a
    /// healthy Redis (a snapshot's fork, a slow command of someone else), shorter than the time between two
    /// renewals of the default ttl. The client library's own default, 500 ms, turned stalls into failures.
    pub response_timeout: Duration,
    /// How long connecting may take, the question to a Sentinel included. Default 1 s.
    pub connect_timeout: Duration,
    /// Whether a grant counts only when replicas have it. Default none: a failover may forget a grant, and
    /// the fencing token keeps the database right all the same.
    pub replicas: Option<Replicas>,
    /// How long after its last grant a key's fence counter is kept. Default one day: chosen, longer than any
    /// clock is set back by. Tokens follow the server's clock, so a key whose counter is gone goes on
    /// above its old tokens all the same.
    pub counter_retention: Duration,
}

/// How many replicas must have a grant (`WAIT`).
///
/// `WAIT` makes a loss less likely and not impossible: a replica that did not confirm may be the one
/// that is promoted. What is granted is taken back when too few confirm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas {
    /// Replicas that must confirm, at least 1.
    pub acks: u32,
    /// How long to wait for them, at least 1 ms and shorter than the response timeout. A few milliseconds
    /// are enough beside a healthy replica.
    pub within: Duration,
}

/// The shape of the installation.
#[derive(Debug, Clone)]
pub enum Topology {
    /// One server.
    Node(RedisUrl),
    /// The primary that Sentinels know.
    Sentinel {
        /// The Sentinels, with their own credentials.
        sentinels: Vec<RedisUrl>,
        /// What the Sentinels call the primary.
        primary: String,
        /// User, password and database number of the primary; its host is not used.
        node: Option<RedisUrl>,
    },
    /// The nodes of a cluster, or some of them.
    Cluster(Vec<RedisUrl>),
}

impl RedisConfig {
    /// One server, `redis://user:password@host:6379/0`, with the defaults.
    pub fn node(url: impl Into<String>) -> Self {
        Self::new(Topology::Node(RedisUrl(url.into())))
    }

    /// The primary called `primary` that these Sentinels watch, with the defaults. The URLs' credentials are
    /// the Sentinels' own; for the primary's see [`RedisConfig::credentials_of`].
    pub fn sentinel(
        sentinels: impl IntoIterator<Item = impl Into<String>>,
        primary: impl Into<String>,
    ) -> Self {
        Self::new(Topology::Sentinel {
            sentinels: urls(sentinels),
            primary: primary.into(),
            node: None,
        })
    }

    /// A cluster with these among its nodes, with the defaults; Redis 7 or later, since wakes are published
    /// on the key's own shard. The nodes share the first URL's credentials.
    pub fn cluster(nodes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::new(Topology::Cluster(urls(nodes)))
    }

    /// Takes user, password and database number of the primary behind Sentinels from `url`, whose host is not
    /// used.
    #[must_use]
    pub fn credentials_of(mut self, url: impl Into<String>) -> Self {
        if let Topology::Sentinel { node, .. } = &mut self.topology {
            *node = Some(RedisUrl(url.into()));
        }
        self
    }

    fn new(topology: Topology) -> Self {
        Self {
            topology,
            prefix: "lock".to_owned(),
            response_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            replicas: None,
            counter_retention: Duration::from_secs(24 * 60 * 60),
        }
    }
}

fn urls(urls: impl IntoIterator<Item = impl Into<String>>) -> Vec<RedisUrl> {
    urls.into_iter().map(|url| RedisUrl(url.into())).collect()
}

/// A URL with credentials; it prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

impl RedisUrl {
    pub(super) fn expose(&self) -> &str {
        &self.0
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_never_print() {
        let config = RedisConfig::sentinel(["redis://:secret@localhost:26379"], "main")
            .credentials_of("redis://user:secret@localhost");
        assert!(!format!("{config:?}").contains("secret"));
    }
}
