//! Locks in a lease table of MySQL and MariaDB.

mod sql;

use std::time::Duration;

use diesel::QueryResult;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AnsiTransactionManager, AsyncMysqlConnection};

use super::lease::LeaseBackend;
use super::lease::tables::{Bind, Row, Sql, Tables, statements, unnumbered};

/// The longest limit, in seconds. Chosen: an hour is no limit any more.
const LONGEST_SECONDS: u64 = 3_600;

/// Locks in a lease table of MySQL and MariaDB.
pub type MysqlBackend = LeaseBackend<AsyncMysqlConnection>;

impl MysqlBackend {
    /// A lock service in the database behind `pool`, whose tables [`migrate`](crate::migrate()) made.
    ///
    /// Every call takes one connection and gives it back before it returns. The session variables
    /// `innodb_lock_wait_timeout` and, on MariaDB, `idle_transaction_timeout` of the pool's connections are
    /// set: give the locks a pool of their own if that matters to others.
    pub const fn new(pool: Pool<AsyncMysqlConnection>) -> Self {
        Self::on(pool)
    }
}

impl Tables for AsyncMysqlConnection {
    const SQL: &'static Sql = &sql::SQL;

    /// READ COMMITTED, whatever the default: it locks no gaps, so askers of different keys do not meet. A
    /// process that is stopped in the middle does not keep the key's row for long on MariaDB; MySQL has no
    /// such limit.
    async fn begin_short(&mut self, limit: Duration) -> QueryResult<()> {
        let limit = limit.as_secs().clamp(1, LONGEST_SECONDS);
        let begin = format!(
            "SET SESSION innodb_lock_wait_timeout = {limit} /*M!100300 , SESSION idle_transaction_timeout = {limit} */; \
             SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION"
        );
        AnsiTransactionManager::begin_transaction_sql(self, &begin).await
    }

    statements!(diesel::mysql::Mysql, unnumbered);
}
