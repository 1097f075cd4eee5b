//! The producer's side: messages into the caller's transaction.

use std::fmt;
use std::sync::Arc;

use chrono::Utc;
use outbox_broker::{Limits, Message, MessageBuilder, MessageId};

use crate::connection::batch::Batch;
use crate::connection::{Backend, Connection, Driver};
use crate::shard::MAX_SHARDS;
use crate::{Error, ErrorKind, Wakeup};

/// `traceparent` and `tracestate` of the span that is current where a message is made.
pub type TraceContext = fn() -> Option<(String, Option<String>)>;

/// Writes messages into the transactions of one service. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    shared: Arc<Shared>,
}

struct Shared {
    source: String,
    limits: Limits,
    shards: i16,
    trace_context: Option<TraceContext>,
    wakeup: Wakeup,
    also: Vec<Wakeup>,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("source", &self.shared.source)
            .field("limits", &self.shared.limits)
            .field("shards", &self.shared.shards)
            .finish_non_exhaustive()
    }
}

/// Settings of an [`Outbox`].
#[derive(Debug)]
#[must_use]
pub struct OutboxBuilder {
    source: String,
    limits: Limits,
    shards: i16,
    trace_context: Option<TraceContext>,
    wakeup: Wakeup,
    also: Vec<Wakeup>,
}

impl OutboxBuilder {
    /// Sizes that a message may not exceed. Default: [`Limits::default`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Number of shards, 1 to 256, the same in every process of the deployment. Default 1: one relay drains
    /// one shard faster than most brokers take. The order of a key holds within its shard; a key's shard is
    /// FNV-1a (64 bits) of its UTF-8 bytes modulo this number. On PostgreSQL divide the tables first with
    /// [`shards_ddl`](crate::shards_ddl).
    pub fn shards(mut self, shards: i16) -> Self {
        self.shards = shards;
        self
    }

    /// Where a new message takes its trace context from. Default: nowhere.
    pub fn trace_context(mut self, current: TraceContext) -> Self {
        self.trace_context = Some(current);
        self
    }

    /// The signal to the relay in this process. Default: one of its own, see [`Outbox::wakeup`].
    pub fn wakeup(mut self, wakeup: Wakeup) -> Self {
        self.wakeup = wakeup;
        self
    }

    /// Another signal to send after each commit, such as that of a `PostgresNotifier` for relays in other
    /// processes. Default: none; they poll.
    pub fn also_wakes(mut self, wakeup: Wakeup) -> Self {
        self.also.push(wakeup);
        self
    }

    /// The outbox.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`]: the source is empty, or the number of shards is out of range.
    pub fn build(self) -> Result<Outbox, Error> {
        if self.source.is_empty() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "build",
                "the source is empty; name the service by a URI reference such as `/orders`",
            ));
        }
        if !(1..=MAX_SHARDS).contains(&self.shards) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "build",
                format!("shards is {}; choose 1 to {MAX_SHARDS}", self.shards),
            ));
        }
        Ok(Outbox {
            shared: Arc::new(Shared {
                source: self.source,
                limits: self.limits,
                shards: self.shards,
                trace_context: self.trace_context,
                wakeup: self.wakeup,
                also: self.also,
            }),
        })
    }
}

impl Outbox {
    /// An outbox of the service `source`, a URI reference such as `/orders`, all else default.
    ///
    /// An empty source is refused when the first message is enqueued.
    pub fn new(source: impl Into<String>) -> Self {
        Self {
            shared: Arc::new(Shared {
                source: source.into(),
                limits: Limits::default(),
                shards: 1,
                trace_context: None,
                wakeup: Wakeup::new(),
                also: Vec::new(),
            }),
        }
    }

    /// Starts the settings of an outbox of the service `source`.
    pub fn builder(source: impl Into<String>) -> OutboxBuilder {
        OutboxBuilder {
            source: source.into(),
            limits: Limits::default(),
            shards: 1,
            trace_context: None,
            wakeup: Wakeup::new(),
            also: Vec::new(),
        }
    }

