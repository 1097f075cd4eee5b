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
        AND d.deptype IN ('i', 'a') LIMIT 1)), current_setting('server_encoding')";

const COLUMNS: &str = "\
    SELECT c.relname::text, a.attname::text, format_type(a.atttypid, NULL), a.attnotnull, \
      pg_get_expr(d.adbin, d.adrelid) \
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
    WHERE c.oid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

const INDEXES: &str = "\
    SELECT i.relname::text FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid \
    WHERE x.indrelid IN (to_regclass('outbox'), to_regclass('outbox_parked')) AND x.indisvalid";

/// Whether an index begins with (shard, id), under whatever name.
const POSITION_INDEX: &str = "\
    SELECT EXISTS (SELECT FROM pg_index x WHERE x.indrelid = to_regclass('outbox') AND x.indisvalid \
      AND pg_get_indexdef(x.indexrelid, 1, true) = 'shard' AND pg_get_indexdef(x.indexrelid, 2, true) = 'id')";

/// Roles whose commits in this database do not wait for the disk.
const HASTY_ROLES: &str = "\
    SELECT coalesce(r.rolname::text, 'every role of the database') FROM pg_db_role_setting s \
    LEFT JOIN pg_roles r ON r.oid = s.setrole \
    WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) \
      AND EXISTS (SELECT FROM unnest(s.setconfig) c WHERE c = 'synchronous_commit=off')";

/// Whether a trigger gives each shard positions of its own sequence.
const OWN_SEQUENCES: &str = "\
    SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('outbox') AND tgname = 'outbox_position' \
      AND tgenabled IN ('O', 'A')) \
    AND NOT EXISTS (SELECT FROM outbox_lease l WHERE NOT EXISTS (SELECT FROM pg_sequence s \
      WHERE s.seqrelid = to_regclass('outbox_position_' || l.shard) AND s.seqcache = 1))";

/// Whether there are rows of a shard that no lease covers: nobody publishes them. Two probes of the index.
const STRAY_SHARD: &str = "\
    SELECT s.shard FROM (SELECT min(shard) AS shard FROM outbox UNION SELECT max(shard) FROM outbox) s \
    WHERE s.shard IS NOT NULL AND NOT EXISTS (SELECT FROM outbox_lease l WHERE l.shard = s.shard) LIMIT 1";

/// A column as the catalogue has it.
#[derive(Debug)]
struct Column {
    table: &'static str,
    name: String,
    kind: String,
    not_null: bool,
    default: Option<String>,
}

/// Columns that must not be NULL, for a row without them is no message.
const NEVER_NULL: [&str; 9] = [
    "xid",
    "id",
    "shard",
    "msg_id",
    "topic",
    "type",
    "source",
    "payload",
    "created_at",
];

/// The type of a column; all others are text.
fn kind(column: &str) -> &'static str {
    match column {
        "xid" => "xid8",
        "id" | "sequence" | "epoch" => "bigint",
        "shard" | "state" => "smallint",
        "attempts" => "integer",
        "msg_id" | "owner" => "uuid",
        "payload" => "bytea",
        "created_at" | "expires_at" | "available_at" | "next_attempt_at" => "timestamp with time zone",
        _ => "text",
    }
}

impl Column {
    /// What is wrong with it, and the statement that mends it.
    fn fault(&self) -> Option<String> {
        let Self { table, name, .. } = self;
        let known = TABLES
            .iter()
            .find(|(of, _)| of == table)?
            .1
            .contains(&name.as_str())
            || name == "xid";
        if !known {
            return None; // a person's own
        }
        let wanted = kind(name);
        let fits = match self.kind.as_str() {
            "character varying" | "character" => wanted == "text",
            kind => kind == wanted,
        };
        let alter = format!("run ALTER TABLE {table} ALTER COLUMN {name}");
        if !fits {
            return Some(format!(
                "column {table}.{name} is of type {}; {alter} TYPE {wanted}",
                self.kind
            ));
        }
        if *table == "outbox" && !self.not_null && NEVER_NULL.contains(&name.as_str()) {
            return Some(format!("column {table}.{name} allows NULL; {alter} SET NOT NULL"));
        }
        if name == "xid" && self.default.as_deref() != Some("pg_current_xact_id()") {
            return Some(format!(
                "column {table}.{name} does not take the transaction's id; {alter} SET DEFAULT pg_current_xact_id()"
            ));
        }
        None
    }
}

#[derive(Debug)]
pub(super) struct Found {
    server: i32,
    replica: bool,
    synchronous_commit: String,
    fsync: bool,
    sequence_cache: Option<i64>,
    position_index: bool,
    encoding: String,
    columns: Vec<Column>,
    hasty_roles: Vec<String>,
    stray_shard: Option<i16>,
    own_sequences: bool,
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
        encoding: row.try_get(8)?,
        columns: Vec::new(),
        hasty_roles: Vec::new(),
        stray_shard: None,
        own_sequences: false,
        layout: layout::Found::default(),
    };
    for role in client.query_typed(HASTY_ROLES, &[]).await? {
        found.hasty_roles.push(role.try_get(0)?);
    }
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
            found.columns.push(Column {
                table,
                name: row.try_get(1)?,
                kind: row.try_get(2)?,
                not_null: row.try_get(3)?,
                default: row.try_get(4)?,
            });
        }
    }
    let has = |name: &str| {
        found
            .columns
            .iter()
            .any(|column| column.table == "outbox" && column.name == name)
    };
    if found.layout.shards > 0 && has("shard") {
        let stray = client.query_typed_opt(STRAY_SHARD, &[]).await?;
        found.own_sequences = client.query_typed_one(OWN_SEQUENCES, &[]).await?.try_get(0)?;
        found.stray_shard = stray.map(|row| row.try_get(0)).transpose()?;
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
        if self.encoding == "SQL_ASCII" {
            return invalid(
                "the database has no encoding (SQL_ASCII), so its text may be none; create it WITH ENCODING 'UTF8'",
            );
        }
        layout::compare(&self.layout, know)?;
        if let Some(fault) = self.columns.iter().find_map(Column::fault) {
            return Err(schema(fault));
        }
        if let Some(shard) = self.stray_shard {
            return Err(schema(format!(
                "messages of shard {shard} wait and no relay may publish them; run INSERT INTO outbox_lease \
                 (shard) VALUES ({shard}), or give the producers the right number of shards"
            )));
        }
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
            None if self.own_sequences => {}
            None => {
                return Err(schema(
                    "column outbox.id has no sequence of its own; restore the identity",
                ));
            }
        }
        if self.synchronous_commit == "off" || !self.fsync || !self.hasty_roles.is_empty() {
            tracing::warn!(
                synchronous_commit = self.synchronous_commit,
                fsync = self.fsync,
                roles = self.hasty_roles.join(", "),
                "a crash of the server may take back commits whose messages are published already; set \
                 synchronous_commit = on for every role that enqueues, and fsync = on"
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
           (SELECT CASE WHEN isfinite(created_at) \
              THEN (extract(epoch FROM clock_timestamp() - created_at) * 1000000)::bigint END \
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
