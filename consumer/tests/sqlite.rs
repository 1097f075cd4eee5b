//! The pipeline on a real SQLite file, fed by the memory broker.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use diesel::sqlite::SqliteConnection;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use outbox::Outbox;
use outbox_broker::memory::{MemoryBroker, MemoryConfig};
use outbox_broker::{Message, Publisher};
use outbox_consumer::{
    Builder, Consumer, Context, Error, ErrorKind, Expiry, Handler, HandlerError, Inbox, Mode, OrderedFailure,
    RetryPolicy, Select, Status, Summary, async_trait,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

type Sqlite = SyncConnectionWrapper<SqliteConnection>;

const DEADLINE: Duration = Duration::from_secs(20);

#[derive(diesel::QueryableByName)]
struct Number {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    number: i64,
}

/// A database with an effects table, a broker, and a consumer under test.
struct Bench {
    _folder: TempDir,
    inbox: Inbox<Sqlite>,
    broker: MemoryBroker,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let inbox = Inbox::sqlite(folder.path().join("test.db")).unwrap();
        inbox.migrate().await.unwrap();
        let mut connection = inbox.pool().get().await.unwrap();
        outbox::migrate(&mut *connection).await.unwrap();
        connection
            .batch_execute("CREATE TABLE effect (seq INTEGER PRIMARY KEY, id TEXT NOT NULL, key TEXT, n INTEGER NOT NULL)")
            .await
            .unwrap();
        drop(connection);
        let config = MemoryConfig {
            dedup_ids: 0,
            ..MemoryConfig::default()
        };
        Self {
            _folder: folder,
            inbox,
            broker: MemoryBroker::with_config(config),
        }
    }

    fn consumer(&self) -> Builder<Sqlite> {
        Consumer::builder("billing", Arc::new(self.broker.subscriber()), self.inbox.clone())
            .topic("orders")
            .mode(Mode::KeyOrdered { lanes: 8 })
            .retry(quick(3))
            .redrive_every(Duration::from_millis(20))
    }

    async fn number(&self, sql: &str) -> i64 {
        let mut connection = self.inbox.pool().get().await.unwrap();
        diesel::sql_query(sql)
            .get_result::<Number>(&mut *connection)
            .await
            .unwrap()
            .number
    }

    async fn effects(&self) -> i64 {
        self.number("SELECT count(*) AS number FROM effect").await
    }

    async fn publish(&self, messages: &[Message]) {
        for outcome in self.broker.publisher().publish(messages).await {
            outcome.unwrap();
        }
    }
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

struct Running {
    status: Status,
    shutdown: CancellationToken,
    task: JoinHandle<Result<Summary, Error>>,
}

fn start(builder: Builder<Sqlite>) -> Running {
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

/// Writes one effect; what goes wrong before or after is up to the closure.
struct Effect<F>(F);

#[async_trait]
impl<F> Handler<Sqlite> for Effect<F>
where
    F: Fn(&Context<'_>) -> Result<(), HandlerError> + Send + Sync + 'static,
{
    async fn handle(&self, tx: &mut Sqlite, context: &Context<'_>) -> Result<(), HandlerError> {
        write(tx, context).await?;
        (self.0)(context)
    }
}

async fn write(tx: &mut Sqlite, context: &Context<'_>) -> Result<(), HandlerError> {
    let body: serde_json::Value = context.json()?;
    diesel::sql_query("INSERT INTO effect (id, key, n) VALUES (?, ?, ?)")
        .bind::<diesel::sql_types::Text, _>(context.id().to_string())
        .bind::<diesel::sql_types::Nullable<diesel::sql_types::Text>, _>(context.message().key.clone())
        .bind::<diesel::sql_types::BigInt, _>(body["n"].as_i64().unwrap_or(-1))
        .execute(tx)
        .await?;
    Ok(())
}

fn ok(_: &Context<'_>) -> Result<(), HandlerError> {
    Ok(())
}

#[tokio::test]
async fn duplicates_have_one_effect_and_are_acked() {
    let bench = Bench::new().await;
    let one = message(None, 1);
    bench.publish(&[one.clone(), one.clone(), one.clone()]).await;
    let running = start(bench.consumer().handler(Effect(ok)));
    running
        .until("idle", |status| status.idle() && status.duplicates() == 2)
        .await;
    assert_eq!(bench.effects().await, 1);
    let summary = running.stop().await;
    assert_eq!((summary.processed, summary.duplicates, summary.failed), (1, 2, 0));
    let again = start(bench.consumer().handler(Effect(ok)));
    again.until("idle", Status::idle).await;
    assert_eq!(
        again.stop().await,
        Summary::default(),
        "acked messages do not come again"
    );
}

#[tokio::test]
async fn fifty_copies_at_once_have_one_effect_on_a_small_pool() {
    let bench = Bench::new().await;
    let one = message(None, 1);
    bench.publish(&vec![one; 50]).await;
    let running = start(
        bench
            .consumer()
            .mode(Mode::Concurrent { workers: 50 })
            .handler(Effect(ok)),
    );
    running
        .until("49 duplicates", |status| status.duplicates() == 49)
        .await;
    assert_eq!(bench.effects().await, 1);
    assert_eq!(running.stop().await.failed, 0);
}

#[tokio::test]
async fn failed_attempts_leave_no_effects_and_are_counted_from_one() {
    let bench = Bench::new().await;
    bench.publish(&[message(Some("a"), 1)]).await;
    let running = start(bench.consumer().handler(Effect(|context: &Context<'_>| {
        if context.attempt() < 3 {
            return Err(std::io::Error::other("not yet").into());
        }
        Ok(())
    })));
    running
        .until("one processed", |status| status.processed() == 1)
        .await;
    assert_eq!(running.status.failed(), 2);
    assert_eq!(running.status.last_error().as_deref(), Some("not yet"));
    assert_eq!(bench.effects().await, 1);
    assert_eq!(
        bench
            .number("SELECT count(*) AS number FROM consumer_attempt")
            .await,
        0
    );
    running.stop().await;
}

#[tokio::test]
async fn panics_are_failed_attempts_and_end_as_a_dead_letter() {
    let bench = Bench::new().await;
    bench.publish(&[message(None, 1), message(None, 2)]).await;
    let running = start(bench.consumer().handler(Effect(|context: &Context<'_>| {
        let body: serde_json::Value = context.json()?;
        assert_ne!(body["n"], 1, "one is not wanted");
        Ok(())
    })));
    running
        .until("dead and processed", |status| {
            status.dead() == 1 && status.processed() == 1
        })
        .await;
    assert_eq!(running.status.failed(), 3);
    let consumer = bench.consumer().handler(Effect(ok)).build().unwrap();
    let letters = consumer.dead_letters().list(0, 10).await.unwrap();
    assert_eq!(letters[0].reason, "exhausted");
    assert_eq!(letters[0].attempts, 3);
    assert!(letters[0].error.as_ref().unwrap().contains("one is not wanted"));
    assert_eq!(bench.effects().await, 1);
    running.stop().await;
}

struct Slow(Duration);

#[async_trait]
impl Handler<Sqlite> for Slow {
    async fn handle(&self, tx: &mut Sqlite, context: &Context<'_>) -> Result<(), HandlerError> {
        write(tx, context).await?;
        tokio::time::sleep(self.0).await;
        Ok(())
    }
}

#[tokio::test]
async fn a_handler_that_takes_too_long_is_cut_off_and_its_effects_rolled_back() {
    let bench = Bench::new().await;
    bench.publish(&[message(None, 1)]).await;
    let running = start(
        bench
            .consumer()
            .handler_timeout(Duration::from_millis(30))
            .handler(Slow(Duration::from_secs(60))),
    );
    running.until("a dead letter", |status| status.dead() == 1).await;
    assert_eq!(running.status.failed(), 3);
    assert_eq!(bench.effects().await, 0);
    running.stop().await;
}

struct Stuck;

#[async_trait]
impl Handler<Sqlite> for Stuck {
    async fn handle(&self, tx: &mut Sqlite, context: &Context<'_>) -> Result<(), HandlerError> {
        write(tx, context).await?;
        if context.attempt() > 1 {
            return Ok(());
        }
        // A statement that is still running when the future is dropped.
        tx.spawn_blocking(|_| {
            std::thread::sleep(Duration::from_millis(300));
            Ok(())
        })
        .await?;
        Ok(())
    }
}

#[tokio::test]
async fn a_connection_cut_off_in_a_statement_is_discarded_and_the_next_attempt_succeeds() {
    cut_off_in_a_statement().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_off_in_a_statement_is_discarded_with_many_threads_too() {
    cut_off_in_a_statement().await;
}

async fn cut_off_in_a_statement() {
    let bench = Bench::new().await;
    bench.publish(&[message(None, 1)]).await;
    let running = start(
        bench
            .consumer()
            .handler_timeout(Duration::from_millis(50))
            .handler(Stuck),
    );
    running.until("processed", |status| status.processed() == 1).await;
    assert_eq!(bench.effects().await, 1);
    running.stop().await;
}

#[tokio::test]
async fn poison_becomes_a_dead_letter_with_its_bytes_and_stops_nobody() {
    let bench = Bench::new().await;
    bench.broker.inject_raw("orders", &b"\x00not a message"[..]);
    bench.publish(&[message(Some("a"), 1)]).await;
    let running = start(bench.consumer().handler(Effect(ok)));
    running
        .until("dead and processed", |status| {
            status.dead() == 1 && status.processed() == 1
        })
        .await;
    let consumer = bench.consumer().handler(Effect(ok)).build().unwrap();
    let letter = consumer.dead_letters().list(0, 10).await.unwrap().remove(0);
    assert_eq!(letter.reason, "malformed");
    assert_eq!(&letter.content.unwrap_err().body[..], b"\x00not a message");
    running.stop().await;
}

#[tokio::test]
async fn a_payload_that_does_not_decode_is_not_retried() {
    let bench = Bench::new().await;
    bench.publish(&[message(None, 1)]).await;
    let running = start(bench.consumer().handler(Effect(|context: &Context<'_>| {
        context.json::<Vec<u8>>().map(|_| ())
    })));
    running.until("a dead letter", |status| status.dead() == 1).await;
    assert_eq!(running.status.failed(), 1);
    assert_eq!(bench.effects().await, 0);
    running.stop().await;
}

#[tokio::test]
async fn follow_ups_commit_with_the_effects_and_name_their_cause() {
    let bench = Bench::new().await;
    let cause = message(None, 1);
    bench.publish(std::slice::from_ref(&cause)).await;
    let outbox = Outbox::new("/billing");
    let maker = outbox.clone();
    let running = start(
        bench
            .consumer()
            .outbox(outbox)
            .handler(Effect(move |context: &Context<'_>| {
                let follow_up = maker
                    .message("invoices", "invoice.made")
                    .json(&json!({}))
                    .build()?;
                context.enqueue(follow_up);
                if context.attempt() == 1 {
                    return Err(HandlerError::retry("the first attempt fails"));
                }
                Ok(())
            })),
    );
    running.until("processed", |status| status.processed() == 1).await;
    assert_eq!(bench.number("SELECT count(*) AS number FROM outbox").await, 1);
    let caused = format!(
        "SELECT count(*) AS number FROM outbox WHERE headers LIKE '%\"causationid\":\"{}\"%'",
        cause.id
    );
    assert_eq!(bench.number(&caused).await, 1);
    running.stop().await;
}

