//! What a running consumer has done, readable at any time.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A handle to the counters of one consumer. Cheap to clone and to read; it outlives the consumer.
#[derive(Debug, Clone, Default)]
pub struct Status {
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    processed: AtomicU64,
    duplicates: AtomicU64,
    failed: AtomicU64,
    dead: AtomicU64,
    expired: AtomicU64,
    deferred: AtomicU64,
    stale_settles: AtomicU64,
    in_flight: AtomicUsize,
    waiting_for_more: AtomicBool,
    last_error: Mutex<Option<String>>,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Messages whose effects were committed.
    pub processed: u64,
    /// Deliveries of messages that were done before.
    pub duplicates: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Messages that became dead letters.
    pub dead: u64,
    /// Messages dropped because their time had passed.
    pub expired: u64,
    /// Attempts put off because the message was in flight elsewhere or the database away.
    pub deferred: u64,
    /// Verdicts that came too late for the broker, or did not reach it; the message comes again.
    pub stale_settles: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    Processed,
    Duplicate,
    Failed,
    Dead,
    Expired,
    Deferred,
    StaleSettle,
}

impl Count {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Processed => "processed",
            Self::Duplicate => "duplicate",
            Self::Failed => "failed",
            Self::Dead => "dead",
            Self::Expired => "expired",
            Self::Deferred => "deferred",
            Self::StaleSettle => "stale_settle",
        }
    }
}

impl Status {
    /// The counters now.
    pub fn summary(&self) -> Summary {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        Summary {
            processed: read(&counters.processed),
            duplicates: read(&counters.duplicates),
            failed: read(&counters.failed),
            dead: read(&counters.dead),
            expired: read(&counters.expired),
            deferred: read(&counters.deferred),
            stale_settles: read(&counters.stale_settles),
        }
    }

    /// Messages whose effects were committed.
    pub fn processed(&self) -> u64 {
        self.summary().processed
    }

    /// Deliveries of messages that were done before.
    pub fn duplicates(&self) -> u64 {
        self.summary().duplicates
    }

    /// Attempts that failed.
    pub fn failed(&self) -> u64 {
        self.summary().failed
    }

    /// Messages that became dead letters.
    pub fn dead(&self) -> u64 {
        self.summary().dead
    }

    /// Verdicts that came too late for the broker, or did not reach it.
    pub fn stale_settles(&self) -> u64 {
        self.summary().stale_settles
    }

    /// Deliveries received and not yet settled, those that wait for a retry included.
    pub fn in_flight(&self) -> usize {
        self.counters.in_flight.load(Ordering::Acquire)
    }

    /// Whether nothing is in flight and the broker, when last asked, had nothing.
    pub fn idle(&self) -> bool {
        self.counters.waiting_for_more.load(Ordering::Acquire) && self.in_flight() == 0
    }

    /// The last error of any kind, with its causes.
    pub fn last_error(&self) -> Option<String> {
        self.counters
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn count(&self, consumer: &str, what: Count) {
        let counters = &self.counters;
        let counter = match what {
            Count::Processed => &counters.processed,
            Count::Duplicate => &counters.duplicates,
            Count::Failed => &counters.failed,
            Count::Dead => &counters.dead,
            Count::Expired => &counters.expired,
            Count::Deferred => &counters.deferred,
            Count::StaleSettle => &counters.stale_settles,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("inbox_messages_total", "consumer" => consumer.to_owned(), "result" => what.as_str())
            .increment(1);
    }

    pub(crate) fn error(&self, text: String) {
        *self
            .counters
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    pub(crate) fn received(&self, count: usize) {
        self.counters.in_flight.fetch_add(count, Ordering::AcqRel);
        self.counters
            .waiting_for_more
            .store(count == 0, Ordering::Release);
    }

    pub(crate) fn settled(&self) {
        self.counters.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
