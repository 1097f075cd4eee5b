//! A lock of a transaction of MySQL or MariaDB. `GET_LOCK` belongs to the session, so a row takes its place.

use std::time::Duration;

use diesel::sql_types::Binary;
use diesel::{QueryResult, sql_query};
use diesel_async::{AsyncMysqlConnection, RunQueryDsl, SimpleAsyncConnection};

/// One statement, whether the row is there or not: reading first would lock a gap, in which two insert.
const LOCK: &str = "INSERT INTO lock_fence (resource, token) VALUES (?, 0) \
     ON DUPLICATE KEY UPDATE token = token";

/// The longest limit, in seconds. Chosen: an hour is no limit any more.
const LONGEST_SECONDS: u64 = 3_600;

pub(crate) async fn exclude(
    connection: &mut AsyncMysqlConnection,
    name: &str,
    within: Option<Duration>,
) -> QueryResult<bool> {
    let seconds = within.map_or(0, |within| {
        within
            .as_millis()
            .div_ceil(1000)
            .clamp(1, u128::from(LONGEST_SECONDS))
    });
    // MariaDB takes 0 for "do not wait", MySQL's shortest limit is 1 s.
    let limit = format!(
        "SET @outbox_lock_wait = @@SESSION.innodb_lock_wait_timeout, \
         SESSION innodb_lock_wait_timeout = {} /*M!100300 , SESSION innodb_lock_wait_timeout = {seconds} */",
        seconds.max(1)
    );
    connection.batch_execute(&limit).await?;
    let lock = sql_query(LOCK).bind::<Binary, _>(name.as_bytes());
    let locked = RunQueryDsl::execute(lock, connection).await;
    connection
        .batch_execute("SET SESSION innodb_lock_wait_timeout = @outbox_lock_wait")
        .await?;
    locked.map(|_| true)
}
