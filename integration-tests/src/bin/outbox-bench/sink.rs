//! Publishers of the benchmarks: one that keeps nothing, and one that counts for another.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use outbox::Message;
use outbox_broker::{Capabilities, Error, Outcome, Publisher, Receipt};
use tokio::sync::Notify;

/// Looks at every field of every message and confirms it at once.
pub(crate) struct NullSink;

#[async_trait]
impl Publisher for NullSink {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::NONE;
        capabilities.key_order = true;
        capabilities.prefix_order = true;
        capabilities.durable = true;
        capabilities
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        black_box(batch.iter().map(touch).sum::<usize>());
        batch.iter().map(|_| Ok(Receipt::default())).collect()
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Reads every field as a broker's adapter would.
fn touch(message: &Message) -> usize {
    let headers: usize = message
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    message.id.as_uuid().as_bytes().len()
        + message.source.len()
        + message.topic.len()
        + message.kind.len()
        + message.key.as_deref().map_or(0, str::len)
        + message.content_type.len()
        + message.traceparent.as_deref().map_or(0, str::len)
        + message
            .payload
            .iter()
            .map(|byte| usize::from(*byte & 1))
            .sum::<usize>()
        + usize::from(message.time.timestamp_subsec_micros() > 0)
        + headers
}

/// Passes everything on to another publisher and tells when enough was confirmed.
pub(crate) struct Counted {
    inner: Arc<dyn Publisher>,
    expected: u64,
    confirmed: AtomicU64,
    complete: Notify,
}

impl Counted {
    /// Waits for `expected` messages that `inner` confirms.
    pub(crate) fn new(inner: Arc<dyn Publisher>, expected: u64) -> Self {
        Self {
            inner,
            expected,
            confirmed: AtomicU64::new(0),
            complete: Notify::new(),
        }
    }

    /// Waits until all expected messages are confirmed.
    pub(crate) async fn complete(&self) {
        self.complete.notified().await;
    }

    /// Messages confirmed so far.
    pub(crate) fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Acquire)
    }
}

#[async_trait]
impl Publisher for Counted {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        let outcomes = self.inner.publish(batch).await;
        let confirmed = outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
        if self.confirmed.fetch_add(confirmed, Ordering::AcqRel) + confirmed >= self.expected {
            self.complete.notify_one();
        }
        outcomes
    }

    async fn close(&self) -> Result<(), Error> {
        self.inner.close().await
    }
}
