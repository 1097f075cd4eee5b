//! Locks in a lease table of SQLite.

mod sql;

use std::time::Duration;

use diesel::QueryResult;
use diesel::sqlite::SqliteConnection;
use diesel_async::SimpleAsyncConnection;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;

use super::lease::LeaseBackend;
use super::lease::tables::{Bind, Row, Sql, Tables, numbered, statements};

/// The longest limit, in milliseconds. Chosen: an hour is no limit any more.
const LONGEST_MILLIS: u128 = 3_600_000;

type AsyncSqlite = SyncConnectionWrapper<SqliteConnection>;

/// Locks in a lease table of SQLite.
pub type SqliteBackend = LeaseBackend<AsyncSqlite>;

impl SqliteBackend {
    /// A lock service in the file behind `pool`, whose tables [`migrate`](crate::migrate()) made.
    ///
    /// Every call takes one connection and gives it back before it returns. The `busy_timeout` of the pool's
    /// connections is set: give the locks a pool of their own if that matters to others.
    pub const fn new(pool: Pool<AsyncSqlite>) -> Self {
        Self::on(pool)
    }
}

impl Tables for AsyncSqlite {
    const SQL: &'static Sql = &sql::SQL;

    /// `BEGIN IMMEDIATE`: who will write takes the write lock first, instead of failing half-way.
    async fn begin_short(&mut self, limit: Duration) -> QueryResult<()> {
        self.bound(limit).await?;
        self.spawn_blocking(|connection| {
            diesel::connection::AnsiTransactionManager::begin_transaction_sql(connection, "BEGIN IMMEDIATE")
        })
        .await
    }

    async fn bound(&mut self, limit: Duration) -> QueryResult<()> {
        let limit = limit.as_millis().clamp(1, LONGEST_MILLIS);
        self.batch_execute(&format!("PRAGMA busy_timeout = {limit}"))
            .await
    }

    statements!(diesel::sqlite::Sqlite, numbered);
}
