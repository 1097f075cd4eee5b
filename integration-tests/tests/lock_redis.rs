//! The Redis backend keeps the contract, on one server.
#![allow(clippy::unwrap_used, reason = "a test program")]

use std::sync::Arc;

use outbox_lock::conformance::Fixture;
use outbox_lock::redis::{RedisConfig, RedisLocks};
use outbox_lock::{Backend, Capabilities};
use outbox_testing::services;

struct OneServer(String);

#[async_trait::async_trait]
impl Fixture for OneServer {
    async fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(RedisLocks::new(RedisConfig::node(&self.0)).unwrap())
    }

    fn claims(&self) -> Capabilities {
        Capabilities {
            read_write: true,
            permits: true,
            fair: true,
            wakes: true,
            durable: false,
        }
    }
}

async fn setup() -> Result<OneServer, String> {
    let server = services::redis().await;
    if let Err(error) = &server {
        assert!(error.is_unavailable(), "{error}");
    }
    let server = server.map_err(|error| error.to_string())?;
    Ok(OneServer(server.database().await.unwrap().url().to_owned()))
}

outbox_lock::conformance!(setup);
