//! Locks in a lease table of PostgreSQL.

mod sql;

use std::time::Duration;

use diesel::QueryResult;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AnsiTransactionManager, AsyncPgConnection};

use super::lease::LeaseBackend;
use super::lease::tables::{Bind, Row, Sql, Tables, numbered, statements};

/// The longest limit, in milliseconds. Chosen: an hour is no limit any more.
const LONGEST_MILLIS: u128 = 3_600_000;

/// Locks in a lease table of PostgreSQL.
pub type PostgresBackend = LeaseBackend<AsyncPgConnection>;

impl PostgresBackend {
    /// A lock service in the database behind `pool`, whose tables [`migrate`](crate::migrate()) made.
    ///
    /// Every call takes one connection and gives it back before it returns. It works behind a transaction
    /// pooler: nothing is left in the session, and no statement stays prepared.
    pub const fn new(pool: Pool<AsyncPgConnection>) -> Self {
        Self::on(pool)
    }
}

impl Tables for AsyncPgConnection {
    const SQL: &'static Sql = &sql::SQL;

    /// READ COMMITTED, whatever the default: what is read after a wait must be what the others committed. A
    /// process that is stopped in the middle does not keep the key's row for longer than a few seconds.
    async fn begin_short(&mut self, limit: Duration) -> QueryResult<()> {
        let limit = limit.as_millis().clamp(1, LONGEST_MILLIS);
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {limit}; \
             SET LOCAL idle_in_transaction_session_timeout = {limit}"
        );
        AnsiTransactionManager::begin_transaction_sql(self, &begin).await
    }

    statements!(diesel::pg::Pg, numbered);
}
