//! Deletes published rows and moves failed ones to the parked table.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, SmallInt, Text};

use super::Refused;
use super::tables::{NOW, outbox};
use crate::record::{Park, Position, Shard};
use crate::store::decode::ranges;

/// Rows deleted in one write transaction. Measured (relay measurements, §9.2): 1,000 keep the writer's lock
/// below 3 ms.
pub(super) const DELETES: usize = 1_000;

/// Ranges above which a list of ids is cheaper than one statement a range. Chosen.
const RANGES: usize = 8;

pub(super) fn delete(
    connection: &mut SqliteConnection,
    shard: Shard,
    published: &[Position],
) -> Result<u64, Refused> {
    // Neighbours that were all published: nothing else can be between them.
    let ranges = ranges(published.iter().copied());
    if ranges.len() > RANGES {
        let rows = diesel::delete(outbox::table)
            .filter(outbox::shard.eq(shard.0).and(outbox::id.eq_any(published)))
            .execute(connection)?;
        return Ok(rows as u64);
    }
    let mut rows = 0;
    for (first, last) in ranges {
        rows += diesel::delete(outbox::table)
            .filter(outbox::shard.eq(shard.0).and(outbox::id.between(first, last)))
            .execute(connection)?;
    }
    Ok(rows as u64)
}

/// Moves rows in the order given; rows that are gone are skipped.
pub(super) fn park(connection: &mut SqliteConnection, shard: Shard, park: &[Park]) -> Result<u64, Refused> {
    let insert = format!(
        "INSERT INTO outbox_parked (shard, state, attempts, next_attempt_at, last_error, msg_id, topic, key, \
         type, source, content_type, headers, payload, created_at, expires_at) \
         SELECT shard, ?3, ?4, {NOW} + ?5, ?6, msg_id, topic, key, type, source, content_type, headers, \
         payload, created_at, expires_at FROM outbox WHERE shard = ?1 AND id = ?2"
    );
    let mut rows = 0;
    for one in park {
        let moved = diesel::sql_query(&insert)
            .bind::<SmallInt, _>(shard.0)
            .bind::<BigInt, _>(one.position)
            .bind::<SmallInt, _>(one.state.code())
            .bind::<Integer, _>(i32::try_from(one.attempts).unwrap_or(i32::MAX))
            .bind::<BigInt, _>(super::micros(one.delay))
            .bind::<Nullable<Text>, _>(one.error.as_deref())
            .execute(connection)?;
        if moved > 0 {
            diesel::delete(outbox::table)
                .filter(outbox::shard.eq(shard.0).and(outbox::id.eq(one.position)))
                .execute(connection)?;
            rows += 1;
        }
    }
    Ok(rows)
}
