//! A SQLite outbox, written as another language would: plain SQL.

use std::path::Path;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};

/// A SQLite file to standard output.
pub(crate) const CONFIG: &str = r#"
config_version = 1
instance = "test"
[source.orders]
kind = "sqlite"
url = "sqlite:orders.db"
[sink.lines]
kind = "stdout"
[ops]
listen = "127.0.0.1:0"
[telemetry]
log = { format = "json" }
"#;

pub(crate) fn open(path: &Path) -> SqliteConnection {
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    connection.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
    connection
}

/// Writes a message of `key` for `topic`, with `number` as its payload.
pub(crate) fn insert(connection: &mut SqliteConnection, topic: &str, key: &str, number: i64) {
    diesel::sql_query(
        "INSERT INTO outbox (topic, key, type, source, payload) VALUES (?, ?, 'number', '/test', CAST(? AS BLOB))",
    )
    .bind::<Text, _>(topic)
    .bind::<Text, _>(key)
    .bind::<Text, _>(number.to_string())
    .execute(connection)
    .unwrap();
}

pub(crate) fn count(connection: &mut SqliteConnection, query: &str) -> i64 {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        n: i64,
    }
    diesel::sql_query(query)
        .get_result::<Count>(connection)
        .unwrap()
        .n
}

/// The holder in the lease table.
pub(crate) fn lease_owner(connection: &mut SqliteConnection) -> Option<String> {
    #[derive(QueryableByName)]
    struct Owner {
        #[diesel(sql_type = Nullable<Text>)]
        owner: Option<String>,
    }
    diesel::sql_query("SELECT owner FROM outbox_lease WHERE shard = 0")
        .get_result::<Owner>(connection)
        .unwrap()
        .owner
}
