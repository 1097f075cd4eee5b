//! Parked rows: what is due, what holds a key back, dead letters.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, SmallInt, Text};

use super::tables::{NOW, ParkedRow};
use super::{Refused, micros};
use crate::record::{Parked, ParkedSettlement, Shard};

const COLUMNS: &str = "p.sequence, p.state, p.attempts, p.last_error, p.msg_id, p.topic, p.key, p.type, \
     p.source, p.content_type, p.headers, p.payload, p.created_at, p.available_at, p.expires_at";

pub(super) fn due(
    connection: &mut SqliteConnection,
    shard: Shard,
    limit: usize,
    skip_dead: bool,
) -> QueryResult<Vec<Parked>> {
    let rows: Vec<ParkedRow> = diesel::sql_query(format!(
        "SELECT {COLUMNS} FROM outbox_parked p \
         WHERE p.shard = ?1 AND p.state <> 2 AND p.next_attempt_at <= {NOW} \
         AND (p.key IS NULL OR NOT EXISTS (SELECT 1 FROM outbox_parked b \
           WHERE b.shard = p.shard AND b.key = p.key AND b.sequence < p.sequence AND b.state <> 0 \
           AND (b.state = 1 AND b.next_attempt_at > {NOW} OR b.state = 2 AND NOT ?3))) \
         ORDER BY p.sequence LIMIT ?2"
    ))
    .bind::<SmallInt, _>(shard.0)
    .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
    .bind::<Bool, _>(skip_dead)
    .load(connection)?;
    Ok(rows.into_iter().map(ParkedRow::parked).collect())
}

/// The earliest time of a row that no row of its key before it outlasts. A row behind a later retry is due
/// with that one.
pub(super) fn next_due(
    connection: &mut SqliteConnection,
    shard: Shard,
    skip_dead: bool,
) -> QueryResult<Option<Duration>> {
    #[derive(QueryableByName)]
    struct Next {
        #[diesel(sql_type = Nullable<BigInt>)]
        wait: Option<i64>,
    }
    let next: Next = diesel::sql_query(format!(
        "SELECT min(p.next_attempt_at) - {NOW} AS wait FROM outbox_parked p \
         WHERE p.shard = ?1 AND p.state <> 2 \
         AND (p.key IS NULL OR NOT EXISTS (SELECT 1 FROM outbox_parked b \
           WHERE b.shard = p.shard AND b.key = p.key AND b.sequence < p.sequence AND b.state <> 0 \
           AND (b.state = 1 AND b.next_attempt_at > p.next_attempt_at OR b.state = 2 AND NOT ?2)))"
    ))
    .bind::<SmallInt, _>(shard.0)
    .bind::<Bool, _>(skip_dead)
    .get_result(connection)?;
    Ok(next
        .wait
        .map(|wait| Duration::from_micros(u64::try_from(wait).unwrap_or(0))))
}

pub(super) fn blocked_keys(
    connection: &mut SqliteConnection,
    shard: Shard,
    skip_dead: bool,
) -> QueryResult<Vec<(String, u64)>> {
    #[derive(QueryableByName)]
    struct Blocked {
        #[diesel(sql_type = Text)]
        key: String,
        #[diesel(sql_type = BigInt)]
        rows: i64,
    }
    let rows: Vec<Blocked> = diesel::sql_query(
        "SELECT key, count(*) AS rows FROM outbox_parked \
         WHERE shard = ?1 AND key IS NOT NULL AND state <> 0 AND (state = 1 OR NOT ?2) GROUP BY key",
    )
    .bind::<SmallInt, _>(shard.0)
    .bind::<Bool, _>(skip_dead)
    .load(connection)?;
    Ok(rows
        .into_iter()
        .map(|row| (row.key, row.rows.unsigned_abs()))
        .collect())
}

pub(super) fn begin_attempts(
    connection: &mut SqliteConnection,
    shard: Shard,
    sequences: &[i64],
) -> Result<(), Refused> {
    for sequence in sequences {
        diesel::sql_query(
            "UPDATE outbox_parked SET attempts = attempts + 1, last_error = NULL WHERE shard = ?1 AND sequence = ?2",
        )
        .bind::<SmallInt, _>(shard.0)
        .bind::<BigInt, _>(*sequence)
        .execute(connection)?;
    }
    Ok(())
}

pub(super) fn settle(
    connection: &mut SqliteConnection,
    shard: Shard,
    settlement: &ParkedSettlement,
) -> Result<u64, Refused> {
    let mut rows = 0;
    for sequence in &settlement.published {
        rows += diesel::sql_query("DELETE FROM outbox_parked WHERE shard = ?1 AND sequence = ?2")
            .bind::<SmallInt, _>(shard.0)
            .bind::<BigInt, _>(*sequence)
            .execute(connection)?;
    }
    let update = format!(
        "UPDATE outbox_parked SET state = ?3, next_attempt_at = {NOW} + ?4, last_error = ?5 \
         WHERE shard = ?1 AND sequence = ?2"
    );
    for failure in &settlement.failed {
        rows += diesel::sql_query(&update)
            .bind::<SmallInt, _>(shard.0)
            .bind::<BigInt, _>(failure.sequence)
            .bind::<SmallInt, _>(failure.state.code())
            .bind::<BigInt, _>(micros(failure.delay))
            .bind::<Text, _>(&failure.error)
            .execute(connection)?;
    }
    Ok(rows as u64)
}

pub(super) fn dead(connection: &mut SqliteConnection, after: i64, limit: usize) -> QueryResult<Vec<Parked>> {
    let rows: Vec<ParkedRow> = diesel::sql_query(format!(
        "SELECT {COLUMNS} FROM outbox_parked p WHERE p.state = 2 AND p.sequence > ?1 ORDER BY p.sequence LIMIT ?2"
    ))
    .bind::<BigInt, _>(after)
    .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
    .load(connection)?;
    Ok(rows.into_iter().map(ParkedRow::parked).collect())
}

pub(super) fn redrive(connection: &mut SqliteConnection, sequences: &[i64]) -> Result<u64, Refused> {
    each(
        connection,
        sequences,
        &format!(
            "UPDATE outbox_parked SET state = 1, attempts = 0, next_attempt_at = {NOW} \
             WHERE state = 2 AND sequence = ?1"
        ),
    )
}

pub(super) fn discard(connection: &mut SqliteConnection, sequences: &[i64]) -> Result<u64, Refused> {
    each(
        connection,
        sequences,
        "DELETE FROM outbox_parked WHERE state = 2 AND sequence = ?1",
    )
}

fn each(connection: &mut SqliteConnection, sequences: &[i64], statement: &str) -> Result<u64, Refused> {
    let mut rows = 0;
    for sequence in sequences {
        rows += diesel::sql_query(statement)
            .bind::<BigInt, _>(*sequence)
            .execute(connection)?;
    }
    Ok(rows as u64)
}
