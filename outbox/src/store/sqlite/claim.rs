//! Reads rows: one read transaction, so one snapshot, for late and new ones.

use diesel::prelude::*;

use super::tables::{HotRow, outbox};
use crate::record::{Claim, ClaimRequest, Position, Record};
use crate::store::decode::ranges;

/// A claim request that can move to another thread.
#[derive(Debug)]
pub(super) struct Read {
    shard: i16,
    above: Position,
    limit: usize,
    max_bytes: usize,
    missing: Vec<(Position, Position)>,
}

impl Read {
    pub(super) fn new(request: &ClaimRequest<'_>) -> Self {
        Self {
            shard: request.lease.shard.0,
            above: request.above,
            limit: request.limit.max(1),
            max_bytes: request.max_bytes,
            missing: ranges(request.missing.iter().copied()),
        }
    }

    pub(super) fn run(&self, connection: &mut SqliteConnection) -> QueryResult<Claim> {
        connection.transaction(|connection| {
            let mut records = Vec::new();
            for (first, last) in &self.missing {
                let late = outbox::table
                    .filter(outbox::shard.eq(self.shard).and(outbox::id.between(first, last)))
                    .order(outbox::id)
                    .select(HotRow::as_select())
                    .load_iter(connection)?;
                for row in late {
                    records.push(row?.record());
                }
            }
            let more = self.new_rows(connection, &mut records)?;
            Ok(Claim {
                records,
                horizon: None,
                more,
            })
        })
    }

    /// Appends rows above the position, at least one, until a limit is reached; says whether one was.
    fn new_rows(&self, connection: &mut SqliteConnection, records: &mut Vec<Record>) -> QueryResult<bool> {
        let limit = i64::try_from(self.limit).unwrap_or(i64::MAX);
        let rows = outbox::table
            .filter(outbox::shard.eq(self.shard).and(outbox::id.gt(self.above)))
            .order(outbox::id)
            .limit(limit)
            .select(HotRow::as_select())
            .load_iter(connection)?;
        let mut bytes = 0;
        let mut count = 0;
        for row in rows {
            let row = row?;
            bytes += row.payload.len();
            if count > 0 && bytes > self.max_bytes {
                return Ok(true);
            }
            records.push(row.record());
            count += 1;
        }
        Ok(count == self.limit)
    }
}
