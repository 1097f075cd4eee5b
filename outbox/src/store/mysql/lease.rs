//! Leases: acquire, renew, release, guard. All times by the database's clock.

use std::time::Duration;

use mysql_async::{Error, Row};

use super::pool::{Answer, Session};
use super::rows::{bytes, list, required, unreadable, uuid};
use crate::ErrorKind;
use crate::record::{Lease, Owner, Shard};
use crate::store::{LeaseState, Renewed};

/// Most calls find nothing: this looks before anything is locked.
pub(super) const ANY_FREE: &str = "SELECT 1 FROM outbox_lease WHERE expires_at < UTC_TIMESTAMP(6) LIMIT 1";

pub(super) const STATES: &str = "\
    SELECT shard, owner, epoch, IF(expires_at > UTC_TIMESTAMP(6), \
      TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), expires_at), NULL) FROM outbox_lease ORDER BY shard";

/// The row of the lease, if it is still the newest of its shard.
pub(super) fn held_row(lease: &Lease) -> String {
    format!(
        "SELECT 1 FROM outbox_lease WHERE shard = {} AND owner = {} AND epoch = {}",
        lease.shard,
        bytes(lease.owner.0.as_bytes()),
        lease.epoch
    )
}

/// One transaction of `statements`, each of which names the [`held_row`] as its condition.
///
/// The row is locked first: a takeover waits for this commit or refuses this write.
pub(super) fn guarded(lease: &Lease, statements: &[String]) -> String {
    let body = statements.join("; ");
    let separator = if body.is_empty() { "" } else { "; " };
    format!(
        "START TRANSACTION; {} LOCK IN SHARE MODE; {body}{separator}COMMIT",
        held_row(lease)
    )
}

/// What the statements of a guarded transaction did.
pub(super) fn held<'a>(
    operation: &'static str,
    answers: &'a [Answer],
) -> Result<impl Iterator<Item = &'a Answer>, crate::Error> {
    if answers.get(1).is_some_and(|guard| !guard.rows.is_empty()) {
        return Ok(answers.iter().skip(2));
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

/// SKIP LOCKED: two relays that look at once share the free shards instead of waiting for each other.
pub(super) async fn acquire(
    session: &mut Session,
    owner: Owner,
    want: usize,
    ttl: Duration,
) -> Result<Result<Vec<Lease>, Error>, crate::Error> {
    let free = format!(
        "START TRANSACTION; SELECT shard, epoch, owner IS NOT NULL FROM outbox_lease \
         WHERE expires_at < UTC_TIMESTAMP(6) ORDER BY shard LIMIT {want} FOR UPDATE SKIP LOCKED"
    );
    let free = match session.run(&free).await? {
        Ok(answers) => answers,
        Err(error) => return Ok(Err(error)),
    };
    let rows = free
        .get(1)
        .map(|answer| answer.rows.as_slice())
        .unwrap_or_default();
    let leases: Result<Vec<Lease>, Error> = rows
        .iter()
        .map(|row| {
            Ok(Lease {
                shard: shard(row)?,
                owner,
                epoch: required(row, 1)? + 1,
                after_expiry: required(row, 2)? != 0,
            })
        })
        .collect();
    let leases = match leases {
        Ok(leases) => leases,
        Err(error) => return Ok(session.run("ROLLBACK").await?.and(Err(error))),
    };
    if leases.is_empty() {
        return Ok(session.run("ROLLBACK").await?.map(|_| leases));
    }
    let shards: Vec<i64> = leases.iter().map(|lease| i64::from(lease.shard.0)).collect();
    let take = format!(
        "UPDATE outbox_lease SET owner = {}, epoch = epoch + 1, \
         expires_at = UTC_TIMESTAMP(6) + INTERVAL {} MICROSECOND WHERE shard IN ({}); COMMIT",
        bytes(owner.0.as_bytes()),
        micros(ttl),
        list(&shards)
    );
    Ok(session.run(&take).await?.map(|_| leases))
}

pub(super) fn renew(leases: &[Lease], ttl: Duration) -> String {
    each(leases, |lease| {
        format!(
            "UPDATE outbox_lease SET expires_at = UTC_TIMESTAMP(6) + INTERVAL {} MICROSECOND \
             WHERE shard = {} AND owner = {} AND epoch = {} AND expires_at > UTC_TIMESTAMP(6)",
            micros(ttl),
            lease.shard,
            bytes(lease.owner.0.as_bytes()),
            lease.epoch
        )
    })
}

pub(super) fn renewed(leases: &[Lease], answers: &[Answer]) -> Vec<Renewed> {
    (1..=leases.len())
        .map(|place| match answers.get(place).map(|answer| answer.affected) {
            Some(1) => Renewed::Held,
            _ => Renewed::Lost,
        })
        .collect()
}

pub(super) fn release(leases: &[Lease]) -> String {
    each(leases, |lease| {
        format!(
            "UPDATE outbox_lease SET owner = NULL, expires_at = '1970-01-01' \
             WHERE shard = {} AND owner = {} AND epoch = {}",
            lease.shard,
            bytes(lease.owner.0.as_bytes()),
            lease.epoch
        )
    })
}

/// One transaction with a statement a lease.
fn each(leases: &[Lease], statement: impl Fn(&Lease) -> String) -> String {
    let mut script = String::from("START TRANSACTION; ");
    for lease in leases {
        script += &statement(lease);
        script += "; ";
    }
    script + "COMMIT"
}

pub(super) fn states(rows: &[Row]) -> Result<Vec<LeaseState>, Error> {
    rows.iter()
        .map(|row| {
            Ok(LeaseState {
                shard: shard(row)?,
                owner: uuid(row, 1).map(Owner),
                epoch: required(row, 2)?,
                remaining: super::rows::number(row, 3)
                    .map(|micros| Duration::from_micros(micros.unsigned_abs())),
            })
        })
        .collect()
}

fn shard(row: &Row) -> Result<Shard, Error> {
    i16::try_from(required(row, 0)?)
        .map(Shard)
        .map_err(|_| unreadable("shard"))
}
