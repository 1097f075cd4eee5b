//! The seam between an outbox and the caller's database connection.
//!
//! `enqueue` takes `&mut` a connection, the one whose transaction is open, and never a pool: a message that
//! is written on another connection does not roll back with the business rows. A pool implements none of
//! the traits below, so the mistake does not compile.

use std::future::Future;

use diesel::QueryResult;
use diesel_async::TransactionManager;
use outbox_broker::crash_point::{self, CrashPoint};

use crate::Error;

pub(crate) mod batch;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod schema;
#[cfg(feature = "sqlite")]
mod sqlite;

use batch::Batch;

/// The databases an outbox can live in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Database {
    /// PostgreSQL 13 or newer.
    Postgres,
    /// MariaDB 10.6 or newer, MySQL 8.0 or newer.
    Mysql,
    /// SQLite 3.35 or newer.
    Sqlite,
}

impl Database {
    /// The name used in configuration and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
            Self::Sqlite => "sqlite",
        }
    }
}

impl std::fmt::Display for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A diesel-async connection that can enqueue: PostgreSQL's, MySQL's or SQLite's, itself or taken from a pool.
///
/// Implemented for `AsyncPgConnection`, `AsyncMysqlConnection` and `SyncConnectionWrapper<SqliteConnection>`,
/// and for the deadpool object that holds one of them. A pool is not a connection:
///
/// ```compile_fail,E0277
/// # use outbox::Outbox;
/// # async fn wrong(outbox: Outbox, message: outbox::Message) -> Result<(), outbox::Error> {
/// let mut pool: diesel_async::pooled_connection::deadpool::Pool<diesel_async::AsyncPgConnection> = todo!();
/// outbox.enqueue(&mut pool, message).await?; // another transaction than the business rows
/// # Ok(()) }
/// ```
///
/// ```
/// # use outbox::Outbox;
/// # #[cfg(feature = "postgres")]
/// # async fn right(outbox: Outbox, message: outbox::Message) -> Result<(), outbox::Error> {
/// let mut connection: diesel_async::pooled_connection::deadpool::Object<diesel_async::AsyncPgConnection> = todo!();
/// outbox.enqueue(&mut connection, message).await?;
/// # Ok(()) }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an open connection that an outbox can enqueue on",
    note = "take a connection from the pool, open a transaction on it, and pass `&mut` that connection",
    note = "`AsyncPgConnection` needs the feature `postgres`, `AsyncMysqlConnection` the feature `mysql`, `SyncConnectionWrapper<SqliteConnection>` the feature `sqlite`"
)]
pub trait Connection: Send {
    /// The diesel-async connection itself.
    type Driver: Driver;

    /// The diesel-async connection itself.
    fn driver(&mut self) -> &mut Self::Driver;
}

/// What the outbox does on a diesel-async connection; implemented for those of the supported databases.
pub trait Driver: diesel_async::AsyncConnection + sealed::Sealed + 'static {
    /// The database behind the connection.
    const DATABASE: Database;

    /// Writes the rows of `batch`; several statements are one savepoint or transaction.
    #[doc(hidden)]
    fn insert(&mut self, batch: Batch) -> impl Future<Output = QueryResult<()>> + Send;

    /// Writes the rows of `batch` and commits the outermost transaction, in as few round trips as the
    /// database allows. After an error the transaction may still be open; it is not committed, unless the
    /// connection was lost on the way.
    #[doc(hidden)]
    fn insert_and_commit(&mut self, batch: Batch) -> impl Future<Output = Result<(), Error>> + Send {
        async {
            if !batch.is_empty() {
                self.insert(batch)
                    .await
                    .map_err(|error| Error::database("enqueue", error))?;
            }
            crash_point::reach(CrashPoint::AppendedNotCommitted);
            Self::TransactionManager::commit_transaction(self)
                .await
                .map_err(|error| Error::database("commit", error))
        }
    }

    /// Begins a transaction that will write.
    #[doc(hidden)]
    fn begin(&mut self) -> impl Future<Output = QueryResult<()>> + Send;

    /// Keeps other migrators out until the transaction ends or [`Driver::unlock_schema`].
    #[doc(hidden)]
    fn lock_schema(&mut self) -> impl Future<Output = QueryResult<()>> + Send;

    /// Lets other migrators in, where the end of the transaction does not.
    #[doc(hidden)]
    fn unlock_schema(&mut self) -> impl Future<Output = QueryResult<()>> + Send {
        std::future::ready(Ok(()))
    }

    /// The version of `component` in `outbox_schema`, 0 if it has none.
    #[doc(hidden)]
    fn schema_version(&mut self, component: &str) -> impl Future<Output = QueryResult<i32>> + Send;
}

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
macro_rules! connections {
    ($connection:ty) => {
        impl $crate::connection::Connection for $connection {
            type Driver = Self;

            fn driver(&mut self) -> &mut Self {
                self
            }
        }

        impl $crate::connection::Connection
            for diesel_async::pooled_connection::deadpool::Object<$connection>
        {
            type Driver = $connection;

            fn driver(&mut self) -> &mut $connection {
                self
            }
        }
    };
}
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) use connections;

/// The backend of a synchronous diesel connection that can enqueue: `Pg`, `Mysql` or `Sqlite`.
///
/// Every `diesel::Connection` of these backends works, whoever made it (libpq, libmysqlclient, SQLite, r2d2);
/// this crate itself links none of the client libraries.
#[diagnostic::on_unimplemented(
    message = "an outbox cannot enqueue on a connection of the backend `{Self}`",
    note = "`Pg` needs the feature `postgres`, `Mysql` the feature `mysql`, `Sqlite` the feature `sqlite`"
)]
pub trait Backend: diesel::backend::Backend + sealed::Sealed {
    /// Writes the rows of `batch`; several statements are one savepoint or transaction.
    #[doc(hidden)]
    fn insert<C>(connection: &mut C, batch: &Batch) -> QueryResult<()>
    where
        C: diesel::Connection<Backend = Self>;
}

pub(crate) mod sealed {
    /// Keeps the seam closed: its contract is the SQL of the tables.
    pub trait Sealed {}
}
