//! The guarantee behind the advice: the database refuses the write of a holder that was overtaken.
//!
//! A lock can be lost while its holder is paused and does not know. So every grant carries a token that is
//! higher than the one before, and the transaction that the lock protects shows its token to the database
//! first. The row of the resource keeps the highest token it has seen and refuses a smaller one.
//!
//! ```text
//! holder A, token 7    BEGIN ▸ fence(7) ▸ write …paused…                      ▸ COMMIT
//! holder B, token 8                               BEGIN ▸ fence(8) waits for A ┘ ▸ sees A's rows ▸ COMMIT
//! holder A, token 7    BEGIN ▸ fence(7) ✗ Fenced, seen 8 ▸ ROLLBACK
//! ```
//! Two things follow from the row lock that `fence` takes:
//! - Once A's fence has passed, nobody overtakes A: B waits until A has committed or rolled back. So two
//!   protected transactions never run side by side, paused or not.
//! - A holder that is paused inside its transaction makes the next one wait. Bound it on both sides:
//!   `lock_timeout` (PostgreSQL), `innodb_lock_wait_timeout` (MySQL, MariaDB) or `PRAGMA busy_timeout`
//!   (SQLite) for who waits, `idle_in_transaction_session_timeout` (PostgreSQL) or
//!   `idle_transaction_timeout` (MariaDB) for who was paused. A timed-out wait is an error of the kind
//!   [`Timeout`](ErrorKind::Timeout).
//!
//! What the fence protects is what is written in its transaction. A call to a third party inside it is not
//! protected; give that party the token.
//!
//! # When a fresh holder is fenced
//! A lock service that lost its counter grants small tokens, and the row has seen higher ones. A holder that
//! knows itself to be fresh (it has just acquired, and its lock is not lost) asks for a higher token and
//! begins its transaction again; the row then refuses every older holder, as before:
//! ```text
//! loop {
//!     match transaction(fence(&mut connection, guard.key(), guard.token())?, …) {
//!         Err(error) if let Some(fenced) = error.fenced() => guard.remint(fenced.seen()).await?,
//!         other => return other,
//!     }
//! }
//! ```
//! Reminting goes through the lock service, which answers only the present holder: an overtaken one gets
//! [`Lost`](ErrorKind::Lost) and ends there. A [`TokenSource`](crate::TokenSource) in the same database
//! makes the loop unnecessary.

use std::fmt;

use crate::connection::{Connection, Dialect, Driver, failed, require_transaction};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::token::FencingToken;

#[cfg(feature = "mysql")]
pub(crate) mod mysql;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

/// Counts refusals; no labels.
const FENCED_TOTAL: &str = "lock_fenced_total";

/// The database has seen a higher token than the one it was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    token: FencingToken,
    seen: FencingToken,
}

impl Fenced {
    /// The token that was refused.
    pub const fn token(&self) -> FencingToken {
        self.token
    }

    /// The highest token that the database has seen for the resource.
    pub const fn seen(&self) -> FencingToken {
        self.seen
    }
}

impl fmt::Display for Fenced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "token {} is older than token {} that the database has seen",
            self.token, self.seen
        )
    }
}

impl std::error::Error for Fenced {}

impl Error {
    /// The tokens, if this is the refusal of a fence.
    pub fn fenced(&self) -> Option<&Fenced> {
        std::error::Error::source(self)?.downcast_ref()
    }
}

/// Shows `token` to the database, as the first statement of the transaction that the lock protects.
///
/// `Ok` means: no holder of a higher token has been here, and none will get past its fence until this
/// transaction ends. The token is remembered with the commit; a rollback forgets it.
///
/// `resource` is what the token was granted for, usually the lock's own key. An equal token passes, so one
/// holder may run several transactions. It must be the first statement because what was read before it may
/// be older than the lock; under REPEATABLE READ the whole snapshot would be.
///
/// # Errors
/// - [`ErrorKind::Fenced`], with [`Error::fenced`]: roll back; nothing that this holder knows is current.
///   The database itself would still commit the transaction.
/// - [`ErrorKind::Invalid`]: no transaction is open on the connection, or not one that diesel opened.
/// - [`ErrorKind::Timeout`]: another holder's transaction is open for longer than the wait; roll back.
/// - [`ErrorKind::Backend`]: under REPEATABLE READ or SERIALIZABLE on PostgreSQL, the one that was waited
///   for committed: roll back and begin again, which then answers.
/// - [`ErrorKind::Misconfigured`]: the table is missing.
///
/// # Cancel safety
/// A dropped future leaves the transaction open on the connection: discard the connection.
pub async fn fence<C: Connection>(
    connection: &mut C,
    resource: &Key,
    token: FencingToken,
) -> Result<(), Error> {
    use diesel_async::TransactionManager as _;

    let driver = connection.driver();
    let status =
        <C::Driver as diesel_async::AsyncConnection>::TransactionManager::transaction_manager_status_mut(
            driver,
        );
    require_transaction("fence", status.transaction_depth().map(|depth| depth.is_some()))?;
    let seen = driver
        .raise(resource.as_str(), token.get())
        .await
        .map_err(|error| failed("fence", error))?;
    verdict(token, seen)
}

/// [`fence`] on a synchronous diesel connection.
///
/// # Errors
/// As [`fence`].
pub fn fence_sync<C>(connection: &mut C, resource: &Key, token: FencingToken) -> Result<(), Error>
where
    C: diesel::connection::LoadConnection,
    C::Backend: Dialect,
{
    use diesel::connection::TransactionManager as _;

    let status = C::TransactionManager::transaction_manager_status_mut(connection);
    require_transaction("fence", status.transaction_depth().map(|depth| depth.is_some()))?;
    let seen = C::Backend::raise(connection, resource.as_str(), token.get())
        .map_err(|error| failed("fence", error))?;
    verdict(token, seen)
}

fn verdict(token: FencingToken, seen: Option<i64>) -> Result<(), Error> {
    let Some(seen) = seen.and_then(FencingToken::new) else {
        return Ok(());
    };
    metrics::counter!(FENCED_TOTAL).increment(1);
    Err(Error::new(
        ErrorKind::Fenced,
        "fence",
        "a later holder was here: roll the transaction back, and read everything again under a new lock",
    )
    .with_cause(Fenced { token, seen }))
}
