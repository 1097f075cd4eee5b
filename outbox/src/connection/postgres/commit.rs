//! The last statement of a transaction and its `COMMIT` in one flush.
//!
//! Both go out before either is answered, so a message costs the business transaction no round trip. The
//! `COMMIT` must not overtake the `INSERT`: the row would then be written outside the transaction. Three
//! things keep the order:
//!
//! - The `INSERT` is polled first, and outside the cooperative budget of tokio, so it never yields where
//!   nothing keeps it waiting.
//! - On first use the `INSERT` is prepared, which takes a round trip. diesel-async holds the lock of its
//!   statement cache meanwhile, and the `COMMIT` is a cached statement too: it waits for that lock, and by
//!   the time it gets it the `INSERT` has been sent.
//! - Once the `INSERT` has failed the `COMMIT` is not polled any more. If it was sent already, the server
//!   has aborted the transaction and answers it with a rollback.
//!
//! The tests compare the transaction ids of the business row and of the message: with a fresh connection, a
//! warm one, one without a statement cache, and in a task whose budget is spent.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, TransactionManager};
use outbox_broker::crash_point::{self, CrashPoint};

use super::{insert_statements, is_one_statement};
use crate::Error;
use crate::connection::Driver;
use crate::connection::batch::Batch;

type Manager = <AsyncPgConnection as AsyncConnection>::TransactionManager;

/// `COMMIT` by way of the statement cache.
#[derive(Debug, QueryId)]
struct Commit;

impl QueryFragment<Pg> for Commit {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("COMMIT");
        Ok(())
    }
}

/// Writes the rows of `batch` and commits the transaction that is open, whose depth is 1.
///
/// After an error the transaction still counts as open, so that the caller's rollback finds out what the
/// connection is worth; on a server that has rolled back already it changes nothing.
pub(super) async fn insert_and_commit(connection: &mut AsyncPgConnection, batch: Batch) -> Result<(), Error> {
    if batch.is_empty() || !is_one_statement(&batch) {
        if !batch.is_empty() {
            let inserted = connection.insert(batch).await;
            inserted.map_err(|error| Error::database("enqueue", error))?;
        }
        crash_point::reach(CrashPoint::AppendedNotCommitted);
        let committed = Manager::commit_transaction(connection).await;
        return committed.map_err(|error| Error::database("commit", error));
    }
    tokio::task::unconstrained(in_one_flush(connection, &batch)).await?;
    *Manager::transaction_manager_status_mut(connection) = Default::default();
    Ok(())
}

async fn in_one_flush(connection: &AsyncPgConnection, batch: &Batch) -> Result<(), Error> {
    let mut shared = connection;
    let mut insert = pin!(insert_statements(connection, batch));
    let mut commit = pin!(RunQueryDsl::execute(Commit, &mut shared));
    let (mut inserted, mut sent, mut committed) = (false, false, false);
    poll_fn(|context| {
        if !inserted && let Poll::Ready(result) = insert.as_mut().poll(context) {
            result.map_err(|error| Error::database("enqueue", error))?;
            inserted = true;
        }
        if !sent {
            crash_point::reach(CrashPoint::AppendedNotCommitted);
            sent = true;
        }
        if !committed && let Poll::Ready(result) = commit.as_mut().poll(context) {
            result.map_err(|error| Error::database("commit", error))?;
            committed = true;
        }
        if inserted && committed {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    })
    .await
}
