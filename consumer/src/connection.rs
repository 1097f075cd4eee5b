//! What the inbox needs from a database connection; one file per database.

use std::time::Duration;

use async_trait::async_trait;
use diesel::QueryResult;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::pooled_connection::PoolError;

use crate::dead_letter::Row;
use crate::statement::Sql;

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

/// A row about to be inserted into the inbox.
#[derive(Debug, Clone)]
pub struct Entry {
    pub(crate) consumer: String,
    pub(crate) dedup_key: String,
    pub(crate) message_id: Option<String>,
    /// The ordering key, where later messages of a key must wait behind its dead letters.
    pub(crate) behind: Option<Behind>,
}

/// Which dead letters hold a message up.
#[derive(Debug, Clone)]
pub(crate) struct Behind {
    pub(crate) key: String,
    /// Only rows before this one count; `i64::MAX` for a message that comes from the broker.
    pub(crate) seq: i64,
}

/// The state of an inbox row whose message is handled; 2 is that of one given up.
pub(crate) const HANDLED: i64 = 1;

/// What the insert of an inbox row found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// The row is ours.
    Fresh,
    /// A committed row was there.
    Duplicate,
    /// Ours, but a dead letter of its key comes first.
    Behind,
}

impl Inserted {
    pub(crate) const fn from_state(state: Option<i64>) -> Self {
        match state {
            None => Self::Duplicate,
            Some(HANDLED) => Self::Fresh,
            Some(_) => Self::Behind,
        }
    }
}

/// A diesel-async connection the inbox can live on: PostgreSQL's or SQLite's.
///
/// Implemented for `AsyncPgConnection` and `SyncConnectionWrapper<SqliteConnection>`; the handler is given
/// `&mut` this type, with the transaction open.
#[async_trait]
pub trait Connection: outbox::Connection<Driver = Self> + outbox::Driver + Sized {
    /// What deadpool makes these connections with.
    type Manager: deadpool::managed::Manager<Type = Self, Error = PoolError>;

    /// Whether the database lets one transaction write at a time, so that queueing for it in this process
    /// is cheaper and fairer than in the database.
    const ONE_WRITER: bool;

    /// Deletes at most 1,000 old inbox rows; binds consumer, consumer, time.
    #[doc(hidden)]
    const PRUNE: &'static str;

    /// Begins a transaction and inserts `entry`, waiting for another uncommitted row of the same key at most
    /// `wait`. After an error the transaction may or may not be open.
    #[doc(hidden)]
    async fn begin_with(&mut self, entry: &Entry, wait: Duration) -> QueryResult<Inserted>;

    /// Commits, and fails if the transaction is not as [`Connection::begin_with`] left it: ended, nested, or
    /// aborted by a statement whose error the handler swallowed.
    #[doc(hidden)]
    async fn commit(&mut self) -> QueryResult<()>;

    /// Rolls back whatever is open.
    #[doc(hidden)]
    async fn rollback(&mut self) -> QueryResult<()>;

    /// Asks the server to stop a statement that was cut off, before the connection is closed: a server that
    /// works on would keep the inbox row locked.
    #[doc(hidden)]
    async fn cut_off(&mut self) {}

    /// Runs a statement and returns the number of rows it changed.
    #[doc(hidden)]
    async fn change(&mut self, sql: Sql) -> QueryResult<usize>;

    /// Loads the numbers of a statement that selects one column `number`.
    #[doc(hidden)]
    async fn numbers(&mut self, sql: Sql) -> QueryResult<Vec<i64>>;

    /// Loads dead letters.
    #[doc(hidden)]
    async fn letters(&mut self, sql: Sql) -> QueryResult<Vec<Row>>;

    /// Whether the transaction's nesting is what `begin_with` left.
    #[doc(hidden)]
    fn is_at_first_level(&mut self) -> bool;
}

#[derive(Debug, diesel::QueryableByName)]
pub(crate) struct Number {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub(crate) number: i64,
}

/// Whether `error` says that another transaction is in the way and waiting longer would help.
pub(crate) fn is_busy(error: &DieselError) -> bool {
    match error {
        DieselError::DatabaseError(kind, info) => {
            matches!(kind, DatabaseErrorKind::SerializationFailure)
                || info.message().contains("lock timeout")
                || info.message().contains("database is locked")
                || info.message().contains("database table is locked")
        }
        _ => false,
    }
}

/// The error of a handler that ended or nested the transaction it was lent.
pub(crate) fn tampered() -> DieselError {
    DieselError::QueryBuilderError(
        "the handler ended the transaction it was given, left a nested one open, or swallowed an error that aborted it; \
         effects can only happen once if the transaction stays the consumer's"
            .into(),
    )
}
