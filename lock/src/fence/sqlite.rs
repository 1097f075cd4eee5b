//! The fence on SQLite.

use std::time::Duration;

use diesel::connection::LoadConnection;
use diesel::sql_types::{BigInt, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel::{QueryResult, sql_query};
use diesel_async::RunQueryDsl;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;

use crate::connection::Number;

/// One statement. The database has one writer: what waits here is the whole transaction.
const RAISE: &str = "INSERT INTO lock_fence (resource, token) VALUES ($1, $2) \
     ON CONFLICT (resource) DO UPDATE SET token = excluded.token WHERE lock_fence.token <= excluded.token";

const SEEN: &str = "SELECT token AS number FROM lock_fence WHERE resource = $1";

const MINT: &str = "INSERT INTO lock_fence (resource, token) VALUES ($1, 1) \
     ON CONFLICT (resource) DO UPDATE SET token = lock_fence.token + 1 RETURNING token AS number";

pub(crate) async fn mint(
    connection: &mut SyncConnectionWrapper<SqliteConnection>,
    resource: &str,
    _: Duration, // `PRAGMA busy_timeout` bounds the wait
) -> QueryResult<i64> {
    let mint = sql_query(MINT).bind::<Text, _>(resource.to_owned());
    let minted: Number = RunQueryDsl::get_result(mint, connection).await?;
    Ok(minted.number)
}

pub(crate) fn raise_sync<C>(connection: &mut C, resource: &str, token: i64) -> QueryResult<Option<i64>>
where
    C: LoadConnection<Backend = Sqlite>,
{
    let raise = sql_query(RAISE)
        .bind::<Text, _>(resource)
        .bind::<BigInt, _>(token);
    if diesel::RunQueryDsl::execute(raise, connection)? > 0 {
        return Ok(None);
    }
    let seen: Number =
        diesel::RunQueryDsl::get_result(sql_query(SEEN).bind::<Text, _>(resource), connection)?;
    Ok(Some(seen.number))
}
