//! Consumers whose effects happen once.
//!
//! A broker delivers at least once. A handler that writes and then acks will one day write twice:
//!
//! ```text
//! INSERT INTO invoice …; COMMIT;      ◄── the process dies here
//! ack                                 ◄── never sent: the broker delivers again, and a second invoice is written
//! ```
//!
//! This crate writes one row more in the same transaction, the message's row in the *inbox*, and acks after
//! the commit. The second delivery finds the row and is only acked:
//!
//! ```text
//!  fetch ──► decode ──► expiry ──► lane by ordering key ──►  tx { inbox row ─► handler ─► follow-ups ─► COMMIT }  ──► ack
//!              │           │                                          │                        │
//!              └───────────┴────► dead letter, a row of its own ◄─────┴─ attempts used up      └─ outbox rows
//! ```
//!
//! ```no_run
//! # #[cfg(feature = "sqlite")] mod example {
//! use std::sync::Arc;
//!
//! use diesel::sqlite::SqliteConnection;
//! use diesel_async::{RunQueryDsl, sync_connection_wrapper::SyncConnectionWrapper};
//! use outbox_broker::Subscriber;
//! use outbox_consumer::{Consumer, Context, Handler, HandlerError, Inbox, Mode, async_trait};
//! use tokio_util::sync::CancellationToken;
//!
//! type Sqlite = SyncConnectionWrapper<SqliteConnection>;
//!
//! #[derive(serde::Deserialize)]
//! struct OrderPlaced { order: String, cents: i64 }
//!
//! struct Billing;
//!
//! #[async_trait]
//! impl Handler<Sqlite> for Billing {
//!     async fn handle(&self, tx: &mut Sqlite, context: &Context<'_>) -> Result<(), HandlerError> {
//!         let placed: OrderPlaced = context.json()?;
//!         diesel::sql_query("INSERT INTO invoice (order_id, cents) VALUES (?, ?)")
//!             .bind::<diesel::sql_types::Text, _>(placed.order)
//!             .bind::<diesel::sql_types::BigInt, _>(placed.cents)
//!             .execute(tx)
//!             .await?;
//!         Ok(())
//!     }
//! }
//!
//! async fn run(subscriber: Arc<dyn Subscriber>) -> Result<(), outbox_consumer::Error> {
//!     let inbox = Inbox::sqlite("billing.db")?;
//!     inbox.migrate().await?;
//!     let consumer = Consumer::builder("billing", subscriber, inbox)
//!         .topic("orders")
//!         .mode(Mode::KeyOrdered { lanes: 16 })
//!         .handler(Billing)
//!         .build()?;
//!     consumer.run(CancellationToken::new()).await?;
//!     Ok(())
//! }
//! # }
//! ```
//!
//! # What holds
//! - What a handler writes on its connection, the messages it leaves with [`Context::enqueue`] and the inbox row
//!   commit together or not at all; the ack follows the commit. So these effects happen once per message id
//!   and source (or per business key, [`Builder::dedup_by`]), within the retention of the inbox (7 d).
//! - With [`Mode::KeyOrdered`] messages of one key take effect in the order the broker delivers them. A failed one
//!   is repeated in place; nothing of its key overtakes it, and nothing of another key waits for it.
//! - A message is given up only by a verdict that is committed as a dead letter: malformed bytes, a handler
//!   that says so, attempts used up, attempts that kept taking the process down. [`DeadLetters`] lists, redrives
//!   and purges them; a redriven message keeps its id.
//! - A shutdown, a database or broker that is away, and a copy in flight elsewhere are no failed attempts.
//! - A handler that panics or exceeds its time has failed; its connection is closed, not reused.
//!
//! # This does not
//! - make a call to another service happen once: that is at-least-once, with [`Context::idempotency_key`];
//! - protect from a handler that commits the transaction it was lent. It is noticed and reported, but what it
//!   committed stays;
//! - order messages across members of a group beyond what the broker promises for a key;
//! - bound how long a blocked key waits: [`OrderedFailure::BlockKey`] waits for a person.
//!
//! Features: `postgres`, `sqlite`: the database the inbox lives in.
#![cfg_attr(
    not(any(feature = "postgres", feature = "sqlite")),
    allow(dead_code, reason = "a build without a database has the contracts only")
)]
#![warn(missing_docs)]

mod builder;
mod connection;
mod consumer;
pub mod dead_letter;
mod error;
mod fetch;
mod handler;
mod inbox;
mod lanes;
mod prune;
mod retry;
pub mod schema;
mod statement;
mod status;
pub mod step;
mod work;
mod worker;

pub use async_trait::async_trait;
pub use builder::{Builder, Expiry, Mode, OrderedFailure};
pub use connection::Connection;
pub use consumer::Consumer;
pub use dead_letter::{DeadLetter, DeadLetters, Select};
pub use error::{Error, ErrorKind};
pub use handler::{Context, Handler, HandlerError};
pub use inbox::Inbox;
pub use prune::round as prune;
pub use retry::RetryPolicy;
pub use schema::{ddl, migrate};
pub use status::{Status, Summary};
