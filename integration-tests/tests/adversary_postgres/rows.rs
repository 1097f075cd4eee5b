//! Rows that foreign hands wrote: parked with a reason or refused by the schema, never a relay that stands.

use std::sync::Arc;
use std::time::Duration;

use outbox::record::Parked;
use outbox::store::Store;
use outbox_testing::services::postgres::Database;
use outbox_testing::{or_skip, services};
use tokio_postgres::Client;

use super::stage::{self, Running, Wire, drained, insert, options, until};

struct Stage {
    database: Database,
    client: Client,
    wire: Arc<Wire>,
    relay: Running,
}

impl Stage {
    /// With a relay that has checked the tables and works.
    async fn new(server: &services::Postgres) -> Self {
        let database = stage::outbox(server).await;
        let client = database.client().await.unwrap();
        let wire = Arc::new(Wire::default());
        let relay = Running::start(stage::store(database.url()).await, wire.clone(), options());
        until("the relay has its shard", Duration::from_secs(10), async || {
            (!relay.status.snapshot().shards.is_empty()).then_some(())
        })
        .await;
        Self {
            database,
            client,
            wire,
            relay,
        }
    }

    async fn dead(&self, count: usize) -> Vec<Parked> {
        let store = stage::store(self.database.url()).await;
        until("the dead letters", Duration::from_secs(10), async || {
            let dead = store.dead(0, 100).await.unwrap();
            (dead.len() == count).then_some(dead)
        })
        .await
    }

    /// A good message passes, and the relay has no trouble.
    async fn still_works(self) {
        let before = self.wire.len();
        insert(&self.client, "good", "good").await;
        until("a good message passes", Duration::from_secs(5), async || {
            (self.wire.len() > before).then_some(())
        })
        .await;
        self.relay.status.backlog().await.unwrap();
        let last = self.relay.status.snapshot().last_error;
        assert!(last.as_ref().is_none_or(|last| !last.ongoing), "{last:?}");
        self.relay.stop().await;
    }
}

