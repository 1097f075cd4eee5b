//! The harness this repository is tested with, for services that use it too: real servers on demand, real
//! crashes, a faulty network, books that must add up, and no sleeping.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use outbox_testing::ledger::Ledger;
//! use outbox_testing::proxy::Proxy;
//! use outbox_testing::settle::{Condition, settle};
//! use outbox_testing::{or_skip, services};
//!
//! #[tokio::test]
//! async fn an_order_is_announced_although_the_database_stops_answering() {
//!     let postgres = or_skip!(services::postgres().await); // or SKIPPED, loudly
//!     let database = postgres.database().await.unwrap(); // of this test alone
//!     let proxy = Proxy::start(postgres.address()).await.unwrap();
//!     let url = database.url_via(&proxy.address()).unwrap();
//!
//!     let client = database.client().await.unwrap();
//!     client.batch_execute("CREATE TABLE orders (id text, sent bool DEFAULT false)").await.unwrap();
//!     let service = tokio::spawn(async move { /* your service on `url` */ drop(url) });
//!
//!     let mut ledger = Ledger::new();
//!     client.execute("INSERT INTO orders VALUES ('o-1')", &[]).await.unwrap();
//!     ledger.committed("o-1", "customer-7", 1);
//!     proxy.swallow_replies(); // statements run, answers never come
//!     proxy.heal().await;
//!
//!     let backlog = Condition::zero("backlog", || async {
//!         let row = client.query_one("SELECT count(*) FROM orders WHERE NOT sent", &[]).await?;
//!         Ok::<_, tokio_postgres::Error>(row.get::<_, i64>(0) as u64)
//!     });
//!     settle(Duration::from_secs(10), &[backlog]).await.unwrap(); // or says why not
//!     ledger.effect("o-1"); // what your test's broker or database saw
//!     ledger.assert_clean(); // 0 lost, 0 phantom, 0 doubled, 0 out of order
//!     service.abort();
//! }
//! ```
//!
//! | module | gives |
//! |---|---|
//! | [`services`] | PostgreSQL, MariaDB, RabbitMQ, Redis, SQLite: by URL, in a container or as private processes |
//! | [`crash`] | programs that abort at a named point and are started again |
//! | [`proxy`] | a network that delays, cuts, resets, hangs and swallows |
//! | [`ledger`] | lost, phantom, doubled, out of order: counted |
//! | [`settle`] | a barrier that says why it does not open |
//! | [`workload`] | messages by key and sequence from a seed |
#![warn(missing_docs)]

pub mod crash;
pub mod ledger;
pub mod proxy;
pub mod services;
pub mod settle;
mod skip;
pub mod workload;

pub(crate) use skip::announce;
pub use skip::{Skipped, announce_skip};
