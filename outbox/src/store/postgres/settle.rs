//! Deletes published rows and moves failed ones to the parked table, in one transaction and one flush.

use futures::future;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use super::lease::Guarded;
use crate::record::{Lease, Settlement};
use crate::store::decode::ranges;

/// The range holds published rows only: its ends and every position between were confirmed.
const DELETE_RANGE: &str = "\
    WITH l AS MATERIALIZED (SELECT FROM outbox_lease WHERE shard = $1 AND owner = $2::text::uuid AND epoch = $3), \
    d AS (DELETE FROM outbox WHERE shard = $1 AND id BETWEEN $4 AND $5 AND EXISTS (SELECT FROM l) RETURNING 1) \
    SELECT (SELECT count(*) FROM d), EXISTS (SELECT FROM l), pg_current_xact_id()::text::bigint";

/// A range would destroy a late row between two published ones.
const DELETE_LIST: &str = "\
    WITH l AS MATERIALIZED (SELECT FROM outbox_lease WHERE shard = $1 AND owner = $2::text::uuid AND epoch = $3), \
    d AS (DELETE FROM outbox WHERE shard = $1 AND id = ANY($4) AND EXISTS (SELECT FROM l) RETURNING 1) \
    SELECT (SELECT count(*) FROM d), EXISTS (SELECT FROM l), pg_current_xact_id()::text::bigint";

/// Keeps the order given. The lease is locked: a takeover waits for this commit or refuses this move. Columns
/// by name, and none that the parked table could refuse: people alter tables, and a row that cannot be parked
/// would stop its shard.
const PARK: &str = "\
    WITH l AS MATERIALIZED (SELECT FROM outbox_lease WHERE shard = $1 AND owner = $2::text::uuid AND epoch = $3 \
      FOR SHARE), \
    p AS (SELECT * FROM unnest($4::bigint[], $5::smallint[], $6::int[], $7::bigint[], $8::text[]) \
      WITH ORDINALITY p (position, state, attempts, delay, error, place)), \
    d AS (DELETE FROM outbox o USING p WHERE o.shard = $1 AND o.id = p.position AND EXISTS (SELECT FROM l) \
      RETURNING p.*, o.shard, o.msg_id, o.topic, o.key, o.type, o.source, o.content_type, o.headers, o.payload, \
        o.created_at, o.expires_at), \
    i AS (INSERT INTO outbox_parked (shard, state, attempts, next_attempt_at, last_error, msg_id, topic, key, \
        type, source, content_type, headers, payload, created_at, expires_at) \
      SELECT shard, state, attempts, clock_timestamp() + delay * interval '1 microsecond', error, \
        coalesce(msg_id, gen_random_uuid()), coalesce(topic, ''), \
        CASE WHEN octet_length(key) <= 2000 THEN key END, coalesce(type, ''), coalesce(source, ''), \
        coalesce(content_type, ''), headers, coalesce(payload, ''), coalesce(created_at, clock_timestamp()), \
        expires_at FROM d ORDER BY place \
      RETURNING 1) \
    SELECT count(*) FROM i";

pub(super) async fn settle(
    client: &Client,
    begin: &str,
    lease: &Lease,
    settlement: &Settlement,
) -> Result<Guarded, Error> {
    let transaction = future::join4(
        client.batch_execute(begin),
        park(client, lease, settlement),
        delete(client, lease, settlement),
        client.batch_execute("COMMIT"),
    );
    // Each future sends when it is first polled, and they are polled in this order.
    let (begun, parked, deleted, committed) = transaction.await;
    begun?;
    let parked = parked?;
    let mut guarded = deleted?;
    committed?;
    guarded.settled.rows += parked;
    Ok(guarded)
}

async fn delete(client: &Client, lease: &Lease, settlement: &Settlement) -> Result<Guarded, Error> {
    let owner = lease.owner.to_string();
    let row = match ranges(settlement.published.iter().copied())[..] {
        [(first, last)] => {
            let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 5] = [
                (&lease.shard.0, Type::INT2),
                (&owner, Type::TEXT),
                (&lease.epoch, Type::INT8),
                (&first, Type::INT8),
                (&last, Type::INT8),
            ];
            client.query_typed_one(DELETE_RANGE, &parameters).await?
        }
        _ => {
            let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 4] = [
                (&lease.shard.0, Type::INT2),
                (&owner, Type::TEXT),
                (&lease.epoch, Type::INT8),
                (&settlement.published, Type::INT8_ARRAY),
            ];
            client.query_typed_one(DELETE_LIST, &parameters).await?
        }
    };
    Guarded::from_row(&row)
}

async fn park(client: &Client, lease: &Lease, settlement: &Settlement) -> Result<u64, Error> {
    if settlement.park.is_empty() {
        return Ok(0);
    }
    let each = || settlement.park.iter();
    let owner = lease.owner.to_string();
    let positions: Vec<i64> = each().map(|park| park.position).collect();
    let states: Vec<i16> = each().map(|park| park.state.code()).collect();
    let attempts: Vec<i32> = each()
        .map(|park| i32::try_from(park.attempts).unwrap_or(i32::MAX))
        .collect();
    let delays: Vec<i64> = each().map(|park| super::lease::micros(park.delay)).collect();
    let errors: Vec<Option<String>> = each()
        .map(|park| park.error.as_deref().map(super::parked::text))
        .collect();
    let row = client
        .query_typed_one(
            PARK,
            &[
                (&lease.shard.0, Type::INT2),
                (&owner, Type::TEXT),
                (&lease.epoch, Type::INT8),
                (&positions, Type::INT8_ARRAY),
                (&states, Type::INT2_ARRAY),
                (&attempts, Type::INT4_ARRAY),
                (&delays, Type::INT8_ARRAY),
                (&errors, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    Ok(row.try_get::<_, i64>(0)?.unsigned_abs())
}
