//! Leases: acquire, renew, release, guard. All times by the database's clock.

use std::time::Duration;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row};

use super::rows;
use crate::ErrorKind;
use crate::record::{Lease, Owner, Shard};
use crate::store::{LeaseState, Renewed, Settled};

/// SKIP LOCKED: two relays that look at once share the free shards instead of waiting for each other.
const ACQUIRE: &str = "\
    WITH free AS (SELECT shard, owner IS NOT NULL AS after_expiry FROM outbox_lease \
      WHERE expires_at < clock_timestamp() ORDER BY shard LIMIT $3 FOR UPDATE SKIP LOCKED) \
    UPDATE outbox_lease l SET owner = $1::text::uuid, epoch = l.epoch + 1, \
      expires_at = clock_timestamp() + $2 * interval '1 microsecond' \
    FROM free WHERE l.shard = free.shard RETURNING l.shard, l.epoch, free.after_expiry";

const RENEW: &str = "\
    UPDATE outbox_lease l SET expires_at = clock_timestamp() + $4 * interval '1 microsecond' \
    FROM unnest($1::smallint[], $2::text[], $3::bigint[]) h (shard, owner, epoch) \
    WHERE l.shard = h.shard AND l.owner = h.owner::uuid AND l.epoch = h.epoch \
      AND l.expires_at > clock_timestamp() RETURNING l.shard, l.epoch";

const RELEASE: &str = "\
    UPDATE outbox_lease l SET owner = NULL, expires_at = '-infinity' \
    FROM unnest($1::smallint[], $2::text[], $3::bigint[]) h (shard, owner, epoch) \
    WHERE l.shard = h.shard AND l.owner = h.owner::uuid AND l.epoch = h.epoch";

const STATES: &str = "\
    SELECT shard, owner, epoch, CASE WHEN expires_at > clock_timestamp() \
      THEN (extract(epoch FROM expires_at - clock_timestamp()) * 1000000)::bigint END \
    FROM outbox_lease ORDER BY shard";

/// What a write guarded by a lease did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guarded {
    /// Whether the lease was still the newest of its shard; if not, nothing was changed.
    pub(super) held: bool,
    pub(super) settled: Settled,
}

impl Guarded {
    /// From the columns rows, held, transaction id.
    pub(super) fn from_row(row: &Row) -> Result<Self, Error> {
        let bound: i64 = row.try_get(2)?;
        Ok(Self {
            held: row.try_get(1)?,
            settled: Settled {
                rows: row.try_get::<_, i64>(0)?.unsigned_abs(),
                bound: u64::try_from(bound).ok(),
            },
        })
    }
}

pub(super) fn held(operation: &'static str, guarded: Guarded) -> Result<Settled, crate::Error> {
    if guarded.held {
        return Ok(guarded.settled);
    }
    Err(crate::Error::new(
        ErrorKind::LeaseLost,
        operation,
        "the shard has another owner; nothing was changed",
    ))
}

/// A duration as microseconds, capped at 31 years so that adding it to a time cannot overflow.
pub(super) fn micros(duration: Duration) -> i64 {
    const CAP: i64 = 1_000_000_000_000_000;
    i64::try_from(duration.as_micros()).unwrap_or(CAP).min(CAP)
}

pub(super) async fn acquire(
    client: &Client,
    owner: Owner,
    want: usize,
    ttl: Duration,
) -> Result<Vec<Lease>, Error> {
    let rows = client
        .query_typed(
            ACQUIRE,
            &[
                (&owner.to_string(), Type::TEXT),
                (&micros(ttl), Type::INT8),
                (&i64::try_from(want).unwrap_or(i64::MAX), Type::INT8),
            ],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Lease {
                shard: Shard(row.try_get(0)?),
                owner,
                epoch: row.try_get(1)?,
                after_expiry: row.try_get(2)?,
            })
        })
        .collect()
}

fn columns(leases: &[Lease]) -> (Vec<i16>, Vec<String>, Vec<i64>) {
    let each = || leases.iter();
    (
        each().map(|lease| lease.shard.0).collect(),
        each().map(|lease| lease.owner.to_string()).collect(),
        each().map(|lease| lease.epoch).collect(),
    )
}

pub(super) async fn renew(client: &Client, leases: &[Lease], ttl: Duration) -> Result<Vec<Renewed>, Error> {
    let (shards, owners, epochs) = columns(leases);
    let rows = client
        .query_typed(
            RENEW,
            &[
                (&shards, Type::INT2_ARRAY),
                (&owners, Type::TEXT_ARRAY),
                (&epochs, Type::INT8_ARRAY),
                (&micros(ttl), Type::INT8),
            ],
        )
        .await?;
    let held: Vec<(i16, i64)> = rows
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, Error>>()?;
    Ok(leases
        .iter()
        .map(|lease| match held.contains(&(lease.shard.0, lease.epoch)) {
            true => Renewed::Held,
            false => Renewed::Lost,
        })
        .collect())
}

pub(super) async fn release(client: &Client, leases: &[Lease]) -> Result<(), Error> {
    let (shards, owners, epochs) = columns(leases);
    client
        .query_typed(
            RELEASE,
            &[
                (&shards, Type::INT2_ARRAY),
                (&owners, Type::TEXT_ARRAY),
                (&epochs, Type::INT8_ARRAY),
            ],
        )
        .await
        .map(|_| ())
}

pub(super) async fn states(client: &Client) -> Result<Vec<LeaseState>, Error> {
    let rows = client.query_typed(STATES, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(LeaseState {
                shard: Shard(row.try_get(0)?),
                owner: rows::uuid(row, 1)?.map(Owner),
                epoch: row.try_get(2)?,
                remaining: row
                    .try_get::<_, Option<i64>>(3)?
                    .map(|micros| Duration::from_micros(micros.unsigned_abs())),
            })
        })
        .collect()
}
