//! The Redis backends keep the contract: on one server, on a cluster, and as a quorum.
#![allow(clippy::unwrap_used, reason = "a test program")]

use std::sync::Arc;

use outbox_lock::QuorumBackend;
use outbox_lock::conformance::Fixture;
use outbox_lock::{Backend, Capabilities};
use outbox_lock::{RedisBackend, RedisConfig};
use outbox_testing::services;
use tokio::sync::OnceCell;

/// Where the servers are, and how they are used.
struct Servers {
    urls: Vec<String>,
    backend: fn(&[String]) -> Arc<dyn Backend>,
    claims: Capabilities,
}

const REDIS: Capabilities = Capabilities {
    read_write: true,
    permits: true,
    fair: true,
    wakes: true,
    durable: false,
};

const QUORUM: Capabilities = Capabilities {
    permits: false,
    fair: false,
    durable: true,
    ..REDIS
};

#[async_trait::async_trait]
impl Fixture for Servers {
    async fn backend(&self) -> Arc<dyn Backend> {
        (self.backend)(&self.urls)
    }

    fn claims(&self) -> Capabilities {
        self.claims
    }
}

fn reason(error: &services::Error) -> String {
    assert!(error.is_unavailable(), "{error}");
    error.to_string()
}

mod one_server {
    use super::*;

    async fn setup() -> Result<Servers, String> {
        let server = services::redis().await.map_err(|error| reason(&error))?;
        Ok(Servers {
            urls: vec![server.database().await.unwrap().url().to_owned()],
            backend: |urls| Arc::new(RedisBackend::new(RedisConfig::node(&urls[0])).unwrap()),
            claims: REDIS,
        })
    }

    outbox_lock::conformance!(setup);
}

mod cluster {
    use super::*;

    static NODES: OnceCell<Result<Vec<services::Redis>, services::Error>> = OnceCell::const_new();

    async fn setup() -> Result<Servers, String> {
        let nodes = NODES.get_or_init(|| services::own_redis_cluster(3)).await;
        let nodes = nodes.as_ref().map_err(reason)?;
        Ok(Servers {
            urls: nodes.iter().map(|node| node.url().to_owned()).collect(),
            backend: |urls| Arc::new(RedisBackend::new(RedisConfig::cluster(urls)).unwrap()),
            claims: REDIS,
        })
    }

    outbox_lock::conformance!(setup);
}

mod quorum {
    use super::*;

    /// Three keyspaces of one server stand for three servers: they share nothing but the process.
    async fn setup() -> Result<Servers, String> {
        let server = services::redis().await.map_err(|error| reason(&error))?;
        let mut urls = Vec::new();
        for _ in 0..3 {
            urls.push(server.database().await.unwrap().url().to_owned());
        }
        Ok(Servers {
            urls,
            backend: |urls| Arc::new(QuorumBackend::new(urls.iter().map(RedisConfig::node)).unwrap()),
            claims: QUORUM,
        })
    }

    outbox_lock::conformance!(setup);
}
