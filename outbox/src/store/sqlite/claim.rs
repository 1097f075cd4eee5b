//! Reads rows: one read transaction, so one snapshot, for late and new ones.

use diesel::prelude::*;

use super::tables::{HotRow, outbox};
use crate::record::{Claim, ClaimRequest, Position, Record};

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
            missing: request.missing.to_vec(),
        }
    }

    pub(super) fn run(&self, connection: &mut SqliteConnection) -> QueryResult<Claim> {
        connection.transaction(|connection| {
            let mut claim = Claim::default();
            let mut bytes = 0;
            // Missing ranges lie at or below `above`: read in this order, rows come by position.
            let above = (self.above.saturating_add(1), Position::MAX);
            for range in self.missing.iter().copied().chain([above]) {
                if self.rows(connection, range, &mut claim.records, &mut bytes)? {
                    claim.more = true;
                    break;
                }
            }
            Ok(claim)
        })
    }

    /// Appends the rows of a range, at least one in all, until a limit is reached; says whether one was.
    fn rows(
        &self,
        connection: &mut SqliteConnection,
        (first, last): (Position, Position),
        records: &mut Vec<Record>,
        bytes: &mut usize,
    ) -> QueryResult<bool> {
        let room = i64::try_from(self.limit - records.len()).unwrap_or(i64::MAX);
        let rows = outbox::table
            .filter(outbox::shard.eq(self.shard).and(outbox::id.between(first, last)))
            .order(outbox::id)
            .limit(room)
            .select(HotRow::as_select())
            .load_iter(connection)?;
        for row in rows {
            let row = row?;
            *bytes += row.payload.len();
            if !records.is_empty() && *bytes > self.max_bytes {
                return Ok(true);
            }
            records.push(row.record());
        }
        Ok(records.len() >= self.limit)
    }
}
