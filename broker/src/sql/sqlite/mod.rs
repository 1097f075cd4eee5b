//! The queue in a SQLite file.

mod connection;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel::sqlite::SqliteConnection;

use self::connection::Thread;
use super::plan::{Asked, FreshRow, PendingRow, Plan, plan};
use super::rows::{ContentRow, FreshScan, Id, LagRow, Now, PendingScan, Ready, Version, WindowRow};
use super::store::{
    Action, Appended, Claim, Claimed, ClaimedRow, Fault, LAG_LIMIT, Order, PENDING_LIMIT, PURGE_ROWS, Row,
    SCAN_ROWS, Store, count, micros, until,
};
use crate::Start;

/// The tables, for tools of your own.
pub(super) const DDL: &str = include_str!("schema.sql");

const NOW: &str = "SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER) AS now";

diesel::table! {
    #[sql_name = "outbox_queue_message"]
    message (seq) {
        seq -> BigInt,
        topic -> Text,
        source -> Text,
        message_id -> Text,
        key -> Nullable<Text>,
        attributes -> Text,
        headers -> Text,
        payload -> Binary,
    }
}

diesel::table! {
    #[sql_name = "outbox_queue_pending"]
    pending (group_id, seq) {
        group_id -> BigInt,
        seq -> BigInt,
        attempts -> Integer,
        owner -> Nullable<BigInt>,
        visible_at -> BigInt,
    }
}

/// One writer and one reader, each on its thread.
#[derive(Debug)]
pub(super) struct Sqlite {
    writer: Thread,
    reader: Thread,
}

