//! The message, the contracts of its journey, and one adapter per broker.
//!
//! | module | adapter | feature |
//! |---|---|---|
//! | `memory` | in this process; the reference for the conformance suite | always |
//! | `sql` | the database as the broker: SQLite or PostgreSQL | `sql` |
//! | `rabbitmq` | RabbitMQ, AMQP 0.9.1 | `rabbitmq` |
//! | `redis` | Redis Streams, Redis 7 or later | `redis` |
//!
//! A [`Publisher`] takes a batch and answers with one outcome per message; `Ok` means that the broker
//! durably accepted it. A [`Subscriber`] hands out [`Delivery`]s that own their settlement. What an adapter
//! can do beyond that is declared in its [`Capabilities`].
#![warn(missing_docs)]

mod capabilities;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod crash_point;
pub mod envelope;
mod error;
pub mod memory;
mod message;
mod publisher;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "sql")]
pub mod sql;
mod subscriber;
mod warning;

pub use bytes::Bytes;

pub use capabilities::{Capabilities, Capability};
pub use error::{Cause, Error, ErrorKind};
pub use message::{InvalidMessage, Limits, Message, MessageBuilder, MessageId, RESERVED_HEADERS};
pub use publisher::{Outcome, Publisher, Receipt};
pub use subscriber::{
    Delivery, Lag, Malformed, Settle, Settled, Settlement, Start, SubscribeOptions, Subscriber, Subscription,
    Verdict,
};
pub use warning::Warning;
