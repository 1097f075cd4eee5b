//! Enqueue on MySQL and MariaDB connections, own and pooled.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use diesel_async::{AsyncConnection, AsyncMysqlConnection, SimpleAsyncConnection};
use mysql_async::prelude::Queryable as _;
use outbox::{ErrorKind, Message, Outbox};
use outbox_testing::or_skip;
use outbox_testing::services::{self, mariadb::Database};

fn placed(outbox: &Outbox, order: usize) -> Message {
    outbox
        .message("orders", "order.placed")
        .key(format!("order-{order}"))
        .json(&order)
        .build()
        .unwrap()
}

async fn with_tables(mariadb: &services::Mariadb) -> (Database, AsyncMysqlConnection) {
    let database = mariadb.database().await.unwrap();
    let mut connection = AsyncMysqlConnection::establish(database.url()).await.unwrap();
    outbox::migrate(&mut connection).await.unwrap();
    connection
        .batch_execute("CREATE TABLE orders (id int)")
        .await
        .unwrap();
    (database, connection)
}

async fn number(connection: &mut AsyncMysqlConnection, query: &str) -> i64 {
    #[derive(diesel::QueryableByName)]
    struct Number {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        n: i64,
    }
    let query = format!("SELECT ({query}) AS n");
    let row: Number = diesel_async::RunQueryDsl::get_result(diesel::sql_query(query), connection)
        .await
        .unwrap();
    row.n
}

async fn stored(database: &Database) -> Vec<String> {
    let mut client = database.client().await.unwrap();
    let ids: Vec<Vec<u8>> = client
        .query("SELECT msg_id FROM outbox ORDER BY id")
        .await
        .unwrap();
    ids.iter()
        .map(|id| uuid::Uuid::from_slice(id).unwrap().to_string())
        .collect()
}

#[tokio::test]
async fn many_messages_are_few_statements_in_order() {
    let mariadb = or_skip!(services::mariadb().await);
    let (database, mut connection) = with_tables(mariadb).await;
    let outbox = Outbox::new("/orders");
    let inserts = "SELECT CAST(variable_value AS SIGNED) FROM information_schema.session_status \
                   WHERE variable_name = 'Com_insert'";
    let before = number(&mut connection, inserts).await;
    let messages: Vec<Message> = (0..3_000).map(|order| placed(&outbox, order)).collect();
    let expected: Vec<String> = messages.iter().map(|message| message.id.to_string()).collect();
    outbox.enqueue_all(&mut connection, messages).await.unwrap();
    assert_eq!(stored(&database).await, expected);
    assert_eq!(number(&mut connection, inserts).await - before, 6);
}

#[tokio::test]
async fn large_messages_stay_below_what_the_server_takes_in_one_packet() {
    let mariadb = or_skip!(services::mariadb().await);
    let (database, mut connection) = with_tables(mariadb).await;
    let outbox = Outbox::new("/orders");
    let messages = (0..40).map(|order| {
        let mut large = placed(&outbox, order);
        large.payload = vec![b'x'; 900 * 1024].into(); // 35 MiB in all, max_allowed_packet is 16
        large
    });
    outbox.enqueue_all(&mut connection, messages).await.unwrap();
    assert_eq!(stored(&database).await.len(), 40);
}