impl Sqlite {
    /// Opens the file, creating it if it is not there.
    pub(super) async fn open(path: &Path, lock_timeout: Duration) -> Result<Self, Fault> {
        Ok(Self {
            writer: Thread::open(path, "queue-writer", lock_timeout).await?,
            reader: Thread::open(path, "queue-reader", lock_timeout).await?,
        })
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn migrate(&self) -> Result<(), Fault> {
        self.writer
            .run(|writer| writer.write(|db| db.batch_execute(DDL)))
            .await
    }

    async fn version(&self) -> Result<i32, Fault> {
        const VERSION: &str = "SELECT max(version) AS version FROM outbox_queue_schema HAVING count(*) > 0";
        let found = self
            .reader
            .run(|reader| reader.read(|db| sql_query(VERSION).get_result::<Version>(db)))
            .await?;
        Ok(found.version)
    }

    async fn publish(&self, rows: Vec<Row>) -> Result<Vec<Appended>, Fault> {
        self.writer
            .run(move |writer| writer.write(|db| rows.iter().map(|row| append(db, row)).collect()))
            .await
    }

    async fn join(&self, topic: &str, group: &str, start: Start) -> Result<i64, Fault> {
        const FIND: &str = "SELECT id FROM outbox_queue_group WHERE topic = ?1 AND name = ?2";
        const CREATE: &str = "INSERT INTO outbox_queue_group (topic, name, read_to_seq) \
             SELECT ?1, ?2, CASE WHEN ?3 = 0 THEN 0 ELSE \
               coalesce((SELECT max(seq) FROM outbox_queue_message WHERE topic = ?1), 0) END \
             RETURNING id";
        let (topic, group) = (topic.to_owned(), group.to_owned());
        self.writer
            .run(move |writer| {
                writer.write(|db| {
                    let found: Option<Id> = sql_query(FIND)
                        .bind::<Text, _>(&topic)
                        .bind::<Text, _>(&group)
                        .get_result(db)
                        .optional()?;
                    match found {
                        Some(found) => Ok(found.id),
                        None => sql_query(CREATE)
                            .bind::<Text, _>(&topic)
                            .bind::<Text, _>(&group)
                            .bind::<Integer, _>(i32::from(start == Start::Latest))
                            .get_result::<Id>(db)
                            .map(|created| created.id),
                    }
                })
            })
            .await
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, Fault> {
        self.writer
            .run(move |writer| {
                let ready: Ready = writer.read(|db| {
                    sql_query(include_str!("ready.sql"))
                        .bind::<BigInt, _>(claim.group)
                        .get_result(db)
                })?;
                let next_due = ready.next_due.map(|due| until(due, ready.now));
                if !ready.fresh && !ready.due {
                    return Ok(Claimed {
                        next_due,
                        ..Claimed::default()
                    });
                }
                let claimed = writer.write(|db| take(db, claim))?;
                Ok(Claimed { next_due, ..claimed })
            })
            .await
    }

    async fn settle(&self, orders: Arc<[Order]>) -> Result<Vec<bool>, Fault> {
        self.writer
            .run(move |writer| {
                writer.write(|db| {
                    let now = now(db)?;
                    orders.iter().map(|order| carry_out(db, order, now)).collect()
                })
            })
            .await
    }

    async fn release(&self, group: i64, member: i64) -> Result<(), Fault> {
        self.writer
            .run(move |writer| {
                writer.write(|db| {
                    let held = pending::table
                        .filter(pending::group_id.eq(group))
                        .filter(pending::owner.eq(member));
                    diesel::update(held)
                        .set((pending::owner.eq(None::<i64>), pending::visible_at.eq(0)))
                        .execute(db)
                })
            })
            .await
            .map(|_| ())
    }

    async fn lag(&self, group: i64) -> Result<(i64, Option<Duration>), Fault> {
        let lag: LagRow = self
            .reader
            .run(move |reader| {
                reader.read(|db| {
                    sql_query(include_str!("lag.sql"))
                        .bind::<BigInt, _>(group)
                        .bind::<BigInt, _>(LAG_LIMIT)
                        .get_result(db)
                })
            })
            .await?;
        Ok((lag.messages, lag.age.map(|age| until(age, 0))))
    }

    async fn remove_group(&self, topic: &str, group: &str) -> Result<bool, Fault> {
        const EMPTY: &str = "DELETE FROM outbox_queue_pending WHERE group_id = \
             (SELECT id FROM outbox_queue_group WHERE topic = ?1 AND name = ?2)";
        const REMOVE: &str = "DELETE FROM outbox_queue_group WHERE topic = ?1 AND name = ?2";
        let (topic, group) = (topic.to_owned(), group.to_owned());
        self.writer
            .run(move |writer| {
                writer.write(|db| {
                    sql_query(EMPTY)
                        .bind::<Text, _>(&topic)
                        .bind::<Text, _>(&group)
                        .execute(db)?;
                    sql_query(REMOVE)
                        .bind::<Text, _>(&topic)
                        .bind::<Text, _>(&group)
                        .execute(db)
                })
            })
            .await
            .map(|rows| rows > 0)
    }

    async fn purge(&self, after: i64, retention: Duration) -> Result<Option<i64>, Fault> {
        const WINDOW: &str = "SELECT max(seq) AS last, count(*) AS rows, \
               coalesce(max(created_at) >= CAST(unixepoch('subsec') * 1000000 AS INTEGER) - ?3, 0) AS young \
             FROM (SELECT seq, created_at FROM outbox_queue_message WHERE seq > ?1 ORDER BY seq LIMIT ?2)";
        let retention = micros(retention);
        self.writer
            .run(move |writer| {
                let window: WindowRow = writer.read(|db| {
                    sql_query(WINDOW)
                        .bind::<BigInt, _>(after)
                        .bind::<BigInt, _>(PURGE_ROWS)
                        .bind::<BigInt, _>(retention)
                        .get_result(db)
                })?;
                let Some(last) = window.last else { return Ok(None) };
                writer.write(|db| {
                    sql_query(include_str!("purge.sql"))
                        .bind::<BigInt, _>(after)
                        .bind::<BigInt, _>(last)
                        .bind::<BigInt, _>(retention)
                        .execute(db)
                })?;
                Ok((window.rows == PURGE_ROWS && !window.young).then_some(last))
            })
            .await
    }
}

/// One prepared statement, run once a row: without a network a longer statement gains nothing.
fn append(db: &mut SqliteConnection, row: &Row) -> QueryResult<Appended> {
    let seq: Option<i64> = diesel::insert_into(message::table)
        .values((
            message::topic.eq(&row.topic),
            message::source.eq(&row.source),
            message::message_id.eq(row.id.to_string()),
            message::key.eq(&row.key),
            message::attributes.eq(&row.attributes),
            message::headers.eq(&row.headers),
            message::payload.eq(row.payload.as_ref()),
        ))
        .on_conflict_do_nothing()
        .returning(message::seq)
        .get_result(db)
        .optional()?;
    Ok(seq.map_or(Appended::Duplicate, Appended::At))
}

/// The claim itself, under the writer lock.
fn take(db: &mut SqliteConnection, claim: Claim) -> QueryResult<Claimed> {
    let now = now(db)?;
    let pending: Vec<PendingScan> = sql_query(include_str!("scan_pending.sql"))
        .bind::<BigInt, _>(claim.group)
        .load(db)?;
    let fresh: Vec<FreshScan> = sql_query(include_str!("scan_fresh.sql"))
        .bind::<BigInt, _>(claim.group)
        .bind::<BigInt, _>(count(claim.max.max(SCAN_ROWS)))
        .load(db)?;
    let pending: Vec<PendingRow> = pending.into_iter().map(PendingRow::from).collect();
    let fresh: Vec<FreshRow> = fresh.into_iter().map(FreshRow::from).collect();
    let asked = Asked {
        member: claim.member,
        now,
        max: claim.max,
        prefetch: claim.prefetch,
        pending_limit: PENDING_LIMIT,
    };
    let plan = plan(&pending, &fresh, asked);
    if plan.is_empty() {
        return Ok(Claimed::default());
    }
    write_plan(db, &plan, claim, now)?;
    let rows = load(db, &plan, claim.group)?;
    Ok(Claimed {
        rows,
        advanced: plan.cursor.is_some(),
        next_due: None,
    })
}

fn write_plan(db: &mut SqliteConnection, plan: &Plan, claim: Claim, now: i64) -> QueryResult<()> {
    let lease_end = now + micros(claim.visibility);
    if !plan.again.is_empty() {
        sql_query(include_str!("take_again.sql"))
            .bind::<BigInt, _>(claim.member)
            .bind::<BigInt, _>(lease_end)
            .bind::<BigInt, _>(claim.group)
            .bind::<Text, _>(array(&plan.again))
            .execute(db)?;
    }
    for (seqs, attempts, owner, visible_at) in [
        (&plan.fresh, 1, Some(claim.member), lease_end),
        (&plan.park, 0, None, 0),
    ] {
        if !seqs.is_empty() {
            sql_query(include_str!("take_fresh.sql"))
                .bind::<BigInt, _>(claim.group)
                .bind::<Integer, _>(attempts)
                .bind::<Nullable<BigInt>, _>(owner)
                .bind::<BigInt, _>(visible_at)
                .bind::<Text, _>(array(seqs))
                .execute(db)?;
        }
    }
    if let Some(cursor) = plan.cursor {
        sql_query("UPDATE outbox_queue_group SET read_to_seq = ?1 WHERE id = ?2")
            .bind::<BigInt, _>(cursor)
            .bind::<BigInt, _>(claim.group)
            .execute(db)?;
    }
    Ok(())
}

/// Reads what was taken. A row whose message is gone (deleted by hand) is dropped from the group.
fn load(db: &mut SqliteConnection, plan: &Plan, group: i64) -> QueryResult<Vec<ClaimedRow>> {
    let taken = plan.taken();
    let rows: Vec<ContentRow> = sql_query(include_str!("load.sql"))
        .bind::<BigInt, _>(group)
        .bind::<Text, _>(array(&taken))
        .load(db)?;
    if rows.len() < taken.len() {
        let lost = taken
            .into_iter()
            .filter(|seq| !rows.iter().any(|row| row.seq == *seq));
        for seq in lost {
            diesel::delete(pending::table.find((group, seq))).execute(db)?;
        }
    }
    Ok(rows.into_iter().map(ClaimedRow::from).collect())
}

/// Carries out one order if its lease still stands.
fn carry_out(db: &mut SqliteConnection, order: &Order, now: i64) -> QueryResult<bool> {
    let leased = || {
        pending::table
            .find((order.group, order.seq))
            .filter(pending::owner.eq(order.member))
            .filter(pending::attempts.eq(order.attempt))
            .filter(pending::visible_at.gt(now))
    };
    if let Action::Dead(reason) = &order.action {
        sql_query(include_str!("bury.sql"))
            .bind::<Text, _>(reason)
            .bind::<BigInt, _>(order.group)
            .bind::<BigInt, _>(order.seq)
            .bind::<BigInt, _>(order.member)
            .bind::<Integer, _>(order.attempt)
            .bind::<BigInt, _>(now)
            .execute(db)?;
    }
    let rows = match &order.action {
        Action::Ack | Action::Dead(_) => diesel::delete(leased()).execute(db)?,
        Action::Nack(delay) => diesel::update(leased())
            .set((
                pending::owner.eq(None::<i64>),
                pending::visible_at.eq(now + micros(*delay)),
            ))
            .execute(db)?,
        Action::Extend(visibility) => diesel::update(leased())
            .set(pending::visible_at.eq(now + micros(*visibility)))
            .execute(db)?,
    };
    Ok(rows > 0)
}

fn now(db: &mut SqliteConnection) -> QueryResult<i64> {
    sql_query(NOW).get_result::<Now>(db).map(|row| row.now)
}

fn array(seqs: &[i64]) -> String {
    serde_json::Value::from(seqs).to_string()
}
