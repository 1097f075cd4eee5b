//! The settings of a consumer, checked once.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use outbox::Outbox;
use outbox_broker::{Capability, Message, Start, Subscriber};

use crate::{Connection, Consumer, Error, ErrorKind, Handler, Inbox, RetryPolicy, Status};

/// Most lanes or workers. Chosen: beyond it a consumer wants another process.
const MAX_RUNNING: usize = 4_096;
/// Bytes of a consumer's name. Chosen: it stands in every inbox row and metric.
const NAME_BYTES: usize = 128;

/// Which messages may be handled at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Messages of one ordering key one after the other, in publish order; at most `lanes` keys at once.
    /// Messages without a key run whenever a lane is free.
    KeyOrdered {
        /// Keys handled at once, 1 to 4,096.
        lanes: usize,
    },
    /// Any messages at once, in no order.
    Concurrent {
        /// Messages handled at once, 1 to 4,096.
        workers: usize,
    },
}

impl Mode {
    pub(crate) const fn running(self) -> usize {
        match self {
            Self::KeyOrdered { lanes } => lanes,
            Self::Concurrent { workers } => workers,
        }
    }

    pub(crate) const fn is_ordered(self) -> bool {
        matches!(self, Self::KeyOrdered { .. })
    }
}

/// What becomes of an ordering key whose message has used up its attempts. While attempts are left, the
/// key waits in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrderedFailure {
    /// The message becomes a dead letter, and later messages of its key queue up behind it as dead letters
    /// until it is redriven or purged. Nothing overtakes.
    #[default]
    BlockKey,
    /// The message becomes a dead letter and the key goes on without it.
    SkipToDeadLetters,
}

/// What becomes of a message whose `expires_at` has passed. It is never handled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expiry {
    /// It becomes a dead letter.
    #[default]
    DeadLetter,
    /// It is dropped and counted.
    Drop,
}

/// Makes the identity that messages are deduplicated by.
pub(crate) type DedupKey = Arc<dyn Fn(&Message) -> String + Send + Sync>;

/// Settings that have been checked.
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) topic: String,
    pub(crate) mode: Mode,
    pub(crate) retry: RetryPolicy,
    pub(crate) ordered_failure: OrderedFailure,
    pub(crate) expiry: Expiry,
    pub(crate) handler_timeout: Duration,
    pub(crate) shutdown_grace: Duration,
    pub(crate) prefetch: u16,
    pub(crate) visibility: Duration,
    pub(crate) start: Start,
    pub(crate) retention: Duration,
    pub(crate) in_flight_wait: Duration,
    pub(crate) redrive_every: Duration,
    pub(crate) dedup_key: DedupKey,
    pub(crate) nack_delays: bool,
}

/// Collects the settings of a [`Consumer`].
#[must_use]
pub struct Builder<C: Connection> {
    config: Config,
    redrive_window: Duration,
    subscriber: Arc<dyn Subscriber>,
    inbox: Inbox<C>,
    outbox: Option<Outbox>,
    handler: Option<Arc<dyn Handler<C>>>,
}

