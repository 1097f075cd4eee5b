//! The database goes away while the relay runs.

use diesel_async::{AsyncConnection, AsyncMysqlConnection};
use nix::sys::signal::Signal;
use outbox_testing::or_skip;
use outbox_testing::services;

use crate::sidecar::{Folder, eventually, lines};

fn folder(kind: &str, url: &str) -> Folder {
    Folder::new(&format!(
        r#"
config_version = 1
[source.orders]
kind = "{kind}"
url = "{url}"
lease = {{ ttl = "3s" }}
[sink.lines]
kind = "stdout"
[ops]
listen = "127.0.0.1:0"
"#
    ))
}

/// The numbers that were published, each once however often it was.
fn published(folder: &Folder) -> Vec<i64> {
    let mut numbers: Vec<i64> = lines(&folder.path("stdout"))
        .iter()
        .map(|message| message["data"].as_i64().unwrap())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_killed_is_reconnected_to() {
    let postgres = or_skip!(services::own_postgres().await);
    let database = postgres.database().await.unwrap();
    let folder = folder("postgres", database.url());
    folder.run(&["migrate"]).ok();
    let insert = async |from: i64| {
        let client = database.client().await.unwrap();
        for number in from..from + 50 {
            let payload = number.to_string().into_bytes();
            client
                .execute(
                    "INSERT INTO outbox (topic, key, type, source, payload) VALUES ('orders', 'key', 'number', '/test', $1)",
                    &[&payload],
                )
                .await
                .unwrap();
        }
    };
    let mut sidecar = folder.start().await;
    insert(0).await;
    sidecar.until_drained().await;

    postgres.kill().await.unwrap();
    eventually("not ready", async || sidecar.get("/readyz").await.0 == 503).await;
    assert_eq!(sidecar.get("/livez").await.0, 200);
    postgres.restart().await.unwrap();
    insert(50).await;
    sidecar.until_drained().await;
    eventually("ready again", async || sidecar.get("/readyz").await.0 == 200).await;
    assert_eq!(
        published(&folder),
        (0..100).collect::<Vec<_>>(),
        "{}",
        sidecar.log()
    );

    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.ended().await.code(), Some(0), "{}", sidecar.log());
    let client = database.client().await.unwrap();
    let row = client
        .query_one("SELECT owner IS NULL FROM outbox_lease WHERE shard = 0", &[])
        .await
        .unwrap();
    assert!(row.get::<_, bool>(0), "the lease is released");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mariadb_that_was_killed_is_reconnected_to() {
    // Its `execute` would hide that of the PostgreSQL client.
    use diesel_async::RunQueryDsl as _;

    let mariadb = or_skip!(services::own_mariadb().await);
    let database = mariadb.database().await.unwrap();
    let folder = folder("mysql", database.url());
    folder.run(&["migrate"]).ok();
    let insert = async |from: i64| {
        let mut client = AsyncMysqlConnection::establish(database.url()).await.unwrap();
        for number in from..from + 50 {
            diesel::sql_query(format!(
                "INSERT INTO outbox (topic, `key`, type, source, payload) \
                 VALUES ('orders', 'key', 'number', '/test', '{number}')"
            ))
            .execute(&mut client)
            .await
            .unwrap();
        }
    };
    let mut sidecar = folder.start().await;
    insert(0).await;
    sidecar.until_drained().await;

    mariadb.kill().await.unwrap();
    eventually("not ready", async || sidecar.get("/readyz").await.0 == 503).await;
    assert_eq!(sidecar.get("/livez").await.0, 200);
    mariadb.restart().await.unwrap();
    insert(50).await;
    sidecar.until_drained().await;
    eventually("ready again", async || sidecar.get("/readyz").await.0 == 200).await;
    assert_eq!(
        published(&folder),
        (0..100).collect::<Vec<_>>(),
        "{}",
        sidecar.log()
    );

    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.ended().await.code(), Some(0), "{}", sidecar.log());
    // Without a relay the status is asked of the database.
    folder.run(&["status"]).ok();
}
