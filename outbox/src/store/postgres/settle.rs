//! Deletes published rows and moves failed ones to the parked table, in one transaction and one flush.

use futures::future;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::lease::Guarded;
use crate::record::{Lease, Position, Settlement};
use crate::store::decode::ranges;

/// Positions in a row that are deleted as a range. Measured: a row of a range costs the server 1.2 µs, one of
/// a list 2.5 to 3 µs; a further part of the statement is paid for by some twenty rows.
const RUN: i64 = 64;

/// Ranges in one statement at most.
const MOST_RANGES: usize = 8;

/// One statement, so one snapshot for the lease and all the deletes. A range holds published rows only: its
/// ends and every position between were confirmed. What lies apart is listed: a range over it would destroy
/// a late row between two published ones.
fn delete_rows(ranges: usize, list: bool) -> String {
    use std::fmt::Write as _;

    let mut statement = "WITH l AS MATERIALIZED (SELECT FROM outbox_lease \
         WHERE shard = $1 AND owner = $2::text::uuid AND epoch = $3)"
        .to_owned();
    let mut counts = Vec::new();
    let mut part = |condition: String| {
        let name = format!("d{}", counts.len());
        let _infallible = write!(
            statement,
            ", {name} AS (DELETE FROM outbox WHERE shard = $1 AND {condition} AND EXISTS (SELECT FROM l) RETURNING 1)"
        );
        counts.push(format!("(SELECT count(*) FROM {name})"));
    };
    for range in 0..ranges {
        part(format!("id BETWEEN ${} AND ${}", 4 + 2 * range, 5 + 2 * range));
    }
    if list {
        part(format!("id = ANY(${})", 4 + 2 * ranges));
    }
    let counts = counts.join(" + ");
    let _infallible = write!(
        statement,
        " SELECT {counts}, EXISTS (SELECT FROM l), pg_current_xact_id()::text::bigint"
    );
    statement
}

/// The longest runs of `published`, and the positions outside of them.
fn divide(published: &[Position]) -> (Vec<(Position, Position)>, Vec<Position>) {
    let all = ranges(published.iter().copied());
    let mut long: Vec<(Position, Position)> = all
        .iter()
        .copied()
        .filter(|(first, last)| last - first >= RUN - 1)
        .collect();
    long.sort_unstable_by_key(|(first, last)| first - last);
    long.truncate(MOST_RANGES);
    let listed = all.into_iter().filter(|range| !long.contains(range));
    let listed = listed.flat_map(|(first, last)| first..=last).collect();
    (long, listed)
}

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
    let (ranges, listed) = divide(&settlement.published);
    // An empty list still tells whether the lease is held, and the bound.
    let list = !listed.is_empty() || ranges.is_empty();
    let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![
        (&lease.shard.0, Type::INT2),
        (&owner, Type::TEXT),
        (&lease.epoch, Type::INT8),
    ];
    for (first, last) in &ranges {
        parameters.push((first, Type::INT8));
        parameters.push((last, Type::INT8));
    }
    if list {
        parameters.push((&listed, Type::INT8_ARRAY));
    }
    let row = client
        .query_typed_one(&delete_rows(ranges.len(), list), &parameters)
        .await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_are_ranges_and_the_rest_is_listed() {
        assert_eq!(divide(&[]), (Vec::new(), Vec::new()));
        let published: Vec<Position> = (1..=RUN).chain([RUN + 2]).chain(200..=400).collect();
        assert_eq!(divide(&published), (vec![(200, 400), (1, RUN)], vec![RUN + 2]));
        let short: Vec<Position> = (1..RUN).collect();
        assert_eq!(divide(&short), (Vec::new(), short));
    }

    #[test]
    fn no_statement_has_more_ranges_than_its_limit() {
        let many = MOST_RANGES as i64 + 3;
        let published: Vec<Position> = (0..many).flat_map(|n| n * 1_000..n * 1_000 + RUN).collect();
        let (ranges, listed) = divide(&published);
        assert_eq!((ranges.len(), listed.len() as i64), (MOST_RANGES, 3 * RUN));
    }
}
