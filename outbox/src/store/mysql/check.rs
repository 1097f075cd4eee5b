//! What is there: schema and settings for `check`, the rows for `backlog`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Error, Row};

use super::rows::{number, required, take};
use crate::ErrorKind;
use crate::record::Backlog;
use crate::store::layout::{self, TABLES, schema};

/// The first versions with SKIP LOCKED and defaults that are expressions.
const OLDEST_MARIADB: (u32, u32) = (10, 6);
const OLDEST_MYSQL: (u32, u32) = (8, 0);

/// Not every server has each of them.
const SETTINGS: &str = "\
    SHOW SESSION VARIABLES WHERE variable_name IN ('version', 'read_only', 'super_read_only', \
    'innodb_read_only', 'innodb_flush_log_at_trx_commit', 'log_bin', 'binlog_format', \
    'auto_increment_increment', 'tx_isolation', 'transaction_isolation')";

const COLUMNS: &str = "\
    SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = DATABASE() \
    AND table_name LIKE 'outbox%'";

const ENGINES: &str = "\
    SELECT table_name, engine FROM information_schema.tables WHERE table_schema = DATABASE() \
    AND table_name LIKE 'outbox%'";

/// Index, column and the column's place in it.
const INDEXES: &str = "\
    SELECT index_name, column_name, seq_in_index FROM information_schema.statistics \
    WHERE table_schema = DATABASE() AND table_name IN ('outbox', 'outbox_parked') \
    ORDER BY table_name, index_name, seq_in_index";

#[derive(Debug, Default)]
pub(super) struct Found {
    settings: BTreeMap<String, String>,
    /// Table and engine.
    engines: Vec<(String, String)>,
    position_index: bool,
    layout: layout::Found,
}

/// Reads settings and catalogue.
pub(super) async fn found(connection: &mut Conn) -> Result<Found, Error> {
    let mut found = Found {
        settings: pairs(connection, SETTINGS).await?.into_iter().collect(),
        engines: pairs(connection, ENGINES).await?,
        ..Found::default()
    };
    found.layout.columns = pairs(connection, COLUMNS).await?;
    let indexes: Vec<Row> = connection.query(INDEXES).await?;
    let mut names = BTreeSet::new();
    let mut first_by_shard = false;
    for mut row in indexes {
        let (name, column) = (string(&mut row, 0), string(&mut row, 1));
        match required(&row, 2)? {
            1 => first_by_shard = column == "shard",
            2 if first_by_shard && column == "id" => found.position_index = true,
            _ => {}
        }
        names.insert(name);
    }
    found.layout.indexes = names.into_iter().collect();
    let has = |found: &Found, table: &str| found.engines.iter().any(|(name, _)| name == table);
    if has(&found, "outbox_schema") {
        let version: Option<Row> = connection
            .query_first("SELECT version FROM outbox_schema WHERE component = 'outbox'")
            .await?;
        found.layout.version = version
            .and_then(|row| number(&row, 0))
            .and_then(|version| i32::try_from(version).ok());
    }
    if has(&found, "outbox_lease") {
        let shards: Option<Row> = connection
            .query_first("SELECT COUNT(*) FROM outbox_lease")
            .await?;
        found.layout.shards = shards.and_then(|row| number(&row, 0)).unwrap_or(0);
    }
    Ok(found)
}

async fn pairs(connection: &mut Conn, statement: &str) -> Result<Vec<(String, String)>, Error> {
    let rows: Vec<Row> = connection.query(statement).await?;
    Ok(rows
        .into_iter()
        .map(|mut row| (string(&mut row, 0), string(&mut row, 1)))
        .collect())
}

fn string(row: &mut Row, index: usize) -> String {
    String::from_utf8_lossy(&take(row, index).unwrap_or_default()).into_owned()
}

impl Found {
    fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    fn is_on(&self, name: &str) -> bool {
        matches!(
            self.setting(name).to_ascii_uppercase().as_str(),
            "ON" | "1" | "YES"
        )
    }

    /// Whether the store can keep its promises here.
    pub(super) fn verify(&self, know: i32) -> Result<(), crate::Error> {
        self.verify_settings()?;
        layout::compare(&self.layout, know)?;
        for (table, _) in TABLES {
            if let Some((_, engine)) = self.engines.iter().find(|(name, _)| name == table)
                && engine != "InnoDB"
            {
                return Err(schema(format!(
                    "table {table} is kept by {engine}, which has no transactions; run ALTER TABLE {table} ENGINE = InnoDB"
                )));
            }
        }
        if !self.position_index {
            return Err(schema(
                "table outbox has no index on (shard, id); restore it with ALTER TABLE outbox ADD PRIMARY KEY (shard, id)",
            ));
        }
        Ok(())
    }

