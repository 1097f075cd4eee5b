//! The memory broker keeps the contract.
#![cfg(feature = "conformance")]

use std::sync::Arc;

use async_trait::async_trait;
use outbox_broker::conformance::{Fixture, Need};
use outbox_broker::memory::{MemoryBroker, MemoryConfig};
use outbox_broker::{Bytes, Capability, Publisher, Subscriber};

struct Memory {
    broker: MemoryBroker,
    claims: Vec<Capability>,
}

const CLAIMS: [Capability; 6] = [
    Capability::KeyOrder,
    Capability::PrefixOrder,
    Capability::Deduplicates,
    Capability::NackDelay,
    Capability::CountsAttempts,
    Capability::DeadLetters,
];

#[async_trait]
impl Fixture for Memory {
    async fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(self.broker.publisher())
    }

    async fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(self.broker.subscriber())
    }

    fn claims(&self) -> Vec<Capability> {
        self.claims.clone()
    }

    async fn inject(&self, topic: &str, body: Bytes) -> bool {
        self.broker.inject_raw(topic, body);
        true
    }

    async fn dead_letters(&self, topic: &str, group: &str) -> Option<usize> {
        Some(self.broker.dead_letters(topic, group).len())
    }
}

mod default {
    use super::*;

    async fn setup(_: Need) -> Result<Memory, String> {
        Ok(Memory {
            broker: MemoryBroker::new(),
            claims: CLAIMS.to_vec(),
        })
    }

    outbox_broker::conformance!(setup);
}

mod without_created_topics {
    use super::*;

    async fn setup(_: Need) -> Result<Memory, String> {
        let config = MemoryConfig {
            create_topics: false,
            ..MemoryConfig::default()
        };
        let claims = [&CLAIMS[..], &[Capability::ReportsUnroutable]].concat();
        Ok(Memory {
            broker: MemoryBroker::with_config(config),
            claims,
        })
    }

    outbox_broker::conformance!(setup);
}
