//! A delivery on its way through the consumer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use outbox_broker::{Delivery, Malformed, Message, Settled, Settlement, Verdict};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use crate::builder::{Config, Expiry};
use crate::connection::{Behind, Entry};
use crate::dead_letter::DeadLetter;
use crate::lanes::LaneKey;
use crate::status::{Count, Status};
use crate::step::Content;

/// How long a verdict may take to reach the broker. Chosen: beyond it the broker delivers again anyway.
const SETTLE: Duration = Duration::from_secs(10);

/// What this process knows of the attempts at one delivery.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Attempts that ended in failure, those of earlier deliveries included.
    pub(crate) failed: u32,
    /// The stored attempts have been read.
    pub(crate) recalled: bool,
    /// The attempt under way is already counted in the database.
    pub(crate) counted: bool,
    /// An attempt row exists and goes with the success.
    pub(crate) remembered: bool,
    /// How often in a row the attempt was put off.
    pub(crate) deferred: u32,
    /// When the broker last heard that the delivery is still wanted.
    extended: Instant,
}

/// A delivery, or a dead letter handed to the handler again.
pub(crate) struct Work {
    pub(crate) content: Result<Message, Malformed>,
    pub(crate) dedup_key: String,
    pub(crate) lane: LaneKey,
    /// How often the broker handed it out.
    pub(crate) deliveries: u32,
    /// The dead letter it comes from.
    pub(crate) redrive: Option<i64>,
    settlement: tokio::sync::Mutex<Option<Settlement>>,
    progress: Mutex<Progress>,
    status: Status,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.status.settled();
    }
}

impl Work {
    /// Work from the broker. The status has counted it as received.
    pub(crate) fn from_broker(
        config: &Config,
        delivery: Delivery,
        permit: OwnedSemaphorePermit,
        status: Status,
    ) -> Self {
        let deliveries = delivery.attempt();
        let (content, settlement) = delivery.split();
        let dedup_key = match &content {
            Ok(message) => (config.dedup_key)(message),
            Err(malformed) => malformed_key(malformed),
        };
        Self {
            lane: lane(config, &content, &dedup_key),
            content,
            dedup_key,
            deliveries,
            redrive: None,
            settlement: tokio::sync::Mutex::new(Some(settlement)),
            progress: Mutex::new(Progress::new()),
            status,
            _permit: Some(permit),
        }
    }

    /// Work from a dead letter; `None` if its bytes are no message.
    pub(crate) fn from_dead_letter(config: &Config, letter: DeadLetter, status: Status) -> Option<Self> {
        let content = Ok(letter.content.ok()?);
        status.received(1);
        Some(Self {
            lane: lane(config, &content, &letter.dedup_key),
            content,
            dedup_key: letter.dedup_key,
            deliveries: 1,
            redrive: Some(letter.seq),
            settlement: tokio::sync::Mutex::new(None),
            progress: Mutex::new(Progress::new()),
            status,
            _permit: None,
        })
    }

    pub(crate) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the delivery holds, at `now`. A person who redrives a message wants it handled, expired or not.
    pub(crate) fn content_at(&self, now: DateTime<Utc>, expiry: Expiry) -> Content {
        match &self.content {
            Err(_) => Content::Malformed,
            Ok(message) => match message.expires_at {
                Some(expires) if expires <= now && self.redrive.is_none() => Content::Expired {
                    keep: expiry == Expiry::DeadLetter,
                },
                _ => Content::Message,
            },
        }
    }

    /// The key whose dead letters this message must not overtake.
    pub(crate) fn ordering_key(&self, config: &Config) -> Option<&str> {
        if !config.mode.is_ordered() {
            return None;
        }
        self.content
            .as_ref()
            .ok()
            .and_then(|message| message.key.as_deref())
    }

    pub(crate) fn entry(&self, config: &Config) -> Entry {
        Entry {
            consumer: config.name.clone(),
            dedup_key: self.dedup_key.clone(),
            message_id: match &self.content {
                Ok(message) => Some(message.id.to_string()),
                Err(_) => None,
            },
            behind: self.ordering_key(config).map(|key| Behind {
                key: key.to_owned(),
                seq: self.redrive.unwrap_or(i64::MAX),
            }),
        }
    }

    /// Carries the verdict to the broker, once; too late or unheard is counted and harmless.
    pub(crate) async fn settle(&self, config: &Config, verdict: Verdict) {
        let Some(settlement) = self.settlement.lock().await.take() else {
            return;
        };
        match timeout(SETTLE, settlement.settle(verdict)).await {
            Ok(Ok(Settled::Done)) => {}
            Ok(Ok(Settled::Stale)) => {
                tracing::debug!(
                    consumer = config.name,
                    topic = config.topic,
                    "a verdict came too late for the broker"
                );
                self.status.count(&config.name, Count::StaleSettle);
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    consumer = config.name, topic = config.topic, error = %crate::error::chain(&error),
                    "a verdict did not reach the broker; the message comes again"
                );
                self.status.count(&config.name, Count::StaleSettle);
                self.status.error(crate::error::chain(&error));
            }
            Err(_late) => {
                tracing::warn!(
                    consumer = config.name,
                    topic = config.topic,
                    "the broker did not answer a verdict"
                );
                self.status.count(&config.name, Count::StaleSettle);
            }
        }
    }

    /// Tells the broker that the delivery is still wanted, if it has not heard so for `period`.
    pub(crate) async fn extend(&self, period: Duration) {
        if self.progress().extended.elapsed() < period {
            return;
        }
        let settlement = self.settlement.lock().await;
        if let Some(settlement) = &*settlement {
            // Stale or unheard: the message comes again and the inbox tells.
            match timeout(SETTLE, settlement.extend()).await {
                Ok(Ok(Settled::Done)) => self.progress().extended = Instant::now(),
                Ok(Ok(Settled::Stale)) | Err(_) => {}
                Ok(Err(error)) => self.status.error(crate::error::chain(&error)),
            }
        }
    }
}

impl Progress {
    fn new() -> Self {
        Self {
            failed: 0,
            recalled: false,
            counted: false,
            remembered: false,
            deferred: 0,
            extended: Instant::now(),
        }
    }
}

/// Copies of one message exclude each other in any mode, so that they never meet in the database.
fn lane(config: &Config, content: &Result<Message, Malformed>, dedup_key: &str) -> LaneKey {
    match content {
        Ok(message) if config.mode.is_ordered() => match &message.key {
            Some(key) => Arc::from(format!("key {key}")),
            None => Arc::from(dedup_key),
        },
        _ => Arc::from(dedup_key),
    }
}

/// An identity for bytes that are no message: the same bytes are one dead letter. FNV-1a, 128 bits.
fn malformed_key(malformed: &Malformed) -> String {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let hash = malformed
        .body
        .iter()
        .chain(malformed.id.iter().flat_map(|id| id.as_bytes()))
        .fold(OFFSET, |hash, byte| {
            (hash ^ u128::from(*byte)).wrapping_mul(PRIME)
        });
    format!("malformed:{hash:032x}")
}
