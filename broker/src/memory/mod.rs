//! The broker in this process: the reference for the conformance suite, and a broker for tests.
//!
//! ```text
//! topic ─┬─ partition 0: append log ──► group "billing": cursor, waiting, in flight, dead letters
//!        └─ partition 1: append log ──► group "mailing": …
//! ```
//!
//! A message with a key goes to the partition its key hashes to. A group reads a partition at a cursor;
//! what came back (nack, timeout, a member that left) waits beside the cursor and holds its key back until
//! it has been handed out again. While deliveries of a key are with a member, the key's next ones go to
//! that member only.
//!
//! Nothing survives the process, nothing is shared with another one. [`Faults`] make it misbehave on
//! request.
//!
//! ```
//! use outbox_broker::memory::MemoryBroker;
//! use outbox_broker::{Message, Publisher, SubscribeOptions, Subscriber};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = MemoryBroker::new();
//! let message = Message::builder("orders", "order.placed").source("/shop").key("42").build()?;
//! for outcome in broker.publisher().publish(&[message]).await {
//!     outcome?;
//! }
//! let mut billing = broker.subscriber().subscribe(SubscribeOptions::new("orders", "billing")).await?;
//! for delivery in billing.receive(10, Duration::from_secs(1)).await? {
//!     delivery.ack().await?;
//! }
//! # Ok(())
//! # }
//! ```

mod config;
mod faults;
mod group;
mod publisher;
mod state;
mod subscriber;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

pub use config::MemoryConfig;
pub use faults::Faults;
pub use group::DeadLetter;
pub use publisher::MemoryPublisher;
pub use subscriber::{MemorySubscriber, MemorySubscription};

use crate::{Bytes, Capabilities, Malformed};
use state::State;

/// A broker in this process. Clones share it.
#[derive(Clone)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
}

struct Shared {
    config: MemoryConfig,
    state: Mutex<State>,
    next_member: AtomicU64,
}

impl MemoryBroker {
    /// An empty broker with default settings.
    pub fn new() -> Self {
        Self::with_config(MemoryConfig::default())
    }

    /// An empty broker with settings of your own.
    pub fn with_config(config: MemoryConfig) -> Self {
        let config = MemoryConfig {
            partitions: config.partitions.max(1),
            ..config
        };
        Self {
            shared: Arc::new(Shared {
                config,
                state: Mutex::new(State::new(config)),
                next_member: AtomicU64::new(1),
            }),
        }
    }

    /// A publisher to this broker.
    pub fn publisher(&self) -> MemoryPublisher {
        MemoryPublisher::new(self.clone())
    }

    /// A subscriber of this broker.
    pub fn subscriber(&self) -> MemorySubscriber {
        MemorySubscriber::new(self.clone())
    }

    /// What this broker promises.
    pub fn capabilities(&self) -> Capabilities {
        let config = &self.shared.config;
        Capabilities {
            key_order: true,
            prefix_order: true,
            deduplicates: config.dedup_ids > 0,
            nack_delay: true,
            reports_unroutable: !config.create_topics,
            counts_attempts: true,
            dead_letters: config.dead_letters > 0,
            max_payload: Some(config.max_payload_bytes),
            ..Capabilities::NONE
        }
    }

    /// Replaces the faults; `Faults::default()` ends them.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Puts bytes that are no message on `topic`, as a foreign program would.
    pub fn inject_raw(&self, topic: &str, body: impl Into<Bytes>) {
        let malformed = Malformed {
            reason: "attribute `id` is missing".to_owned(),
            id: None,
            body: body.into(),
        };
        let mut state = self.lock();
        state.append(topic, Err(malformed), Instant::now());
        state.wake(topic);
    }

    /// The dead letters of `group` on `topic`, oldest first.
    pub fn dead_letters(&self, topic: &str, group: &str) -> Vec<DeadLetter> {
        self.lock()
            .group(topic, group)
            .map(|group| group.dead_letters())
            .unwrap_or_default()
    }

    /// Number of messages held for `topic`, acknowledged ones that are retained included.
    pub fn held(&self, topic: &str) -> usize {
        self.lock().held(topic)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves a consistent log: every step under it is complete or undone
        // by redelivery.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_member(&self) -> u64 {
        self.shared.next_member.fetch_add(1, Ordering::Relaxed)
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBroker")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}
