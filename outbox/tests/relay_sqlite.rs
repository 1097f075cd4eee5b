//! The relay between a SQLite file and the memory broker, with producers at work.
#![cfg(feature = "sqlite")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_async::SimpleAsyncConnection;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use outbox::relay::{Relay, RelayOptions, RelayState, RelayStatus, RetryPolicy, Summary};
use outbox::store::Store;
use outbox::store::sqlite::{SqliteConfig, SqliteStore};
use outbox::{Error, Message, Outbox, Wakeup};
use outbox_broker::memory::{Faults, MemoryBroker, MemoryConfig};
use outbox_broker::{ErrorKind, SubscribeOptions, Subscriber};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

type AsyncSqlite = SyncConnectionWrapper<SqliteConnection>;

const KEYS: usize = 5;
const PRODUCERS: usize = 3;

struct Database {
    directory: tempfile::TempDir,
}

impl Database {
    async fn new() -> Self {
        let database = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let mut connection = database.connect();
        connection
            .batch_execute("PRAGMA journal_mode = WAL")
            .await
            .unwrap();
        outbox::migrate(&mut connection).await.unwrap();
        database
    }

    fn path(&self) -> String {
        self.directory.path().join("orders.db").display().to_string()
    }

    fn connect(&self) -> AsyncSqlite {
        let mut connection = SqliteConnection::establish(&self.path()).unwrap();
        connection.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
        AsyncSqlite::new(connection)
    }

    async fn store(&self) -> Arc<SqliteStore> {
        Arc::new(
            SqliteStore::connect(SqliteConfig::new(self.path()))
                .await
                .unwrap(),
        )
    }
}

/// A relay on a store of its own, as another process would have it.
struct Running {
    status: RelayStatus,
    shutdown: CancellationToken,
    task: JoinHandle<Result<Summary, Error>>,
}

