//! Parked rows: what is due, what holds a key back, dead letters.
//!
//! Writes name one row each: a list of rows may be looked for by reading the whole table, and would wait there
//! for a producer that schedules a message.

use std::time::Duration;

use mysql_async::{Error, Row};

use super::lease::{guarded, held_row, micros};
use super::pool::Answer;
use super::rows::{self, MESSAGE, PARKED, number, required, take, text};
use crate::record::{Lease, Parked, ParkedSettlement, Shard};

pub(super) fn due(shard: Shard, limit: usize, skip_dead: bool) -> String {
    format!(
        "SELECT {PARKED}, {MESSAGE} FROM outbox_parked p \
         WHERE p.shard = {shard} AND p.state <> 2 AND p.next_attempt_at <= UTC_TIMESTAMP(6) \
         AND (p.`key` IS NULL OR NOT EXISTS (SELECT 1 FROM outbox_parked b \
           WHERE b.shard = p.shard AND b.`key` = p.`key` AND b.sequence < p.sequence AND b.state <> 0 \
           AND (b.state = 1 AND b.next_attempt_at > UTC_TIMESTAMP(6) OR b.state = 2 AND NOT {skip_dead}))) \
         ORDER BY p.sequence LIMIT {limit}"
    )
}

/// The earliest time of a row that no row of its key before it outlasts.
pub(super) fn next_due(shard: Shard, skip_dead: bool) -> String {
    format!(
        "SELECT TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), MIN(p.next_attempt_at)) \
         FROM outbox_parked p WHERE p.shard = {shard} AND p.state <> 2 \
         AND (p.`key` IS NULL OR NOT EXISTS (SELECT 1 FROM outbox_parked b \
           WHERE b.shard = p.shard AND b.`key` = p.`key` AND b.sequence < p.sequence AND b.state <> 0 \
           AND (b.state = 1 AND b.next_attempt_at > p.next_attempt_at OR b.state = 2 AND NOT {skip_dead})))"
    )
}

pub(super) fn wait(rows: &[Row]) -> Option<Duration> {
    let wait = number(rows.first()?, 0)?;
    Some(Duration::from_micros(u64::try_from(wait).unwrap_or(0)))
}

pub(super) fn blocked_keys(shard: Shard, skip_dead: bool) -> String {
    format!(
        "SELECT `key`, COUNT(*) FROM outbox_parked \
         WHERE shard = {shard} AND `key` IS NOT NULL AND state <> 0 AND (state = 1 OR NOT {skip_dead}) \
         GROUP BY `key`"
    )
}

/// A key that is no UTF-8 belongs to a row that is no message; it holds nothing back.
pub(super) fn keys(rows: Vec<Row>) -> Result<Vec<(String, u64)>, Error> {
    let mut keys = Vec::with_capacity(rows.len());
    for mut row in rows {
        let count = required(&row, 1)?.unsigned_abs();
        if let Some(key) = take(&mut row, 0).and_then(|key| String::from_utf8(key).ok()) {
            keys.push((key, count));
        }
    }
    Ok(keys)
}

/// A write to the one row `sequence`, found by the primary key.
fn one(sequence: i64, condition: &str) -> String {
    format!("WHERE sequence = {sequence} AND {condition} ORDER BY sequence LIMIT 1")
}

fn ours(lease: &Lease) -> String {
    format!("shard = {} AND EXISTS ({})", lease.shard, held_row(lease))
}

pub(super) fn begin_attempts(lease: &Lease, sequences: &[i64]) -> String {
    let ours = ours(lease);
    let statements: Vec<String> = sequences
        .iter()
        .map(|sequence| {
            format!(
                "UPDATE outbox_parked SET attempts = attempts + 1, last_error = NULL {}",
                one(*sequence, &ours)
            )
        })
        .collect();
    guarded(lease, &statements)
}

pub(super) fn settle(lease: &Lease, settlement: &ParkedSettlement) -> String {
    let ours = ours(lease);
    let published = settlement
        .published
        .iter()
        .map(|sequence| format!("DELETE FROM outbox_parked {}", one(*sequence, &ours)));
    let failed = settlement.failed.iter().map(|failure| {
        format!(
            "UPDATE outbox_parked SET state = {}, last_error = {}, \
             next_attempt_at = UTC_TIMESTAMP(6) + INTERVAL {} MICROSECOND {}",
            failure.state.code(),
            text(&failure.error),
            micros(failure.delay),
            one(failure.sequence, &ours)
        )
    });
    let statements: Vec<String> = published.chain(failed).collect();
    guarded(lease, &statements)
}

pub(super) fn dead(after: i64, limit: usize) -> String {
    format!(
        "SELECT {PARKED}, {MESSAGE} FROM outbox_parked WHERE state = 2 AND sequence > {after} \
         ORDER BY sequence LIMIT {limit}"
    )
}

pub(super) fn parked(rows: Vec<Row>) -> Result<Vec<Parked>, Error> {
    rows.into_iter().map(rows::parked).collect()
}

pub(super) fn redrive(sequences: &[i64]) -> String {
    each(
        "UPDATE outbox_parked SET state = 1, attempts = 0, next_attempt_at = UTC_TIMESTAMP(6)",
        sequences,
    )
}

pub(super) fn discard(sequences: &[i64]) -> String {
    each("DELETE FROM outbox_parked", sequences)
}

/// `statement` on dead rows, in one transaction.
fn each(statement: &str, sequences: &[i64]) -> String {
    let mut script = String::from("START TRANSACTION; ");
    for sequence in sequences {
        script += &format!("{statement} {}; ", one(*sequence, "state = 2"));
    }
    script + "COMMIT"
}

pub(super) fn affected<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> u64 {
    answers.into_iter().map(|answer| answer.affected).sum()
}
