//! A lock of a transaction of PostgreSQL.

use std::time::Duration;

use diesel::sql_types::Integer;
use diesel::{QueryResult, sql_query};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use crate::connection::Number;

/// The class of our advisory locks, so that they do not meet those of other programs; "lock" in ASCII.
const CLASS: i32 = 0x6c6f_636b;

const TRY: &str = "SELECT pg_try_advisory_xact_lock($1, $2)::int::bigint AS number";

const LOCK: &str = "SELECT 1::bigint AS number FROM (SELECT pg_advisory_xact_lock($1, $2)) AS held";

const LIMIT: &str = "SELECT setting::bigint AS number FROM pg_settings WHERE name = 'lock_timeout'";

/// The longest limit, in milliseconds. Chosen: an hour is no limit any more.
const LONGEST_MILLIS: u128 = 3_600_000;

pub(crate) async fn exclude(
    connection: &mut AsyncPgConnection,
    name: &str,
    within: Option<Duration>,
) -> QueryResult<bool> {
    let Some(within) = within else {
        return ask(connection, TRY, name).await;
    };
    let limit = within.as_millis().clamp(1, LONGEST_MILLIS);
    // A savepoint: a wait that is given up does not abort the caller's transaction, and takes its limit along.
    connection
        .transaction(async |connection| {
            let before: Number = RunQueryDsl::get_result(sql_query(LIMIT), connection).await?;
            connection
                .batch_execute(&format!("SET LOCAL lock_timeout = {limit}"))
                .await?;
            let held = ask(connection, LOCK, name).await?;
            connection
                .batch_execute(&format!("SET LOCAL lock_timeout = {}", before.number))
                .await?;
            Ok(held)
        })
        .await
}

async fn ask(connection: &mut AsyncPgConnection, statement: &str, name: &str) -> QueryResult<bool> {
    let query = sql_query(statement)
        .bind::<Integer, _>(CLASS)
        .bind::<Integer, _>(hash(name));
    let answer: Number = RunQueryDsl::get_result(query, connection).await?;
    Ok(answer.number == 1)
}

/// FNV-1a: the same in every process and version, as the server's own `hashtext` need not be.
fn hash(name: &str) -> i32 {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_key_never_changes() {
        assert_eq!(hash(""), 0x811c_9dc5_u32.cast_signed());
        assert_eq!(hash("foobar"), 0xbf9c_f968_u32.cast_signed());
    }
}
