//! The database as broker, on a SQLite file: what the conformance suite cannot see.
#![cfg(feature = "sql")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::sql_types::BigInt;
use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection};
use outbox_broker::sql::{SQLITE_DDL, SqlBroker, SqlConfig};
use outbox_broker::{
    Delivery, ErrorKind, Message, Publisher, Settled, Start, SubscribeOptions, Subscriber, Subscription,
    Verdict,
};
use tempfile::TempDir;

/// A queue file of its own; gone with the test.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("queue.db")
    }

    async fn broker(&self) -> SqlBroker {
        self.broker_with(|config| config).await
    }

    async fn broker_with(&self, adjust: impl FnOnce(SqlConfig) -> SqlConfig) -> SqlBroker {
        let broker = SqlBroker::connect(adjust(SqlConfig::sqlite(self.path())))
            .await
            .unwrap();
        broker.migrate().await.unwrap();
        broker
    }

    /// Another program's connection to the same file.
    fn connection(&self) -> SqliteConnection {
        let mut connection = SqliteConnection::establish(self.path().to_str().unwrap()).unwrap();
        connection.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
        connection
    }

    fn run(&self, sql: &str) {
        self.connection().batch_execute(sql).unwrap();
    }

    fn count(&self, table: &str) -> i64 {
        #[derive(QueryableByName)]
        struct Count {
            #[diesel(sql_type = BigInt)]
            count: i64,
        }
        let query = format!("SELECT count(*) AS count FROM {table}");
        diesel::sql_query(query)
            .get_result::<Count>(&mut self.connection())
            .unwrap()
            .count
    }
}

fn message(key: &str, number: u32) -> Message {
    Message::builder("orders", "order.placed")
        .source("/shop")
        .key(key)
        .json(&number)
        .build()
        .unwrap()
}

fn number(delivery: &Delivery) -> u32 {
    serde_json::from_slice(&delivery.content().unwrap().payload).unwrap()
}

async fn publish(broker: &SqlBroker, messages: &[Message]) {
    for outcome in broker.publisher().publish(messages).await {
        outcome.unwrap();
    }
}

async fn join(broker: &SqlBroker) -> Box<dyn Subscription> {
    join_with(broker, SubscribeOptions::new("orders", "billing")).await
}

async fn join_with(broker: &SqlBroker, options: SubscribeOptions) -> Box<dyn Subscription> {
    broker.subscriber().subscribe(options).await.unwrap()
}

/// Receives until `count` deliveries are there.
async fn receive(subscription: &mut Box<dyn Subscription>, count: usize) -> Vec<Delivery> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut out = Vec::new();
    while out.len() < count {
        assert!(
            Instant::now() < deadline,
            "only {} of {count} deliveries came",
            out.len()
        );
        out.extend(
            subscription
                .receive(count - out.len(), Duration::from_millis(500))
                .await
                .unwrap(),
        );
    }
    out
}

#[tokio::test]
async fn a_missing_table_is_an_error_that_says_to_migrate() {
    let place = Place::new();
    let broker = SqlBroker::connect(SqlConfig::sqlite(place.path())).await.unwrap();
    let outcomes = broker.publisher().publish(&[message("a", 1)]).await;
    let publish_error = outcomes.into_iter().next().unwrap().unwrap_err();
    let subscribed = broker
        .subscriber()
        .subscribe(SubscribeOptions::new("orders", "billing"))
        .await;
    for error in [
        publish_error,
        subscribed.err().unwrap(),
        broker.check().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::UnknownDestination);
        assert!(error.to_string().contains("migrate"), "{error}");
    }
    broker.migrate().await.unwrap();
    broker.check().await.unwrap();
    publish(&broker, &[message("a", 1)]).await;
}

#[tokio::test]
async fn tables_of_a_later_version_are_refused_and_left_alone() {
    let place = Place::new();
    place.broker().await;
    place.run("UPDATE outbox_queue_schema SET version = 7");
    let broker = SqlBroker::connect(SqlConfig::sqlite(place.path())).await.unwrap();
    for error in [
        broker.check().await.unwrap_err(),
        broker.migrate().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("version 7"), "{error}");
    }
    let outcomes = broker.publisher().publish(&[message("a", 1)]).await;
    assert_eq!(outcomes[0].as_ref().unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(place.count("outbox_queue_message"), 0);
}

