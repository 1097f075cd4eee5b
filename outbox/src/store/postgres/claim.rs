//! Reads rows: the horizon, then late and new rows in one statement, so in one snapshot.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::{TryStreamExt, future};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::rows::{MESSAGE, record};
use crate::record::{Claim, ClaimRequest};
use crate::store::decode::ranges;

/// Every transaction below this id has ended.
const HORIZON: &str = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint";

/// Column of the payload in a claim's rows.
const PAYLOAD: usize = 8;

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

/// Whether the last claim met a large payload, so that the next begins with the right bound.
#[derive(Debug, Default)]
pub(super) struct Large(AtomicBool);

/// New rows above `$2`. No lock: one owner reads a shard.
fn new_rows(bound: Bound) -> String {
    let rows = format!("SELECT id, {MESSAGE} FROM outbox WHERE shard = $1 AND id > $2 ORDER BY id LIMIT $3");
    let fitting = |condition: &str| {
        let payload = format!("CASE WHEN {condition} THEN payload END AS payload");
        format!("id, {}", MESSAGE.replace("payload", &payload))
    };
    match bound {
        Bound::EachRow => format!(
            "SELECT {} FROM ({rows}) r",
            fitting("octet_length(payload) <= $4")
        ),
        Bound::RunningSum => format!(
            "SELECT {} FROM (SELECT *, sum(octet_length(payload)) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) \
             AS bytes FROM ({rows}) r) r WHERE bytes - octet_length(payload) <= $4",
            fitting("bytes <= $4 OR bytes = octet_length(payload)")
        ),
    }
}

/// Rows that appeared in ranges of positions known to be missing.
fn late_rows() -> String {
    format!(
        "SELECT id, {MESSAGE} FROM unnest($5::bigint[], $6::bigint[]) g (first, last) \
         JOIN outbox ON shard = $1 AND id BETWEEN g.first AND g.last"
    )
}

pub(super) async fn claim(
    client: &Client,
    large: &Large,
    request: &ClaimRequest<'_>,
) -> Result<Claim, Error> {
    if !large.0.load(Ordering::Relaxed) {
        let share = request.max_bytes / request.limit.max(1);
        let read = read(client, Bound::EachRow, share, request).await?;
        large.0.store(read.cut, Ordering::Relaxed);
        if read.new > 0 || !read.cut {
            return Ok(read.claim);
        }
    }
    let read = read(client, Bound::RunningSum, request.max_bytes, request).await?;
    let share = request.max_bytes / request.limit.max(1);
    large.0.store(read.cut || read.largest > share, Ordering::Relaxed);
    Ok(read.claim)
}

struct Read {
    claim: Claim,
    /// Rows above the floor that are in the claim.
    new: usize,
    /// Bytes of the largest payload of these.
    largest: usize,
    /// A row was left out because of its size.
    cut: bool,
}

async fn read(
    client: &Client,
    bound: Bound,
    bytes: usize,
    request: &ClaimRequest<'_>,
) -> Result<Read, Error> {
    let shard = request.lease.shard.0;
    let limit = i64::try_from(request.limit.max(1)).unwrap_or(i64::MAX);
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    let (first, last): (Vec<i64>, Vec<i64>) = ranges(request.missing.iter().copied()).into_iter().unzip();
    let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![
        (&shard, Type::INT2),
        (&request.above, Type::INT8),
        (&limit, Type::INT8),
        (&bytes, Type::INT8),
    ];
    let statement = if first.is_empty() {
        format!("{} ORDER BY id", new_rows(bound))
    } else {
        parameters.push((&first, Type::INT8_ARRAY));
        parameters.push((&last, Type::INT8_ARRAY));
        format!("{} UNION ALL {} ORDER BY 1", new_rows(bound), late_rows())
    };
    // Polled in this order, so sent in this order, in one flush.
    let (horizon, rows) = future::join(
        client.query_typed_one(HORIZON, &[]),
        client.query_typed_raw(&statement, parameters),
    )
    .await;
    let horizon: i64 = horizon?.try_get(0)?;
    let mut rows = std::pin::pin!(rows?);
    let mut read = Read {
        claim: Claim {
            records: Vec::with_capacity(request.limit.min(10_000)),
            horizon: u64::try_from(horizon).ok(),
            more: false,
        },
        new: 0,
        largest: 0,
        cut: false,
    };
    while let Some(row) = rows.try_next().await? {
        let position: i64 = row.try_get(0)?;
        if position > request.above {
            match row.try_get::<_, Option<&[u8]>>(PAYLOAD)? {
                Some(payload) if !read.cut => {
                    read.new += 1;
                    read.largest = read.largest.max(payload.len());
                }
                _ => {
                    read.cut = true; // the rest of the rows is drained and read again by the next claim
                    continue;
                }
            }
        }
        read.claim.records.push(record(&row)?);
    }
    // A row that exceeds the bound alone hides the rows after it.
    read.claim.more = read.cut || read.new == request.limit.max(1) || read.largest > request.max_bytes;
    Ok(read)
}