#[tokio::test]
async fn a_follow_up_without_an_outbox_fails_the_attempt() {
    let bench = Bench::new().await;
    bench.publish(&[message(None, 1)]).await;
    let running = start(bench.consumer().handler(Effect(|context: &Context<'_>| {
        context.enqueue(context.message().clone());
        Ok(())
    })));
    running.until("a dead letter", |status| status.dead() == 1).await;
    assert!(running.status.last_error().unwrap().contains("without an outbox"));
    assert_eq!(bench.effects().await, 0);
    running.stop().await;
}

#[tokio::test]
async fn messages_of_a_key_take_effect_in_order_whatever_fails() {
    let bench = Bench::new().await;
    let messages: Vec<Message> = (0..400)
        .map(|n| message(Some(&format!("key-{}", n % 7)), n))
        .collect();
    bench.publish(&messages).await;
    let calls = AtomicU32::new(0);
    let running = start(
        bench
            .consumer()
            .retry(quick(30))
            .handler(Effect(move |_: &Context<'_>| {
                if calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(5) {
                    return Err(HandlerError::retry("every fifth call fails"));
                }
                Ok(())
            })),
    );
    running
        .until("400 processed", |status| status.processed() == 400)
        .await;
    assert!(running.status.failed() >= 80);
    let inversions = bench
        .number("SELECT count(*) AS number FROM effect a JOIN effect b ON a.key = b.key AND a.seq < b.seq AND a.n > b.n")
        .await;
    assert_eq!(inversions, 0);
    assert_eq!(bench.effects().await, 400);
    running.stop().await;
}

