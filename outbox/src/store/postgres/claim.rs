//! Reads rows: the horizon, then late and new rows in one statement, so in one snapshot.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use futures::{TryStreamExt, future};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::horizon;
use super::rows::{MESSAGE, record};
use crate::record::{Claim, ClaimRequest};

/// Columns of a claim's rows: the payload, and whether it is larger than fits.
const PAYLOAD: usize = 8;
const BEYOND: usize = 11;

/// Milliseconds between two questions for the open writers, while positions are missing. Chosen: it takes
/// 0.2 ms of the database, and until the next one a few hundred gaps gather at most.
const WRITERS_EVERY: u64 = 250;

/// How the bytes of a claim are kept in bounds. A payload that does not fit comes as NULL; it and what
/// follows is left to the next claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    /// No payload above `max_bytes / limit`: costs nothing, so it is tried first.
    EachRow,
    /// A running sum: costs a fifth of a claim of 1,000 rows of 300 bytes (measured with pgbench), so it
    /// serves where payloads are large.
    RunningSum,
}

/// When a claim asks for more than the plain read.
#[derive(Debug)]
pub(super) struct Pace {
    /// The last claim met a large payload: the next begins with the right bound.
    large: AtomicBool,
    begun: Instant,
    /// Milliseconds from `begun` until the writers are asked for again.
    writers_at: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            large: AtomicBool::new(false),
            begun: Instant::now(),
            writers_at: AtomicU64::new(0),
        }
    }
}

impl Pace {
    /// Whether it is time to ask which transactions write to the outbox.
    fn ask_for_writers(&self, request: &ClaimRequest<'_>) -> bool {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if request.missing.is_empty() || now < self.writers_at.load(Ordering::Relaxed) {
            return false;
        }
        self.writers_at
            .store(now.saturating_add(WRITERS_EVERY), Ordering::Relaxed);
        true
    }
}

/// New rows above `$2` and, with `late`, rows that appeared in missing ranges: one statement, so one
/// snapshot, and the lowest first where a limit cuts them off. No lock: one owner reads a shard.
fn rows(bound: Bound, late: bool) -> String {
    let new = format!("SELECT id, {MESSAGE} FROM outbox WHERE shard = $1 AND id > $2 ORDER BY id LIMIT $3");
    let rows = if late {
        format!(
            "(SELECT x.* FROM unnest($5::bigint[], $6::bigint[]) g (first, last) CROSS JOIN LATERAL \
               (SELECT id, {MESSAGE} FROM outbox WHERE shard = $1 AND id BETWEEN g.first AND g.last \
                ORDER BY id LIMIT $3) x \
             UNION ALL ({new})) ORDER BY id LIMIT $3"
        )
    } else {
        new
    };
    let fitting = |condition: &str| {
        let payload = format!("CASE WHEN {condition} THEN payload END AS payload");
        let columns = MESSAGE.replace("payload", &payload);
        format!("id, {columns}, payload IS NOT NULL AND NOT ({condition})")
    };
    match bound {
        Bound::EachRow => format!(
            "SELECT {} FROM ({rows}) r ORDER BY id",
            fitting("octet_length(payload) <= $4")
        ),
        Bound::RunningSum => format!(
            "SELECT {} FROM (SELECT *, coalesce(octet_length(payload), 0) AS size, \
             sum(coalesce(octet_length(payload), 0)) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) \
             AS bytes FROM ({rows}) r) r WHERE bytes - size <= $4 ORDER BY id",
            fitting("bytes <= $4 OR bytes = size")
        ),
    }
}

pub(super) async fn claim(client: &Client, pace: &Pace, request: &ClaimRequest<'_>) -> Result<Claim, Error> {
    let share = request.max_bytes / request.limit.max(1);
    if !pace.large.load(Ordering::Relaxed) {
        let read = read(client, Bound::EachRow, share, pace, request).await?;
        pace.large.store(read.cut, Ordering::Relaxed);
        if !read.claim.records.is_empty() || !read.cut {
            return Ok(read.claim);
        }
    }
    let read = read(client, Bound::RunningSum, request.max_bytes, pace, request).await?;
    pace.large
        .store(read.cut || read.largest > share, Ordering::Relaxed);
    Ok(read.claim)
}

struct Read {
    claim: Claim,
    /// Bytes of the largest payload.
    largest: usize,
    /// A row was left out because of its size.
    cut: bool,
}

async fn read(
    client: &Client,
    bound: Bound,
    bytes: usize,
    pace: &Pace,
    request: &ClaimRequest<'_>,
) -> Result<Read, Error> {
    let shard = request.lease.shard.0;
    let limit = i64::try_from(request.limit.max(1)).unwrap_or(i64::MAX);
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    let (first, last): (Vec<i64>, Vec<i64>) = request.missing.iter().copied().unzip();
    let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![
        (&shard, Type::INT2),
        (&request.above, Type::INT8),
        (&limit, Type::INT8),
        (&bytes, Type::INT8),
    ];
    if !first.is_empty() {
        parameters.push((&first, Type::INT8_ARRAY));
        parameters.push((&last, Type::INT8_ARRAY));
    }
    let statement = rows(bound, !first.is_empty());
    // Polled in this order, so sent in this order, in one flush.
    let (horizon, rows) = future::join(
        horizon::read(client, pace.ask_for_writers(request)),
        client.query_typed_raw(&statement, parameters),
    )
    .await;
    let mut read = Read {
        claim: Claim {
            records: Vec::with_capacity(request.limit.min(10_000)),
            horizon: horizon?,
            more: false,
        },
        largest: 0,
        cut: false,
    };
    let mut rows = std::pin::pin!(rows?);
    while let Some(row) = rows.try_next().await? {
        read.cut |= row.try_get::<_, Option<bool>>(BEYOND)?.unwrap_or(false);
        if read.cut {
            continue; // the rest of the rows is drained and read again by the next claim
        }
        let payload = row.try_get::<_, Option<&[u8]>>(PAYLOAD)?;
        read.largest = read.largest.max(payload.map_or(0, <[u8]>::len));
        read.claim.records.push(record(&row)?);
    }
    // A row that exceeds the bound alone hides the rows after it.
    read.claim.more =
        read.cut || read.claim.records.len() >= request.limit.max(1) || read.largest > request.max_bytes;
    Ok(read)
}
