//! Reads rows: the horizon, then late and new rows in one statement, so in one snapshot.

use futures::{TryStreamExt, future};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::rows::{MESSAGE, record};
use crate::record::{Claim, ClaimRequest};
use crate::store::decode::ranges;

/// Every transaction below this id has ended.
const HORIZON: &str = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint";

/// New rows, cut after `$4` bytes of payload. The row that exceeds it comes without payload and says that
/// there are more. No lock: one owner reads a shard.
fn new_rows() -> String {
    format!(
        "SELECT id, {columns} FROM ( \
           SELECT *, sum(octet_length(payload)) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) AS bytes FROM ( \
             SELECT id, {MESSAGE} FROM outbox WHERE shard = $1 AND id > $2 ORDER BY id LIMIT $3) r) r \
         WHERE bytes - octet_length(payload) <= $4",
        columns = MESSAGE.replace(
            "payload",
            "CASE WHEN bytes <= $4 OR bytes = octet_length(payload) THEN payload END AS payload"
        ),
    )
}

/// Rows that appeared in ranges of positions known to be missing.
fn late_rows() -> String {
    format!(
        "SELECT id, {MESSAGE} FROM unnest($5::bigint[], $6::bigint[]) g (first, last) \
         JOIN outbox ON shard = $1 AND id BETWEEN g.first AND g.last"
    )
}

pub(super) async fn claim(client: &Client, request: &ClaimRequest<'_>) -> Result<Claim, Error> {
    let shard = request.lease.shard.0;
    let limit = i64::try_from(request.limit.max(1)).unwrap_or(i64::MAX);
    let max_bytes = i64::try_from(request.max_bytes).unwrap_or(i64::MAX);
    let (first, last): (Vec<i64>, Vec<i64>) = ranges(request.missing.iter().copied()).into_iter().unzip();
    let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![
        (&shard, Type::INT2),
        (&request.above, Type::INT8),
        (&limit, Type::INT8),
        (&max_bytes, Type::INT8),
    ];
    let statement = if first.is_empty() {
        format!("{} ORDER BY id", new_rows())
    } else {
        parameters.push((&first, Type::INT8_ARRAY));
        parameters.push((&last, Type::INT8_ARRAY));
        format!("{} UNION ALL {} ORDER BY 1", new_rows(), late_rows())
    };
    // Polled in this order, so sent in this order, in one flush.
    let (horizon, rows) = future::join(
        client.query_typed_one(HORIZON, &[]),
        client.query_typed_raw(&statement, parameters),
    )
    .await;
    let horizon: i64 = horizon?.try_get(0)?;
    let mut rows = std::pin::pin!(rows?);
    let mut claim = Claim {
        records: Vec::with_capacity(request.limit.min(10_000)),
        horizon: u64::try_from(horizon).ok(),
        more: false,
    };
    let mut new = 0;
    while let Some(row) = rows.try_next().await? {
        let position: i64 = row.try_get(0)?;
        if position > request.above {
            new += 1;
            match row.try_get::<_, Option<&[u8]>>(8)? {
                None => {
                    claim.more = true;
                    continue;
                }
                // A row that exceeds the bound alone hides the rows after it.
                Some(payload) => claim.more |= payload.len() > request.max_bytes,
            }
        }
        claim.records.push(record(&row)?);
    }
    claim.more |= new == request.limit.max(1);
    Ok(claim)
}