#[tokio::test]
async fn a_key_that_waits_for_its_retry_holds_up_no_other_key() {
    let bench = Bench::new().await;
    bench
        .publish(&[
            message(Some("bad"), 1),
            message(Some("bad"), 2),
            message(Some("good"), 3),
        ])
        .await;
    let running = start(
        bench
            .consumer()
            .mode(Mode::KeyOrdered { lanes: 1 })
            .retry(RetryPolicy::never().delays([Duration::from_secs(600)]))
            .handler(Effect(|context: &Context<'_>| {
                if context.message().key.as_deref() == Some("bad") {
                    return Err(HandlerError::retry("bad"));
                }
                Ok(())
            })),
    );
    running
        .until("the good key", |status| status.processed() == 1)
        .await;
    assert_eq!(
        running.status.failed(),
        1,
        "the successor of the failed message has not begun"
    );
    assert_eq!(running.status.in_flight(), 2);
    running.stop().await;
}

#[tokio::test]
async fn a_blocked_key_queues_behind_its_dead_letter_and_redrive_keeps_the_order() {
    let bench = Bench::new().await;
    let broken = Arc::new(AtomicU32::new(1));
    let switch = broken.clone();
    let handler = move |context: &Context<'_>| {
        let body: serde_json::Value = context.json()?;
        if body["n"] == 1 && switch.as_ref().load(Ordering::SeqCst) == 1 {
            return Err(HandlerError::dead("refused"));
        }
        Ok(())
    };
    bench
        .publish(&[
            message(Some("a"), 1),
            message(Some("a"), 2),
            message(Some("b"), 9),
        ])
        .await;
    let consumer = bench.consumer().handler(Effect(handler));
    let letters = bench
        .consumer()
        .handler(Effect(ok))
        .build()
        .unwrap()
        .dead_letters();
    let running = start(consumer);
    running
        .until("two dead letters", |status| {
            status.dead() == 2 && status.processed() == 1
        })
        .await;
    bench.publish(&[message(Some("a"), 3)]).await;
    running
        .until("a third dead letter", |status| status.dead() == 3)
        .await;
    let reasons: Vec<String> = letters
        .list(0, 10)
        .await
        .unwrap()
        .into_iter()
        .map(|l| l.reason)
        .collect();
    assert_eq!(reasons, ["refused", "behind", "behind"]);
    broken.as_ref().store(0, Ordering::SeqCst);
    assert_eq!(letters.redrive(&Select::Key("a".to_owned())).await.unwrap(), 3);
    running
        .until("all handled", |status| status.processed() == 4)
        .await;
    bench.publish(&[message(Some("a"), 4)]).await;
    running
        .until("the next one", |status| status.processed() == 5)
        .await;
    assert_eq!(letters.count().await.unwrap(), 0);
    let ordered = bench
        .number("SELECT count(*) AS number FROM effect a JOIN effect b ON a.key = b.key AND a.seq < b.seq AND a.n > b.n")
        .await;
    assert_eq!(ordered, 0);
    running.stop().await;
}

