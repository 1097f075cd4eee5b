//! Parked rows: what is due, what holds a key back, dead letters.

use std::time::Duration;

use futures::future;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row};

use super::lease::{Guarded, micros};
use super::rows::{self, MESSAGE, PARKED};
use crate::record::{Lease, Parked, ParkedSettlement, Shard};

/// The lease is locked: a takeover waits for this commit or refuses this write.
const GUARD: &str = "l AS MATERIALIZED (SELECT FROM outbox_lease \
     WHERE shard = $1 AND owner = $2::text::uuid AND epoch = $3 FOR SHARE)";

const NEXT_DUE: &str = "\
    SELECT (extract(epoch FROM min(p.next_attempt_at) - clock_timestamp()) * 1000000)::bigint \
    FROM outbox_parked p WHERE p.shard = $1 AND p.state <> 2 AND isfinite(p.next_attempt_at) \
    AND (p.key IS NULL OR NOT EXISTS (SELECT FROM outbox_parked b \
      WHERE b.shard = p.shard AND b.key = p.key AND b.sequence < p.sequence AND b.state <> 0 \
      AND (b.state = 1 AND b.next_attempt_at > p.next_attempt_at OR b.state = 2 AND NOT $2)))";

const BLOCKED_KEYS: &str = "\
    SELECT key, count(*) FROM outbox_parked \
    WHERE shard = $1 AND key IS NOT NULL AND state <> 0 AND (state = 1 OR NOT $2) GROUP BY key";

const REDRIVE: &str = "\
    WITH u AS (UPDATE outbox_parked SET state = 1, attempts = 0, next_attempt_at = clock_timestamp() \
      WHERE state = 2 AND sequence = ANY($1) RETURNING 1) SELECT count(*) FROM u";

const DISCARD: &str = "\
    WITH d AS (DELETE FROM outbox_parked WHERE state = 2 AND sequence = ANY($1) RETURNING 1) \
    SELECT count(*) FROM d";

pub(super) async fn due(
    client: &Client,
    shard: Shard,
    limit: usize,
    skip_dead: bool,
) -> Result<Vec<Parked>, Error> {
    let statement = format!(
        "SELECT {PARKED}, {MESSAGE} FROM outbox_parked p \
         WHERE p.shard = $1 AND p.state <> 2 AND p.next_attempt_at <= clock_timestamp() \
         AND (p.key IS NULL OR NOT EXISTS (SELECT FROM outbox_parked b \
           WHERE b.shard = p.shard AND b.key = p.key AND b.sequence < p.sequence AND b.state <> 0 \
           AND (b.state = 1 AND b.next_attempt_at > clock_timestamp() OR b.state = 2 AND NOT $3))) \
         ORDER BY p.sequence LIMIT $2"
    );
    let rows = client
        .query_typed(
            &statement,
            &[
                (&shard.0, Type::INT2),
                (&count(limit), Type::INT8),
                (&skip_dead, Type::BOOL),
            ],
        )
        .await?;
    rows.iter().map(rows::parked).collect()
}

pub(super) async fn next_due(
    client: &Client,
    shard: Shard,
    skip_dead: bool,
) -> Result<Option<Duration>, Error> {
    let row = client
        .query_typed_one(NEXT_DUE, &[(&shard.0, Type::INT2), (&skip_dead, Type::BOOL)])
        .await?;
    let wait: Option<i64> = row.try_get(0)?;
    Ok(wait.map(|wait| Duration::from_micros(u64::try_from(wait).unwrap_or(0))))
}

pub(super) async fn blocked_keys(
    client: &Client,
    shard: Shard,
    skip_dead: bool,
) -> Result<Vec<(String, u64)>, Error> {
    let rows = client
        .query_typed(BLOCKED_KEYS, &[(&shard.0, Type::INT2), (&skip_dead, Type::BOOL)])
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get::<_, i64>(1)?.unsigned_abs())))
        .collect()
}