    /// Starts a message of type `kind` for `topic`, its source and trace context set.
    pub fn message(&self, topic: impl Into<String>, kind: impl Into<String>) -> MessageBuilder {
        let builder = Message::builder(topic, kind).source(self.shared.source.clone());
        match self.shared.trace_context.and_then(|current| current()) {
            Some((traceparent, tracestate)) => builder.trace(traceparent, tracestate),
            None => builder,
        }
    }

    /// The limits a message is checked against; build large messages with
    /// [`build_within`](MessageBuilder::build_within) these.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// The signal that wakes the relay of this process; give it a clone.
    pub fn wakeup(&self) -> Wakeup {
        self.shared.wakeup.clone()
    }

    /// Wakes the relay of this process; call it after the commit. [`Outbox::transaction`] does it by itself.
    ///
    /// Without it a relay finds the rows by polling: later, never not at all.
    pub fn notify(&self) {
        self.shared.wakeup.notify();
        self.shared.also.iter().for_each(Wakeup::notify);
    }

    /// Writes `message` on the caller's connection, in its open transaction, and returns its id.
    ///
    /// The message is published if that transaction commits and never if it rolls back. A message whose
    /// `available_at` lies in the future waits in the side table until then.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`]: a limit is broken, nothing was sent, the transaction is usable.
    /// Otherwise the database refused or is gone; see [`Error::transaction_is_usable`].
    ///
    /// # Cancel safety
    /// A dropped future may have written the row or not: roll the transaction back.
    pub async fn enqueue<C: Connection>(
        &self,
        connection: &mut C,
        message: Message,
    ) -> Result<MessageId, Error> {
        let id = message.id;
        self.insert(connection.driver(), self.batch([message])?).await?;
        Ok(id)
    }

    /// Writes `messages` as [`Outbox::enqueue`] does, in one statement (several for more than 10,000 rows
    /// or 16 MiB on PostgreSQL, 500 rows on SQLite, 500 rows or 4 MiB on MySQL), and returns their ids in order.
    ///
    /// All are checked before any is sent. Messages of one key are published in the order given.
    ///
    /// # Errors
    /// As [`Outbox::enqueue`]; none of them is written.
    pub async fn enqueue_all<C: Connection>(
        &self,
        connection: &mut C,
        messages: impl IntoIterator<Item = Message>,
    ) -> Result<Vec<MessageId>, Error> {
        let messages: Vec<Message> = messages.into_iter().collect();
        let ids = messages.iter().map(|message| message.id).collect();
        self.insert(connection.driver(), self.batch(messages)?).await?;
        Ok(ids)
    }

    /// [`Outbox::enqueue`] on a synchronous diesel connection.
    ///
    /// # Errors
    /// As [`Outbox::enqueue`].
    pub fn enqueue_sync<C>(&self, connection: &mut C, message: Message) -> Result<MessageId, Error>
    where
        C: diesel::Connection,
        C::Backend: Backend,
    {
        let id = message.id;
        self.enqueue_all_sync(connection, [message])?;
        Ok(id)
    }

    /// [`Outbox::enqueue_all`] on a synchronous diesel connection.
    ///
    /// # Errors
    /// As [`Outbox::enqueue`]; none of them is written.
    pub fn enqueue_all_sync<C>(
        &self,
        connection: &mut C,
        messages: impl IntoIterator<Item = Message>,
    ) -> Result<Vec<MessageId>, Error>
    where
        C: diesel::Connection,
        C::Backend: Backend,
    {
        let messages: Vec<Message> = messages.into_iter().collect();
        let ids = messages.iter().map(|message| message.id).collect();
        let batch = self.batch(messages)?;
        if !batch.is_empty() {
            C::Backend::insert(connection, &batch).map_err(|error| Error::database("enqueue", error))?;
        }
        Ok(ids)
    }

    pub(crate) fn batch(&self, messages: impl IntoIterator<Item = Message>) -> Result<Batch, Error> {
        Batch::new(messages, &self.shared.limits, self.shared.shards, Utc::now())
    }

    pub(crate) async fn insert<D: Driver>(&self, connection: &mut D, batch: Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        connection
            .insert(batch)
            .await
            .map_err(|error| Error::database("enqueue", error))
    }
}
