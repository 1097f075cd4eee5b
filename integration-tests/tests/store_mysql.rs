//! The MySQL store, on MariaDB, against the suite of stores, and what only a server can do wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use diesel_async::{AsyncConnection, AsyncMysqlConnection};
use mysql_async::prelude::Queryable as _;
use outbox::ErrorKind;
use outbox::conformance::{Business, Fixture, Need, OpenTransaction};
use outbox::record::ClaimRequest;
use outbox::record::{Lease, Owner, Settlement};
use outbox::store::Store;
use outbox::store::mysql::{MysqlConfig, MysqlStore};
use outbox_testing::services::{self, Mariadb};

/// A database of one test, and its server if that is the test's own.
struct Server {
    database: services::mariadb::Database,
    own: Option<Mariadb>,
}

#[async_trait]
impl Fixture for Server {
    fn database(&self) -> outbox::Database {
        outbox::Database::Mysql
    }

    async fn store(&self) -> Arc<dyn Store> {
        Arc::new(
            MysqlStore::connect(MysqlConfig::new(self.database.url()))
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
            .query_drop(sql)
            .await
            .unwrap();
    }

    async fn parked_sequences(&self) -> Vec<i64> {
        let mut client = self.database.client().await.unwrap();
        client
            .query("SELECT sequence FROM outbox_parked ORDER BY sequence")
            .await
            .unwrap()
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

async fn connect(database: &services::mariadb::Database) -> AsyncMysqlConnection {
    AsyncMysqlConnection::establish(database.url()).await.unwrap()
}

async fn setup(need: Need) -> Result<Server, String> {
    let server = match need {
        Need::Shared => match services::mariadb().await {
            Ok(shared) => Server {
                database: shared.database().await.map_err(|error| error.to_string())?,
                own: None,
            },
            Err(error) => return unavailable(error),
        },
        Need::Restart => match services::own_mariadb().await {
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
    let mut config = MysqlConfig::new(url);
    config.connect_timeout = Duration::from_secs(2);
    MysqlStore::connect(config).await.unwrap_err()
}

/// The same database for another user.
fn login(server: &Server, user: &str, password: &str) -> String {
    let mut url = url::Url::parse(server.database.url()).unwrap();
    url.set_username(user).unwrap();
    url.set_password(Some(password)).unwrap();
    url.to_string()
}

async fn lease(store: &MysqlStore) -> Lease {
    store
        .acquire(Owner::new(), 1, Duration::from_secs(60))
        .await
        .unwrap()[0]
}

async fn positions(store: &MysqlStore, lease: &Lease) -> Vec<i64> {
    let request = ClaimRequest {
        lease,
        above: 0,
        limit: 1_000,
        max_bytes: usize::MAX,
        missing: &[],
    };
    let claim = store.claim(request).await.unwrap();
    claim.records.iter().map(|record| record.position).collect()
}

fn published(positions: &[i64]) -> Settlement {
    Settlement {
        published: positions.to_vec(),
        park: Vec::new(),
    }
}

const INSERT: &str = "INSERT INTO outbox (topic, type, payload) VALUES ('suite', 'suite.ran', '1')";

#[tokio::test]
async fn a_wrong_password_a_missing_database_and_a_dead_address_are_told_apart() {
    let Ok(server) = setup(Need::Shared).await else {
        return;
    };
    let user = &server.database.name()[..30];
    server
        .execute(&format!("CREATE USER {user}@'%' IDENTIFIED BY 'secret'"))
        .await;
    let error = refused(login(&server, user, "wrong-password")).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(!format!("{error} {error:?}").contains("wrong-password"));
    let error = refused(login(&server, user, "secret")).await;
    assert_eq!(
        error.kind(),
        ErrorKind::Unauthorized,
        "no right to the database: {error:?}"
    );
    server.execute(&format!("DROP USER {user}@'%'")).await;

    let mut url = url::Url::parse(server.database.url()).unwrap();
    url.set_path("no_such_database");
    let error = refused(url.to_string()).await;
    assert_eq!(error.kind(), ErrorKind::Schema, "{error:?}");
    assert!(error.to_string().contains("does not exist"), "{error}");

    let error = refused("mariadb://root@127.0.0.1:1/nowhere".to_owned()).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(error.is_transient());

    let error = refused("nonsense=1".to_owned()).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
}

#[tokio::test]
async fn a_user_with_the_rights_on_the_tables_alone_suffices() {
    let Ok(server) = setup(Need::Shared).await else {
        return;
    };
    let name = server.database.name();
    let user = &name[..30];
    server
        .execute(&format!(
            "CREATE USER {user}@'%' IDENTIFIED BY 'poor'; GRANT SELECT ON {name}.* TO {user}@'%'"
        ))
        .await;
    let store = MysqlStore::connect(MysqlConfig::new(login(&server, user, "poor")))
        .await
        .unwrap();
    let error = store
        .acquire(Owner::new(), 1, Duration::from_secs(5))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    server
        .execute(&format!("GRANT INSERT, UPDATE, DELETE ON {name}.* TO {user}@'%'"))
        .await;
    let store = MysqlStore::connect(MysqlConfig::new(login(&server, user, "poor")))
        .await
        .unwrap();
    store.check().await.unwrap();
    let held = lease(&store).await;
    server.execute(INSERT).await;
    let rows = positions(&store, &held).await;
    assert_eq!(store.present(&held, 0, 9).await.unwrap(), Some(rows.clone()));
    store.settle(&held, &published(&rows)).await.unwrap();
    server.execute(&format!("DROP USER {user}@'%'")).await;
}

#[tokio::test]
async fn a_read_only_server_is_refused_by_the_check() {
    let Ok(server) = setup(Need::Restart).await else {
        return;
    };
    let store = server.store().await;
    store.check().await.unwrap();
    server.execute("SET GLOBAL read_only = 1").await;
    let error = store.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    assert!(error.to_string().contains("primary"), "{error}");
}

#[tokio::test]
async fn the_store_reads_committed_rows_where_the_server_defaults_to_repeatable_read() {
    let Ok(server) = setup(Need::Restart).await else {
        return;
    };
    server
        .execute("SET GLOBAL TRANSACTION ISOLATION LEVEL SERIALIZABLE; SET GLOBAL sql_mode = 'ANSI_QUOTES'; SET GLOBAL time_zone = '-03:30'")
        .await;
    let store = server.store().await;
    store.check().await.unwrap();
    let url = server.database.url();
    let store = MysqlStore::connect(MysqlConfig::new(url)).await.unwrap();
    let held = lease(&store).await;
    assert!(positions(&store, &held).await.is_empty());
    server.execute(INSERT).await;
    let rows = positions(&store, &held).await;
    assert_eq!(rows.len(), 1, "each claim has a snapshot of its own");
    let age = store.backlog().await.unwrap().oldest_age.unwrap();
    assert!(age < Duration::from_secs(60), "times are UTC: {age:?}");
    assert_eq!(store.settle(&held, &published(&rows)).await.unwrap().rows, 1);
}

#[tokio::test]
async fn a_settle_does_not_wait_for_a_producer_whose_row_is_next() {
    let Ok(server) = setup(Need::Shared).await else {
        return;
    };
    let store = MysqlStore::connect(MysqlConfig::new(server.database.url()))
        .await
        .unwrap();
    let held = lease(&store).await;
    for _ in 0..3 {
        server.execute(INSERT).await;
    }
    let rows = positions(&store, &held).await;
    let mut producer = server.begin().await;
    producer.execute(INSERT).await;
    let begin = std::time::Instant::now();
    assert_eq!(store.settle(&held, &published(&rows)).await.unwrap().rows, 3);
    let took = begin.elapsed();
    assert!(
        took < Duration::from_millis(500),
        "the settle waited for a lock: {took:?}"
    );
    // Its answer was lost and it is repeated: the rows are gone, and it must end all the same.
    assert_eq!(store.settle(&held, &published(&rows)).await.unwrap().rows, 0);
    producer.commit().await;
    assert_eq!(
        positions(&store, &held).await.len(),
        1,
        "the late row is untouched"
    );
}

#[tokio::test]
async fn a_row_of_an_open_transaction_is_present_to_a_dirty_read_until_it_rolls_back() {
    let Ok(server) = setup(Need::Shared).await else {
        return;
    };
    let store = MysqlStore::connect(MysqlConfig::new(server.database.url()))
        .await
        .unwrap();
    let held = lease(&store).await;
    let mut slow = server.begin().await;
    slow.execute(INSERT).await;
    server.execute(INSERT).await;
    let committed = positions(&store, &held).await;
    let (first, last) = (committed[0] - 1, committed[0]);
    assert_eq!(
        store.present(&held, first, last).await.unwrap(),
        Some(vec![first, last])
    );
    assert_eq!(
        positions(&store, &held).await,
        committed,
        "the isolation of the session is as before"
    );
    slow.rollback().await;
    assert_eq!(store.present(&held, first, last).await.unwrap(), Some(committed));
}

#[tokio::test]
async fn a_call_that_gets_no_answer_ends_in_time_and_leaves_the_store_usable() {
    let Ok(server) = setup(Need::Shared).await else {
        return;
    };
    let mut config = MysqlConfig::new(server.database.url());
    config.statement_timeout = Duration::from_millis(300);
    config.connections = 1;
    let store = MysqlStore::connect(config).await.unwrap();
    let held = lease(&store).await;
    let mut blocking = server.begin().await;
    blocking.execute("SELECT * FROM outbox_lease FOR UPDATE").await;
    for _ in 0..2 {
        let error = store.settle(&held, &Settlement::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    }
    let settlement = Settlement::default();
    let dropped = tokio::time::timeout(Duration::from_millis(50), store.settle(&held, &settlement)).await;
    assert!(dropped.is_err(), "the call is cancelled");
    blocking.rollback().await;
    store.settle(&held, &settlement).await.unwrap();
    drop(store);
    let mut client = server.database.client().await.unwrap();
    let open = outbox_testing::settle::Condition::zero("open transactions", || {
        let name = server.database.name().to_owned();
        let url = server.database.url().to_owned();
        async move {
            let mut client = mysql_async::Conn::from_url(url).await?;
            let open: Option<u64> = client
                .exec_first(
                    "SELECT count(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p \
                     ON p.id = t.trx_mysql_thread_id WHERE p.db = ?",
                    (name,),
                )
                .await?;
            Ok::<_, mysql_async::Error>(open.unwrap_or(0))
        }
    });
    outbox_testing::settle::settle(Duration::from_secs(10), &[open])
        .await
        .unwrap();
    assert_eq!(client.query_first("SELECT 1").await.unwrap(), Some(1));
}

#[tokio::test]
async fn rows_that_no_hand_should_have_written_are_malformed_or_refused_by_the_schema() {
    let Ok(server) = setup(Need::Shared).await else {
        return;
    };
    let mut client = server.database.client().await.unwrap();
    for refused in [
        "INSERT INTO outbox (type, payload) VALUES ('t', '1')",
        "INSERT INTO outbox (topic, type, payload) VALUES ('t', 't', NULL)",
        "INSERT INTO outbox (topic, type, payload) VALUES (REPEAT('t', 256), 't', '1')",
        "INSERT INTO outbox (topic, type, payload, `key`) VALUES ('t', 't', '1', REPEAT('k', 1025))",
        "INSERT INTO outbox (topic, type, payload, expires_at) VALUES ('t', 't', '1', '10000-01-01')",
        "INSERT INTO outbox (topic, type, payload, unknown) VALUES ('t', 't', '1', 1)",
    ] {
        client.query_drop(refused).await.unwrap_err();
    }
    client
        .query_drop(
            "SET SESSION sql_mode = ''; \
             INSERT INTO outbox (topic, type, payload, created_at) VALUES ('t', 't', '1', '0000-00-00'); \
             INSERT INTO outbox (topic, type, payload, `key`) VALUES ('t', 't', '2', X'FF00'); \
             INSERT INTO outbox (topic, type, payload, expires_at, `key`) \
               VALUES ('t', 't', REPEAT('x', 10 * 1024 * 1024), '9999-12-31 23:59:59.999999', REPEAT('k', 1024)); \
             INSERT INTO outbox (topic, type, payload, headers, created_at) \
               VALUES ('t', 't', '', '', '1000-01-01 00:00:00')",
        )
        .await
        .unwrap();
    let store = MysqlStore::connect(MysqlConfig::new(server.database.url()))
        .await
        .unwrap();
    let held = lease(&store).await;
    let claim = store
        .claim(ClaimRequest {
            lease: &held,
            above: 0,
            limit: 100,
            max_bytes: usize::MAX,
            missing: &[],
        })
        .await
        .unwrap();
    let reasons: Vec<Option<&str>> = claim
        .records
        .iter()
        .map(|record| {
            record
                .message
                .as_ref()
                .err()
                .map(|malformed| malformed.reason.as_str())
        })
        .collect();
    assert!(reasons[0].unwrap().contains("created_at"), "{reasons:?}");
    assert!(reasons[1].unwrap().contains("key"), "{reasons:?}");
    assert_eq!(reasons[2..], [None, None]);
    let large = claim.records[2].message.as_ref().unwrap();
    assert_eq!(
        (large.payload.len(), large.key.as_ref().unwrap().len()),
        (10 << 20, 1024)
    );
}

#[tokio::test]
async fn more_ranges_than_a_statement_should_name_are_asked_for_in_one_snapshot() {
    let Ok(server) = setup(Need::Shared).await else {
        return;
    };
    let store = MysqlStore::connect(MysqlConfig::new(server.database.url()))
        .await
        .unwrap();
    let held = lease(&store).await;
    for _ in 0..10 {
        server.execute(INSERT).await;
    }
    let first = positions(&store, &held).await[0];
    let missing: Vec<(i64, i64)> = (0..500).map(|n| (first + 2 * n, first + 2 * n)).collect();
    let request = |limit| ClaimRequest {
        lease: &held,
        above: first + 7,
        limit,
        max_bytes: usize::MAX,
        missing: &missing[..],
    };
    let claim = store.claim(request(1_000)).await.unwrap();
    let read: Vec<i64> = claim
        .records
        .iter()
        .map(|record| record.position - first)
        .collect();
    assert_eq!(
        read,
        [0, 2, 4, 6, 8, 9],
        "late rows, then new ones; those known are left out"
    );
    let claim = store.claim(request(2)).await.unwrap();
    assert_eq!((claim.records.len(), claim.more), (2, true));
    // The snapshot is over: what is committed since is seen.
    server.execute(INSERT).await;
    assert_eq!(positions(&store, &held).await.len(), 11);
}
