//! What is there: schema and settings for `check`, the rows for `backlog`.

use std::time::Duration;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use crate::ErrorKind;
use crate::record::Backlog;
use crate::store::layout::{self, TABLES, schema};

/// PostgreSQL 13 brought `pg_current_xact_id`.
const OLDEST_SERVER: i32 = 130_000;

const SETTINGS: &str = "\
    SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), \
      current_setting('transaction_read_only')::bool, current_setting('synchronous_commit'), \
      current_setting('fsync')::bool, to_regclass('outbox_schema') IS NOT NULL, \
      to_regclass('outbox_lease') IS NOT NULL, \
      (SELECT seqcache FROM pg_sequence WHERE seqrelid = (SELECT d.objid FROM pg_depend d \
        JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
        WHERE d.classid = 'pg_class'::regclass AND d.refobjid = to_regclass('outbox') AND a.attname = 'id' \
        AND d.deptype IN ('i', 'a') LIMIT 1))";

const COLUMNS: &str = "\
    SELECT c.relname::text, a.attname::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
    WHERE c.oid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

const INDEXES: &str = "\
    SELECT i.relname::text FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid \
    WHERE x.indrelid IN (to_regclass('outbox'), to_regclass('outbox_parked')) AND x.indisvalid";

/// Whether an index begins with (shard, id), under whatever name.
const POSITION_INDEX: &str = "\
    SELECT EXISTS (SELECT FROM pg_index x WHERE x.indrelid = to_regclass('outbox') AND x.indisvalid \
      AND pg_get_indexdef(x.indexrelid, 1, true) = 'shard' AND pg_get_indexdef(x.indexrelid, 2, true) = 'id')";

#[derive(Debug)]
pub(super) struct Found {
    server: i32,
    replica: bool,
    synchronous_commit: String,
    fsync: bool,
    sequence_cache: Option<i64>,
    position_index: bool,
    layout: layout::Found,
}

/// Reads settings and catalogue.
pub(super) async fn found(client: &Client) -> Result<Found, Error> {
    let row = client.query_typed_one(SETTINGS, &[]).await?;
    let mut found = Found {
        server: row.try_get(0)?,
        replica: row.try_get(1)? || row.try_get(2)?,
        synchronous_commit: row.try_get(3)?,
        fsync: row.try_get(4)?,
        sequence_cache: row.try_get(7)?,
        position_index: client.query_typed_one(POSITION_INDEX, &[]).await?.try_get(0)?,
        layout: layout::Found::default(),
    };
    if row.try_get(5)? {
        let version = client
            .query_typed_opt(
                "SELECT version FROM outbox_schema WHERE component = 'outbox'",
                &[],
            )
            .await?;
        found.layout.version = version.map(|row| row.try_get(0)).transpose()?;
    }
    if row.try_get(6)? {
        let shards = client
            .query_typed_one("SELECT count(*) FROM outbox_lease", &[])
            .await?;
        found.layout.shards = shards.try_get(0)?;
    }
    for (table, _) in TABLES {
        for row in client.query_typed(COLUMNS, &[(&table, Type::TEXT)]).await? {
            found.layout.columns.push((row.try_get(0)?, row.try_get(1)?));
        }
    }
    for row in client.query_typed(INDEXES, &[]).await? {
        found.layout.indexes.push(row.try_get(0)?);
    }
    Ok(found)
}

impl Found {
    /// Whether the store can keep its promises here.
    pub(super) fn verify(&self, know: i32) -> Result<(), crate::Error> {
        let invalid = |context: &'static str| Err(crate::Error::new(ErrorKind::Invalid, "check", context));
        if self.server < OLDEST_SERVER {
            return invalid("the server is older than PostgreSQL 13; update it");
        }
        if self.replica {
            return invalid("the server is a replica or read-only; connect to the primary");
        }
        layout::compare(&self.layout, know)?;
        if !self.position_index {
            return Err(schema(
                "table outbox has no index on (shard, id); restore it with ALTER TABLE outbox ADD PRIMARY KEY (shard, id)",
            ));
        }
        let place = |name: &str| {
            self.layout
                .columns
                .iter()
                .position(|(table, column)| table == "outbox" && column == name)
        };
        if !matches!((place("xid"), place("id")), (Some(xid), Some(id)) if xid < id) {
            return Err(schema(
                "column outbox.xid must stand before outbox.id, so that a transaction has its id before it takes \
                 a position; create the table again as `outbox-relay migrate --print` shows",
            ));
        }
        match self.sequence_cache {
            Some(1) => {}
            Some(_) => {
                return Err(schema(
                    "the sequence of outbox.id caches values, which breaks the order of keys; run ALTER TABLE outbox ALTER COLUMN id SET CACHE 1",
                ));
            }
            None => {
                return Err(schema(
                    "column outbox.id has no sequence of its own; restore the identity",
                ));
            }
        }
        if self.synchronous_commit == "off" || !self.fsync {
            tracing::warn!(
                synchronous_commit = self.synchronous_commit,
                fsync = self.fsync,
                "a crash of the server may take back commits whose messages are published already"
            );
        }
        Ok(())
    }
}

/// Counts rows, each kind up to the limit; `pending` one more, which tells that there are more.
pub(super) async fn backlog(client: &Client) -> Result<Backlog, Error> {
    let limit = Backlog::COUNT_LIMIT;
    let statement = format!(
        "SELECT (SELECT count(*) FROM (SELECT FROM outbox LIMIT {limit} + 1) r), \
           (SELECT (extract(epoch FROM clock_timestamp() - created_at) * 1000000)::bigint \
              FROM (SELECT first.* FROM outbox_lease l CROSS JOIN LATERAL \
                (SELECT id, created_at FROM outbox o WHERE o.shard = l.shard ORDER BY id LIMIT 1) first) r \
              ORDER BY id LIMIT 1), \
           (SELECT count(*) FROM (SELECT FROM outbox_parked WHERE state = 0 LIMIT {limit}) r), \
           (SELECT count(*) FROM (SELECT FROM outbox_parked WHERE state = 1 LIMIT {limit}) r), \
           (SELECT count(*) FROM (SELECT FROM outbox_parked WHERE state = 2 LIMIT {limit}) r), \
           (SELECT count(*) FROM (SELECT DISTINCT shard, key FROM outbox_parked \
              WHERE state <> 0 AND key IS NOT NULL LIMIT {limit}) r)"
    );
    let row = client.query_typed_one(&statement, &[]).await?;
    let count = |index: usize| row.try_get::<_, i64>(index).map(i64::unsigned_abs);
    let pending = count(0)?;
    Ok(Backlog {
        pending: pending.min(limit),
        exact: pending <= limit,
        oldest_age: row
            .try_get::<_, Option<i64>>(1)?
            .map(|age| Duration::from_micros(u64::try_from(age).unwrap_or(0))),
        scheduled: count(2)?,
        retry: count(3)?,
        dead: count(4)?,
        blocked_keys: count(5)?,
    })
}