#[tokio::test]
async fn skipping_lets_the_key_go_on_without_its_dead_letter() {
    let bench = Bench::new().await;
    bench
        .publish(&[message(Some("a"), 1), message(Some("a"), 2)])
        .await;
    let running = start(
        bench
            .consumer()
            .on_ordered_failure(OrderedFailure::SkipToDeadLetters)
            .handler(Effect(|context: &Context<'_>| {
                let body: serde_json::Value = context.json()?;
                if body["n"] == 1 {
                    return Err(HandlerError::dead("refused"));
                }
                Ok(())
            })),
    );
    running
        .until("one of each", |status| {
            status.dead() == 1 && status.processed() == 1
        })
        .await;
    running.stop().await;
}

#[tokio::test]
async fn a_purged_dead_letter_frees_its_key_and_stays_given_up() {
    let bench = Bench::new().await;
    let bad = message(Some("a"), 1);
    bench.publish(std::slice::from_ref(&bad)).await;
    let running = start(bench.consumer().handler(Effect(|context: &Context<'_>| {
        let body: serde_json::Value = context.json()?;
        if body["n"] == 1 {
            return Err(HandlerError::dead("refused"));
        }
        Ok(())
    })));
    running.until("a dead letter", |status| status.dead() == 1).await;
    let letters = bench
        .consumer()
        .handler(Effect(ok))
        .build()
        .unwrap()
        .dead_letters();
    let seq = letters.list(0, 1).await.unwrap()[0].seq;
    assert_eq!(letters.show(seq).await.unwrap().content.unwrap(), bad);
    assert_eq!(letters.purge(&Select::Seq(seq)).await.unwrap(), 1);
    assert_eq!(letters.show(seq).await.unwrap_err().kind(), ErrorKind::NotFound);
    bench.publish(&[bad, message(Some("a"), 2)]).await;
    running
        .until("a duplicate and a success", |status| {
            status.duplicates() == 1 && status.processed() == 1
        })
        .await;
    running.stop().await;
}

