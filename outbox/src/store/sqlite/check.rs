//! What is there: the schema for `check`, the rows for `backlog`.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};

use super::tables::NOW;
use crate::record::Backlog;
use crate::store::layout::{Found, TABLES};

#[derive(Debug, QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    n: i64,
}

/// Reads the catalogue.
pub(super) fn found(connection: &mut SqliteConnection) -> QueryResult<Found> {
    #[derive(QueryableByName)]
    struct Name {
        #[diesel(sql_type = Text)]
        name: String,
    }
    #[derive(QueryableByName)]
    struct Version {
        #[diesel(sql_type = Integer)]
        version: i32,
    }
    let names = |connection: &mut SqliteConnection, kind: &str| -> QueryResult<Vec<String>> {
        let rows: Vec<Name> = diesel::sql_query("SELECT name FROM sqlite_master WHERE type = ?1")
            .bind::<Text, _>(kind)
            .load(connection)?;
        Ok(rows.into_iter().map(|row| row.name).collect())
    };
    let tables = names(connection, "table")?;
    let mut found = Found {
        indexes: names(connection, "index")?,
        ..Found::default()
    };
    if tables.iter().any(|name| name == "outbox_schema") {
        found.version = diesel::sql_query("SELECT version FROM outbox_schema WHERE component = 'outbox'")
            .get_result::<Version>(connection)
            .optional()?
            .map(|row| row.version);
    }
    for (table, _) in TABLES {
        let columns: Vec<Name> = diesel::sql_query("SELECT name FROM pragma_table_info(?1)")
            .bind::<Text, _>(table)
            .load(connection)?;
        found
            .columns
            .extend(columns.into_iter().map(|column| (table.to_owned(), column.name)));
    }
    if tables.iter().any(|name| name == "outbox_lease") {
        found.shards = count(connection, "SELECT count(*) AS n FROM outbox_lease")?;
    }
    Ok(found)
}

fn count(connection: &mut SqliteConnection, query: &str) -> QueryResult<i64> {
    diesel::sql_query(query)
        .get_result::<Count>(connection)
        .map(|row| row.n)
}

/// Counts rows, each kind up to the limit and one more, which tells that there are more.
pub(super) fn backlog(connection: &mut SqliteConnection) -> QueryResult<Backlog> {
    #[derive(QueryableByName)]
    struct Oldest {
        #[diesel(sql_type = Nullable<BigInt>)]
        age: Option<i64>,
    }
    let limit = Backlog::COUNT_LIMIT;
    connection.transaction(|connection| {
        let mut bounded = |rows: &str, up_to: u64| {
            count(
                connection,
                &format!("SELECT count(*) AS n FROM ({rows} LIMIT {up_to})"),
            )
            .map(i64::unsigned_abs)
        };
        let pending = bounded("SELECT 1 FROM outbox", limit + 1)?;
        let mut of_state = |state: i16| {
            bounded(
                &format!("SELECT 1 FROM outbox_parked WHERE state = {state}"),
                limit,
            )
        };
        let (scheduled, retry, dead) = (of_state(0)?, of_state(1)?, of_state(2)?);
        let blocked_keys = bounded(
            "SELECT DISTINCT shard, key FROM outbox_parked WHERE state <> 0 AND key IS NOT NULL",
            limit,
        )?;
        let oldest: Option<Oldest> = diesel::sql_query(format!(
            "SELECT {NOW} - created_at AS age FROM outbox ORDER BY id LIMIT 1"
        ))
        .get_result(connection)
        .optional()?;
        Ok(Backlog {
            pending: pending.min(limit),
            exact: pending <= limit,
            oldest_age: oldest
                .and_then(|row| row.age)
                .map(|age| Duration::from_micros(u64::try_from(age).unwrap_or(0))),
            scheduled,
            retry,
            dead,
            blocked_keys,
        })
    })
}
