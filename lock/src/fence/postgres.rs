//! The fence on PostgreSQL.

use std::time::Duration;

use diesel::connection::LoadConnection;
use diesel::pg::Pg;
use diesel::sql_types::{BigInt, Text};
use diesel::{QueryResult, sql_query};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use crate::connection::Number;

/// One statement. It waits for a row that another transaction has locked, and then looks at it again. Where
/// the condition fails the row stays locked all the same, so what `SEEN` reads is what was compared.
const RAISE: &str = "INSERT INTO lock_fence (resource, token) VALUES ($1, $2) \
     ON CONFLICT (resource) DO UPDATE SET token = excluded.token WHERE lock_fence.token <= excluded.token";

const SEEN: &str = "SELECT token AS number FROM lock_fence WHERE resource = $1";

const MINT: &str = "INSERT INTO lock_fence (resource, token) VALUES ($1, 1) \
     ON CONFLICT (resource) DO UPDATE SET token = lock_fence.token + 1 RETURNING token AS number";

pub(crate) async fn raise(
    connection: &mut AsyncPgConnection,
    resource: &str,
    token: i64,
) -> QueryResult<Option<i64>> {
    let raise = sql_query(RAISE)
        .bind::<Text, _>(resource)
        .bind::<BigInt, _>(token);
    if RunQueryDsl::execute(raise, connection).await? > 0 {
        return Ok(None);
    }
    let seen: Number = RunQueryDsl::get_result(sql_query(SEEN).bind::<Text, _>(resource), connection).await?;
    Ok(Some(seen.number))
}

pub(crate) async fn mint(
    connection: &mut AsyncPgConnection,
    resource: &str,
    within: Duration,
) -> QueryResult<i64> {
    connection
        .transaction(async |connection| {
            // A statement that outlives its asker must not mint: it would fence a holder for nothing.
            let limit = format!(
                "SET LOCAL lock_timeout = {}",
                within.as_millis().clamp(1, 3_600_000)
            );
            connection.batch_execute(&limit).await?;
            let mint = sql_query(MINT).bind::<Text, _>(resource);
            let minted: Number = RunQueryDsl::get_result(mint, connection).await?;
            Ok(minted.number)
        })
        .await
}

pub(crate) fn raise_sync<C>(connection: &mut C, resource: &str, token: i64) -> QueryResult<Option<i64>>
where
    C: LoadConnection<Backend = Pg>,
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