#[tokio::test]
async fn a_place_that_is_no_database_is_named_as_such() {
    let place = Place::new();
    let nowhere = SqlConfig::sqlite(place.folder.path().join("missing").join("queue.db"));
    assert_eq!(
        SqlBroker::connect(nowhere).await.unwrap_err().kind(),
        ErrorKind::Unreachable
    );
    std::fs::write(
        place.path(),
        "this is a text file, longer than a header".repeat(50),
    )
    .unwrap();
    let error = SqlBroker::connect(SqlConfig::sqlite(place.path()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn the_tables_can_be_made_and_filled_with_plain_sql() {
    let place = Place::new();
    place.run(SQLITE_DDL);
    place.run(
        r#"INSERT INTO outbox_queue_message (topic, source, message_id, key, attributes, payload)
           VALUES ('orders', '/legacy', '01890a5d-ac96-774b-bcce-b302099a8057', 'a',
                   '{"type":"order.placed","time":"2026-01-02T03:04:05Z"}', '1')"#,
    );
    let broker = place.broker().await;
    let delivery = receive(&mut join(&broker).await, 1).await.remove(0);
    let content = delivery.content().unwrap();
    assert_eq!(
        (content.source.as_str(), content.kind.as_str()),
        ("/legacy", "order.placed")
    );
    assert_eq!(delivery.ack().await.unwrap(), Settled::Done);
}

#[tokio::test]
async fn two_brokers_on_one_file_share_a_group_and_keep_the_order_of_keys() {
    const MESSAGES: u32 = 400;
    const KEYS: u32 = 7;
    let place = Place::new();
    let poll = |config: SqlConfig| config.poll_interval(Duration::from_millis(20));
    let (one, two) = (place.broker_with(poll).await, place.broker_with(poll).await);
    let members = [join(&one).await, join(&two).await];
    let seen = Arc::new(Mutex::new(Vec::<u32>::new()));
    let deadline = Instant::now() + Duration::from_secs(60);
    let [first, second] = members.map(|mut member| {
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut mine = 0;
            while seen.lock().unwrap().len() < MESSAGES as usize {
                assert!(
                    Instant::now() < deadline,
                    "only {} came",
                    seen.lock().unwrap().len()
                );
                for delivery in member.receive(5, Duration::from_millis(50)).await.unwrap() {
                    seen.lock().unwrap().push(number(&delivery));
                    mine += 1;
                    assert_eq!(delivery.ack().await.unwrap(), Settled::Done);
                }
            }
            mine
        })
    });
    for (step, from) in (0..MESSAGES).step_by(20).enumerate() {
        let batch: Vec<Message> = (from..from + 20)
            .map(|n| message(&(n % KEYS).to_string(), n))
            .collect();
        publish(if step % 2 == 0 { &one } else { &two }, &batch).await;
    }
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert!(
        first > 0 && second > 0,
        "one member got everything: {first} and {second}"
    );
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), MESSAGES as usize);
    for key in 0..KEYS {
        let of_key: Vec<u32> = seen.iter().copied().filter(|n| n % KEYS == key).collect();
        assert!(of_key.is_sorted(), "key {key}: {of_key:?}");
    }
}

#[tokio::test]
async fn a_verdict_after_the_lease_is_stale_and_the_message_comes_again() {
    let place = Place::new();
    let broker = place.broker().await;
    let options = SubscribeOptions::new("orders", "billing").visibility(Duration::from_millis(50));
    let mut subscription = join_with(&broker, options).await;
    publish(&broker, &[message("a", 1)]).await;
    let late = receive(&mut subscription, 1).await.remove(0);
    let again = receive(&mut subscription, 1).await.remove(0);
    assert_eq!((late.attempt(), again.attempt()), (1, 2));
    assert_eq!(late.ack().await.unwrap(), Settled::Stale);
    // The stale ack took nothing away: once the second lease ends too, the message comes again.
    drop(again);
    assert_eq!(receive(&mut subscription, 1).await[0].attempt(), 3);
}