#[tokio::test]
async fn shutdown_in_the_middle_of_a_handler_is_no_failed_attempt() {
    let bench = Bench::new().await;
    bench.publish(&[message(None, 1)]).await;
    let running = start(
        bench
            .consumer()
            .shutdown_grace(Duration::from_millis(20))
            .handler(Slow(Duration::from_secs(60))),
    );
    running.until("in flight", |status| status.in_flight() == 1).await;
    // Until the handler has begun: its transaction keeps other writers out.
    let summary = running.stop().await;
    assert_eq!((summary.processed, summary.failed, summary.dead), (0, 0, 0));
    assert_eq!(bench.effects().await, 0);
    let again = start(bench.consumer().handler(Effect(|context: &Context<'_>| {
        assert_eq!(context.attempt(), 1);
        Ok(())
    })));
    again.until("processed", |status| status.processed() == 1).await;
    assert_eq!(again.stop().await.failed, 0);
}

#[tokio::test]
async fn a_running_handler_may_end_within_the_grace() {
    let bench = Bench::new().await;
    bench.publish(&[message(None, 1)]).await;
    let running = start(bench.consumer().handler(Slow(Duration::from_millis(200))));
    running.until("in flight", |status| status.in_flight() == 1).await;
    // The attempt begins in its own task a moment after the delivery arrives.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(running.stop().await.processed, 1);
    assert_eq!(bench.effects().await, 1);
}

