//! The queue in PostgreSQL.

mod append;
mod connection;
mod settle;
mod take;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel::{OptionalExtension, QueryResult, sql_query};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use self::append::append;
use self::connection::{Connections, give_back};
use self::settle::settle;
use self::take::take;
use super::rows::{Cursor, Id, LagRow, Ready, Version, WindowRow};
use super::store::{
    Appended, Claim, Claimed, Fault, LAG_LIMIT, Order, PURGE_ROWS, Row, Store, micros, until,
};
use crate::{ErrorKind, Start};

/// The tables, for tools of your own.
pub(super) const DDL: &str = include_str!("schema.sql");

/// A pool of connections.
#[derive(Debug)]
pub(super) struct Postgres {
    connections: Connections,
}

impl Postgres {
    /// Connects, so that a wrong address or password shows at once.
    pub(super) async fn open(url: &str, pool_size: u16, timeout: Duration) -> Result<Self, Fault> {
        Ok(Self {
            connections: Connections::open(url, pool_size, timeout).await?,
        })
    }
}

#[async_trait]
impl Store for Postgres {
    async fn migrate(&self) -> Result<(), Fault> {
        let mut db = self.connections.take().await?;
        let work = db.transaction(async |db| {
            // Two programs that start together would otherwise create the same table twice.
            db.batch_execute("SELECT pg_advisory_xact_lock(812, 0)").await?;
            db.batch_execute(DDL).await
        });
        let done = self.connections.bounded(work).await;
        give_back(db, done)
    }

    async fn version(&self) -> Result<i32, Fault> {
        const VERSION: &str = "SELECT max(version) AS version FROM outbox_queue_schema HAVING count(*) > 0";
        let mut db = self.connections.take().await?;
        let work = sql_query(VERSION).get_result::<Version>(&mut db);
        let done = self.connections.bounded(work).await;
        give_back(db, done).map(|found| found.version)
    }

    async fn publish(&self, rows: Vec<Row>) -> Result<Vec<Appended>, Fault> {
        let mut db = self.connections.take().await?;
        let work = db.transaction(async |db| append(db, &rows).await);
        let done = self.connections.bounded(work).await;
        give_back(db, done).map_err(|mut fault| {
            // The commit may have been on its way.
            if fault.kind == ErrorKind::Unreachable {
                fault.kind = ErrorKind::OutcomeUnknown;
            }
            fault
        })
    }