#[tokio::test]
async fn a_closed_subscription_gives_back_at_once_what_it_held() {
    let place = Place::new();
    let broker = place.broker().await;
    let options = SubscribeOptions::new("orders", "billing").visibility(Duration::from_secs(3_600));
    let mut leaving = join_with(&broker, options).await;
    publish(&broker, &[message("a", 1)]).await;
    let held = receive(&mut leaving, 1).await.remove(0);
    leaving.close().await.unwrap();
    assert_eq!(receive(&mut join(&broker).await, 1).await[0].attempt(), 2);
    assert_eq!(held.ack().await.unwrap(), Settled::Stale);
}

#[tokio::test]
async fn an_extended_lease_outlives_its_first_end() {
    let place = Place::new();
    let broker = place.broker().await;
    let options = SubscribeOptions::new("orders", "billing").visibility(Duration::from_millis(800));
    let mut subscription = join_with(&broker, options).await;
    publish(&broker, &[message("a", 1)]).await;
    let (_, settlement) = receive(&mut subscription, 1).await.remove(0).split();
    let end = Instant::now() + Duration::from_millis(2_000);
    while Instant::now() < end {
        assert_eq!(settlement.extend().await.unwrap(), Settled::Done);
        assert!(
            subscription
                .receive(1, Duration::from_millis(50))
                .await
                .unwrap()
                .is_empty()
        );
    }
    assert_eq!(settlement.settle(Verdict::Ack).await.unwrap(), Settled::Done);
}

#[tokio::test]
async fn a_second_publish_is_suppressed_even_after_the_ack() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut subscription = join(&broker).await;
    let message = message("a", 1);
    publish(&broker, std::slice::from_ref(&message)).await;
    receive(&mut subscription, 1).await.remove(0).ack().await.unwrap();
    // From another process, and twice in one batch.
    let outcomes = place
        .broker()
        .await
        .publisher()
        .publish(&[message.clone(), message])
        .await;
    assert!(outcomes.into_iter().all(|outcome| outcome.unwrap().duplicate));
    assert_eq!(subscription.lag().await.unwrap().messages, 0);
    assert_eq!(place.count("outbox_queue_message"), 1);
}

#[tokio::test]
async fn what_is_past_its_retention_is_purged_unless_a_group_waits_for_it() {
    let place = Place::new();
    let broker = place.broker_with(|config| config.retention(Duration::ZERO)).await;
    let mut subscription = join(&broker).await;
    let messages: Vec<Message> = (0..1_200).map(|n| message("a", n)).collect();
    publish(&broker, &messages).await;
    let mut held = receive(&mut subscription, 3).await;
    for delivery in held.drain(1..) {
        delivery.ack().await.unwrap();
    }
    broker.purge().await.unwrap();
    // The first is held, two are settled and gone, the rest is unread.
    assert_eq!(place.count("outbox_queue_message"), 1_198);
    assert_eq!(subscription.lag().await.unwrap().messages, 1_198);
    assert!(broker.remove_group("orders", "billing").await.unwrap());
    broker.purge().await.unwrap();
    assert_eq!(place.count("outbox_queue_message"), 0);
    let error = subscription.receive(1, Duration::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownDestination, "{error}");
}

#[tokio::test]
async fn a_row_that_is_no_message_is_delivered_as_malformed_and_can_be_given_up() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut subscription = join(&broker).await;
    place.run(
        r#"INSERT INTO outbox_queue_message (topic, source, message_id, key, attributes, payload) VALUES
           ('orders', '/x', 'no uuid', 'a', '{"type":"t","time":"2026-01-02T03:04:05Z"}', 'one'),
           ('orders', '/x', '01890a5d-ac96-774b-bcce-b302099a8057', 'a', 'no json', 'two'),
           ('orders', '/x', '01890a5d-ac96-774b-bcce-b302099a8058', 'a', '{"type":"t"}', 'three')"#,
    );
    publish(&broker, &[message("a", 4)]).await;
    let deliveries = receive(&mut subscription, 4).await;
    assert_eq!(number(&deliveries[3]), 4);
    for (delivery, body) in deliveries.into_iter().zip(["one", "two", "three"]) {
        let malformed = delivery.content().unwrap_err();
        assert_eq!(malformed.body, body.as_bytes());
        let reason = malformed.reason.clone();
        assert_eq!(delivery.dead(reason).await.unwrap(), Settled::Done);
    }
    assert_eq!(place.count("outbox_queue_dead WHERE attempts = 1"), 3);
}

