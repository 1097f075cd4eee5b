//! The consumer on PostgreSQL: what only a server with several writers can get wrong.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use outbox::Outbox;
use outbox_broker::memory::{MemoryBroker, MemoryConfig};
use outbox_broker::{Message, Publisher, SubscribeOptions, Subscriber};
use outbox_consumer::{
    Builder, Consumer, Context, Error, Handler, HandlerError, Inbox, Mode, RetryPolicy, Select, Status,
    Summary, async_trait,
};
use outbox_testing::services::postgres::Database;
use outbox_testing::{or_skip, services};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

/// A database with an effects table, and a broker.
struct Bench {
    inbox: Inbox<AsyncPgConnection>,
    broker: MemoryBroker,
    database: Database,
}

impl Bench {
    async fn new(database: Database) -> Self {
        let inbox = Inbox::postgres(database.url(), 5).unwrap();
        inbox.migrate().await.unwrap();
        let mut connection = inbox.pool().get().await.unwrap();
        outbox::migrate(&mut *connection).await.unwrap();
        connection
            .batch_execute("CREATE TABLE effect (seq bigserial PRIMARY KEY, id text NOT NULL, key text, n bigint NOT NULL)")
            .await
            .unwrap();
        drop(connection);
        Self {
            inbox,
            broker: broker(),
            database,
        }
    }

    fn consumer(&self) -> Builder<AsyncPgConnection> {
        self.consumer_of(&self.broker)
    }

    fn consumer_of(&self, broker: &MemoryBroker) -> Builder<AsyncPgConnection> {
        Consumer::builder("billing", Arc::new(broker.subscriber()), self.inbox.clone())
            .topic("orders")
            .mode(Mode::KeyOrdered { lanes: 8 })
            .retry(quick(3))
            .redrive_every(Duration::from_millis(20))
    }

