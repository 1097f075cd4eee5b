//! The inbox on PostgreSQL: BEGIN and the insert leave in one packet, COMMIT checks the transaction.

use std::time::Duration;

use async_trait::async_trait;
use diesel::QueryResult;
use diesel::connection::{TransactionDepthChange, TransactionManagerStatus};
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::{
    AnsiTransactionManager, AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection,
    TransactionManager,
};

use super::{Connection, Entry, HANDLED, Inserted, Number, tampered};
use crate::dead_letter::Row;
use crate::statement::Sql;

// The insert waits for another member's uncommitted row of the same key no longer than the lock timeout;
// then the timeout of the session is put back for the handler. Without the setting that BEGIN's packet
// made (a BEGIN that failed), the insert writes nothing: it must never commit on its own.
const INSERT: &str = "\
INSERT INTO consumer_inbox (consumer, dedup_key, message_id, state) \
SELECT ?, ?, ?, ? WHERE coalesce(current_setting('outbox_consumer.lock_timeout', true), '') <> '' \
ON CONFLICT DO NOTHING \
RETURNING state AS number, set_config('lock_timeout', current_setting('outbox_consumer.lock_timeout'), true)";

const INSERT_BEHIND: &str = "\
INSERT INTO consumer_inbox (consumer, dedup_key, message_id, state) \
SELECT ?, ?, ?, CASE WHEN EXISTS (\
SELECT 1 FROM consumer_dead_letter WHERE consumer = ? AND ordering_key = ? AND blocks_key = 1 AND seq < ?\
) THEN 2::bigint ELSE 1::bigint END \
WHERE coalesce(current_setting('outbox_consumer.lock_timeout', true), '') <> '' \
ON CONFLICT DO NOTHING \
RETURNING state AS number, set_config('lock_timeout', current_setting('outbox_consumer.lock_timeout'), true)";

fn insert(entry: &Entry) -> Sql {
    let sql = Sql::new(if entry.behind.is_some() {
        INSERT_BEHIND
    } else {
        INSERT
    })
    .bind(entry.consumer.as_str())
    .bind(entry.dedup_key.as_str())
    .bind(entry.message_id.clone());
    match &entry.behind {
        None => sql.bind(HANDLED),
        Some(behind) => sql
            .bind(entry.consumer.as_str())
            .bind(behind.key.as_str())
            .bind(behind.seq),
    }
}

fn begin(wait: Duration) -> String {
    format!(
        "BEGIN; SELECT set_config('outbox_consumer.lock_timeout', current_setting('lock_timeout'), true), \
         set_config('lock_timeout', '{}ms', true)",
        wait.as_millis().max(1)
    )
}

#[async_trait]
impl Connection for AsyncPgConnection {
    type Manager = AsyncDieselConnectionManager<Self>;
    const ONE_WRITER: bool = false;
    const PRUNE: &'static str = "\
DELETE FROM consumer_inbox WHERE consumer = ? AND dedup_key IN (\
SELECT i.dedup_key FROM consumer_inbox i WHERE i.consumer = ? AND i.done_at_us < ? AND NOT EXISTS (\
SELECT 1 FROM consumer_dead_letter d WHERE d.consumer = i.consumer AND d.dedup_key = i.dedup_key) \
ORDER BY i.done_at_us LIMIT 1000 FOR UPDATE SKIP LOCKED)";

    async fn begin_with(&mut self, entry: &Entry, wait: Duration) -> QueryResult<Inserted> {
        let begin = begin(wait);
        let insert = insert(entry);
        // Pipelined: the second request leaves without waiting for the first answer.
        let (begun, rows) = {
            let (mut first, mut second) = (&*self, &*self);
            futures::join!(
                first.batch_execute(&begin),
                RunQueryDsl::load::<Number>(insert, &mut second)
            )
        };
        begun?;
        let status = AnsiTransactionManager::transaction_manager_status_mut(self);
        match status {
            TransactionManagerStatus::Valid(valid) => {
                valid.change_transaction_depth(TransactionDepthChange::IncreaseDepth)?;
            }
            TransactionManagerStatus::InError => return Err(diesel::result::Error::BrokenTransactionManager),
        }
        Ok(Inserted::from_state(
            rows?.as_slice().first().map(|row| row.number),
        ))
    }

    async fn commit(&mut self) -> QueryResult<()> {
        if !self.is_at_first_level() {
            return Err(tampered());
        }
        // A bare COMMIT of an aborted transaction rolls back and reports success. SAVEPOINT fails in an
        // aborted transaction and outside of one, so nothing is taken for committed that is not.
        match self.batch_execute("SAVEPOINT outbox_consumer; COMMIT").await {
            Ok(()) => {
                *AnsiTransactionManager::transaction_manager_status_mut(self) =
                    TransactionManagerStatus::default();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn rollback(&mut self) -> QueryResult<()> {
        self.batch_execute("ROLLBACK").await?;
        *AnsiTransactionManager::transaction_manager_status_mut(self) = TransactionManagerStatus::default();
        Ok(())
    }

    async fn cut_off(&mut self) {
        // Best effort: a server that takes no plain connection ends the statement when it notices the close.
        if let Err(error) = self.cancel_token().cancel_query(tokio_postgres::NoTls).await {
            tracing::debug!(%error, "the statement of a handler that was cut off could not be cancelled");
        }
    }

    async fn change(&mut self, sql: Sql) -> QueryResult<usize> {
        RunQueryDsl::execute(sql, self).await
    }

    async fn numbers(&mut self, sql: Sql) -> QueryResult<Vec<i64>> {
        let rows = RunQueryDsl::load::<Number>(sql, self).await?;
        Ok(rows.into_iter().map(|row| row.number).collect())
    }

    async fn letters(&mut self, sql: Sql) -> QueryResult<Vec<Row>> {
        RunQueryDsl::load::<Row>(sql, self).await
    }

    fn is_at_first_level(&mut self) -> bool {
        <Self as AsyncConnection>::TransactionManager::transaction_manager_status_mut(self)
            .transaction_depth()
            .is_ok_and(|depth| depth.is_some_and(|depth| depth.get() == 1))
    }
}
