//! Transactional outbox: write business rows and messages in one database transaction.
//!
//! # The bug it removes
//! ```text
//! connection.transaction(insert_order)?;   // committed
//! broker.publish(order_placed)?;           // crashed before this line: an order nobody hears of
//! ```
//! The other way round announces orders that were rolled back. No order of the two calls is right.
//!
//! # The same lines, fixed
//! ```
//! # #[cfg(feature = "postgres")]
//! # mod example {
//! use diesel_async::{AsyncPgConnection, RunQueryDsl};
//! use outbox::{Error, Outbox};
//!
//! async fn place_order(outbox: &Outbox, connection: &mut AsyncPgConnection) -> Result<(), Error> {
//!     outbox
//!         .transaction(connection, async |tx| {
//!             diesel::sql_query("INSERT INTO orders (id) VALUES (7)").execute(&mut **tx).await?;
//!             tx.enqueue(outbox.message("orders", "order.placed").key("order-7").json(&7).build()?)?;
//!             Ok(())
//!         })
//!         .await // both are committed, or neither
//! }
//! # }
//! ```
//! In a transaction of your own, synchronous or not, use [`Outbox::enqueue`] or [`Outbox::enqueue_sync`] and,
//! after the commit, [`Outbox::notify`].
//!
//! ```text
//!  business tx ──► row in `outbox` ──► relay: claim → publish → settle ──► broker
//!  your connection  same commit        Relay, here or in another process   confirmed
//! ```
//! [`migrate`] makes the tables, [`Relay`] publishes from a [`Store`](store::Store).
//!
//! # Guarantees
//! - `Ok` from the commit means that each message will be published at least once; after a rollback never.
//! - Messages of one key are published in order: if A committed before B's enqueue began, A goes first.
//! - A message that breaks a limit is refused before anything is sent; the transaction stays usable.
//!
//! # This does not…
//! - …publish exactly once: a crash between publish and settle publishes again, under the same id.
//!   `outbox-consumer` makes effects happen once.
//! - …order messages of a key whose transactions enqueue before they lock the aggregate: lock first.
//! - …take a pool. Rows written on another connection do not roll back with yours, so it does not compile.
//! - …survive a commit that the database forgets (`synchronous_commit = off` and a crash of the server).
//!
//! # Features
//! | feature | what it adds |
//! |---|---|
//! | `postgres` | enqueue on PostgreSQL connections, and its store |
//! | `mysql` | enqueue on MySQL and MariaDB connections, and its store |
//! | `sqlite` | enqueue on SQLite connections, and its store |
//! | `conformance` | the suite that every store passes |
//!
//! Services in other languages write to the same tables with plain SQL: topic, type and payload suffice, see
//! [`ddl`].

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
pub use migration::{ddl, migrate, shards_ddl};
pub use outbox::{Outbox, OutboxBuilder, TraceContext};
pub use outbox_broker::{InvalidMessage, Limits, Message, MessageBuilder, MessageId};
pub use relay::{Relay, RelayOptions, RelayStatus, RetryPolicy};
pub use transaction::Transaction;
pub use wakeup::Wakeup;
