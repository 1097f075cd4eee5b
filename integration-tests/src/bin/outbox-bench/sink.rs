//! Publishers of the benchmarks: one that keeps nothing, and one that counts for another.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use outbox::Message;
use outbox_broker::{Capabilities, Error, ErrorKind, Outcome, Publisher, Receipt};
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

/// Confirms after a pause, as a broker some way off does.
pub(crate) struct SlowSink(pub(crate) Duration);

#[async_trait]
impl Publisher for SlowSink {
    fn capabilities(&self) -> Capabilities {
        NullSink.capabilities()
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        tokio::time::sleep(self.0).await;
        NullSink.publish(batch).await
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// A broker that is away.
pub(crate) struct AwaySink;

#[async_trait]
impl Publisher for AwaySink {
    fn capabilities(&self) -> Capabilities {
        NullSink.capabilities()
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        let away = || {
            Error::new(
                ErrorKind::Unreachable,
                "publish",
                "the broker of this benchmark is away",
            )
        };
        batch.iter().map(|_| Err(away())).collect()
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Reads from each payload when its message was committed, and keeps how long it took from there.
#[derive(Default)]
pub(crate) struct TimingSink {
    taken: Mutex<Vec<Duration>>,
}

impl TimingSink {
    /// The payload of a message whose commit is sent now.
    pub(crate) fn stamp() -> Vec<u8> {
        since_epoch().as_nanos().to_string().into_bytes()
    }

    /// Times so far.
    pub(crate) fn taken(&self) -> Vec<Duration> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[async_trait]
impl Publisher for TimingSink {
    fn capabilities(&self) -> Capabilities {
        NullSink.capabilities()
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        let now = since_epoch();
        let sent = |message: &Message| std::str::from_utf8(&message.payload).ok()?.parse::<u64>().ok();
        let times = batch
            .iter()
            .filter_map(sent)
            .map(|nanos| now.saturating_sub(Duration::from_nanos(nanos)));
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(times);
        batch.iter().map(|_| Ok(Receipt::default())).collect()
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Passes everything on to another publisher and tells when enough was confirmed.
pub(crate) struct Counted {
    inner: Arc<dyn Publisher>,
    expected: u64,
    confirmed: AtomicU64,
    complete: Notify,
    first: OnceLock<Instant>,
}

impl Counted {
    /// Waits for `expected` messages that `inner` confirms.
    pub(crate) fn new(inner: Arc<dyn Publisher>, expected: u64) -> Self {
        Self {
            inner,
            expected,
            confirmed: AtomicU64::new(0),
            complete: Notify::new(),
            first: OnceLock::new(),
        }
    }

    /// Waits until all expected messages are confirmed.
    pub(crate) async fn complete(&self) {
        self.complete.notified().await;
    }

    /// When the first message came.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.first.get().copied()
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
        self.first.get_or_init(Instant::now);
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
