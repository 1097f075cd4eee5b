//! Enqueue on PostgreSQL connections, own and pooled.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use outbox::{ErrorKind, Message, Outbox};
use outbox_testing::or_skip;
use outbox_testing::services::{self, postgres::Database};

fn placed(outbox: &Outbox, order: usize) -> Message {
    outbox
        .message("orders", "order.placed")
        .key(format!("order-{order}"))
        .json(&order)
        .build()
        .unwrap()
}

async fn with_tables(postgres: &services::Postgres) -> (Database, AsyncPgConnection) {
    let database = postgres.database().await.unwrap();
    let mut connection = AsyncPgConnection::establish(database.url()).await.unwrap();
    outbox::migrate(&mut connection).await.unwrap();
    connection
        .batch_execute("CREATE TABLE orders (id int)")
        .await
        .unwrap();
    (database, connection)
}

async fn stored(database: &Database) -> Vec<String> {
    let rows = database
        .client()
        .await
        .unwrap()
        .query("SELECT msg_id::text FROM outbox ORDER BY id", &[])
        .await
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn many_messages_are_one_statement_in_order() {
    let postgres = or_skip!(services::postgres().await);
    let (database, mut connection) = with_tables(postgres).await;
    let outbox = Outbox::new("/orders");
    connection
        .batch_execute(
            "CREATE TABLE statements (n int); CREATE FUNCTION count_one() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN INSERT INTO statements VALUES (1); RETURN NULL; END'; \
             CREATE TRIGGER each_statement AFTER INSERT ON outbox EXECUTE FUNCTION count_one()",
        )
        .await
        .unwrap();
    let messages: Vec<Message> = (0..3_000).map(|order| placed(&outbox, order)).collect();
    let expected: Vec<String> = messages.iter().map(|message| message.id.to_string()).collect();
    outbox.enqueue_all(&mut connection, messages).await.unwrap();
    assert_eq!(stored(&database).await, expected);
    let row = database
        .client()
        .await
        .unwrap()
        .query_one("SELECT count(*) FROM statements", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
}

#[tokio::test]
async fn a_rolled_back_transaction_or_savepoint_leaves_no_message() {
    let postgres = or_skip!(services::postgres().await);
    let (database, mut connection) = with_tables(postgres).await;
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
    let postgres = or_skip!(services::postgres().await);
    let (database, _connection) = with_tables(postgres).await;
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
    let postgres = or_skip!(services::postgres().await);
    let (database, mut connection) = with_tables(postgres).await;
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
    let orders = database.client().await.unwrap();
    let row = orders
        .query_one("SELECT count(*) FROM orders", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
}

#[tokio::test]
async fn keys_choose_their_shard_and_scheduled_messages_wait_beside() {
    let postgres = or_skip!(services::postgres().await);
    let (database, mut connection) = with_tables(postgres).await;
    let outbox = Outbox::builder("/orders").shards(4).build().unwrap();
    let later = outbox
        .message("orders", "order.reminder")
        .available_at(chrono::Utc::now() + chrono::TimeDelta::hours(1))
        .build()
        .unwrap();
    let messages = (0..100).map(|order| placed(&outbox, order % 50)).chain([later]);
    outbox.enqueue_all(&mut connection, messages).await.unwrap();
    let client = database.client().await.unwrap();
    let row = client
        .query_one(
            "SELECT (SELECT count(DISTINCT shard) FROM outbox), \
             (SELECT count(*) FROM (SELECT key FROM outbox GROUP BY key HAVING count(DISTINCT shard) > 1) k), \
             (SELECT count(*) FROM outbox_parked WHERE state = 0 AND next_attempt_at > now())",
            &[],
        )
        .await
        .unwrap();
    let (shards, split, scheduled): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((shards, split, scheduled), (4, 0, 1));
}
