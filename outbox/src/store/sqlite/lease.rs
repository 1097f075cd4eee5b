//! Leases: acquire, renew, release, guard.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, SmallInt, Text};

use super::tables::NOW;
use super::{Refused, micros};
use crate::record::{Lease, Owner, Shard};
use crate::store::{LeaseState, Renewed};

#[derive(Debug, QueryableByName)]
struct FreeRow {
    #[diesel(sql_type = SmallInt)]
    shard: i16,
    #[diesel(sql_type = BigInt)]
    epoch: i64,
    #[diesel(sql_type = Bool)]
    after_expiry: bool,
}

#[derive(Debug, QueryableByName)]
struct StateRow {
    #[diesel(sql_type = SmallInt)]
    shard: i16,
    #[diesel(sql_type = Nullable<Text>)]
    owner: Option<String>,
    #[diesel(sql_type = BigInt)]
    epoch: i64,
    #[diesel(sql_type = BigInt)]
    remaining: i64,
}

#[derive(Debug, QueryableByName)]
struct Found {
    #[diesel(sql_type = Bool)]
    found: bool,
}

/// Whether a lease has ended or was released.
pub(super) fn any_free(connection: &mut SqliteConnection) -> QueryResult<bool> {
    diesel::sql_query(format!(
        "SELECT EXISTS (SELECT 1 FROM outbox_lease WHERE expires_at < {NOW}) AS found"
    ))
    .get_result::<Found>(connection)
    .map(|row| row.found)
}

pub(super) fn acquire(
    connection: &mut SqliteConnection,
    owner: Owner,
    want: usize,
    ttl: Duration,
) -> Result<Vec<Lease>, Refused> {
    let free: Vec<FreeRow> = diesel::sql_query(format!(
        "SELECT shard, epoch, owner IS NOT NULL AS after_expiry FROM outbox_lease WHERE expires_at < {NOW} \
         ORDER BY shard LIMIT ?1"
    ))
    .bind::<BigInt, _>(i64::try_from(want).unwrap_or(i64::MAX))
    .load(connection)?;
    let mut leases = Vec::with_capacity(free.len());
    for row in free {
        diesel::sql_query(format!(
            "UPDATE outbox_lease SET owner = ?2, epoch = epoch + 1, expires_at = {NOW} + ?3 WHERE shard = ?1"
        ))
        .bind::<SmallInt, _>(row.shard)
        .bind::<Text, _>(owner.to_string())
        .bind::<BigInt, _>(micros(ttl))
        .execute(connection)?;
        leases.push(Lease {
            shard: Shard(row.shard),
            owner,
            epoch: row.epoch + 1,
            after_expiry: row.after_expiry,
        });
    }
    Ok(leases)
}

pub(super) fn renew(
    connection: &mut SqliteConnection,
    leases: &[Lease],
    ttl: Duration,
) -> Result<Vec<Renewed>, Refused> {
    let mut renewed = Vec::with_capacity(leases.len());
    for lease in leases {
        let rows = diesel::sql_query(format!(
            "UPDATE outbox_lease SET expires_at = {NOW} + ?4 \
             WHERE shard = ?1 AND owner = ?2 AND epoch = ?3 AND expires_at >= {NOW}"
        ))
        .bind::<SmallInt, _>(lease.shard.0)
        .bind::<Text, _>(lease.owner.to_string())
        .bind::<BigInt, _>(lease.epoch)
        .bind::<BigInt, _>(micros(ttl))
        .execute(connection)?;
        renewed.push(if rows == 1 { Renewed::Held } else { Renewed::Lost });
    }
    Ok(renewed)
}

pub(super) fn release(connection: &mut SqliteConnection, leases: &[Lease]) -> Result<(), Refused> {
    for lease in leases {
        diesel::sql_query(
            "UPDATE outbox_lease SET owner = NULL, expires_at = 0 WHERE shard = ?1 AND owner = ?2 AND epoch = ?3",
        )
        .bind::<SmallInt, _>(lease.shard.0)
        .bind::<Text, _>(lease.owner.to_string())
        .bind::<BigInt, _>(lease.epoch)
        .execute(connection)?;
    }
    Ok(())
}

/// Refuses the write transaction unless the lease is still the newest of its shard.
pub(super) fn guard(connection: &mut SqliteConnection, lease: &Lease) -> Result<(), Refused> {
    let row = diesel::sql_query(
        "SELECT EXISTS (SELECT 1 FROM outbox_lease WHERE shard = ?1 AND owner = ?2 AND epoch = ?3) AS found",
    )
    .bind::<SmallInt, _>(lease.shard.0)
    .bind::<Text, _>(lease.owner.to_string())
    .bind::<BigInt, _>(lease.epoch)
    .get_result::<Found>(connection)?;
    if row.found {
        Ok(())
    } else {
        Err(Refused::LeaseLost)
    }
}

pub(super) fn states(connection: &mut SqliteConnection) -> QueryResult<Vec<LeaseState>> {
    let rows: Vec<StateRow> = diesel::sql_query(format!(
        "SELECT shard, owner, epoch, expires_at - {NOW} AS remaining FROM outbox_lease ORDER BY shard"
    ))
    .load(connection)?;
    Ok(rows
        .into_iter()
        .map(|row| LeaseState {
            shard: Shard(row.shard),
            owner: row.owner.and_then(|text| text.parse().ok()).map(Owner),
            epoch: row.epoch,
            remaining: u64::try_from(row.remaining)
                .ok()
                .filter(|remaining| *remaining > 0)
                .map(Duration::from_micros),
        })
        .collect())
}
