//! The seam between a lock and the caller's database connection.
//!
//! A fence takes `&mut` a connection, the one whose transaction is open, and never a pool: a token that is
//! checked on another connection protects nothing. A pool implements none of the traits below, so the
//! mistake does not compile.

use std::future::Future;
use std::ops::DerefMut;
use std::time::Duration;

use diesel::QueryResult;
use diesel::connection::LoadConnection;

use crate::error::{Cause, Error, ErrorKind};

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

/// The databases that can check a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Database {
    /// PostgreSQL 13 or newer.
    Postgres,
    /// MySQL 8.0 or newer, MariaDB 10.6 or newer.
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

/// A diesel-async connection that can be fenced, itself or taken from a pool.
///
/// Implemented for `AsyncPgConnection`, `AsyncMysqlConnection` and
/// `SyncConnectionWrapper<SqliteConnection>`, and for the deadpool object that holds one of them. A pool is
/// not a connection:
///
/// ```compile_fail,E0277
/// # async fn wrong(key: &outbox_lock::Key, token: outbox_lock::FencingToken) -> Result<(), outbox_lock::Error> {
/// let mut pool: diesel_async::pooled_connection::deadpool::Pool<diesel_async::AsyncPgConnection> = todo!();
/// outbox_lock::fence(&mut pool, key, token).await?; // another transaction than the protected rows
/// # Ok(()) }
/// ```
///
/// ```
/// # #[cfg(feature = "postgres")]
/// # async fn right(key: &outbox_lock::Key, token: outbox_lock::FencingToken) -> Result<(), outbox_lock::Error> {
/// let mut connection: diesel_async::pooled_connection::deadpool::Object<diesel_async::AsyncPgConnection> = todo!();
/// outbox_lock::fence(&mut connection, key, token).await?;
/// # Ok(()) }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an open connection whose transaction can be fenced",
    note = "take a connection from the pool, open a transaction on it, and pass `&mut` that connection",
    note = "`AsyncPgConnection` needs the feature `postgres`, `AsyncMysqlConnection` the feature `mysql`, `SyncConnectionWrapper<SqliteConnection>` the feature `sqlite`"
)]
pub trait Connection: Send {
    /// The diesel-async connection itself.
    type Driver: Driver;

    /// The diesel-async connection itself.
    fn driver(&mut self) -> &mut Self::Driver;
}

/// What a lock does on a diesel-async connection; implemented for those of the supported databases.
pub trait Driver: diesel_async::AsyncConnection + sealed::Sealed + 'static {
    /// The database behind the connection.
    const DATABASE: Database;

    /// Raises the token of a resource; returns the one that stands in the way if there is a higher one.
    #[doc(hidden)]
    fn raise(&mut self, resource: &str, token: i64) -> impl Future<Output = QueryResult<Option<i64>>> + Send;

    /// Raises the token of a resource by one and returns it; waits for its row no longer than `within`.
    #[doc(hidden)]
    fn mint(&mut self, resource: &str, within: Duration) -> impl Future<Output = QueryResult<i64>> + Send;

    /// Takes the lock of a name until the transaction ends; `None` does not wait for it.
    #[doc(hidden)]
    fn exclude(
        &mut self,
        name: &str,
        within: Option<Duration>,
    ) -> impl Future<Output = QueryResult<bool>> + Send;

    /// Begins a transaction that will write.
    #[doc(hidden)]
    fn begin(&mut self) -> impl Future<Output = QueryResult<()>> + Send;

    /// Keeps other migrators out until the transaction ends, where migrations are transactions.
    #[doc(hidden)]
    fn lock_schema(&mut self) -> impl Future<Output = QueryResult<()>> + Send;

    /// The version of the lock's tables in `outbox_schema`, 0 if there is none.
    #[doc(hidden)]
    fn schema_version(&mut self) -> impl Future<Output = QueryResult<i64>> + Send;
}

/// A connection that a deadpool pool holds.
pub trait Pooled: Driver {
    /// The pool.
    #[doc(hidden)]
    type Pool: Clone + Send + Sync;

    /// A connection of the pool, which takes it back when it is dropped.
    #[doc(hidden)]
    type Object: DerefMut<Target = Self> + Send;

    /// A connection of the pool.
    #[doc(hidden)]
    fn checkout(pool: &Self::Pool) -> impl Future<Output = Result<Self::Object, Cause>> + Send;

    /// Closes a connection instead of giving it back.
    #[doc(hidden)]
    fn discard(object: Self::Object);
}

/// A connection of a pool for one call. Dropped without [`Session::end`] (the call was cancelled) it is
/// closed, since nobody knows what it is doing.
pub(crate) struct Session<D: Pooled>(Option<D::Object>);