#[tokio::test]
async fn a_rolled_back_transaction_or_savepoint_leaves_no_message() {
    let mariadb = or_skip!(services::mariadb().await);
    let (database, mut connection) = with_tables(mariadb).await;
    let outbox = Outbox::new("/orders");
    let kept = placed(&outbox, 1);
    let id = kept.id.to_string();
    connection
        .transaction::<(), outbox::Error, _>(async |connection| {
            outbox.enqueue(connection, kept).await?;
            let inner = connection
                .transaction::<(), outbox::Error, _>(async |connection| {
                    outbox.enqueue(connection, placed(&outbox, 2)).await?;
                    Err(diesel::result::Error::RollbackTransaction.into())
                })
                .await;
            assert!(inner.is_err());
            let mut large = placed(&outbox, 3);
            large.payload = vec![0; 1 << 20].into();
            let error = outbox.enqueue(connection, large).await.unwrap_err();
            assert!(error.transaction_is_usable());
            Ok(())
        })
        .await
        .unwrap();
    let rolled_back = connection
        .transaction::<(), outbox::Error, _>(async |connection| {
            outbox.enqueue(connection, placed(&outbox, 4)).await?;
            Err(diesel::result::Error::RollbackTransaction.into())
        })
        .await;
    assert!(rolled_back.is_err());
    assert_eq!(stored(&database).await, [id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buffered_transaction_runs_on_a_pooled_connection_in_a_task() {
    let mariadb = or_skip!(services::mariadb().await);
    let (database, _connection) = with_tables(mariadb).await;
    let pool = database.pool().unwrap();
    let outbox = Outbox::new("/orders");
    let wakeup = outbox.wakeup();
    let ids = tokio::spawn(async move {
        let mut connection = pool.get().await.unwrap();
        outbox
            .transaction(&mut connection, async |tx| {
                diesel_async::RunQueryDsl::execute(
                    diesel::sql_query("INSERT INTO orders VALUES (1)"),
                    &mut **tx,
                )
                .await?;
                tx.enqueue(placed(&outbox, 1))?;
                tx.enqueue(placed(&outbox, 2))?;
                Ok::<_, outbox::Error>(tx.enqueued())
            })
            .await
            .unwrap()
    })
    .await
    .unwrap();
    let expected: Vec<String> = ids.iter().map(ToString::to_string).collect();
    assert_eq!(stored(&database).await, expected);
    tokio::time::timeout(Duration::from_secs(5), wakeup.notified())
        .await
        .expect("the commit woke the relay");
}

#[tokio::test]
async fn a_failed_buffered_transaction_leaves_nothing_and_the_connection_usable() {
    let mariadb = or_skip!(services::mariadb().await);
    let (database, mut connection) = with_tables(mariadb).await;
    let outbox = Outbox::new("/orders");
    let failed: Result<(), outbox::Error> = outbox
        .transaction(&mut connection, async |tx| {
            tx.connection()
                .batch_execute("INSERT INTO orders VALUES (1)")
                .await?;
            tx.enqueue(placed(&outbox, 1))?;
            tx.connection()
                .batch_execute("INSERT INTO nowhere VALUES (1)")
                .await?;
            Ok(())
        })
        .await;
    assert!(!failed.unwrap_err().transaction_is_usable());
    connection
        .batch_execute("ALTER TABLE outbox RENAME TO elsewhere")
        .await
        .unwrap();
    let missing: Result<(), outbox::Error> = outbox
        .transaction(&mut connection, async |tx| {
            tx.connection()
                .batch_execute("INSERT INTO orders VALUES (2)")
                .await?;
            tx.enqueue(placed(&outbox, 2)).map(|_| ())
        })
        .await;
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::Schema);
    connection
        .batch_execute("ALTER TABLE elsewhere RENAME TO outbox")
        .await
        .unwrap();
    outbox
        .transaction(&mut connection, async |tx| {
            tx.enqueue(placed(&outbox, 3)).map(|_| ())
        })
        .await
        .unwrap();
    assert_eq!(stored(&database).await.len(), 1);
    let mut client = database.client().await.unwrap();
    assert_eq!(
        client.query_first("SELECT COUNT(*) FROM orders").await.unwrap(),
        Some(0)
    );
}

#[tokio::test]
async fn keys_choose_their_shard_and_scheduled_messages_wait_beside() {
    let mariadb = or_skip!(services::mariadb().await);
    let (database, mut connection) = with_tables(mariadb).await;
    let outbox = Outbox::builder("/orders").shards(4).build().unwrap();
    let later = outbox
        .message("orders", "order.reminder")
        .available_at(chrono::Utc::now() + chrono::TimeDelta::hours(1))
        .build()
        .unwrap();
    let messages = (0..100).map(|order| placed(&outbox, order % 50)).chain([later]);
    outbox.enqueue_all(&mut connection, messages).await.unwrap();
    let mut client = database.client().await.unwrap();
    let counts: Option<(i64, i64, i64)> = client
        .query_first(
            "SELECT (SELECT COUNT(DISTINCT shard) FROM outbox), \
             (SELECT COUNT(*) FROM (SELECT `key` FROM outbox GROUP BY `key` HAVING COUNT(DISTINCT shard) > 1) k), \
             (SELECT COUNT(*) FROM outbox_parked WHERE state = 0 AND next_attempt_at > UTC_TIMESTAMP(6))",
        )
        .await
        .unwrap();
    assert_eq!(counts, Some((4, 0, 1)));
}

#[tokio::test]
async fn a_broken_connection_is_told_from_a_refused_statement() {
    let mariadb = or_skip!(services::own_mariadb().await);
    let (_database, mut connection) = with_tables(&mariadb).await;
    let outbox = Outbox::new("/orders");
    outbox.enqueue(&mut connection, placed(&outbox, 1)).await.unwrap();
    mariadb.kill().await.unwrap();
    let error = outbox
        .enqueue(&mut connection, placed(&outbox, 2))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(!error.transaction_is_usable());
}