impl<C: Connection> fmt::Debug for Builder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("name", &self.config.name)
            .field("topic", &self.config.topic)
            .field("mode", &self.config.mode)
            .finish_non_exhaustive()
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl<C: Connection> Builder<C> {
    pub(crate) fn new(name: String, subscriber: Arc<dyn Subscriber>, inbox: Inbox<C>) -> Self {
        Self {
            config: Config {
                name,
                topic: String::new(),
                mode: Mode::Concurrent { workers: 16 },
                retry: RetryPolicy::default(),
                ordered_failure: OrderedFailure::default(),
                expiry: Expiry::default(),
                handler_timeout: Duration::from_secs(20),
                shutdown_grace: Duration::from_secs(30),
                prefetch: 256,
                visibility: Duration::from_secs(30),
                start: Start::Earliest,
                retention: 7 * DAY,
                in_flight_wait: Duration::from_millis(100),
                redrive_every: Duration::from_secs(1),
                dedup_key: Arc::new(|message| format!("{}@{}", message.id, message.source)),
                nack_delays: false,
            },
            redrive_window: 3 * DAY,
            subscriber,
            inbox,
            outbox: None,
            handler: None,
        }
    }

    /// The topic to read; the consumer's name is the group. Required.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.config.topic = topic.into();
        self
    }

    /// What handles the messages. Required.
    pub fn handler(mut self, handler: impl Handler<C>) -> Self {
        self.handler = Some(Arc::new(handler));
        self
    }

    /// Where follow-up messages are written. Default: nowhere, and a handler that leaves one fails.
    pub fn outbox(mut self, outbox: Outbox) -> Self {
        self.outbox = Some(outbox);
        self
    }

    /// Which messages run at the same time. Default [`Mode::Concurrent`] with 16 workers.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.config.mode = mode;
        self
    }

    /// How failed attempts are repeated. Default: 8 attempts over about an hour.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.config.retry = retry;
        self
    }

    /// What becomes of an ordering key when attempts are used up. Default [`OrderedFailure::BlockKey`].
    pub fn on_ordered_failure(mut self, policy: OrderedFailure) -> Self {
        self.config.ordered_failure = policy;
        self
    }

    /// What becomes of expired messages. Default [`Expiry::DeadLetter`].
    pub fn expiry(mut self, expiry: Expiry) -> Self {
        self.config.expiry = expiry;
        self
    }

    /// How long a handler may take before its attempt fails. Default 20 s: below the visibility, so that a
    /// stuck handler is noticed here first.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.config.handler_timeout = timeout;
        self
    }

    /// How long running handlers may go on after shutdown began. Default 30 s, what orchestrators allow.
    pub fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.config.shutdown_grace = grace;
        self
    }

    /// Deliveries held at most, those that wait for a lane or a retry included. Default 256.
    pub fn prefetch(mut self, prefetch: u16) -> Self {
        self.config.prefetch = prefetch;
        self
    }

    /// How long the broker waits for a verdict before it delivers again; extended at half of it while a
    /// message is held here. Default 30 s.
    pub fn visibility(mut self, visibility: Duration) -> Self {
        self.config.visibility = visibility;
        self
    }

    /// Where a group that the broker has never seen begins. Default [`Start::Earliest`].
    pub fn start(mut self, start: Start) -> Self {
        self.config.start = start;
        self
    }

    /// How long the inbox remembers a message. Default 7 d (NServiceBus); refused if it is shorter than the
    /// retries and the redrive window together, for then a late copy would be handled again.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.config.retention = retention;
        self
    }

    /// How late the broker or a person may still deliver a message again. Default 3 d: a long weekend.
    pub fn redrive_window(mut self, window: Duration) -> Self {
        self.redrive_window = window;
        self
    }

    /// How long an insert waits for another member's uncommitted row of the same message. Default 100 ms;
    /// then the message is put off. On SQLite the connection's busy_timeout decides.
    pub fn in_flight_wait(mut self, wait: Duration) -> Self {
        self.config.in_flight_wait = wait;
        self
    }

    /// How often dead letters are looked at for redrives. Default 1 s: one index probe.
    pub fn redrive_every(mut self, every: Duration) -> Self {
        self.config.redrive_every = every;
        self
    }

    /// Deduplicates by a business key in place of message id and source: messages with the same key have
    /// one effect. At most 700 bytes, so that it fits an index entry.
    pub fn dedup_by(mut self, key: impl Fn(&Message) -> String + Send + Sync + 'static) -> Self {
        self.config.dedup_key = Arc::new(key);
        self
    }

    /// The consumer, every setting checked.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], naming the setting and the bound; [`ErrorKind::Unsupported`], naming the capability the
    /// broker lacks.
    pub fn build(mut self) -> Result<Consumer<C>, Error> {
        let config = &mut self.config;
        if config.name.is_empty() || config.name.len() > NAME_BYTES {
            return Err(invalid(format!(
                "the consumer's name must have 1 to {NAME_BYTES} bytes"
            )));
        }
        if config.topic.is_empty() {
            return Err(invalid("no topic is set; call `topic`".to_owned()));
        }
        let Some(handler) = self.handler else {
            return Err(invalid("no handler is set; call `handler`".to_owned()));
        };
        if !(1..=MAX_RUNNING).contains(&config.mode.running()) {
            return Err(invalid(format!("lanes or workers must be 1 to {MAX_RUNNING}")));
        }
        if config.prefetch == 0 {
            return Err(invalid("prefetch must be at least 1".to_owned()));
        }
        for (name, duration) in [
            ("handler_timeout", config.handler_timeout),
            ("visibility", config.visibility),
            ("in_flight_wait", config.in_flight_wait),
            ("redrive_every", config.redrive_every),
        ] {
            if duration.is_zero() {
                return Err(invalid(format!("{name} must be longer than zero")));
            }
        }
        if !(0.0..=1.0).contains(&config.retry.jitter) {
            return Err(invalid("retry jitter must be 0.0 to 1.0".to_owned()));
        }
        let needed = config.retry.span().saturating_add(self.redrive_window);
        if config.retention < needed {
            return Err(invalid(format!(
                "retention is {:?}, but retries and the redrive window take up to {needed:?}: a late copy would be \
                 handled twice; raise `retention` or lower `redrive_window`",
                config.retention
            )));
        }
        let capabilities = self.subscriber.capabilities();
        if config.mode.is_ordered() {
            capabilities
                .require("chosen", Capability::KeyOrder)
                .map_err(|error| {
                    Error::new(
                        ErrorKind::Unsupported,
                        "build",
                        "Mode::KeyOrdered needs a broker that keeps the order of a key",
                    )
                    .with_cause(error)
                })?;
        }
        config.nack_delays = capabilities.nack_delay;
        Ok(Consumer {
            config: Arc::new(self.config),
            subscriber: self.subscriber,
            inbox: self.inbox,
            outbox: self.outbox,
            handler,
            status: Status::default(),
        })
    }
}

fn invalid(context: String) -> Error {
    Error::new(ErrorKind::Invalid, "build", context)
}