pub(super) async fn begin_attempts(
    client: &Client,
    begin: &str,
    lease: &Lease,
    sequences: &[i64],
) -> Result<Guarded, Error> {
    let statement = format!(
        "WITH {GUARD}, u AS (UPDATE outbox_parked SET attempts = attempts + 1, last_error = NULL \
           WHERE shard = $1 AND sequence = ANY($4) AND EXISTS (SELECT FROM l) RETURNING 1) \
         SELECT (SELECT count(*) FROM u), EXISTS (SELECT FROM l), pg_current_xact_id()::text::bigint"
    );
    let owner = lease.owner.to_string();
    let (begun, row, committed) = future::join3(
        client.batch_execute(begin),
        client.query_typed_one(
            &statement,
            &[
                (&lease.shard.0, Type::INT2),
                (&owner, Type::TEXT),
                (&lease.epoch, Type::INT8),
                (&sequences, Type::INT8_ARRAY),
            ],
        ),
        client.batch_execute("COMMIT"),
    )
    .await;
    begun?;
    let row = row?;
    committed?;
    Guarded::from_row(&row)
}

pub(super) async fn settle(
    client: &Client,
    begin: &str,
    lease: &Lease,
    settlement: &ParkedSettlement,
) -> Result<Guarded, Error> {
    let (begun, row, committed) = future::join3(
        client.batch_execute(begin),
        write(client, lease, settlement),
        client.batch_execute("COMMIT"),
    )
    .await;
    begun?;
    let row = row?;
    committed?;
    Guarded::from_row(&row)
}

async fn write(client: &Client, lease: &Lease, settlement: &ParkedSettlement) -> Result<Row, Error> {
    let statement = format!(
        "WITH {GUARD}, \
         d AS (DELETE FROM outbox_parked WHERE shard = $1 AND sequence = ANY($4) AND EXISTS (SELECT FROM l) \
           RETURNING 1), \
         u AS (UPDATE outbox_parked p SET state = f.state, last_error = f.error, \
             next_attempt_at = clock_timestamp() + f.delay * interval '1 microsecond' \
           FROM unnest($5::bigint[], $6::smallint[], $7::bigint[], $8::text[]) f (sequence, state, delay, error) \
           WHERE p.shard = $1 AND p.sequence = f.sequence AND EXISTS (SELECT FROM l) RETURNING 1) \
         SELECT (SELECT count(*) FROM d) + (SELECT count(*) FROM u), EXISTS (SELECT FROM l), \
           pg_current_xact_id()::text::bigint"
    );
    let owner = lease.owner.to_string();
    let each = || settlement.failed.iter();
    let sequences: Vec<i64> = each().map(|failure| failure.sequence).collect();
    let states: Vec<i16> = each().map(|failure| failure.state.code()).collect();
    let delays: Vec<i64> = each().map(|failure| micros(failure.delay)).collect();
    let errors: Vec<String> = each().map(|failure| text(&failure.error)).collect();
    client
        .query_typed_one(
            &statement,
            &[
                (&lease.shard.0, Type::INT2),
                (&owner, Type::TEXT),
                (&lease.epoch, Type::INT8),
                (&settlement.published, Type::INT8_ARRAY),
                (&sequences, Type::INT8_ARRAY),
                (&states, Type::INT2_ARRAY),
                (&delays, Type::INT8_ARRAY),
                (&errors, Type::TEXT_ARRAY),
            ],
        )
        .await
}

pub(super) async fn dead(client: &Client, after: i64, limit: usize) -> Result<Vec<Parked>, Error> {
    let statement = format!(
        "SELECT {PARKED}, {MESSAGE} FROM outbox_parked WHERE state = 2 AND sequence > $1 \
         ORDER BY sequence LIMIT $2"
    );
    let rows = client
        .query_typed(&statement, &[(&after, Type::INT8), (&count(limit), Type::INT8)])
        .await?;
    rows.iter().map(rows::parked).collect()
}

pub(super) async fn redrive(client: &Client, sequences: &[i64]) -> Result<u64, Error> {
    each(client, REDRIVE, sequences).await
}

pub(super) async fn discard(client: &Client, sequences: &[i64]) -> Result<u64, Error> {
    each(client, DISCARD, sequences).await
}

async fn each(client: &Client, statement: &str, sequences: &[i64]) -> Result<u64, Error> {
    let row = client
        .query_typed_one(statement, &[(&sequences, Type::INT8_ARRAY)])
        .await?;
    Ok(row.try_get::<_, i64>(0)?.unsigned_abs())
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// PostgreSQL takes any text but NUL; a broker's error may hold one.
pub(super) fn text(error: &str) -> String {
    error.replace('\0', "\u{fffd}")
}