    fn verify_settings(&self) -> Result<(), crate::Error> {
        let invalid = |context: &'static str| Err(crate::Error::new(ErrorKind::Invalid, "check", context));
        if !is_known(self.setting("version")) {
            return invalid("the server is older than MariaDB 10.6 or MySQL 8.0; update it");
        }
        if ["read_only", "super_read_only", "innodb_read_only"]
            .iter()
            .any(|name| self.is_on(name))
        {
            return invalid("the server is a replica or read-only; connect to the primary");
        }
        let isolation = match self.setting("transaction_isolation") {
            "" => self.setting("tx_isolation"),
            isolation => isolation,
        };
        if isolation != "READ-COMMITTED" {
            return invalid(
                "the session does not keep READ COMMITTED, so settles would lock what producers insert; \
                 connect to the server itself, or through a pooler that keeps SET SESSION",
            );
        }
        if self.is_on("log_bin") && self.setting("binlog_format") == "STATEMENT" {
            return invalid(
                "binlog_format is STATEMENT, which forbids READ COMMITTED; set it to ROW or MIXED",
            );
        }
        let flush = self.setting("innodb_flush_log_at_trx_commit");
        if flush != "1" {
            tracing::warn!(
                innodb_flush_log_at_trx_commit = flush,
                "a crash may take back commits whose messages are published already; \
                 run SET GLOBAL innodb_flush_log_at_trx_commit = 1"
            );
        }
        let increment = self.setting("auto_increment_increment");
        if !matches!(increment, "" | "1") {
            tracing::warn!(
                auto_increment_increment = increment,
                "positions have holes that look like open transactions, and servers that write in turn do not keep \
                 the order of keys; write to one server with auto_increment_increment = 1"
            );
        }
        Ok(())
    }
}

/// Whether the version of the server is new enough.
fn is_known(version: &str) -> bool {
    let mut numbers = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let have = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let oldest = if version.contains("MariaDB") {
        OLDEST_MARIADB
    } else {
        OLDEST_MYSQL
    };
    have >= oldest
}

/// Counts rows, each kind up to the limit; `pending` one more, which tells that there are more.
pub(super) fn backlog() -> String {
    let limit = Backlog::COUNT_LIMIT;
    let of_state = |state: i16| {
        format!(
            "(SELECT COUNT(*) FROM (SELECT 1 AS one FROM outbox_parked WHERE state = {state} LIMIT {limit}) r{state})"
        )
    };
    format!(
        "SELECT (SELECT COUNT(*) FROM (SELECT 1 AS one FROM outbox LIMIT {}) r), \
           (SELECT TIMESTAMPDIFF(MICROSECOND, created_at, UTC_TIMESTAMP(6)) FROM outbox ORDER BY id LIMIT 1), \
           {}, {}, {}, \
           (SELECT COUNT(*) FROM (SELECT DISTINCT shard, `key` FROM outbox_parked \
              WHERE state <> 0 AND `key` IS NOT NULL LIMIT {limit}) k)",
        limit + 1,
        of_state(0),
        of_state(1),
        of_state(2)
    )
}

pub(super) fn counted(rows: &[Row]) -> Result<Backlog, Error> {
    let row = rows.first().ok_or_else(|| super::rows::unreadable("row"))?;
    let count = |index: usize| required(row, index).map(i64::unsigned_abs);
    let pending = count(0)?;
    let limit = Backlog::COUNT_LIMIT;
    Ok(Backlog {
        pending: pending.min(limit),
        exact: pending <= limit,
        oldest_age: number(row, 1).map(|age| Duration::from_micros(u64::try_from(age).unwrap_or(0))),
        scheduled: count(2)?,
        retry: count(3)?,
        dead: count(4)?,
        blocked_keys: count(5)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_both_families_are_told_apart() {
        for version in [
            "10.11.19-MariaDB-0+deb12u1",
            "11.4.2-MariaDB",
            "8.0.36",
            "8.4.0-commercial",
            "9.1.0",
        ] {
            assert!(is_known(version), "{version}");
        }
        for version in ["10.5.9-MariaDB", "5.7.44-log", "", "nonsense"] {
            assert!(!is_known(version), "{version}");
        }
    }

    fn settings(pairs: &[(&str, &str)]) -> Found {
        let fine = [
            ("version", "8.0.36"),
            ("read_only", "OFF"),
            ("innodb_flush_log_at_trx_commit", "1"),
            ("transaction_isolation", "READ-COMMITTED"),
        ];
        Found {
            settings: fine
                .iter()
                .chain(pairs)
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..Found::default()
        }
    }

    #[test]
    fn settings_that_break_the_promises_are_refused_with_the_cure() {
        settings(&[]).verify_settings().unwrap();
        settings(&[("log_bin", "ON"), ("binlog_format", "MIXED")])
            .verify_settings()
            .unwrap();
        for (pairs, cure) in [
            (&[("version", "5.7.44")][..], "update"),
            (&[("super_read_only", "ON")], "primary"),
            (&[("innodb_read_only", "1")], "primary"),
            (&[("transaction_isolation", "REPEATABLE-READ")], "READ COMMITTED"),
            (
                &[("log_bin", "ON"), ("binlog_format", "STATEMENT")],
                "ROW or MIXED",
            ),
        ] {
            let error = settings(pairs).verify_settings().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(cure), "{error}");
        }
    }
}
