//! The in-process backend passes the suite.
#![cfg(feature = "conformance")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

use std::sync::Arc;

use outbox_lock::conformance::Fixture;
use outbox_lock::{Backend, Capabilities, MemoryBackend};

struct Memory(MemoryBackend);

#[async_trait::async_trait]
impl Fixture for Memory {
    async fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(self.0.clone())
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

async fn setup() -> Result<Memory, String> {
    Ok(Memory(MemoryBackend::new()))
}

outbox_lock::conformance!(setup);
