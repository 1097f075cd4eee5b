//! What is detected at the start, with a message that says what to change.

use outbox::ErrorKind;
use outbox::store::Store;
use outbox_testing::{or_skip, services};

use super::pooler::Log;
use super::stage;

/// What the check says after `ddl`.
async fn refused(server: &services::Postgres, ddl: &str) -> String {
    let database = stage::outbox(server).await;
    database
        .client()
        .await
        .unwrap()
        .batch_execute(&ddl.replace("THIS", database.name()))
        .await
        .unwrap();
    let error = stage::store(database.url()).await.check().await;
    let error = error.expect_err(ddl);
    assert!(
        matches!(error.kind(), ErrorKind::Schema | ErrorKind::Invalid),
        "{ddl}: {error}"
    );
    error.to_string()
}

#[tokio::test]
async fn a_schema_that_breaks_a_promise_is_refused_with_the_remedy() {
    let postgres = or_skip!(services::postgres().await);
    for (ddl, says) in [
        (
            "ALTER TABLE outbox ALTER COLUMN id SET CACHE 50",
            "ALTER TABLE outbox ALTER COLUMN id SET CACHE 1",
        ),
        ("ALTER TABLE outbox DROP COLUMN expires_at", "outbox.expires_at"),
        ("DROP INDEX outbox_parked_due", "outbox_parked_due"),
        (
            "ALTER TABLE outbox DROP CONSTRAINT outbox_pkey",
            "ADD PRIMARY KEY (shard, id)",
        ),
        (
            "ALTER TABLE outbox ALTER COLUMN headers TYPE jsonb USING headers::jsonb",
            "ALTER TABLE outbox ALTER COLUMN headers TYPE text",
        ),
        (
            "ALTER TABLE outbox ALTER COLUMN created_at TYPE timestamp",
            "ALTER COLUMN created_at TYPE timestamp with time zone",
        ),
        (
            "ALTER TABLE outbox ALTER COLUMN payload DROP NOT NULL",
            "ALTER TABLE outbox ALTER COLUMN payload SET NOT NULL",
        ),
        (
            "ALTER TABLE outbox ALTER COLUMN xid DROP DEFAULT",
            "ALTER COLUMN xid SET DEFAULT pg_current_xact_id()",
        ),
        ("DELETE FROM outbox_lease", "INSERT INTO outbox_lease"),
        ("DROP TABLE outbox_parked", "outbox_parked"),
        ("UPDATE outbox_schema SET version = 99", "update the program"),
        (
            "ALTER DATABASE THIS SET default_transaction_read_only = on",
            "connect to the primary",
        ),
    ] {
        let error = refused(postgres, ddl).await;
        assert!(error.contains(says), "{ddl}: {error}");
    }
}

#[tokio::test]
async fn a_role_whose_commits_do_not_wait_for_the_disk_is_named_at_the_start() {
    let postgres = or_skip!(services::postgres().await);
    let database = stage::outbox(postgres).await;
    let client = database.client().await.unwrap();
    let role = format!("{}_producer", database.name());
    client
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN; ALTER ROLE {role} SET synchronous_commit = off"
        ))
        .await
        .unwrap();
    let log = Log::default();
    {
        let _kept = log.keep();
        stage::store(database.url()).await.check().await.unwrap();
    }
    client.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
    let text = log.text();
    assert!(text.contains(&role), "{text}");
    assert!(text.contains("synchronous_commit = on"), "{text}");
}

#[tokio::test]
async fn a_standby_is_refused_as_a_source() {
    let postgres = or_skip!(services::own_postgres().await);
    let database = stage::outbox(&postgres).await;
    drop(database);
    let directory = postgres.directory().expect("a private server");
    postgres.stop().await.unwrap();
    std::fs::write(directory.join("data/standby.signal"), "").unwrap();
    postgres.restart().await.unwrap();
    let url = format!("postgres://postgres@{}/postgres", postgres.address());
    let error = stage::store(&url).await.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("connect to the primary"), "{error}");
}

#[tokio::test]
async fn the_printed_schema_is_the_migrated_one_and_carries_its_version() {
    let postgres = or_skip!(services::postgres().await);
    let database = postgres.database().await.unwrap();
    let client = database.client().await.unwrap();
    client
        .batch_execute(outbox::ddl(outbox::Database::Postgres))
        .await
        .unwrap();
    stage::store(database.url()).await.check().await.unwrap();
    let mut connection =
        <diesel_async::AsyncPgConnection as diesel_async::AsyncConnection>::establish(database.url())
            .await
            .unwrap();
    outbox::migrate(&mut connection).await.expect("nothing to do");
}
