//! Enqueue on SQLite connections, asynchronous and synchronous.
#![cfg(feature = "sqlite")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, SimpleAsyncConnection};
use outbox::{ErrorKind, Message, Outbox};

type AsyncSqlite = SyncConnectionWrapper<SqliteConnection>;

#[derive(QueryableByName, Debug, PartialEq)]
struct Stored {
    #[diesel(sql_type = Text)]
    msg_id: String,
    #[diesel(sql_type = Text)]
    topic: String,
    #[diesel(sql_type = Nullable<Text>)]
    key: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    headers: Option<String>,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
}

struct Database {
    directory: tempfile::TempDir,
}

impl Database {
    async fn new() -> Self {
        let database = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let mut connection = database.connect().await;
        connection
            .batch_execute("PRAGMA journal_mode = WAL; CREATE TABLE orders (id INTEGER PRIMARY KEY)")
            .await
            .unwrap();
        outbox::migrate(&mut connection).await.unwrap();
        database
    }

    fn url(&self) -> String {
        self.directory.path().join("orders.db").display().to_string()
    }

    fn sync(&self) -> SqliteConnection {
        let mut connection = SqliteConnection::establish(&self.url()).unwrap();
        connection.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
        connection
    }

    async fn connect(&self) -> AsyncSqlite {
        AsyncSqlite::new(self.sync())
    }

    fn stored(&self) -> Vec<Stored> {
        diesel::sql_query("SELECT msg_id, topic, key, headers, created_at FROM outbox ORDER BY id")
            .load(&mut self.sync())
            .unwrap()
    }

    fn count(&self, table: &str) -> i32 {
        #[derive(QueryableByName)]
        struct Count {
            #[diesel(sql_type = Integer)]
            n: i32,
        }
        diesel::sql_query(format!("SELECT count(*) AS n FROM {table}"))
            .get_result::<Count>(&mut self.sync())
            .unwrap()
            .n
    }
}

fn outbox() -> Outbox {
    Outbox::new("/orders")
}

