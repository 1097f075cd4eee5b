//! Transactional outbox: write business rows and messages in one database transaction.

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod connection;
mod error;
pub mod migration;
mod outbox;
pub mod record;
pub mod relay;
mod shard;
pub mod store;
mod transaction;
pub mod units;
mod wakeup;

pub use connection::{Backend, Connection, Database, Driver};
pub use error::{Error, ErrorKind};
pub use migration::{ddl, migrate};
pub use outbox::{Outbox, OutboxBuilder, TraceContext};
pub use outbox_broker::{InvalidMessage, Limits, Message, MessageBuilder, MessageId};
pub use relay::{Relay, RelayOptions, RelayStatus, RetryPolicy};
pub use transaction::Transaction;
pub use wakeup::Wakeup;