struct Committer(&'static str);

#[async_trait]
impl Handler<Sqlite> for Committer {
    async fn handle(&self, tx: &mut Sqlite, context: &Context<'_>) -> Result<(), HandlerError> {
        write(tx, context).await?;
        tx.batch_execute(self.0).await?;
        Ok(())
    }
}

#[tokio::test]
async fn a_handler_that_rolls_back_by_itself_is_found_out() {
    let bench = Bench::new().await;
    bench.publish(&[message(None, 1)]).await;
    let running = start(bench.consumer().retry(quick(2)).handler(Committer("ROLLBACK")));
    running.until("a dead letter", |status| status.dead() == 1).await;
    assert_eq!(bench.effects().await, 0);
    running.stop().await;
}

#[tokio::test]
async fn expired_messages_are_never_handled() {
    let bench = Bench::new().await;
    let mut late = message(Some("a"), 1);
    late.expires_at = Some(chrono::Utc::now() - chrono::TimeDelta::seconds(1));
    bench.publish(&[late.clone(), message(Some("a"), 2)]).await;
    let running = start(bench.consumer().handler(Effect(ok)));
    running
        .until("one of each", |status| {
            status.dead() == 1 && status.processed() == 1
        })
        .await;
    running.stop().await;
    late.id = outbox_broker::MessageId::new();
    bench.publish(&[late]).await;
    let running = start(bench.consumer().expiry(Expiry::Drop).handler(Effect(ok)));
    running
        .until("a drop", |status| status.summary().expired == 1)
        .await;
    assert_eq!(bench.effects().await, 1);
    running.stop().await;
}

#[tokio::test]
async fn a_handler_longer_than_the_visibility_keeps_its_delivery() {
    let bench = Bench::new().await;
    bench
        .publish(&[message(Some("a"), 1), message(Some("a"), 2)])
        .await;
    let running = start(
        bench
            .consumer()
            .visibility(Duration::from_millis(200))
            .handler(Slow(Duration::from_millis(700))),
    );
    running.until("both", |status| status.processed() == 2).await;
    let summary = running.stop().await;
    assert_eq!((summary.duplicates, summary.stale_settles), (0, 0));
}

#[tokio::test]
async fn delayed_retries_are_left_to_a_broker_that_can_hold_them() {
    let bench = Bench::new().await;
    bench.publish(&[message(None, 1)]).await;
    let running = start(
        bench
            .consumer()
            .mode(Mode::Concurrent { workers: 4 })
            .retry(RetryPolicy::never().delays([Duration::from_secs(1)]).jitter(0.0))
            .handler(Effect(|context: &Context<'_>| match context.attempt() {
                1 => Err(HandlerError::retry("once")),
                _ => Ok(()),
            })),
    );
    running
        .until("a nack", |status| status.failed() == 1 && status.in_flight() == 0)
        .await;
    running.until("processed", |status| status.processed() == 1).await;
    assert_eq!(
        bench
            .number("SELECT count(*) AS number FROM consumer_attempt")
            .await,
        0
    );
    running.stop().await;
}

