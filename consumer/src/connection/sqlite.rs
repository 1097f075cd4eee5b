//! The inbox on SQLite: BEGIN IMMEDIATE and the insert in one visit to the blocking thread.

use std::time::Duration;

use async_trait::async_trait;
use diesel::connection::{AnsiTransactionManager, TransactionManagerStatus};
use diesel::sqlite::SqliteConnection;
use diesel::{QueryResult, RunQueryDsl as SyncRunQueryDsl};
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, RunQueryDsl, TransactionManager};

use super::{Connection, Entry, HANDLED, Inserted, Number, tampered};
use crate::dead_letter::Row;
use crate::statement::Sql;

const INSERT: &str = "\
INSERT INTO consumer_inbox (consumer, dedup_key, message_id, state) VALUES (?, ?, ?, ?) \
ON CONFLICT DO NOTHING RETURNING state AS number";

// `WHERE true` keeps the parser from reading ON CONFLICT as a join constraint.
const INSERT_BEHIND: &str = "\
INSERT INTO consumer_inbox (consumer, dedup_key, message_id, state) \
SELECT ?, ?, ?, CASE WHEN EXISTS (\
SELECT 1 FROM consumer_dead_letter WHERE consumer = ? AND ordering_key = ? AND blocks_key = 1 AND seq < ?\
) THEN 2 ELSE 1 END WHERE true \
ON CONFLICT DO NOTHING RETURNING state AS number";

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

type Wrapped = SyncConnectionWrapper<SqliteConnection>;
type Manager = <Wrapped as AsyncConnection>::TransactionManager;

#[async_trait]
impl Connection for Wrapped {
    type Manager = AsyncDieselConnectionManager<Self>;
    const ONE_WRITER: bool = true;
    const PRUNE: &'static str = "\
DELETE FROM consumer_inbox WHERE consumer = ? AND dedup_key IN (\
SELECT i.dedup_key FROM consumer_inbox i WHERE i.consumer = ? AND i.done_at_us < ? AND NOT EXISTS (\
SELECT 1 FROM consumer_dead_letter d WHERE d.consumer = i.consumer AND d.dedup_key = i.dedup_key) \
ORDER BY i.done_at_us LIMIT 1000)";

    // The one writer is the one that began: a second transaction waits in BEGIN, as long as the
    // connection's busy_timeout says, and never on the row.
    async fn begin_with(&mut self, entry: &Entry, _wait: Duration) -> QueryResult<Inserted> {
        let insert = insert(entry);
        let rows: Vec<Number> = self
            .spawn_blocking(move |connection| {
                AnsiTransactionManager::begin_transaction_sql(connection, "BEGIN IMMEDIATE")?;
                SyncRunQueryDsl::load(insert, connection)
            })
            .await?;
        Ok(Inserted::from_state(
            rows.as_slice().first().map(|row| row.number),
        ))
    }

    // COMMIT outside of a transaction is an error on SQLite, and an error that aborts the transaction ends it.
    async fn commit(&mut self) -> QueryResult<()> {
        if !self.is_at_first_level() {
            return Err(tampered());
        }
        Manager::commit_transaction(self).await
    }

    async fn rollback(&mut self) -> QueryResult<()> {
        self.spawn_blocking(|connection| {
            diesel::connection::SimpleConnection::batch_execute(connection, "ROLLBACK")
        })
        .await?;
        *Manager::transaction_manager_status_mut(self) = TransactionManagerStatus::default();
        Ok(())
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
        Manager::transaction_manager_status_mut(self)
            .transaction_depth()
            .is_ok_and(|depth| depth.is_some_and(|depth| depth.get() == 1))
    }
}
