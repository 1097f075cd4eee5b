//! The code that handles a message, what it is given, and what it may answer.

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use outbox_broker::{Cause, Message, MessageId};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

/// Handles the messages of one consumer.
///
/// `C` is the connection type: `AsyncPgConnection` or `SyncConnectionWrapper<SqliteConnection>`.
#[async_trait]
pub trait Handler<C>: Send + Sync + 'static {
    /// Does what `context.message()` asks for, on `tx` and nowhere else.
    ///
    /// `tx` is the open transaction that already holds the message's inbox row. `Ok` commits it together
    /// with the messages given to [`Context::enqueue`]; `Err` rolls all of it back. What happens on `tx` happens
    /// once; a call to another service happens at least once, and [`Context::idempotency_key`] lets that
    /// service tell.
    ///
    /// Do not commit or roll back `tx`, and do not swallow an error that PostgreSQL aborts a transaction
    /// with (use a savepoint, `tx.transaction(…)`): the commit notices and the attempt fails.
    ///
    /// # Errors
    /// Any error is worth a retry, through `?`; [`HandlerError::dead`] says that none will help.
    ///
    /// # Cancel safety
    /// The future is dropped when it exceeds the handler timeout or the grace of a shutdown; the transaction
    /// is rolled back with its connection.
    async fn handle(&self, tx: &mut C, context: &Context<'_>) -> Result<(), HandlerError>;
}

/// What a handler knows beside the message, and where it leaves follow-up messages.
#[derive(Debug)]
pub struct Context<'a> {
    message: &'a Message,
    consumer: &'a str,
    dedup_key: &'a str,
    attempt: u32,
    shutdown: &'a CancellationToken,
    follow_ups: Mutex<Vec<Message>>,
}

impl<'a> Context<'a> {
    pub(crate) const fn new(
        message: &'a Message,
        consumer: &'a str,
        dedup_key: &'a str,
        attempt: u32,
        shutdown: &'a CancellationToken,
    ) -> Self {
        Self {
            message,
            consumer,
            dedup_key,
            attempt,
            shutdown,
            follow_ups: Mutex::new(Vec::new()),
        }
    }

    /// The message.
    pub const fn message(&self) -> &'a Message {
        self.message
    }

    /// The id of the message.
    pub const fn id(&self) -> MessageId {
        self.message.id
    }

    /// The name of the consumer.
    pub const fn consumer(&self) -> &'a str {
        self.consumer
    }

    /// How often handling was begun, from 1. Attempts that a shutdown ended are not counted.
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// A text that is the same in every attempt at this message and in no other message's, for services
    /// outside of the transaction.
    pub fn idempotency_key(&self) -> String {
        format!("{}:{}", self.consumer, self.dedup_key)
    }

    /// Reads the payload as JSON.
    ///
    /// # Errors
    /// The payload is no such `T`; the error makes the message a dead letter, since no retry will help.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        serde_json::from_slice(&self.message.payload).map_err(|error| HandlerError {
            kind: Kind::Dead,
            cause: Box::new(Undecodable {
                kind: self.message.kind.clone(),
                wanted: std::any::type_name::<T>(),
                source: error,
            }),
        })
    }

    /// Leaves a message that is written to the outbox in this transaction, after the handler has returned
    /// `Ok`; of several, in the order of the calls.
    ///
    /// Correlation id, causation id and trace context are taken from the message being handled unless they
    /// are set. Without an outbox (see the builder's `outbox`) the attempt fails.
    pub fn enqueue(&self, mut message: Message) {
        let cause = self.message;
        if message.correlation_id.is_none() {
            message.correlation_id = cause
                .correlation_id
                .clone()
                .or_else(|| Some(cause.id.to_string()));
        }
        if message.causation_id.is_none() {
            message.causation_id = Some(cause.id.to_string());
        }
        if message.traceparent.is_none() {
            message.traceparent.clone_from(&cause.traceparent);
            message.tracestate.clone_from(&cause.tracestate);
        }
        self.follow_ups
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(message);
    }

    /// Whether the consumer is shutting down: a long handler may return an error early, it is not counted.
    pub fn is_shutting_down(&self) -> bool {
        self.shutdown.is_cancelled()
    }

    pub(crate) fn into_follow_ups(self) -> Vec<Message> {
        self.follow_ups
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the payload of type `{kind}` is no {wanted}")]
struct Undecodable {
    kind: String,
    wanted: &'static str,
    source: serde_json::Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Retry { asked: Option<Duration> },
    Dead,
}

/// Why a handler did not do its work. Every `std::error::Error` turns into one that is worth a retry.
#[derive(Debug)]
pub struct HandlerError {
    pub(crate) kind: Kind,
    pub(crate) cause: Cause,
}

impl HandlerError {
    /// Worth a retry, as the consumer's policy says.
    pub fn retry(cause: impl Into<Cause>) -> Self {
        Self {
            kind: Kind::Retry { asked: None },
            cause: cause.into(),
        }
    }

    /// Worth a retry after `delay`, in place of the policy's. It still counts as an attempt.
    pub fn retry_after(delay: Duration) -> Self {
        Self {
            kind: Kind::Retry { asked: Some(delay) },
            cause: format!("the handler asked to be called again in {delay:?}").into(),
        }
    }

    /// The same with another cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Cause>) -> Self {
        self.cause = cause.into();
        self
    }

    /// No retry will help: the message becomes a dead letter.
    pub fn dead(reason: impl Into<Cause>) -> Self {
        Self {
            kind: Kind::Dead,
            cause: reason.into(),
        }
    }

    /// What went wrong, as the handler said it.
    pub fn cause(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.cause
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}
