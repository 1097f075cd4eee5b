//! The buffered transaction on PostgreSQL: its rows and its commit in one flush.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

use std::time::Duration;

use diesel::connection::CacheSize;
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection, TransactionManager};
use futures::FutureExt;
use outbox::{Error, ErrorKind, Message, Outbox};
use outbox_testing::or_skip;
use outbox_testing::proxy::Proxy;
use outbox_testing::services::{self, postgres::Database};

type Manager = <AsyncPgConnection as AsyncConnection>::TransactionManager;

fn placed(outbox: &Outbox, order: i32) -> Message {
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
        .batch_execute(
            "CREATE TABLE orders (id int); \
             CREATE TABLE promises (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        )
        .await
        .unwrap();
    (database, connection)
}

/// One order and `messages` messages in one transaction.
async fn place(
    outbox: &Outbox,
    connection: &mut AsyncPgConnection,
    order: i32,
    messages: i32,
) -> Result<(), Error> {
    outbox
        .transaction(connection, async |tx| {
            let insert = format!("INSERT INTO orders VALUES ({order})");
            tx.connection().batch_execute(&insert).await?;
            for _ in 0..messages {
                tx.enqueue(placed(outbox, order))?;
            }
            Ok(())
        })
        .await
}

/// Orders, messages, and messages whose transaction is that of their order.
async fn counts(database: &Database) -> (i64, i64, i64) {
    let row = database
        .client()
        .await
        .unwrap()
        .query_one(
            "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM outbox), \
             (SELECT count(*) FROM outbox m JOIN orders o ON m.key = 'order-' || o.id \
              WHERE m.xid = o.xmin::text::xid8)",
            &[],
        )
        .await
        .unwrap();
    (row.get(0), row.get(1), row.get(2))
}

fn depth(connection: &mut AsyncPgConnection) -> Option<u32> {
    let status = Manager::transaction_manager_status_mut(connection);
    status.transaction_depth().unwrap().map(Into::into)
}

#[tokio::test]
async fn messages_are_written_in_the_transaction_of_their_order_prepared_or_not() {
    let postgres = or_skip!(services::postgres().await);
    let (database, mut connection) = with_tables(postgres).await;
    let outbox = Outbox::new("/orders");
    for order in 0..3 {
        // The first prepares, the next are prepared.
        place(&outbox, &mut connection, order, 1).await.unwrap();
        place(&outbox, &mut connection, order + 10, 2).await.unwrap();
    }
    let mut uncached = AsyncPgConnection::establish(database.url()).await.unwrap();
    uncached.set_prepared_statement_cache_size(CacheSize::Disabled);
    for order in 20..23 {
        place(&outbox, &mut uncached, order, 1).await.unwrap();
        place(&outbox, &mut uncached, order + 10, 2).await.unwrap();
    }
    assert_eq!(counts(&database).await, (12, 18, 18));
    assert_eq!((depth(&mut connection), depth(&mut uncached)), (None, None));
}

#[tokio::test]
async fn a_task_that_has_used_up_its_budget_keeps_the_order() {
    let postgres = or_skip!(services::postgres().await);
    let (database, mut connection) = with_tables(postgres).await;
    let outbox = Outbox::new("/orders");
    for order in 0..20 {
        outbox
            .transaction(&mut connection, async |tx| {
                let insert = format!("INSERT INTO orders VALUES ({order})");
                tx.connection().batch_execute(&insert).await?;
                tx.enqueue(placed(&outbox, order))?;
                while tokio::task::coop::consume_budget().now_or_never().is_some() {}
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
    assert_eq!(counts(&database).await, (20, 20, 20));
}

#[tokio::test]
async fn a_message_that_the_database_refuses_rolls_everything_back() {
    let postgres = or_skip!(services::postgres().await);
    let (database, mut connection) = with_tables(postgres).await;
    let outbox = Outbox::new("/orders");
    let wakeup = outbox.wakeup();
    connection
        .batch_execute("ALTER TABLE outbox ADD CONSTRAINT no_order_7 CHECK (key <> 'order-7')")
        .await
        .unwrap();
    // Not prepared yet; prepared already; several rows.
    for messages in [1, 1, 2] {
        let refused = place(&outbox, &mut connection, 7, messages).await.unwrap_err();
        assert!(!refused.transaction_is_usable());
        assert_eq!(depth(&mut connection), None);
        assert_eq!(counts(&database).await, (0, 0, 0));
    }
    assert_eq!(wakeup.notified().now_or_never(), None, "nothing was committed");
    place(&outbox, &mut connection, 8, 1).await.unwrap();
    let refused = place(&outbox, &mut connection, 7, 1).await;
    assert_eq!(refused.unwrap_err().operation(), "enqueue");
    assert_eq!(counts(&database).await, (1, 1, 1));
    assert_eq!(wakeup.notified().now_or_never(), Some(()));
}

#[tokio::test]
async fn a_commit_that_fails_leaves_nothing_and_the_connection_usable() {
    let postgres = or_skip!(services::postgres().await);
    let (database, mut connection) = with_tables(postgres).await;
    let outbox = Outbox::new("/orders");
    let wakeup = outbox.wakeup();
    let twice = outbox
        .transaction(&mut connection, async |tx| {
            tx.connection()
                .batch_execute("INSERT INTO orders VALUES (1); INSERT INTO promises VALUES (1), (1)")
                .await?;
            tx.enqueue(placed(&outbox, 1)).map(|_| ())
        })
        .await;
    assert_eq!(twice.unwrap_err().operation(), "commit");
    assert_eq!(depth(&mut connection), None);
    assert_eq!(wakeup.notified().now_or_never(), None);
    assert_eq!(counts(&database).await, (0, 0, 0));
    place(&outbox, &mut connection, 2, 1).await.unwrap();
    assert_eq!(counts(&database).await, (1, 1, 1));
}

#[tokio::test]
async fn a_swallowed_error_inside_the_work_is_not_a_commit() {
    let postgres = or_skip!(services::postgres().await);
    let (database, mut connection) = with_tables(postgres).await;
    let outbox = Outbox::new("/orders");
    let swallowed = outbox
        .transaction(&mut connection, async |tx| {
            tx.connection()
                .batch_execute("INSERT INTO orders VALUES (1)")
                .await?;
            let failed = tx
                .connection()
                .batch_execute("INSERT INTO nowhere VALUES (1)")
                .await;
            assert!(failed.is_err());
            tx.enqueue(placed(&outbox, 1)).map(|_| ())
        })
        .await;
    assert!(swallowed.is_err());
    assert_eq!(counts(&database).await, (0, 0, 0));
    place(&outbox, &mut connection, 2, 1).await.unwrap();
}

#[tokio::test]
async fn a_savepoint_left_open_by_the_work_is_refused_and_rolled_back() {
    let postgres = or_skip!(services::postgres().await);
    let (database, mut connection) = with_tables(postgres).await;
    let outbox = Outbox::new("/orders");
    let left = outbox
        .transaction(&mut connection, async |tx| {
            Manager::begin_transaction(tx.connection()).await?;
            tx.connection()
                .batch_execute("INSERT INTO orders VALUES (1)")
                .await?;
            tx.enqueue(placed(&outbox, 1)).map(|_| ())
        })
        .await;
    assert_eq!(left.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(depth(&mut connection), None);
    assert_eq!(counts(&database).await, (0, 0, 0));
}

#[tokio::test]
async fn a_connection_cut_before_the_commit_is_reported_and_wakes_nobody() {
    let postgres = or_skip!(services::postgres().await);
    let (database, mut direct) = with_tables(postgres).await;
    let outbox = Outbox::new("/orders");
    let wakeup = outbox.wakeup();
    let proxy = Proxy::start(postgres.address()).await.unwrap();
    let url = database.url_via(&proxy.address()).unwrap();
    let mut connection = AsyncPgConnection::establish(&url).await.unwrap();
    let lost = outbox.transaction(&mut connection, async |tx| {
        tx.connection()
            .batch_execute("INSERT INTO orders VALUES (1)")
            .await?;
        tx.enqueue(placed(&outbox, 1))?;
        proxy.cut();
        Ok::<_, Error>(())
    });
    let lost = tokio::time::timeout(Duration::from_secs(10), lost).await.unwrap();
    assert_eq!(lost.unwrap_err().kind(), ErrorKind::Unreachable);
    assert_eq!(wakeup.notified().now_or_never(), None);
    place(&outbox, &mut direct, 2, 1).await.unwrap();
    assert_eq!(counts(&database).await, (1, 1, 1));
}