fn placed(outbox: &Outbox, order: usize) -> Message {
    outbox
        .message("orders", "order.placed")
        .key(format!("order-{order}"))
        .json(&serde_json::json!({ "order": order }))
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_stored_when_its_transaction_commits() {
    let database = Database::new().await;
    let mut connection = database.connect().await;
    let outbox = outbox();
    let message = outbox
        .message("orders", "order.placed")
        .key("order-1")
        .header("tenant", "acme")
        .trace("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None)
        .build()
        .unwrap();
    let id = connection
        .transaction::<_, outbox::Error, _>(async |connection| {
            outbox.enqueue(connection, message.clone()).await
        })
        .await
        .unwrap();
    let stored = database.stored();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].msg_id, id.to_string());
    assert_eq!(stored[0].topic, "orders");
    assert_eq!(stored[0].key.as_deref(), Some("order-1"));
    assert_eq!(stored[0].created_at, message.time.timestamp_micros());
    let headers: serde_json::Value = serde_json::from_str(stored[0].headers.as_deref().unwrap()).unwrap();
    assert_eq!(headers["tenant"], "acme");
    assert_eq!(
        headers["traceparent"],
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolled_back_transaction_leaves_no_message() {
    let database = Database::new().await;
    let mut connection = database.connect().await;
    let outbox = outbox();
    let result = connection
        .transaction::<(), outbox::Error, _>(async |connection| {
            outbox.enqueue(connection, placed(&outbox, 1)).await?;
            Err(diesel::result::Error::RollbackTransaction.into())
        })
        .await;
    assert!(result.is_err());
    assert_eq!(database.stored(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolled_back_savepoint_takes_only_its_own_messages() {
    let database = Database::new().await;
    let mut connection = database.connect().await;
    let outbox = outbox();
    connection
        .transaction::<(), outbox::Error, _>(async |connection| {
            outbox.enqueue(connection, placed(&outbox, 1)).await?;
            let inner = connection
                .transaction::<(), outbox::Error, _>(async |connection| {
                    outbox.enqueue(connection, placed(&outbox, 2)).await?;
                    Err(diesel::result::Error::RollbackTransaction.into())
                })
                .await;
            assert!(inner.is_err());
            outbox.enqueue(connection, placed(&outbox, 3)).await?;
            Ok(())
        })
        .await
        .unwrap();
    let keys: Vec<_> = database
        .stored()
        .into_iter()
        .map(|row| row.key.unwrap())
        .collect();
    assert_eq!(keys, ["order-1", "order-3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_message_leaves_the_transaction_usable() {
    let database = Database::new().await;
    let mut connection = database.connect().await;
    let outbox = outbox();
    connection
        .transaction::<(), outbox::Error, _>(async |connection| {
            let mut large = placed(&outbox, 1);
            large.payload = vec![0; 1024 * 1024].into();
            let error = outbox.enqueue(connection, large).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidMessage);
            assert!(error.transaction_is_usable());
            outbox.enqueue(connection, placed(&outbox, 2)).await?;
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(database.stored().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_messages_keep_their_order() {
    let database = Database::new().await;
    let mut connection = database.connect().await;
    let outbox = outbox();
    let messages: Vec<Message> = (0..1_234).map(|order| placed(&outbox, order)).collect();
    let ids = outbox
        .enqueue_all(&mut connection, messages.clone())
        .await
        .unwrap();
    let expected: Vec<String> = messages.iter().map(|message| message.id.to_string()).collect();
    assert_eq!(ids.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    let stored: Vec<String> = database.stored().into_iter().map(|row| row.msg_id).collect();
    assert_eq!(stored, expected);
}

#[test]
fn a_synchronous_connection_enqueues_in_its_transaction() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let database = runtime.block_on(Database::new());
    let mut connection = database.sync();
    let outbox = outbox();
    connection
        .transaction::<_, outbox::Error, _>(|connection| {
            outbox.enqueue_sync(connection, placed(&outbox, 1))?;
            outbox.enqueue_all_sync(connection, (2..700).map(|order| placed(&outbox, order)))?;
            Ok(())
        })
        .unwrap();
    let rolled_back = connection.transaction::<(), outbox::Error, _>(|connection| {
        outbox.enqueue_sync(connection, placed(&outbox, 700))?;
        Err(diesel::result::Error::RollbackTransaction.into())
    });
    assert!(rolled_back.is_err());
    assert_eq!(database.stored().len(), 699);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffered_transaction_writes_rows_and_messages_together() {
    let database = Database::new().await;
    let outbox = outbox();
    let mut connection = database.connect().await;
    // In a task of its own: the future must be `Send`, as in a web handler.
    let (ids, outbox) = tokio::spawn(async move {
        let ids = outbox
            .transaction(&mut connection, async |tx| {
                diesel_async::RunQueryDsl::execute(
                    diesel::sql_query("INSERT INTO orders VALUES (1)"),
                    &mut **tx,
                )
                .await?;
                tx.connection()
                    .batch_execute("INSERT INTO orders VALUES (2)")
                    .await?;
                tx.enqueue(placed(&outbox, 1))?;
                let mut bad = placed(&outbox, 9);
                bad.topic = String::new();
                assert!(tx.enqueue(bad).unwrap_err().transaction_is_usable());
                tx.enqueue(placed(&outbox, 2))?;
                Ok::<_, outbox::Error>(tx.enqueued())
            })
            .await
            .unwrap();
        (ids, outbox)
    })
    .await
    .unwrap();
    let stored: Vec<String> = database.stored().into_iter().map(|row| row.msg_id).collect();
    assert_eq!(stored, ids.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(database.count("orders"), 2);
    tokio::time::timeout(std::time::Duration::from_secs(5), outbox.wakeup().notified())
        .await
        .expect("the commit woke the relay");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_buffered_transaction_leaves_nothing() {
    let database = Database::new().await;
    let outbox = outbox();
    let mut connection = database.connect().await;
    let result: Result<(), outbox::Error> = outbox
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
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Database);
    assert_eq!((database.count("orders"), database.count("outbox")), (0, 0));
    outbox
        .transaction(&mut connection, async |tx| {
            tx.enqueue(placed(&outbox, 2)).map(|_| ())
        })
        .await
        .expect("the connection is usable after the rollback");
    assert_eq!(database.count("outbox"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffered_transaction_refuses_to_nest() {
    let database = Database::new().await;
    let outbox = outbox();
    let mut connection = database.connect().await;
    connection
        .transaction::<(), outbox::Error, _>(async |connection| {
            let nested: Result<(), outbox::Error> = outbox.transaction(connection, async |_| Ok(())).await;
            let error = nested.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.transaction_is_usable());
            Ok(())
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_later_waits_in_the_side_table() {
    let database = Database::new().await;
    let outbox = outbox();
    let mut connection = database.connect().await;
    let later = outbox
        .message("orders", "order.reminder")
        .available_at(chrono::Utc::now() + chrono::TimeDelta::hours(1))
        .build()
        .unwrap();
    outbox
        .enqueue_all(&mut connection, [placed(&outbox, 1), later])
        .await
        .unwrap();
    assert_eq!(
        (database.count("outbox"), database.count("outbox_parked")),
        (1, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_tables_are_named_as_such() {
    let directory = tempfile::tempdir().unwrap();
    let url = directory.path().join("empty.db").display().to_string();
    let mut connection = AsyncSqlite::establish(&url).await.unwrap();
    let outbox = outbox();
    let error = outbox
        .enqueue(&mut connection, placed(&outbox, 1))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("migrate"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn migrating_twice_changes_nothing_and_a_newer_schema_is_refused() {
    let database = Database::new().await;
    let mut connection = database.connect().await;
    let again = outbox::migration::run(&mut connection, &outbox::migration::OUTBOX).await;
    assert_eq!(again.unwrap(), 0);
    connection
        .batch_execute("UPDATE outbox_schema SET version = 99")
        .await
        .unwrap();
    let error = outbox::migrate(&mut connection).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("99"), "{error}");
}

#[test]
fn the_ddl_text_makes_tables_that_migrate_accepts() {
    let directory = tempfile::tempdir().unwrap();
    let url = directory.path().join("ddl.db").display().to_string();
    let mut connection = SqliteConnection::establish(&url).unwrap();
    connection
        .batch_execute(outbox::ddl(outbox::Database::Sqlite))
        .unwrap();
    connection
        .batch_execute("INSERT INTO outbox (topic, type, payload) VALUES ('orders', 'order.placed', '{}')")
        .expect("a plain INSERT needs three columns");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let applied = runtime.block_on(async {
        let mut connection = AsyncSqlite::new(connection);
        outbox::migration::run(&mut connection, &outbox::migration::OUTBOX).await
    });
    assert_eq!(applied.unwrap(), 0);
}