    async fn number(&self, sql: &str) -> i64 {
        let client = self.database.client().await.unwrap();
        client.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn effects(&self) -> i64 {
        self.number("SELECT count(*) FROM effect").await
    }

    async fn inversions(&self) -> i64 {
        self.number(
            "SELECT count(*) FROM effect a JOIN effect b ON a.key = b.key AND a.seq < b.seq AND a.n > b.n",
        )
        .await
    }
}

fn broker() -> MemoryBroker {
    MemoryBroker::with_config(MemoryConfig {
        dedup_ids: 0,
        ..MemoryConfig::default()
    })
}

/// `attempts` attempts without waits.
fn quick(attempts: u32) -> RetryPolicy {
    RetryPolicy::never().immediate(attempts - 1)
}

fn message(key: Option<&str>, n: i64) -> Message {
    let builder = Message::builder("orders", "order.placed")
        .source("/orders")
        .json(&json!({ "n": n }));
    match key {
        Some(key) => builder.key(key),
        None => builder,
    }
    .build()
    .unwrap()
}

async fn publish(broker: &MemoryBroker, messages: &[Message]) {
    for outcome in broker.publisher().publish(messages).await {
        outcome.unwrap();
    }
}

struct Running {
    status: Status,
    shutdown: CancellationToken,
    task: JoinHandle<Result<Summary, Error>>,
}

fn start(builder: Builder<AsyncPgConnection>) -> Running {
    let consumer = builder.build().unwrap();
    let status = consumer.status();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(consumer.run(shutdown.clone()));
    Running {
        status,
        shutdown,
        task,
    }
}

impl Running {
    async fn until(&self, what: &str, mut done: impl FnMut(&Status) -> bool) {
        let poll = async {
            while !done(&self.status) {
                assert!(
                    !self.task.is_finished(),
                    "the consumer ended while waiting for {what}"
                );
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, poll).await.is_err() {
            panic!(
                "no {what} within {DEADLINE:?}: {:?}, last error {:?}",
                self.status.summary(),
                self.status.last_error()
            );
        }
    }

    async fn stop(self) -> Summary {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }
}

async fn write(tx: &mut AsyncPgConnection, context: &Context<'_>) -> Result<(), HandlerError> {
    let body: serde_json::Value = context.json()?;
    diesel::sql_query("INSERT INTO effect (id, key, n) VALUES ($1, $2, $3)")
        .bind::<Text, _>(context.id().to_string())
        .bind::<Nullable<Text>, _>(context.message().key.clone())
        .bind::<BigInt, _>(body["n"].as_i64().unwrap_or(-1))
        .execute(tx)
        .await?;
    Ok(())
}

/// Writes one effect; its first attempt runs a statement; then the closure answers.
struct Effect<F> {
    then: &'static str,
    answer: F,
}

const fn effect<F>(answer: F) -> Effect<F> {
    Effect { then: "", answer }
}

#[async_trait]
impl<F> Handler<AsyncPgConnection> for Effect<F>
where
    F: Fn(&Context<'_>) -> Result<(), HandlerError> + Send + Sync + 'static,
{
    async fn handle(&self, tx: &mut AsyncPgConnection, context: &Context<'_>) -> Result<(), HandlerError> {
        write(tx, context).await?;
        if !self.then.is_empty() && context.attempt() == 1 {
            // The error is swallowed: some tests are about just that.
            let _ = tx.batch_execute(self.then).await;
        }
        (self.answer)(context)
    }
}

fn ok(_: &Context<'_>) -> Result<(), HandlerError> {
    Ok(())
}

#[tokio::test]
async fn duplicates_have_one_effect() {
    let bench = Bench::new(or_skip!(or_skip!(services::postgres().await).database().await)).await;
    let one = message(None, 1);
    publish(&bench.broker, &[one.clone(), one.clone(), one]).await;
    let running = start(bench.consumer().handler(effect(ok)));
    running
        .until("two duplicates", |status| status.duplicates() == 2)
        .await;
    assert_eq!(bench.effects().await, 1);
    let summary = running.stop().await;
    assert_eq!((summary.processed, summary.failed, summary.deferred), (1, 0, 0));
}

struct Slow(Duration);

#[async_trait]
impl Handler<AsyncPgConnection> for Slow {
    async fn handle(&self, tx: &mut AsyncPgConnection, context: &Context<'_>) -> Result<(), HandlerError> {
        write(tx, context).await?;
        tokio::time::sleep(self.0).await;
        Ok(())
    }
}

#[tokio::test]
async fn fifty_copies_in_flight_in_two_consumers_have_one_effect_and_block_no_connection() {
    let bench = Bench::new(or_skip!(or_skip!(services::postgres().await).database().await)).await;
    let one = message(None, 1);
    // Two brokers stand for two members that were both handed the copies.
    let other = broker();
    publish(&bench.broker, &vec![one.clone(); 25]).await;
    publish(&other, &vec![one; 25]).await;
    let mode = Mode::Concurrent { workers: 25 };
    let slow = || Slow(Duration::from_millis(600));
    let first = start(bench.consumer().mode(mode).handler(slow()));
    let second = start(bench.consumer_of(&other).mode(mode).handler(slow()));
    let (a, b) = (first.status.clone(), second.status.clone());
    first
        .until("a deferral", |_| a.summary().deferred + b.summary().deferred > 0)
        .await;
    first
        .until("49 duplicates", |_| a.duplicates() + b.duplicates() == 49)
        .await;
    assert_eq!(bench.effects().await, 1);
    let (first, second) = (first.stop().await, second.stop().await);
    assert_eq!(first.processed + second.processed, 1);
    assert_eq!(first.failed + second.failed, 0);
}

#[tokio::test]
async fn an_aborted_transaction_is_never_taken_for_committed() {
    let bench = Bench::new(or_skip!(or_skip!(services::postgres().await).database().await)).await;
    publish(&bench.broker, &[message(None, 1)]).await;
    let handler = Effect {
        then: "SELECT 1 / 0",
        answer: ok,
    };
    let running = start(bench.consumer().handler(handler));
    running.until("processed", |status| status.processed() == 1).await;
    assert_eq!(
        running.status.failed(),
        1,
        "the aborted attempt failed, the next one committed"
    );
    assert_eq!(bench.effects().await, 1);
    running.stop().await;
}

#[tokio::test]
async fn a_handler_that_ends_the_transaction_is_found_out() {
    let bench = Bench::new(or_skip!(or_skip!(services::postgres().await).database().await)).await;
    publish(&bench.broker, &[message(None, 1)]).await;
    let handler = Effect {
        then: "ROLLBACK",
        answer: ok,
    };
    let running = start(bench.consumer().handler(handler));
    running.until("processed", |status| status.processed() == 1).await;
    assert_eq!(running.status.failed(), 1);
    assert_eq!(bench.effects().await, 1);
    running.stop().await;
}

#[tokio::test]
async fn a_statement_that_never_ends_is_cut_off_with_its_connection() {
    let bench = Bench::new(or_skip!(or_skip!(services::postgres().await).database().await)).await;
    publish(&bench.broker, &[message(None, 1), message(None, 2)]).await;
    let handler = Effect {
        then: "SELECT pg_sleep(60)",
        answer: ok,
    };
    let running = start(
        bench
            .consumer()
            .handler_timeout(Duration::from_millis(200))
            .retry(quick(200))
            .handler(handler),
    );
    running.until("both", |status| status.processed() == 2).await;
    assert_eq!(bench.effects().await, 2);
    assert_eq!(running.stop().await.failed, 2);
}

#[derive(diesel::QueryableByName)]
struct Setting {
    #[diesel(sql_type = Text)]
    value: String,
}

struct Settings;

#[async_trait]
impl Handler<AsyncPgConnection> for Settings {
    async fn handle(&self, tx: &mut AsyncPgConnection, context: &Context<'_>) -> Result<(), HandlerError> {
        write(tx, context).await?;
        let setting: Setting = diesel::sql_query("SELECT current_setting('lock_timeout') AS value")
            .get_result(tx)
            .await?;
        if setting.value != "0" {
            return Err(HandlerError::dead(format!("lock_timeout is {}", setting.value)));
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_handler_has_the_lock_timeout_of_its_session() {
    let bench = Bench::new(or_skip!(or_skip!(services::postgres().await).database().await)).await;
    publish(&bench.broker, &[message(None, 1), message(Some("a"), 2)]).await;
    let running = start(bench.consumer().handler(Settings));
    running
        .until("both", |status| status.processed() + status.dead() == 2)
        .await;
    assert_eq!(running.status.dead(), 0, "{:?}", running.status.last_error());
    running.stop().await;
}

#[tokio::test]
async fn messages_of_a_key_take_effect_in_order_whatever_fails() {
    let bench = Bench::new(or_skip!(or_skip!(services::postgres().await).database().await)).await;
    let messages: Vec<Message> = (0..400)
        .map(|n| message(Some(&format!("key-{}", n % 7)), n))
        .collect();
    publish(&bench.broker, &messages).await;
    let calls = AtomicU32::new(0);
    let running = start(
        bench
            .consumer()
            .retry(quick(30))
            .handler(effect(move |_: &Context<'_>| {
                if calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(5) {
                    return Err(HandlerError::retry("every fifth call fails"));
                }
                Ok(())
            })),
    );
    running
        .until("400 processed", |status| status.processed() == 400)
        .await;
    assert_eq!((bench.effects().await, bench.inversions().await), (400, 0));
    assert_eq!(bench.number("SELECT count(*) FROM consumer_attempt").await, 0);
    running.stop().await;
}

#[tokio::test]
async fn follow_ups_commit_with_the_effects() {
    let bench = Bench::new(or_skip!(or_skip!(services::postgres().await).database().await)).await;
    publish(&bench.broker, &[message(None, 1)]).await;
    let outbox = Outbox::new("/billing");
    let maker = outbox.clone();
    let running = start(
        bench
            .consumer()
            .outbox(outbox)
            .handler(effect(move |context: &Context<'_>| {
                context.enqueue(
                    maker
                        .message("invoices", "invoice.made")
                        .json(&json!({}))
                        .build()?,
                );
                if context.attempt() == 1 {
                    return Err(HandlerError::retry("the first attempt fails"));
                }
                Ok(())
            })),
    );
    running.until("processed", |status| status.processed() == 1).await;
    assert_eq!(bench.number("SELECT count(*) FROM outbox").await, 1);
    running.stop().await;
}

#[tokio::test]
async fn a_blocked_key_queues_behind_its_dead_letter_and_redrive_keeps_the_order() {
    let bench = Bench::new(or_skip!(or_skip!(services::postgres().await).database().await)).await;
    let broken = Arc::new(AtomicU32::new(1));
    let switch = broken.clone();
    let first = [
        message(Some("a"), 1),
        message(Some("a"), 2),
        message(Some("b"), 9),
    ];
    publish(&bench.broker, &first).await;
    bench.broker.inject_raw("orders", &b"\x00not a message"[..]);
    let letters = bench
        .consumer()
        .handler(effect(ok))
        .build()
        .unwrap()
        .dead_letters();
    let running = start(bench.consumer().handler(effect(move |context: &Context<'_>| {
        let body: serde_json::Value = context.json()?;
        if body["n"] == 1 && switch.as_ref().load(Ordering::SeqCst) == 1 {
            return Err(HandlerError::dead("refused"));
        }
        Ok(())
    })));
    running
        .until("three dead letters", |status| {
            status.dead() == 3 && status.processed() == 1
        })
        .await;
    publish(&bench.broker, &[message(Some("a"), 3)]).await;
    running.until("a fourth", |status| status.dead() == 4).await;
    broken.as_ref().store(0, Ordering::SeqCst);
    assert_eq!(letters.redrive(&Select::All).await.unwrap(), 3);
    running
        .until("all handled", |status| status.processed() == 4)
        .await;
    let left = letters.list(0, 10).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].reason, "malformed");
    assert_eq!(bench.inversions().await, 0);
    running.stop().await;
}

#[tokio::test]
async fn a_redelivery_counts_the_attempt_before_it_begins() {
    let bench = Bench::new(or_skip!(or_skip!(services::postgres().await).database().await)).await;
    publish(&bench.broker, &[message(None, 1)]).await;
    // A member that takes the delivery and dies.
    let mut lost = bench
        .broker
        .subscriber()
        .subscribe(SubscribeOptions::new("orders", "billing"))
        .await
        .unwrap();
    assert_eq!(lost.receive(1, Duration::from_secs(1)).await.unwrap().len(), 1);
    lost.close().await.unwrap();
    let running = start(
        bench
            .consumer()
            .handler(effect(|context: &Context<'_>| match context.attempt() {
                1 => Err(HandlerError::retry("once")),
                2 => Ok(()),
                _ => Err(HandlerError::dead("counted too often")),
            })),
    );
    running.until("processed", |status| status.processed() == 1).await;
    assert_eq!(running.status.dead(), 0);
    assert_eq!(bench.number("SELECT count(*) FROM consumer_attempt").await, 0);
    running.stop().await;
    let pruned = outbox_consumer::prune(&bench.inbox, "billing", Duration::ZERO).await;
    assert_eq!(pruned.unwrap(), 1);
}

#[tokio::test]
async fn a_database_restart_under_load_loses_and_doubles_nothing() {
    let postgres = or_skip!(services::own_postgres().await);
    let bench = Bench::new(or_skip!(postgres.database().await)).await;
    let messages: Vec<Message> = (0..500)
        .map(|n| message(Some(&format!("key-{}", n % 16)), n))
        .collect();
    publish(&bench.broker, &messages).await;
    let running = start(
        bench
            .consumer()
            .retry(quick(50))
            .handler(Slow(Duration::from_millis(5))),
    );
    running.until("some", |status| status.processed() >= 50).await;
    postgres.kill().await.unwrap();
    postgres.restart().await.unwrap();
    running
        .until("all", |status| {
            status.processed() + status.duplicates() >= 500 && status.in_flight() == 0
        })
        .await;
    assert_eq!((bench.effects().await, bench.inversions().await), (500, 0));
    assert_eq!(running.stop().await.dead, 0);
}
