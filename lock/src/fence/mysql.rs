//! The fence on MySQL and MariaDB.

use std::time::Duration;

use diesel::connection::LoadConnection;
use diesel::mysql::Mysql;
use diesel::sql_types::{BigInt, Binary};
use diesel::{QueryResult, sql_query};
use diesel_async::{AsyncMysqlConnection, RunQueryDsl, SimpleAsyncConnection};

use crate::connection::Number;

/// One statement. It waits for a row that another transaction has locked, and then looks at the newest
/// version of it, under REPEATABLE READ too. Whether the row changed or not, it stays locked.
const RAISE: &str = "INSERT INTO lock_fence (resource, token) VALUES (?, ?) \
     ON DUPLICATE KEY UPDATE token = GREATEST(token, VALUES(token))";

/// What the row says now. The number of affected rows cannot tell an equal token from a higher one. A
/// locking read, because a plain one would show the transaction's snapshot, which may be older.
const SEEN: &str = "SELECT token AS number FROM lock_fence WHERE resource = ? FOR UPDATE";

const MINT: &str = "INSERT INTO lock_fence (resource, token) VALUES (?, LAST_INSERT_ID(1)) \
     ON DUPLICATE KEY UPDATE token = LAST_INSERT_ID(token + 1)";

const MINTED: &str = "SELECT CAST(LAST_INSERT_ID() AS SIGNED) AS number";

pub(crate) async fn raise(
    connection: &mut AsyncMysqlConnection,
    resource: &str,
    token: i64,
) -> QueryResult<Option<i64>> {
    let resource = resource.as_bytes();
    let raise = sql_query(RAISE)
        .bind::<Binary, _>(resource)
        .bind::<BigInt, _>(token);
    RunQueryDsl::execute(raise, connection).await?;
    let seen: Number =
        RunQueryDsl::get_result(sql_query(SEEN).bind::<Binary, _>(resource), connection).await?;
    Ok((seen.number > token).then_some(seen.number))
}

pub(crate) async fn mint(
    connection: &mut AsyncMysqlConnection,
    resource: &str,
    within: Duration,
) -> QueryResult<i64> {
    // A statement that outlives its asker must not mint: it would fence a holder for nothing.
    let limit = format!(
        "SET SESSION innodb_lock_wait_timeout = {}",
        within.as_secs().clamp(1, 3_600)
    );
    connection.batch_execute(&limit).await?;
    let mint = sql_query(MINT).bind::<Binary, _>(resource.as_bytes());
    RunQueryDsl::execute(mint, connection).await?;
    let minted: Number = RunQueryDsl::get_result(sql_query(MINTED), connection).await?;
    Ok(minted.number)
}

pub(crate) fn raise_sync<C>(connection: &mut C, resource: &str, token: i64) -> QueryResult<Option<i64>>
where
    C: LoadConnection<Backend = Mysql>,
{
    let resource = resource.as_bytes();
    let raise = sql_query(RAISE)
        .bind::<Binary, _>(resource)
        .bind::<BigInt, _>(token);
    diesel::RunQueryDsl::execute(raise, connection)?;
    let seen: Number =
        diesel::RunQueryDsl::get_result(sql_query(SEEN).bind::<Binary, _>(resource), connection)?;
    Ok((seen.number > token).then_some(seen.number))
}