    async fn join(&self, topic: &str, group: &str, start: Start) -> Result<i64, Fault> {
        let mut db = self.connections.take().await?;
        let done = self.connections.bounded(join(&mut db, topic, group, start)).await;
        give_back(db, done)
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, Fault> {
        let mut db = self.connections.take().await?;
        let work = claim_in(&mut db, claim);
        let done = self.connections.bounded(work).await;
        give_back(db, done)
    }

    async fn settle(&self, orders: Arc<[Order]>) -> Result<Vec<bool>, Fault> {
        let mut db = self.connections.take().await?;
        let work = db.transaction(async |db| settle(db, &orders).await);
        let done = self.connections.bounded(work).await;
        give_back(db, done)
    }

    async fn release(&self, group: i64, member: i64) -> Result<(), Fault> {
        const RELEASE: &str = "UPDATE outbox_queue_pending SET owner = NULL, visible_at = 'epoch' \
             WHERE group_id = $1 AND owner = $2";
        let mut db = self.connections.take().await?;
        let work = sql_query(RELEASE)
            .bind::<BigInt, _>(group)
            .bind::<BigInt, _>(member)
            .execute(&mut db);
        let done = self.connections.bounded(work).await;
        give_back(db, done).map(|_| ())
    }

    async fn lag(&self, group: i64) -> Result<(i64, Option<Duration>), Fault> {
        let mut db = self.connections.take().await?;
        let work = lag(&mut db, group);
        let done = self.connections.bounded(work).await;
        give_back(db, done).map(|lag| (lag.messages, lag.age.map(|age| until(age, 0))))
    }

    async fn remove_group(&self, topic: &str, group: &str) -> Result<bool, Fault> {
        // The group's row is locked first, as a claim does.
        const REMOVE: &str = "WITH gone AS (DELETE FROM outbox_queue_group WHERE topic = $1 AND name = $2 \
             RETURNING id), emptied AS (DELETE FROM outbox_queue_pending WHERE group_id IN (SELECT id FROM gone)) \
             SELECT id FROM gone";
        let mut db = self.connections.take().await?;
        let work = sql_query(REMOVE)
            .bind::<Text, _>(topic)
            .bind::<Text, _>(group)
            .load::<Id>(&mut db);
        let done = self.connections.bounded(work).await;
        give_back(db, done).map(|rows| !rows.is_empty())
    }

    async fn purge(&self, after: i64, retention: Duration) -> Result<Option<i64>, Fault> {
        let mut db = self.connections.take().await?;
        let done = self
            .connections
            .bounded(purge(&mut db, after, micros(retention)))
            .await;
        give_back(db, done)
    }
}

async fn join(db: &mut AsyncPgConnection, topic: &str, group: &str, start: Start) -> QueryResult<i64> {
    const FIND: &str = "SELECT id FROM outbox_queue_group WHERE topic = $1 AND name = $2";
    const CREATE: &str = "INSERT INTO outbox_queue_group (topic, name, read_to_seq) \
         SELECT $1, $2, CASE WHEN $3 THEN \
           coalesce((SELECT max(seq) FROM outbox_queue_message WHERE topic = $1), 0) ELSE 0 END \
         ON CONFLICT (topic, name) DO NOTHING";
    let find = || sql_query(FIND).bind::<Text, _>(topic).bind::<Text, _>(group);
    if let Some(Id { id }) = find().get_result(db).await.optional()? {
        return Ok(id);
    }
    sql_query(CREATE)
        .bind::<Text, _>(topic)
        .bind::<Text, _>(group)
        .bind::<Bool, _>(start == Start::Latest)
        .execute(db)
        .await?;
    find().get_result::<Id>(db).await.map(|found| found.id)
}

/// Looks before it locks: an empty look is one statement.
async fn claim_in(db: &mut AsyncPgConnection, claim: Claim) -> QueryResult<Claimed> {
    let ready: Ready = sql_query(include_str!("ready.sql"))
        .bind::<BigInt, _>(claim.group)
        .get_result(db)
        .await?;
    let next_due = ready.next_due.map(|due| until(due, ready.now));
    if !ready.fresh && !ready.due {
        return Ok(Claimed {
            next_due,
            ..Claimed::default()
        });
    }
    let claimed = db.transaction(async |db| take(db, claim).await).await?;
    Ok(Claimed { next_due, ..claimed })
}

/// The group's place comes as values, so that the planner knows how little lies beyond it.
async fn lag(db: &mut AsyncPgConnection, group: i64) -> QueryResult<LagRow> {
    const CURSOR: &str = "SELECT topic, read_to_seq FROM outbox_queue_group WHERE id = $1";
    let cursor: Cursor = sql_query(CURSOR).bind::<BigInt, _>(group).get_result(db).await?;
    sql_query(include_str!("lag.sql"))
        .bind::<BigInt, _>(group)
        .bind::<Text, _>(cursor.topic)
        .bind::<BigInt, _>(cursor.read_to_seq)
        .bind::<BigInt, _>(LAG_LIMIT)
        .get_result(db)
        .await
}

async fn purge(db: &mut AsyncPgConnection, after: i64, retention: i64) -> QueryResult<Option<i64>> {
    const WINDOW: &str = "SELECT max(seq) AS last, count(*) AS rows, \
           coalesce(max(created_at) >= clock_timestamp() - $3 * interval '1 microsecond', false) AS young \
         FROM (SELECT seq, created_at FROM outbox_queue_message WHERE seq > $1 ORDER BY seq LIMIT $2) AS w";
    let window: WindowRow = sql_query(WINDOW)
        .bind::<BigInt, _>(after)
        .bind::<BigInt, _>(PURGE_ROWS)
        .bind::<BigInt, _>(retention)
        .get_result(db)
        .await?;
    let Some(last) = window.last else { return Ok(None) };
    sql_query(include_str!("purge.sql"))
        .bind::<BigInt, _>(after)
        .bind::<BigInt, _>(last)
        .bind::<BigInt, _>(retention)
        .execute(db)
        .await?;
    Ok((window.rows == PURGE_ROWS && !window.young).then_some(last))
}