const MALFORMED: [(&str, &str); 6] = [
    ("headers", "'no json'"),
    ("headers", "'[1,2]'"),
    ("headers", "'{\"a\":{\"b\":1}}'"),
    ("created_at", "'infinity'"),
    ("created_at", "'294276-01-01'"),
    ("topic", "''"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_no_messages_are_dead_letters_with_a_reason() {
    let postgres = or_skip!(services::postgres().await);
    let stage = Stage::new(postgres).await;
    for (column, value) in MALFORMED {
        let columns = ["topic", "type", "payload"]
            .iter()
            .filter(|name| **name != column);
        let columns: Vec<&str> = columns.copied().chain([column]).collect();
        let values: Vec<&str> = columns[..columns.len() - 1]
            .iter()
            .map(|_| "'x'")
            .chain([value])
            .collect();
        let statement = format!(
            "INSERT INTO outbox ({}) VALUES ({})",
            columns.join(", "),
            values.join(", ")
        );
        stage.client.batch_execute(&statement).await.unwrap();
    }
    for (dead, (column, value)) in stage.dead(MALFORMED.len()).await.iter().zip(MALFORMED) {
        let error = dead.error.as_deref().unwrap();
        assert!(
            error.contains("the row is no message"),
            "{column} = {value}: {error}"
        );
    }
    stage.still_works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_but_possible_rows_are_published() {
    let postgres = or_skip!(services::postgres().await);
    let stage = Stage::new(postgres).await;
    let key = "k".repeat(2_000);
    stage
        .client
        .batch_execute(&format!(
            "INSERT INTO outbox (topic, type, payload, created_at) VALUES ('a', 'past', 'past', '0001-01-01'); \
             INSERT INTO outbox (topic, type, payload, created_at) VALUES ('a', 'far', 'far', '9999-12-31'); \
             INSERT INTO outbox (topic, type, payload, expires_at) VALUES ('a', 'ever', 'ever', 'infinity'); \
             INSERT INTO outbox (topic, type, payload, key) VALUES ('a', 'empty key', '', ''); \
             INSERT INTO outbox (topic, type, payload, key) VALUES ('a', 'long key', 'long', '{key}'); \
             INSERT INTO outbox (topic, type, payload) SELECT 'a', 'large', convert_to(repeat('x', 10000000), 'UTF8'); \
             INSERT INTO outbox (topic, type, payload, source, content_type, headers) VALUES ('a', 'bare', 'bare', '', '', '')"
        ))
        .await
        .unwrap();
    drained(&stage.client, Duration::from_secs(10)).await;
    assert_eq!(stage.wire.len(), 7);
    assert!(stage.wire.seen().iter().any(|text| text.len() == 10_000_000));
    stage.still_works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schema_refuses_what_could_never_be_parked() {
    let postgres = or_skip!(services::postgres().await);
    let stage = Stage::new(postgres).await;
    for row in [
        "(topic, type) VALUES ('a', 'no payload')",
        "(topic, payload) VALUES ('a', 'no type')",
        "(type, payload) VALUES ('a', 'no topic')",
        "(topic, type, payload, key) VALUES ('a', 'b', 'c', repeat('k', 2001))",
        "(topic, type, payload, id) VALUES ('a', 'b', 'c', 1)",
    ] {
        let refused = stage
            .client
            .batch_execute(&format!("INSERT INTO outbox {row}"))
            .await;
        assert!(refused.is_err(), "{row}");
    }
    stage.still_works().await;
}

/// The constraints were taken away: what they kept out is parked with a reason all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_a_weakened_schema_lets_in_are_parked() {
    let postgres = or_skip!(services::postgres().await);
    let stage = Stage::new(postgres).await;
    stage
        .client
        .batch_execute(
            "ALTER TABLE outbox ALTER COLUMN topic DROP NOT NULL, ALTER COLUMN payload DROP NOT NULL, \
               ALTER COLUMN created_at DROP NOT NULL, ALTER COLUMN msg_id DROP NOT NULL, \
               DROP CONSTRAINT outbox_key_length; \
             ALTER TABLE outbox_parked DROP CONSTRAINT outbox_parked_key_length; \
             INSERT INTO outbox (topic, type, payload) VALUES (NULL, 'a', 'b'); \
             INSERT INTO outbox (topic, type, payload) VALUES ('a', 'a', NULL); \
             INSERT INTO outbox (topic, type, payload, created_at) VALUES ('a', 'a', 'b', NULL); \
             INSERT INTO outbox (topic, type, payload, msg_id) VALUES ('a', 'a', 'b', NULL); \
             INSERT INTO outbox (topic, type, payload, key) SELECT 'a', 'a', 'b', \
               string_agg(md5(n::text), '') FROM generate_series(1, 500) n",
        )
        .await
        .unwrap();
    let dead = stage.dead(5).await;
    for dead in &dead {
        assert!(
            dead.error.as_deref().unwrap().contains("the row is no message"),
            "{dead:?}"
        );
    }
    assert!(
        dead[4].error.as_deref().unwrap().contains("key"),
        "{:?}",
        dead[4].error
    );
    stage.still_works().await;
}

/// Columns come, go wide and come back while the relay works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_altered_live_stops_nothing() {
    let postgres = or_skip!(services::postgres().await);
    let stage = Stage::new(postgres).await;
    for ddl in [
        // Names that the relay's own statements use.
        "ALTER TABLE outbox ADD COLUMN state smallint, ADD COLUMN attempts int, ADD COLUMN error text, \
           ADD COLUMN delay int, ADD COLUMN place int, ADD COLUMN bytes int, ADD COLUMN first int",
        "ALTER TABLE outbox ALTER COLUMN topic TYPE varchar(200)",
        "ALTER TABLE outbox ALTER COLUMN payload SET STORAGE EXTERNAL",
        "ALTER TABLE outbox_parked ADD COLUMN note text",
    ] {
        stage.client.batch_execute(ddl).await.unwrap();
        insert(&stage.client, "k", "k").await;
        let malformed =
            "INSERT INTO outbox (topic, type, payload, headers) VALUES ('a', 'b', 'c', 'no json')";
        stage.client.batch_execute(malformed).await.unwrap();
    }
    stage.dead(4).await;
    stage.still_works().await;
}

/// A column of another type is the table's fault, not the rows': they wait until it is mended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_of_another_type_makes_rows_wait_and_not_die() {
    let postgres = or_skip!(services::postgres().await);
    let stage = Stage::new(postgres).await;
    let ddl = "ALTER TABLE outbox ALTER COLUMN headers TYPE jsonb USING headers::jsonb";
    stage.client.batch_execute(ddl).await.unwrap();
    insert(&stage.client, "k", "k").await;
    until(
        "the relay says what is wrong",
        Duration::from_secs(5),
        async || {
            let last = stage.relay.status.snapshot().last_error?;
            (last.kind == "schema" && last.text.contains("type")).then_some(())
        },
    )
    .await;
    assert_eq!(stage.wire.len(), 0);
    let ddl = "ALTER TABLE outbox ALTER COLUMN headers TYPE text";
    stage.client.batch_execute(ddl).await.unwrap();
    drained(&stage.client, Duration::from_secs(10)).await;
    assert_eq!(stage.wire.seen(), ["k"]);
    stage.still_works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_rows_of_the_parked_table_stop_nothing() {
    let postgres = or_skip!(services::postgres().await);
    let stage = Stage::new(postgres).await;
    stage
        .client
        .batch_execute(
            "INSERT INTO outbox_parked (topic, type, payload, next_attempt_at) VALUES ('a', 'b', 'never', 'infinity'); \
             INSERT INTO outbox_parked (topic, type, payload, next_attempt_at) VALUES ('a', 'b', 'old', '-infinity'); \
             INSERT INTO outbox_parked (topic, type, payload, next_attempt_at, headers) \
               VALUES ('a', 'b', 'bad', now(), 'no json'); \
             INSERT INTO outbox_parked (topic, type, payload, next_attempt_at, key, attempts) \
               VALUES ('a', 'b', 'tried', now(), 'k', -5)",
        )
        .await
        .unwrap();
    stage.dead(1).await;
    until("the others are published", Duration::from_secs(5), async || {
        let seen = stage.wire.seen();
        ["old", "tried"]
            .iter()
            .all(|text| seen.iter().any(|id| id == text))
            .then_some(())
    })
    .await;
    let refused = "INSERT INTO outbox_parked (topic, type, payload, next_attempt_at, state) \
        VALUES ('a', 'b', 'c', now(), 7)";
    assert!(stage.client.batch_execute(refused).await.is_err());
    stage.still_works().await;
}