impl<D: Pooled> Session<D> {
    pub(crate) async fn open(pool: &D::Pool, operation: &'static str) -> Result<Self, Error> {
        let object = D::checkout(pool).await.map_err(|cause| {
            Error::new(ErrorKind::Unavailable, operation, "no connection to the database").with_cause(cause)
        })?;
        Ok(Self(Some(object)))
    }

    pub(crate) fn connection(&mut self) -> &mut D {
        match &mut self.0 {
            Some(object) => object,
            None => unreachable!("the object leaves in `end` and `drop` only, which own the session"),
        }
    }

    /// Gives the connection back: no statement runs and no transaction is open.
    pub(crate) fn end(mut self) {
        drop(self.0.take());
    }
}

impl<D: Pooled> Drop for Session<D> {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            D::discard(object);
        }
    }
}

/// The backend of a synchronous diesel connection that can be fenced: `Pg`, `Mysql` or `Sqlite`.
///
/// Every `diesel::Connection` of these backends works, whoever made it.
#[diagnostic::on_unimplemented(
    message = "a transaction of the backend `{Self}` cannot be fenced",
    note = "`Pg` needs the feature `postgres`, `Mysql` the feature `mysql`, `Sqlite` the feature `sqlite`"
)]
pub trait Dialect: diesel::backend::Backend + sealed::Sealed {
    /// The database of this backend.
    const DATABASE: Database;

    /// As [`Driver::raise`].
    #[doc(hidden)]
    fn raise<C>(connection: &mut C, resource: &str, token: i64) -> QueryResult<Option<i64>>
    where
        C: LoadConnection<Backend = Self>;
}

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

        impl $crate::connection::Pooled for $connection {
            type Pool = diesel_async::pooled_connection::deadpool::Pool<$connection>;
            type Object = diesel_async::pooled_connection::deadpool::Object<$connection>;

            async fn checkout(pool: &Self::Pool) -> Result<Self::Object, $crate::error::Cause> {
                Ok(pool.get().await?)
            }

            fn discard(object: Self::Object) {
                drop(Self::Object::take(object));
            }
        }
    };
}
pub(crate) use connections;

pub(crate) mod sealed {
    /// Keeps the seam closed: its contract is the SQL of the tables.
    pub trait Sealed {}
}

/// A number that a statement returned.
#[derive(Debug, diesel::QueryableByName)]
pub(crate) struct Number {
    /// Its column.
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub(crate) number: i64,
}

/// Refuses a connection on which diesel has no transaction open.
pub(crate) fn require_transaction(operation: &'static str, depth: QueryResult<bool>) -> Result<(), Error> {
    match depth {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::new(
            ErrorKind::Invalid,
            operation,
            "no transaction is open: what follows would commit without the protection; call this as the \
             first statement inside diesel's `transaction`",
        )),
        Err(error) => Err(failed(operation, error)),
    }
}

/// The error of a statement that diesel sent.
pub(crate) fn failed(operation: &'static str, error: diesel::result::Error) -> Error {
    use diesel::result::DatabaseErrorKind::{ClosedConnection, SerializationFailure, UnableToSendCommand};
    use diesel::result::Error as Diesel;

    // diesel keeps no SQLSTATE; the words are those of the servers in their default language.
    let text = error.to_string();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let (kind, context) = match &error {
        Diesel::DatabaseError(ClosedConnection | UnableToSendCommand, _)
        | Diesel::BrokenTransactionManager => (
            ErrorKind::Unavailable,
            "the connection broke; its transaction is gone, discard the connection",
        ),
        Diesel::DatabaseError(SerializationFailure, _) => (
            ErrorKind::Backend,
            "another transaction came in between; roll back and begin again",
        ),
        _ if says(&[
            "lock_fence",
            "lock_key",
            "lock_lease",
            "lock_line",
            "outbox_schema",
        ]) && says(&["does not exist", "doesn't exist", "no such table"]) =>
        {
            (
                ErrorKind::Misconfigured,
                "a table of the lock is missing; run outbox_lock::migrate",
            )
        }
        _ if says(&[
            "lock timeout",
            "Lock wait timeout",
            "database is locked",
            "aborted lock",
        ]) =>
        {
            (
                ErrorKind::Timeout,
                "another transaction held the row for too long; roll back and try again later",
            )
        }
        _ => (
            ErrorKind::Backend,
            "the database refused the statement; roll the transaction back",
        ),
    };
    Error::new(kind, operation, context).with_cause(error)
}

/// So that `?` works on diesel calls inside a transaction whose error is a lock's.
impl From<diesel::result::Error> for Error {
    fn from(error: diesel::result::Error) -> Self {
        failed("query", error)
    }
}
