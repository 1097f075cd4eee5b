//! Tokens minted by the row that checks them.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
#[cfg(feature = "sqlite")]
use diesel::sqlite::SqliteConnection;
use diesel_async::pooled_connection::deadpool::Pool;
#[cfg(feature = "sqlite")]
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;

use super::TokenSource;
use crate::connection::{Pooled, Session, failed};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::token::FencingToken;

/// How long minting may take, the wait for an older holder's transaction included. Chosen: longer than a
/// protected transaction should last, shorter than a usual ttl.
const WITHIN: Duration = Duration::from_secs(5);

/// A [`TokenSource`] in the table `lock_fence` of PostgreSQL, MySQL, MariaDB or SQLite.
///
/// Minting raises the row that [`fence`](crate::fence()) compares with, so an older holder is refused from
/// the moment the new one has its lock, and a lost counter of the lock service does not matter.
pub struct DatabaseTokens<D: Pooled> {
    pool: D::Pool,
    within: Duration,
}

#[cfg(feature = "postgres")]
impl DatabaseTokens<diesel_async::AsyncPgConnection> {
    /// Tokens of a PostgreSQL database.
    pub const fn postgres(pool: Pool<diesel_async::AsyncPgConnection>) -> Self {
        Self { pool, within: WITHIN }
    }
}

#[cfg(feature = "mysql")]
impl DatabaseTokens<diesel_async::AsyncMysqlConnection> {
    /// Tokens of a MySQL or MariaDB database.
    ///
    /// The session variable `innodb_lock_wait_timeout` of the pool's connections is set: give the source a
    /// pool of its own if that matters to others.
    pub const fn mysql(pool: Pool<diesel_async::AsyncMysqlConnection>) -> Self {
        Self { pool, within: WITHIN }
    }
}

#[cfg(feature = "sqlite")]
impl DatabaseTokens<SyncConnectionWrapper<SqliteConnection>> {
    /// Tokens of an SQLite database, whose connections have a `PRAGMA busy_timeout`.
    pub const fn sqlite(pool: Pool<SyncConnectionWrapper<SqliteConnection>>) -> Self {
        Self { pool, within: WITHIN }
    }
}

impl<D: Pooled> DatabaseTokens<D> {
    /// How long minting may take, the wait for an older holder's transaction included, at least 1 s on
    /// MySQL and MariaDB. Defaults to 5 s.
    #[must_use]
    pub const fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }
}

impl<D: Pooled> fmt::Debug for DatabaseTokens<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseTokens")
            .field("database", &D::DATABASE)
            .field("within", &self.within)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl<D: Pooled> TokenSource for DatabaseTokens<D> {
    fn name(&self) -> &'static str {
        D::DATABASE.as_str()
    }

    async fn mint(&self, key: &Key) -> Result<FencingToken, Error> {
        let late = |_| {
            Error::new(
                ErrorKind::Unavailable,
                "mint",
                format!("the database minted no token within {:?}", self.within),
            )
        };
        let minting = async {
            let mut session = Session::<D>::open(&self.pool, "mint").await?;
            let minted = session.connection().mint(key.as_str(), self.within * 4 / 5).await;
            session.end();
            minted.map_err(|error| failed("mint", error))
        };
        let minted = tokio::time::timeout(self.within, minting).await.map_err(late)??;
        FencingToken::new(minted).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                "mint",
                format!("the database minted {minted}: a row of lock_fence was changed by hand"),
            )
        })
    }
}
