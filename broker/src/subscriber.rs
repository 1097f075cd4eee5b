//! The contract of the receiving side: subscriber → subscription → delivery.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Capabilities, Error, Message};

/// Where a group that the broker has never seen begins to read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Start {
    /// With the oldest message the broker still holds.
    #[default]
    Earliest,
    /// With messages published after the subscription began.
    Latest,
}

/// What to read and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// The topic to read.
    pub topic: String,
    /// The consumer group: members of one group share the messages, each group sees them all.
    pub group: String,
    /// Deliveries handed out and not yet settled, at most. Default 256: enough to hide a round trip,
    /// small enough that a crash redelivers little.
    pub prefetch: u16,
    /// Where a new group begins. Default [`Start::Earliest`].
    pub start: Start,
    /// How long a delivery may stay unsettled before the broker hands it to another member, where the
    /// broker works with a timeout. Default 30 s. Raise it above the slowest handler.
    pub visibility: Duration,
}

impl SubscribeOptions {
    /// Options for `group` reading `topic`, all else default.
    pub fn new(topic: impl Into<String>, group: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            group: group.into(),
            prefetch: 256,
            start: Start::Earliest,
            visibility: Duration::from_secs(30),
        }
    }

    /// The same with another prefetch.
    #[must_use]
    pub fn prefetch(mut self, prefetch: u16) -> Self {
        self.prefetch = prefetch.max(1);
        self
    }

    /// The same with another starting point.
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// The same with another visibility timeout.
    #[must_use]
    pub fn visibility(mut self, visibility: Duration) -> Self {
        self.visibility = visibility;
        self
    }
}

/// Opens subscriptions at a broker.
#[async_trait]
pub trait Subscriber: Send + Sync + 'static {
    /// What this adapter promises; constant over its life.
    fn capabilities(&self) -> Capabilities;

    /// Joins `options.group` on `options.topic`, creating the group (and the queue behind it) if needed.
    ///
    /// After `Ok`, every message accepted for the topic from then on reaches the group.
    ///
    /// # Errors
    /// The broker refused or is not there; nothing is left half-open.
    async fn subscribe(&self, options: SubscribeOptions) -> Result<Box<dyn Subscription>, Error>;

    /// Closes the connection; open subscriptions end, their unsettled deliveries come back to the group.
    ///
    /// # Errors
    /// The broker could not be told; it will notice by itself.
    async fn close(&self) -> Result<(), Error>;
}

/// How far a group is behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// Messages not yet acknowledged by the group.
    pub messages: u64,
    /// Age of the oldest of them, where the broker can say.
    pub age: Option<Duration>,
}

/// A membership in a group.
#[async_trait]
pub trait Subscription: Send + 'static {
    /// Waits up to `wait` for deliveries and returns at most `max`; empty means that none came in time.
    ///
    /// # Ordering
    /// Deliveries of one key come in publish order. A delivery that was nacked, or lost with its consumer,
    /// comes again; later deliveries of its key that were already handed out are not taken back, so a
    /// consumer that needs order does not begin them (see `outbox-consumer`'s key-ordered mode).
    ///
    /// # Errors
    /// A broken connection is repaired by a later call; the subscription stays usable. What was handed out
    /// and not settled then comes again, and settling the old delivery is a stale no-op.
    ///
    /// # Cancel safety
    /// Cancel-safe: a delivery is either returned or still at the broker (or comes again).
    async fn receive(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>, Error>;

    /// Stops handing out new deliveries until [`Subscription::resume`]; those handed out stay valid.
    async fn pause(&mut self) -> Result<(), Error>;

    /// Undoes [`Subscription::pause`].
    async fn resume(&mut self) -> Result<(), Error>;

    /// How far the group is behind, as the broker counts it now.
    async fn lag(&mut self) -> Result<Lag, Error>;

    /// Leaves the group; unsettled deliveries come back to it at once.
    async fn close(self: Box<Self>) -> Result<(), Error>;
}

