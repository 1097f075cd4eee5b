//! Deletes published rows and moves failed ones to the parked table, in one transaction and one flush.
//!
//! # Locks
//! A locking read of a range looks one row beyond its end, and waits there if a producer's transaction holds
//! that row: at the tail of the table that is the usual case. `ORDER BY … LIMIT` with the number of rows in
//! the range ends the read before it. If some of them are gone already (an earlier settle whose answer was
//! lost) the limit does not end it in time; then those that are there are looked up first, without locks.

use mysql_async::Error;

use super::lease::{guarded, held_row, micros};
use super::pool::{Answer, Session};
use super::rows::{required, text};
use crate::record::{Lease, Park, Position, Settlement, Shard};
use crate::store::decode::ranges;

/// Statements of one settlement, and which of them count rows.
pub(super) struct Script {
    pub(super) text: String,
    counted: Vec<bool>,
}

impl Script {
    fn new(lease: &Lease, park: &[Park], published: &[Position]) -> Self {
        let mut statements = Vec::with_capacity(park.len() * 2 + 1);
        let mut counted = Vec::with_capacity(park.len() * 2 + 1);
        for one in park {
            statements.push(moved(lease, one));
            counted.push(true);
            statements.push(delete(lease, one.position, one.position));
            counted.push(false);
        }
        for (first, last) in ranges(published.iter().copied()) {
            statements.push(delete(lease, first, last));
            counted.push(true);
        }
        Self {
            text: guarded(lease, &statements),
            counted,
        }
    }

    /// Rows that were there.
    pub(super) fn rows<'a>(&self, answers: impl Iterator<Item = &'a Answer>) -> u64 {
        answers
            .zip(&self.counted)
            .filter(|(_, counted)| **counted)
            .map(|(answer, _)| answer.affected)
            .sum()
    }
}

/// The range holds published rows only: its ends and every position between were confirmed.
fn delete(lease: &Lease, first: Position, last: Position) -> String {
    format!(
        "DELETE FROM outbox WHERE shard = {} AND id BETWEEN {first} AND {last} AND EXISTS ({}) \
         ORDER BY shard, id LIMIT {}",
        lease.shard,
        held_row(lease),
        last.abs_diff(first).saturating_add(1)
    )
}

/// Copies a row to the parked table. One statement a row keeps the order given.
fn moved(lease: &Lease, park: &Park) -> String {
    let error = park.error.as_deref().map_or_else(|| "NULL".to_owned(), text);
    format!(
        "INSERT INTO outbox_parked (shard, state, attempts, next_attempt_at, last_error, msg_id, topic, `key`, \
         type, source, content_type, headers, payload, created_at, expires_at) \
         SELECT shard, {}, {}, UTC_TIMESTAMP(6) + INTERVAL {} MICROSECOND, {error}, msg_id, topic, `key`, type, \
         source, content_type, headers, payload, created_at, expires_at FROM outbox FORCE INDEX (PRIMARY) \
         WHERE shard = {} AND id = {} AND EXISTS ({})",
        park.state.code(),
        i32::try_from(park.attempts).unwrap_or(i32::MAX),
        micros(park.delay),
        lease.shard,
        park.position,
        held_row(lease)
    )
}

/// The script of a settlement of which every row is believed to be there.
pub(super) fn script(lease: &Lease, settlement: &Settlement) -> Script {
    Script::new(lease, &settlement.park, &settlement.published)
}

/// The script of the rows of a settlement that are there, looked up without a lock.
pub(super) async fn script_of_present(
    session: &mut Session,
    lease: &Lease,
    settlement: &Settlement,
) -> Result<Result<Script, Error>, crate::Error> {
    let parks = settlement.park.iter().map(|park| park.position);
    let wanted = ranges(settlement.published.iter().copied().chain(parks));
    let answers = match session.run(&present(lease.shard, &wanted)).await? {
        Ok(answers) => answers,
        Err(error) => return Ok(Err(error)),
    };
    let rows = answers
        .first()
        .map(|answer| answer.rows.as_slice())
        .unwrap_or_default();
    let present: Result<std::collections::HashSet<Position>, Error> =
        rows.iter().map(|row| required(row, 0)).collect();
    Ok(present.map(|present| {
        let park: Vec<Park> = settlement
            .park
            .iter()
            .filter(|park| present.contains(&park.position))
            .cloned()
            .collect();
        let published: Vec<Position> = settlement
            .published
            .iter()
            .copied()
            .filter(|position| present.contains(position))
            .collect();
        Script::new(lease, &park, &published)
    }))
}

fn present(shard: Shard, wanted: &[(Position, Position)]) -> String {
    let wanted: Vec<String> = wanted
        .iter()
        .map(|(first, last)| format!("id BETWEEN {first} AND {last}"))
        .collect();
    let wanted = if wanted.is_empty() {
        "FALSE".to_owned()
    } else {
        wanted.join(" OR ")
    };
    format!("SELECT id FROM outbox FORCE INDEX (PRIMARY) WHERE shard = {shard} AND ({wanted})")
}
