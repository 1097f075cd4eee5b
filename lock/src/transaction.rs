//! Locks that a transaction takes and its end gives back.
//!
//! When everything that a lock protects is rows of one database, this is the better lock: it begins and ends
//! with the transaction, so there is no lease to renew, none to lose, nothing to fence, and no other service
//! that can fail. A paused holder makes others wait and cannot be overtaken. A lease is for the rest: work
//! outside the database, work that is too long for a transaction, or two databases.
//!
//! | database | the lock | what else meets it |
//! |---|---|---|
//! | PostgreSQL | `pg_advisory_xact_lock` of a class and a hash of the key | keys of the same 32-bit hash: a needless wait, never a wrong grant |
//! | MySQL, MariaDB | the row of the key in `lock_fence` | fences of that resource |
//! | SQLite | the one write lock | every writer of the file |
//!
//! All of it works behind a transaction pooler: nothing is tied to the session.
//!
//! Keep such transactions short, and bound the paused ones: `idle_in_transaction_session_timeout` on
//! PostgreSQL, `idle_transaction_timeout` on MariaDB.

use std::time::Duration;

use diesel_async::{AsyncConnection, TransactionManager};

use crate::connection::{Connection, Driver, failed, require_transaction};
use crate::error::{Error, ErrorKind};
use crate::key::Key;

#[cfg(feature = "mysql")]
pub(crate) mod mysql;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

/// Takes the lock of `key` until the transaction ends; `false` if another transaction has it.
///
/// The transaction goes on either way. Taking it twice is taking it once. On SQLite call it first in the
/// transaction; after a read of older rows it is refused. MySQL, which cannot ask without waiting, waits
/// for a second; MariaDB does not.
///
/// # Errors
/// - [`ErrorKind::Invalid`]: no transaction is open on the connection, or not one that diesel opened.
/// - [`ErrorKind::Misconfigured`]: MySQL, MariaDB and SQLite need the tables of [`migrate`](crate::migrate()).
/// - What the database said; roll back.
///
/// # Cancel safety
/// A dropped future leaves the transaction open on the connection: discard the connection.
pub async fn try_lock<C: Connection>(connection: &mut C, key: &Key) -> Result<bool, Error> {
    exclude(connection, key, None).await
}

/// Waits for the lock of `key`, at most this long, and keeps it until the transaction ends.
///
/// MySQL and MariaDB count whole seconds, rounded up.
///
/// # Errors
/// [`ErrorKind::Timeout`]: another transaction has it for longer; the transaction goes on without. Otherwise
/// as [`try_lock`].
///
/// # Cancel safety
/// As [`try_lock`].
pub async fn lock<C: Connection>(connection: &mut C, key: &Key, within: Duration) -> Result<(), Error> {
    if exclude(connection, key, Some(within)).await? {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Timeout,
        "lock",
        format!("another transaction held the lock for more than {within:?}: try again later"),
    ))
}

async fn exclude<C: Connection>(
    connection: &mut C,
    key: &Key,
    within: Option<Duration>,
) -> Result<bool, Error> {
    let driver = connection.driver();
    let status = <C::Driver as AsyncConnection>::TransactionManager::transaction_manager_status_mut(driver);
    require_transaction("lock", status.transaction_depth().map(|depth| depth.is_some()))?;
    let answer = driver.exclude(key.as_str(), within).await;
    match answer.map_err(|error| failed("lock", error)) {
        Err(error) if error.kind() == ErrorKind::Timeout => Ok(false),
        other => other,
    }
}
