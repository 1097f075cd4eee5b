//! Which transactions may still own a missing position.
//!
//! The cheap answer is the oldest running transaction of the cluster. A long one that never touches the
//! outbox, maybe in another database, holds that back; so now and then the lock table is asked instead. A
//! transaction takes its lock on the outbox before its position and keeps it to its end, prepared ones
//! included; a rolled-back savepoint gives up both. So the positions below the smallest transaction id among
//! the holders of that lock are settled, committed or gone.

use std::time::Duration;

use tokio_postgres::{Client, Error};

use crate::record::{Bloat, Pin, TransactionId};

/// Every transaction below this id has ended.
const OLDEST: &str = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint";

/// The same; an id that no writer below it can have taken later; and the ids of the writers, as the lock
/// table shows them, in 32 bits. One call of `pg_locks`, so that a transaction is seen whole.
const WRITERS: &str = "\
    WITH l AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted) \
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, \
      pg_snapshot_xmax(pg_current_snapshot())::text::bigint, \
      ARRAY(SELECT x.transactionid::text::bigint FROM l o JOIN l x USING (virtualtransaction) \
        WHERE o.locktype = 'relation' AND o.mode = 'RowExclusiveLock' AND o.relation = 'outbox'::regclass \
        AND o.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
        AND x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock')";

/// Every transaction below this id that can own a position had ended when the server answered.
pub(super) async fn read(client: &Client, writers: bool) -> Result<Option<TransactionId>, Error> {
    if !writers {
        let row = client.query_typed_one(OLDEST, &[]).await?;
        return Ok(u64::try_from(row.try_get::<_, i64>(0)?).ok());
    }
    let row = client.query_typed_one(WRITERS, &[]).await?;
    let (oldest, next): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let ids: Vec<i64> = row.try_get(2)?;
    let (Ok(oldest), Ok(next)) = (u64::try_from(oldest), u64::try_from(next)) else {
        return Ok(None);
    };
    let writers = ids.into_iter().filter_map(|id| u32::try_from(id).ok());
    Ok(Some(passed(oldest, next, writers)))
}

/// Dead rows, size, and the oldest snapshot that may still see them. Other users' sessions show only to members
/// of pg_monitor.
const BLOAT: &str = "\
    SELECT s.n_dead_tup, pg_total_relation_size(s.relid), p.holder, \
      (extract(epoch FROM clock_timestamp() - p.since) * 1000000)::bigint \
    FROM pg_stat_user_tables s LEFT JOIN LATERAL ( \
      SELECT age(backend_xmin) AS xids, xact_start AS since, \
        format('pid %s (user %s, program %s, %s)', pid, usename, application_name, state) AS holder \
      FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() \
        AND backend_type <> 'autovacuum worker' AND coalesce(datname, current_database()) = current_database() \
      UNION ALL SELECT age(transaction), prepared, format('prepared transaction %s', gid) \
      FROM pg_prepared_xacts WHERE database = current_database() \
      UNION ALL SELECT age(xmin), NULL, format('replication slot %s', slot_name) \
      FROM pg_replication_slots WHERE xmin IS NOT NULL \
      ORDER BY 1 DESC LIMIT 1) p ON true \
    WHERE s.relid = 'outbox'::regclass";

/// What settled rows leave behind.
pub(super) async fn bloat(client: &Client) -> Result<Option<Bloat>, Error> {
    let Some(row) = client.query_typed_opt(BLOAT, &[]).await? else {
        return Ok(None);
    };
    let age: Option<i64> = row.try_get(3)?;
    let age = age.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0)));
    Ok(Some(Bloat {
        dead_tuples: row.try_get::<_, i64>(0)?.unsigned_abs(),
        bytes: row.try_get::<_, i64>(1)?.unsigned_abs(),
        pin: row
            .try_get::<_, Option<String>>(2)?
            .map(|holder| Pin { age, holder }),
    }))
}

/// The greater of two true answers.
fn passed(oldest: u64, next: u64, writers: impl Iterator<Item = u32>) -> TransactionId {
    let first = writers.map(|id| in_full(id, next)).fold(next, u64::min);
    first.max(oldest)
}

/// A transaction id with its epoch: the one within 2³¹ of `near`.
fn in_full(id: u32, near: u64) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    let distance = id.wrapping_sub(near as u32).cast_signed();
    near.saturating_add_signed(i64::from(distance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_writer_decides_unless_nothing_older_runs_at_all() {
        assert_eq!(passed(100, 900, [500, 300].into_iter()), 300);
        assert_eq!(passed(100, 900, std::iter::empty()), 900, "nobody writes");
        assert_eq!(passed(400, 900, [300].into_iter()), 400, "300 ended in between");
        assert_eq!(passed(100, 900, [950].into_iter()), 900, "begun since");
    }

    #[test]
    fn ids_of_32_bits_find_their_epoch() {
        let epoch = 7 << 32;
        assert_eq!(in_full(5, epoch + 9), epoch + 5);
        assert_eq!(in_full(u32::MAX, epoch + 9), epoch - 1, "before the wrap");
        assert_eq!(in_full(3, epoch - 4), epoch + 3, "after the wrap");
    }
}
