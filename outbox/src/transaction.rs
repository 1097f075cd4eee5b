//! A transaction that sends all its messages in one statement at its end.

use std::num::NonZeroU32;
use std::ops::{Deref, DerefMut};

use diesel_async::TransactionManager;
use outbox_broker::crash_point::{self, CrashPoint};
use outbox_broker::{Message, MessageId};

use crate::connection::batch::Batch;
use crate::connection::{Connection, Driver};
use crate::{Error, ErrorKind, Outbox};

/// The open transaction of [`Outbox::transaction`]: the diesel connection, and a buffer of messages.
///
/// Dereferences to the diesel connection, so business rows are written on `&mut **tx` or
/// [`tx.connection()`](Transaction::connection).
#[derive(Debug)]
pub struct Transaction<'c, D> {
    connection: &'c mut D,
    outbox: &'c Outbox,
    batch: Batch,
}

impl<D> Transaction<'_, D> {
    /// The connection whose transaction is open.
    pub fn connection(&mut self) -> &mut D {
        self.connection
    }

    /// Buffers `message`; it is written just before the commit, in the order of these calls.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`]: the message breaks a limit and is not kept; the transaction goes on.
    pub fn enqueue(&mut self, message: Message) -> Result<MessageId, Error> {
        let id = message.id;
        let mut one = self.outbox.batch([message])?;
        self.batch.rows.append(&mut one.rows);
        self.batch.scheduled.append(&mut one.scheduled);
        Ok(id)
    }

    /// Ids of the messages buffered so far, those of scheduled ones last.
    pub fn enqueued(&self) -> Vec<MessageId> {
        self.batch.ids()
    }
}

impl<D> Deref for Transaction<'_, D> {
    type Target = D;

    fn deref(&self) -> &D {
        self.connection
    }
}

impl<D> DerefMut for Transaction<'_, D> {
    fn deref_mut(&mut self) -> &mut D {
        self.connection
    }
}

impl Outbox {
    /// Runs `work` in a transaction, writes its messages in one statement, commits, and wakes the relay.
    ///
    /// On PostgreSQL the statement and the commit travel together: the messages cost no round trip.
    ///
    /// `Ok` means that the business rows and the messages are committed: each message will be published at
    /// least once. Rolls back and returns the error if `work` fails.
    ///
    /// Nesting is refused: inside a transaction that is already open nobody knows when the commit comes, so
    /// use [`Outbox::enqueue`] there. Savepoints inside `work` are fine for business rows; a message
    /// buffered in one that rolls back is still sent.
    ///
    /// # Errors
    /// What `work` returned; [`ErrorKind::Invalid`] if a transaction is open already or `work` left a
    /// savepoint open; otherwise the error of
    /// the database, and then nothing is committed, except that after `Unreachable` during the commit
    /// itself nobody knows.
    ///
    /// # Cancel safety
    /// A dropped future leaves the transaction open on the connection: discard the connection. deadpool does.
    pub async fn transaction<C, T, E, F>(&self, connection: &mut C, work: F) -> Result<T, E>
    where
        C: Connection,
        E: From<Error>,
        F: for<'r, 't> AsyncFnOnce(&'r mut Transaction<'t, C::Driver>) -> Result<T, E>,
    {
        let driver = connection.driver();
        begin(driver).await?;
        let mut transaction = Transaction {
            connection: driver,
            outbox: self,
            batch: Batch::default(),
        };
        let result = work(&mut transaction).await;
        let Transaction {
            connection, batch, ..
        } = transaction;
        let value = match result {
            Ok(value) => value,
            Err(error) => {
                rollback(connection).await;
                return Err(error);
            }
        };
        if let Err(error) = finish(connection, batch).await {
            rollback(connection).await;
            return Err(error.into());
        }
        crash_point::reach(CrashPoint::CommittedNotClaimed);
        self.notify();
        Ok(value)
    }
}

async fn begin<D: Driver>(connection: &mut D) -> Result<(), Error> {
    if depth(connection, "begin")?.is_some() {
        return Err(Error::new(
            ErrorKind::Invalid,
            "begin",
            "the connection is in a transaction already; use enqueue inside it",
        ));
    }
    connection
        .begin()
        .await
        .map_err(|error| Error::database("begin", error))
}

/// Writes the messages and commits, unless `work` left a savepoint open: then nobody knows what it meant.
async fn finish<D: Driver>(connection: &mut D, batch: Batch) -> Result<(), Error> {
    if depth(connection, "commit")? == Some(1) {
        return connection.insert_and_commit(batch).await;
    }
    Err(Error::new(
        ErrorKind::Invalid,
        "commit",
        "the work began or ended a transaction by hand and left it so; use `transaction` of diesel-async",
    ))
}

fn depth<D: Driver>(connection: &mut D, operation: &'static str) -> Result<Option<u32>, Error> {
    D::TransactionManager::transaction_manager_status_mut(connection)
        .transaction_depth()
        .map(|depth| depth.map(NonZeroU32::get))
        .map_err(|error| Error::database(operation, error))
}

/// Rolls back what is still open after a failure that is more interesting than a failure to roll back. A
/// connection that could not roll back is marked broken by diesel, and its pool discards it.
async fn rollback<D: Driver>(connection: &mut D) {
    while depth(connection, "rollback").is_ok_and(|depth| depth.is_some()) {
        if !roll_one_back(connection).await {
            return;
        }
    }
}

/// Ends the innermost savepoint, or the transaction itself; false: it could not.
async fn roll_one_back<D: Driver>(connection: &mut D) -> bool {
    if let Err(error) = D::TransactionManager::rollback_transaction(connection).await {
        tracing::warn!(%error, "rollback failed; the connection is unusable");
        return false;
    }
    true
}
