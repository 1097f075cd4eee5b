//! The tables of the inbox on MariaDB, from the text that other tools run.

#![allow(clippy::unwrap_used, reason = "a test program")]

use mysql_async::prelude::Queryable as _;
use outbox::Database;
use outbox_testing::or_skip;
use outbox_testing::services;

#[tokio::test(flavor = "multi_thread")]
async fn the_ddl_makes_the_tables_and_can_be_repeated() {
    let mariadb = or_skip!(services::mariadb().await);
    let database = mariadb.database().await.unwrap();
    let mut client = database.client().await.unwrap();
    for _ in 0..2 {
        client
            .query_drop(outbox_consumer::ddl(Database::Mysql))
            .await
            .unwrap();
    }
    let made: Vec<String> = client.query("SHOW TABLES LIKE 'consumer\\_%'").await.unwrap();
    assert_eq!(
        made,
        ["consumer_attempt", "consumer_dead_letter", "consumer_inbox"]
    );
}
