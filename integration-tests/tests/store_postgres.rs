//! The PostgreSQL store against the suite of stores, and what only a server can do wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use diesel_async::{AsyncConnection, AsyncPgConnection};
use outbox::conformance::{Business, Fixture, Need, OpenTransaction};
use outbox::record::{Owner, Settlement};
use outbox::store::Store;
use outbox::store::postgres::{PostgresConfig, PostgresNotifier, PostgresStore};
use outbox::{ErrorKind, Outbox};
use outbox_testing::or_skip;
use outbox_testing::services::{self, Postgres};

/// A database of one test, and its server if that is the test's own.
struct Server {
    database: services::postgres::Database,
    own: Option<Postgres>,
}

#[async_trait]
impl Fixture for Server {
    fn database(&self) -> outbox::Database {
        outbox::Database::Postgres
    }

    async fn store(&self) -> Arc<dyn Store> {
        Arc::new(
            PostgresStore::connect(PostgresConfig::new(self.database.url()))
                .await
                .unwrap(),
        )
    }

    async fn begin(&self) -> Box<dyn Business> {
        Box::new(OpenTransaction::begin(connect(&self.database).await).await)
    }

    async fn execute(&self, sql: &str) {
        self.database
            .client()
            .await
            .unwrap()
            .batch_execute(sql)
            .await
            .unwrap();
    }

    async fn parked_sequences(&self) -> Vec<i64> {
        let client = self.database.client().await.unwrap();
        let rows = client
            .query("SELECT sequence FROM outbox_parked ORDER BY sequence", &[])
            .await
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    async fn migrate(&self) -> Result<(), outbox::Error> {
        outbox::migrate(&mut connect(&self.database).await).await
    }

    async fn restart(&self) -> bool {
        let own = self
            .own
            .as_ref()
            .expect("the scenario asked for a server of its own");
        own.kill().await.unwrap();
        own.restart().await.unwrap();
        true
    }
}

async fn connect(database: &services::postgres::Database) -> AsyncPgConnection {
    AsyncPgConnection::establish(database.url()).await.unwrap()
}

async fn setup(need: Need) -> Result<Server, String> {
    let server = match need {
        Need::Shared => match services::postgres().await {
            Ok(shared) => Server {
                database: shared.database().await.map_err(|error| error.to_string())?,
                own: None,
            },
            Err(error) => return unavailable(error),
        },
        Need::Restart => match services::own_postgres().await {
            Ok(own) => Server {
                database: own.database().await.map_err(|error| error.to_string())?,
                own: Some(own),
            },
            Err(error) => return unavailable(error),
        },
    };
    server.migrate().await.unwrap();
    Ok(server)
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
fn unavailable(error: services::Error) -> Result<Server, String> {
    assert!(error.is_unavailable(), "{error}");
    outbox_testing::announce_skip(&error.to_string());
    Err(error.to_string())
}

outbox::conformance!(setup);

async fn refused(url: String) -> outbox::Error {
    let mut config = PostgresConfig::new(url);
    config.connect_timeout = Duration::from_secs(2);
    PostgresStore::connect(config).await.unwrap_err()
}

#[tokio::test]
async fn a_wrong_password_a_missing_database_and_a_dead_address_are_told_apart() {
    let postgres = or_skip!(services::postgres().await);
    let database = postgres.database().await.unwrap();
    let client = database.client().await.unwrap();
    let role = format!("{}_nobody", database.name());
    client
        .batch_execute(&format!("CREATE ROLE {role} NOLOGIN PASSWORD 'secret'"))
        .await
        .unwrap();
    let mut url = url::Url::parse(database.url()).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("wrong-password")).unwrap();
    let error = refused(url.to_string()).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(!format!("{error} {error:?}").contains("wrong-password"));
    client.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();

    let mut url = url::Url::parse(database.url()).unwrap();
    url.set_path("no_such_database");
    let error = refused(url.to_string()).await;
    assert_eq!(error.kind(), ErrorKind::Schema, "{error:?}");
    assert!(error.to_string().contains("does not exist"), "{error}");

    let error = refused("postgres://postgres@127.0.0.1:1/nowhere".to_owned()).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(error.is_transient());

    let error = refused("nonsense=1".to_owned()).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
}

#[tokio::test]
async fn a_user_without_privileges_is_unauthorized() {
    let server = match setup(Need::Shared).await {
        Ok(server) => server,
        Err(_) => return,
    };
    let client = server.database.client().await.unwrap();
    let role = format!("{}_poor", server.database.name());
    client
        .batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'poor'"))
        .await
        .unwrap();
    let mut url = url::Url::parse(server.database.url()).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("poor")).unwrap();
    let store = PostgresStore::connect(PostgresConfig::new(url.to_string()))
        .await
        .unwrap();
    let error = store
        .acquire(Owner::new(), 1, Duration::from_secs(5))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    drop(store);
    client.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
}

#[tokio::test]
async fn a_read_only_server_is_refused_by_the_check() {
    let server = match setup(Need::Shared).await {
        Ok(server) => server,
        Err(_) => return,
    };
    let name = server.database.name();
    server
        .execute(&format!(
            "ALTER DATABASE {name} SET default_transaction_read_only = on"
        ))
        .await;
    let error = server.store().await.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    assert!(error.to_string().contains("primary"), "{error}");
}

#[tokio::test]
async fn a_call_that_gets_no_answer_ends_in_time_and_leaves_the_store_usable() {
    let server = match setup(Need::Shared).await {
        Ok(server) => server,
        Err(_) => return,
    };
    let mut config = PostgresConfig::new(server.database.url());
    config.statement_timeout = Duration::from_millis(300);
    config.connections = 1;
    let store = PostgresStore::connect(config).await.unwrap();
    let lease = store
        .acquire(Owner::new(), 1, Duration::from_secs(60))
        .await
        .unwrap()[0];
    let mut blocking = server.begin().await;
    blocking
        .execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        .await;
    for _ in 0..2 {
        let error = store.settle(&lease, &Settlement::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    }
    let dropped = tokio::time::timeout(
        Duration::from_millis(50),
        store.settle(&lease, &Settlement::default()),
    )
    .await;
    assert!(dropped.is_err(), "the call is cancelled");
    blocking.rollback().await;
    store.settle(&lease, &Settlement::default()).await.unwrap();
    let client = server.database.client().await.unwrap();
    let row = client
        .query_one(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 0, "no transaction is left open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_after_commit_wakes_a_store_that_hardly_polls() {
    let server = match setup(Need::Shared).await {
        Ok(server) => server,
        Err(_) => return,
    };
    let mut config = PostgresConfig::new(server.database.url());
    config.poll_min = Duration::from_secs(30);
    config.poll_max = Duration::from_secs(30);
    let store = PostgresStore::connect(config.clone()).await.unwrap();
    let notifier = PostgresNotifier::start(&config).unwrap();
    let outbox = Outbox::builder("/orders")
        .also_wakes(notifier.wakeup())
        .build()
        .unwrap();
    store.wait(Duration::from_secs(20)).await.unwrap(); // the signal of the new connection itself
    let mut connection = connect(&server.database).await;
    let waiting = tokio::spawn(async move {
        let begin = std::time::Instant::now();
        store.wait(Duration::from_secs(20)).await.unwrap();
        begin.elapsed()
    });
    outbox
        .transaction(&mut connection, async |tx| {
            tx.enqueue(outbox.message("orders", "order.placed").build()?)
                .map(|_| ())
        })
        .await
        .unwrap();
    assert!(waiting.await.unwrap() < Duration::from_secs(10));
}