#[tokio::test]
async fn a_message_deleted_by_hand_does_not_jam_its_group() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut subscription = join(&broker).await;
    publish(&broker, &[message("a", 1), message("a", 2)]).await;
    let first = receive(&mut subscription, 1).await.remove(0);
    place.run("DELETE FROM outbox_queue_message WHERE seq = 1");
    first.nack(Duration::ZERO).await.unwrap();
    assert_eq!(number(&receive(&mut subscription, 1).await[0]), 2);
    assert_eq!(place.count("outbox_queue_pending"), 1);
}

#[tokio::test]
async fn a_file_locked_by_another_program_fails_in_time_and_then_recovers() {
    let place = Place::new();
    let broker = place
        .broker_with(|config| config.publish_timeout(Duration::from_millis(300)))
        .await;
    publish(&broker, &[message("a", 1)]).await;
    let mut other = place.connection();
    other.batch_execute("BEGIN IMMEDIATE").unwrap();
    let begun = Instant::now();
    let outcomes = broker.publisher().publish(&[message("a", 2)]).await;
    let error = outcomes.into_iter().next().unwrap().unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    other.batch_execute("ROLLBACK").unwrap();
    publish(&broker, &[message("a", 3)]).await;
}

#[tokio::test]
async fn a_receive_that_is_dropped_loses_no_delivery() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut subscription = join(&broker).await;
    let messages: Vec<Message> = (0..50).map(|n| message("a", n)).collect();
    publish(&broker, &messages).await;
    let mut seen = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    for round in 0.. {
        assert!(Instant::now() < deadline, "{seen:?}");
        // Cut off at another stage of the claim each time.
        let cut = Duration::from_micros(100 * (round % 20));
        let receive = subscription.receive(3, Duration::from_secs(1));
        if let Ok(received) = tokio::time::timeout(cut, receive).await {
            seen.extend(received.unwrap().iter().map(number));
        }
        if seen.len() >= 50 {
            break;
        }
    }
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_group_that_begins_at_the_latest_reads_only_what_comes_after() {
    let place = Place::new();
    let broker = place.broker().await;
    publish(&broker, &[message("a", 1)]).await;
    let options = SubscribeOptions::new("orders", "audit").start(Start::Latest);
    let mut subscription = join_with(&broker, options).await;
    publish(&broker, &[message("a", 2)]).await;
    assert_eq!(number(&receive(&mut subscription, 1).await[0]), 2);
}

/// The file keeps the contract. There is no server to kill; `integration-tests` kills processes instead.
#[cfg(feature = "conformance")]
mod contract {
    use async_trait::async_trait;
    use outbox_broker::conformance::{Fixture, Need};
    use outbox_broker::{Bytes, Capability};

    use super::*;

    struct File(Place);

    #[async_trait]
    impl Fixture for File {
        async fn publisher(&self) -> Arc<dyn Publisher> {
            Arc::new(self.0.broker().await.publisher())
        }

        async fn subscriber(&self) -> Arc<dyn Subscriber> {
            Arc::new(self.0.broker().await.subscriber())
        }

        fn claims(&self) -> Vec<Capability> {
            vec![
                Capability::KeyOrder,
                Capability::PrefixOrder,
                Capability::Deduplicates,
                Capability::NackDelay,
                Capability::Durable,
                Capability::Shared,
                Capability::CountsAttempts,
                Capability::DeadLetters,
            ]
        }

        async fn inject(&self, topic: &str, body: Bytes) -> bool {
            diesel::sql_query(
                "INSERT INTO outbox_queue_message (topic, source, message_id, attributes, payload) \
                 VALUES (?, '/elsewhere', hex(randomblob(16)), '{}', ?)",
            )
            .bind::<diesel::sql_types::Text, _>(topic)
            .bind::<diesel::sql_types::Binary, _>(body.to_vec())
            .execute(&mut self.0.connection())
            .unwrap();
            true
        }

        async fn dead_letters(&self, topic: &str, group: &str) -> Option<usize> {
            let rows = self.0.count(&format!(
                "outbox_queue_dead WHERE topic = '{topic}' AND group_name = '{group}'"
            ));
            usize::try_from(rows).ok()
        }
    }

    async fn setup(_: Need) -> Result<File, String> {
        Ok(File(Place::new()))
    }

    outbox_broker::conformance!(setup);
}
