//! Reads rows: late and new ones in one statement, so in one snapshot; no lock.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Error, Row, Value};

use super::rows::{self, MESSAGE, PAYLOAD, record};
use crate::record::{Claim, ClaimRequest, Position, Shard};
use crate::store::decode::ranges;

/// Missing ranges asked for one by one. Beyond it the rows between the first and the last are looked up
/// first, in the same snapshot. Chosen: the server plans each range anew in every claim, some microseconds.
const MOST_RANGES: usize = 200;

/// Whether the last claim met a large payload, so that the next begins by asking for sizes.
#[derive(Debug, Default)]
pub(super) struct Large(AtomicBool);

/// What is read: the rows of some ranges, by position, up to the limit.
struct Reading {
    shard: Shard,
    /// Ascending; the last is that of the new rows.
    ranges: Vec<(Position, Position)>,
    limit: usize,
    max_bytes: usize,
}

impl Reading {
    fn rows(&self, columns: &str, last: Position) -> String {
        let mut wanted = String::new();
        for (first, last) in &self.ranges {
            let or = if wanted.is_empty() { "" } else { " OR " };
            let _ = write!(wanted, "{or}id BETWEEN {first} AND {last}"); // a String takes everything
        }
        let bound = match last {
            Position::MAX => String::new(),
            last => format!(" AND id <= {last}"),
        };
        format!(
            "SELECT id, {columns} FROM outbox FORCE INDEX (PRIMARY) WHERE shard = {} AND ({wanted}){bound} \
             ORDER BY id LIMIT {}",
            self.shard, self.limit
        )
    }
}

pub(super) async fn claim(
    connection: &mut Conn,
    large: &Large,
    request: &ClaimRequest<'_>,
) -> Result<Claim, Error> {
    let mut reading = Reading {
        shard: request.lease.shard,
        ranges: Vec::with_capacity(request.missing.len().min(MOST_RANGES) + 1),
        limit: request.limit.max(1),
        max_bytes: request.max_bytes,
    };
    let new = (request.above.saturating_add(1), Position::MAX);
    if request.missing.len() <= MOST_RANGES {
        reading.ranges.extend(request.missing);
        reading.ranges.push(new);
        return read_fitting(connection, large, &reading).await;
    }
    let claim = async {
        reading.ranges = begin_with_late(connection, request).await?;
        reading.ranges.push(new);
        read_fitting(connection, large, &reading).await
    }
    .await;
    connection.query_drop("ROLLBACK").await?;
    claim
}

/// Begins a transaction with one snapshot for all its reads and returns where the missing ranges have rows.
async fn begin_with_late(
    connection: &mut Conn,
    request: &ClaimRequest<'_>,
) -> Result<Vec<(Position, Position)>, Error> {
    let (Some((first, _)), Some((_, last))) = (request.missing.first(), request.missing.last()) else {
        return Ok(Vec::new());
    };
    // For the next transaction only.
    connection
        .query_drop(
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
        )
        .await?;
    let rows: Vec<Row> = connection
        .query(format!(
            "SELECT id FROM outbox FORCE INDEX (PRIMARY) WHERE shard = {} AND id BETWEEN {first} AND {last}",
            request.lease.shard
        ))
        .await?;
    let mut late = Vec::new();
    for row in &rows {
        let position = rows::required(row, 0)?;
        let before = request.missing.partition_point(|(_, last)| *last < position);
        if request
            .missing
            .get(before)
            .is_some_and(|(first, _)| *first <= position)
        {
            late.push(position);
        }
    }
    Ok(ranges(late))
}

/// A claim costs one question while no payload exceeds `max_bytes / limit`. Where payloads are large a
/// question for their sizes goes before it, so that no byte is read twice.
async fn read_fitting(connection: &mut Conn, large: &Large, reading: &Reading) -> Result<Claim, Error> {
    let share = reading.max_bytes / reading.limit;
    if !large.0.load(Ordering::Relaxed) {
        let read = read(connection, reading, Position::MAX, Some(share)).await?;
        large.0.store(read.cut, Ordering::Relaxed);
        if !read.claim.records.is_empty() || !read.cut {
            return Ok(read.claim);
        }
    }
    let (last, cut) = fitting(connection, reading).await?;
    let mut read = read(connection, reading, last, None).await?;
    large.0.store(cut || read.largest > share, Ordering::Relaxed);
    read.claim.more |= cut;
    Ok(read.claim)
}

/// The position up to which payloads fit, at least one row, and whether there are rows behind it.
async fn fitting(connection: &mut Conn, reading: &Reading) -> Result<(Position, bool), Error> {
    let sizes: Vec<Row> = connection
        .query(reading.rows("LENGTH(payload)", Position::MAX))
        .await?;
    let mut bytes = 0;
    let mut fits = None;
    for row in &sizes {
        let position = rows::required(row, 0)?;
        bytes += usize::try_from(rows::required(row, 1)?).unwrap_or(usize::MAX / 2);
        if let Some(last) = fits.filter(|_| bytes > reading.max_bytes) {
            return Ok((last, true));
        }
        fits = Some(position);
    }
    Ok((fits.unwrap_or(Position::MAX), false))
}

struct Read {
    claim: Claim,
    /// Bytes of the largest payload.
    largest: usize,
    /// A row was left out because of its size.
    cut: bool,
}

/// Reads up to position `last`. A payload above `payload_bytes` comes as NULL; it and what follows is left to
/// the next claim.
async fn read(
    connection: &mut Conn,
    reading: &Reading,
    last: Position,
    payload_bytes: Option<usize>,
) -> Result<Read, Error> {
    let columns = match payload_bytes {
        None => MESSAGE.to_owned(),
        Some(bytes) => MESSAGE.replace(
            "payload",
            &format!("IF(LENGTH(payload) <= {bytes}, payload, NULL)"),
        ),
    };
    let mut read = Read {
        claim: Claim {
            records: Vec::with_capacity(reading.limit.min(10_000)),
            horizon: None,
            more: false,
        },
        largest: 0,
        cut: false,
    };
    let mut failed = None;
    let mut result = connection.query_iter(reading.rows(&columns, last)).await?;
    result
        .for_each(|mut row| {
            if let Err(error) = read.take(&mut row) {
                failed = Some(error);
            }
        })
        .await?;
    if let Some(error) = failed {
        return Err(error);
    }
    // A row that exceeds the bound alone hides the rows after it.
    read.claim.more =
        read.cut || read.claim.records.len() >= reading.limit || read.largest > reading.max_bytes;
    Ok(read)
}

impl Read {
    /// Adds a row unless one was left out before it: the rest is drained and read again by the next claim.
    fn take(&mut self, row: &mut Row) -> Result<(), Error> {
        match row.as_ref(1 + PAYLOAD) {
            Some(Value::Bytes(payload)) if !self.cut => self.largest = self.largest.max(payload.len()),
            _ => {
                self.cut = true;
                return Ok(());
            }
        }
        self.claim.records.push(record(row)?);
        Ok(())
    }
}

/// Positions of a range that have a row, committed or not.
pub(super) fn present(shard: Shard, first: Position, last: Position) -> String {
    // For the next transaction only, which is the SELECT. A dirty read waits for nobody.
    format!(
        "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED; \
         SELECT id FROM outbox FORCE INDEX (PRIMARY) WHERE shard = {shard} AND id BETWEEN {first} AND {last}"
    )
}
