//! A lock of a transaction of SQLite: the write lock of the file.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::sqlite::SqliteConnection;
use diesel::{QueryResult, sql_query};
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;

/// Writes nothing, and takes the write lock for it.
const LOCK: &str = "DELETE FROM lock_fence WHERE 0";

/// Not a SELECT, which would begin to read: after that SQLite waits for no writer.
const LIMIT: &str = "PRAGMA busy_timeout";

#[derive(Debug, diesel::QueryableByName)]
struct Limit {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    timeout: i64,
}

/// The longest limit, in milliseconds. Chosen: an hour is no limit any more.
const LONGEST_MILLIS: u128 = 3_600_000;

pub(crate) async fn exclude(
    connection: &mut SyncConnectionWrapper<SqliteConnection>,
    _: &str, // the file has one writer, whatever the key
    within: Option<Duration>,
) -> QueryResult<bool> {
    let limit = within.map_or(0, |within| within.as_millis().min(LONGEST_MILLIS));
    connection
        .spawn_blocking(move |connection| {
            let before: Limit = diesel::RunQueryDsl::get_result(sql_query(LIMIT), connection)?;
            connection.batch_execute(&format!("PRAGMA busy_timeout = {limit}"))?;
            let locked = connection.batch_execute(LOCK);
            connection.batch_execute(&format!("PRAGMA busy_timeout = {}", before.timeout))?;
            locked.map(|()| true)
        })
        .await
}