#[tokio::test]
async fn a_redelivery_whose_attempts_all_ended_without_a_verdict_is_buried_unhandled() {
    let bench = Bench::new().await;
    let bomb = message(None, 1);
    bench.publish(std::slice::from_ref(&bomb)).await;
    // What attempts that took their process down leave behind.
    let mut connection = bench.inbox.pool().get().await.unwrap();
    connection
        .batch_execute(&format!(
            "INSERT INTO consumer_attempt (consumer, dedup_key, attempts) VALUES ('billing', '{}@/orders', 3)",
            bomb.id
        ))
        .await
        .unwrap();
    drop(connection);
    // A first delivery that its consumer never settles.
    let mut lost = outbox_broker::Subscriber::subscribe(
        &bench.broker.subscriber(),
        outbox_broker::SubscribeOptions::new("orders", "billing"),
    )
    .await
    .unwrap();
    assert_eq!(lost.receive(1, Duration::from_secs(1)).await.unwrap().len(), 1);
    lost.close().await.unwrap();
    let running = start(
        bench
            .consumer()
            .handler(Effect(|_: &Context<'_>| panic!("must not run"))),
    );
    running.until("a dead letter", |status| status.dead() == 1).await;
    assert_eq!(running.status.failed(), 0);
    running.stop().await;
}

#[tokio::test]
async fn another_writer_in_the_way_defers_and_fails_nothing() {
    let bench = Bench::new().await;
    let mut blocker = bench.inbox.pool().get().await.unwrap();
    blocker.batch_execute("BEGIN IMMEDIATE").await.unwrap();
    bench.publish(&[message(None, 1)]).await;
    let pool_of_impatient = Inbox::from(impatient(&bench));
    let running = start(
        Consumer::builder("billing", Arc::new(bench.broker.subscriber()), pool_of_impatient)
            .topic("orders")
            .handler(Effect(ok)),
    );
    running
        .until("a deferral", |status| status.summary().deferred >= 1)
        .await;
    blocker.batch_execute("COMMIT").await.unwrap();
    drop(blocker);
    running.until("processed", |status| status.processed() == 1).await;
    assert_eq!(running.stop().await.failed, 0);
}

/// A pool whose connections give up on a busy database at once.
fn impatient(bench: &Bench) -> diesel_async::pooled_connection::deadpool::Pool<Sqlite> {
    use diesel_async::pooled_connection::AsyncDieselConnectionManager;
    let path = bench._folder.path().join("test.db");
    let manager = AsyncDieselConnectionManager::<Sqlite>::new(path.to_str().unwrap());
    diesel_async::pooled_connection::deadpool::Pool::builder(manager)
        .max_size(2)
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_business_key_can_be_the_identity() {
    let bench = Bench::new().await;
    bench
        .publish(&[message(Some("order-1"), 1), message(Some("order-1"), 2)])
        .await;
    let running = start(
        bench
            .consumer()
            .dedup_by(|message| message.key.clone().unwrap_or_default())
            .handler(Effect(ok)),
    );
    running
        .until("one of each", |status| {
            status.processed() == 1 && status.duplicates() == 1
        })
        .await;
    assert_eq!(bench.effects().await, 1);
    running.stop().await;
}

#[tokio::test]
async fn old_rows_are_forgotten_and_those_of_dead_letters_stay() {
    let bench = Bench::new().await;
    bench.publish(&[message(None, 1), message(None, 2)]).await;
    let running = start(bench.consumer().handler(Effect(|context: &Context<'_>| {
        let body: serde_json::Value = context.json()?;
        if body["n"] == 2 {
            return Err(HandlerError::dead("refused"));
        }
        Ok(())
    })));
    running
        .until("both", |status| status.processed() == 1 && status.dead() == 1)
        .await;
    running.stop().await;
    let pruned = outbox_consumer::prune(&bench.inbox, "billing", Duration::from_secs(3600)).await;
    assert_eq!(pruned.unwrap(), 0);
    let pruned = outbox_consumer::prune(&bench.inbox, "billing", Duration::ZERO).await;
    assert_eq!(pruned.unwrap(), 1);
    assert_eq!(
        bench
            .number("SELECT count(*) AS number FROM consumer_inbox")
            .await,
        1
    );
}

#[tokio::test]
async fn settings_that_contradict_are_refused_with_their_names() {
    let bench = Bench::new().await;
    let builder = || bench.consumer().handler(Effect(ok));
    for (builder, word) in [
        (builder().topic(""), "topic"),
        (builder().prefetch(0), "prefetch"),
        (builder().mode(Mode::KeyOrdered { lanes: 0 }), "lanes"),
        (builder().retention(Duration::from_secs(3600)), "retention"),
        (builder().handler_timeout(Duration::ZERO), "handler_timeout"),
        (bench.consumer(), "handler"),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn missing_tables_end_the_run_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let inbox = Inbox::sqlite(folder.path().join("empty.db")).unwrap();
    let broker = MemoryBroker::new();
    let consumer = Consumer::builder("billing", Arc::new(broker.subscriber()), inbox)
        .topic("orders")
        .handler(Effect(ok))
        .build()
        .unwrap();
    let error = consumer.run(CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("migrate"), "{error}");
}