impl Running {
    async fn start(database: &Database, broker: &MemoryBroker, wakeup: Wakeup) -> Self {
        let options = RelayOptions {
            lease_ttl: Duration::from_secs(1),
            acquire_interval: Duration::from_millis(100),
            retry: RetryPolicy {
                initial: Duration::from_millis(20),
                max: Duration::from_millis(200),
                ..RetryPolicy::default()
            },
            ..RelayOptions::default()
        };
        let relay = Relay::builder(database.store().await, Arc::new(broker.publisher()))
            .options(options)
            .wakeup(wakeup)
            .build()
            .unwrap();
        let shutdown = CancellationToken::new();
        Self {
            status: relay.status(),
            task: tokio::spawn(relay.run(shutdown.clone())),
            shutdown,
        }
    }
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Enqueues `each` messages of every key, numbered; a fifth of the transactions rolls back.
async fn produce(database: &Database, outbox: &Outbox, producer: usize, each: usize) {
    let mut connection = database.connect();
    for number in 0..each {
        for key in 0..KEYS {
            let key = format!("{producer}-{key}");
            let message = outbox
                .message("orders", "order.placed")
                .key(&key)
                .payload(format!("{key}:{number:05}").into_bytes(), "text/plain")
                .build()
                .unwrap();
            if (number + producer).is_multiple_of(5) {
                let undone = outbox
                    .message("orders", "order.undone")
                    .key(&key)
                    .build()
                    .unwrap();
                let rolled_back = connection
                    .immediate_transaction(async |connection| {
                        outbox.enqueue(connection, undone).await?;
                        Err::<(), Error>(diesel::result::Error::RollbackTransaction.into())
                    })
                    .await;
                assert!(rolled_back.is_err());
            }
            connection
                .immediate_transaction(async |connection| {
                    outbox.enqueue(connection, message).await?;
                    Ok::<_, Error>(())
                })
                .await
                .unwrap();
            outbox.notify();
        }
    }
}

async fn received(broker: &MemoryBroker) -> Vec<Message> {
    let options = SubscribeOptions::new("orders", "audit");
    let mut subscription = broker.subscriber().subscribe(options).await.unwrap();
    let mut messages = Vec::new();
    loop {
        let deliveries = subscription
            .receive(1_000, Duration::from_millis(300))
            .await
            .unwrap();
        if deliveries.is_empty() {
            return messages;
        }
        for delivery in deliveries {
            messages.push(delivery.content().unwrap().clone());
            delivery.ack().await.unwrap();
        }
    }
}

fn assert_complete_and_in_order(messages: &[Message], each: usize) {
    let mut seen = HashSet::new();
    let mut keys: HashMap<&str, Vec<&[u8]>> = HashMap::new();
    for message in messages {
        assert_eq!(
            message.kind, "order.placed",
            "a rolled-back message was published"
        );
        if seen.insert(message.id) {
            keys.entry(message.key.as_deref().unwrap())
                .or_default()
                .push(&message.payload);
        }
    }
    assert_eq!(keys.len(), KEYS * PRODUCERS);
    for (key, payloads) in keys {
        assert_eq!(payloads.len(), each, "messages of {key}");
        assert!(payloads.is_sorted(), "order of {key}");
    }
}

fn memory_broker() -> MemoryBroker {
    MemoryBroker::with_config(MemoryConfig {
        // Copies are to be seen, and everything kept until it is read.
        dedup_ids: 0,
        retained_messages: 1_000_000,
        ..MemoryConfig::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_producers_commit_is_published_in_order_through_every_fault_of_the_broker() {
    const EACH: usize = 30;
    let database = Database::new().await;
    let broker = memory_broker();
    let outbox = Outbox::new("/orders");
    let relay = Running::start(&database, &broker, outbox.wakeup()).await;
    let faults = async {
        for kind in [
            ErrorKind::Unreachable,
            ErrorKind::Rejected,
            ErrorKind::OutcomeUnknown,
            ErrorKind::Unroutable,
        ] {
            broker.set_faults(Faults {
                fail: Some((7, kind)),
                lose_outcomes: 5,
                latency: Duration::from_millis(2),
                ..Faults::default()
            });
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(
        produce(&database, &outbox, 0, EACH),
        produce(&database, &outbox, 1, EACH),
        produce(&database, &outbox, 2, EACH),
        faults,
    );
    until("the backlog is empty", async || {
        relay.status.backlog().await.unwrap().is_drained()
    })
    .await;
    relay.shutdown.cancel();
    let summary = relay.task.await.unwrap().unwrap();
    assert_eq!((summary.released, summary.totals.dead), (1, 0));
    assert_eq!(summary.totals.published, (EACH * KEYS * PRODUCERS) as u64);
    assert_complete_and_in_order(&received(&broker).await, EACH);
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_that_die_again_and_again_lose_nothing_and_keep_order() {
    const EACH: usize = 80;
    let database = Database::new().await;
    let broker = memory_broker();
    broker.set_faults(Faults {
        latency: Duration::from_millis(3),
        ..Faults::default()
    });
    let outbox = Outbox::new("/orders");
    let deaths = async {
        for _ in 0..3 {
            let relay = Running::start(&database, &broker, outbox.wakeup()).await;
            until("it publishes", async || {
                relay.status.snapshot().totals.published > 50
            })
            .await;
            relay.task.abort();
            assert!(relay.task.await.unwrap_err().is_cancelled());
        }
    };
    tokio::join!(
        produce(&database, &outbox, 0, EACH),
        produce(&database, &outbox, 1, EACH),
        produce(&database, &outbox, 2, EACH),
        deaths,
    );
    let relay = Running::start(&database, &broker, outbox.wakeup()).await;
    let standby = Running::start(&database, &broker, outbox.wakeup()).await;
    // The last of the dead may have published everything: its lease still has to end.
    until("one relay works and the other stands by", async || {
        let states = [relay.status.snapshot().state, standby.status.snapshot().state];
        states.contains(&RelayState::Standby) && states.contains(&RelayState::Active)
    })
    .await;
    until("the backlog is empty", async || {
        relay.status.backlog().await.unwrap().is_drained()
    })
    .await;
    for relay in [relay, standby] {
        relay.shutdown.cancel();
        assert_eq!(relay.task.await.unwrap().unwrap().totals.dead, 0);
    }
    assert_complete_and_in_order(&received(&broker).await, EACH);
    let held = database.store().await.leases().await.unwrap();
    assert!(held.iter().all(|lease| lease.remaining.is_none()), "{held:?}");
}