/// What the consumer decided about a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Done: never deliver it to this group again.
    Ack,
    /// Not done: deliver it again, no earlier than `delay` from now.
    Nack {
        /// How long to hold it back; brokers without delay redeliver at once.
        delay: Duration,
    },
    /// Give up: hand it to the broker's dead-letter place, or drop it where the broker has none.
    Dead {
        /// Why, for the person who looks at it.
        reason: String,
    },
}

/// Whether a verdict reached the broker in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The broker took the verdict.
    Done,
    /// The delivery was no longer ours (timeout, lost connection): nothing happened, it comes again.
    Stale,
}

/// The adapter's half of a delivery: carries a verdict to the broker, once.
#[async_trait]
pub trait Settle: Send + Sync + 'static {
    /// Carries `verdict` to the broker.
    ///
    /// # Errors
    /// The broker could not be told; the delivery comes again.
    async fn settle(self: Box<Self>, verdict: Verdict) -> Result<Settled, Error>;

    /// Keeps the delivery invisible to others for another visibility period; a no-op where the broker has
    /// no timeout.
    ///
    /// # Errors
    /// The broker could not be told.
    async fn extend(&self) -> Result<Settled, Error> {
        Ok(Settled::Done)
    }
}

/// Bytes at the broker that are no message of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// What is wrong with them.
    pub reason: String,
    /// The message id, where one could be read.
    pub id: Option<String>,
    /// The body as it came.
    pub body: Bytes,
}

/// One message handed to this consumer, with the right to say what becomes of it.
///
/// Dropping a delivery settles nothing: the broker hands it out again after its timeout, or when the
/// subscription closes.
#[must_use = "an unsettled delivery is delivered again"]
pub struct Delivery {
    content: Result<Message, Malformed>,
    attempt: u32,
    settle: Box<dyn Settle>,
}

impl Delivery {
    /// A delivery of `content` for the `attempt`th time (from 1, as far as the broker counts).
    pub fn new(content: Result<Message, Malformed>, attempt: u32, settle: impl Settle) -> Self {
        Self {
            content,
            attempt: attempt.max(1),
            settle: Box::new(settle),
        }
    }

    /// The message, or the bytes that are none.
    pub fn content(&self) -> Result<&Message, &Malformed> {
        self.content.as_ref()
    }

    /// How often this message was handed to the group, from 1; a hint where the broker keeps no count.
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Splits off the right to settle, so that the message can move on its own.
    pub fn split(self) -> (Result<Message, Malformed>, Settlement) {
        (self.content, Settlement { settle: self.settle })
    }

    /// Says that the effects are committed. See [`Settle::settle`].
    ///
    /// # Errors
    /// The broker could not be told; the delivery comes again.
    pub async fn ack(self) -> Result<Settled, Error> {
        self.settle.settle(Verdict::Ack).await
    }

    /// Asks for another delivery after `delay`.
    ///
    /// # Errors
    /// The broker could not be told; the delivery comes again.
    pub async fn nack(self, delay: Duration) -> Result<Settled, Error> {
        self.settle.settle(Verdict::Nack { delay }).await
    }

    /// Gives the message up.
    ///
    /// # Errors
    /// The broker could not be told; the delivery comes again.
    pub async fn dead(self, reason: impl Into<String> + Send) -> Result<Settled, Error> {
        self.settle
            .settle(Verdict::Dead {
                reason: reason.into(),
            })
            .await
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.content.as_ref().map(|message| message.id);
        f.debug_struct("Delivery")
            .field("id", &id)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// The right to settle a delivery, apart from its message.
#[must_use = "an unsettled delivery is delivered again"]
pub struct Settlement {
    settle: Box<dyn Settle>,
}

impl Settlement {
    /// Carries `verdict` to the broker.
    ///
    /// # Errors
    /// The broker could not be told; the delivery comes again.
    pub async fn settle(self, verdict: Verdict) -> Result<Settled, Error> {
        self.settle.settle(verdict).await
    }

    /// Keeps the delivery ours for another visibility period. See [`Settle::extend`].
    ///
    /// # Errors
    /// The broker could not be told.
    pub async fn extend(&self) -> Result<Settled, Error> {
        self.settle.extend().await
    }
}

impl fmt::Debug for Settlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settlement").finish_non_exhaustive()
    }
}
