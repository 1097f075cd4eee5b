//! A transaction pooler between relay and database.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use outbox::record::{Owner, Park, ParkState, Settlement};
use outbox::store::Store;
use outbox::store::postgres::{PostgresConfig, PostgresNotifier, PostgresStore};
use outbox_testing::ledger::Ledger;
use outbox_testing::{or_skip, services};
use tracing_subscriber::fmt::MakeWriter;

use super::generator::{self, Plan};
use super::stage::{self, Running, Wire, drained, insert, options, until};

/// What was logged.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Keeps what this thread logs while the guard lives; the test's runtime must have this thread alone.
    pub(crate) fn keep(&self) -> tracing::subscriber::DefaultGuard {
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .with_writer(self.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_relays_behind_a_transaction_pooler_lose_and_invert_nothing() {
    let postgres = or_skip!(services::own_postgres().await);
    let pooler = or_skip!(services::pgbouncer(&postgres).await);
    let database = stage::outbox(&postgres).await;
    let url = database.url_via(&pooler.address()).unwrap();
    let wire = Arc::new(Wire::default());
    let relays = [
        Running::start(stage::store(&url).await, wire.clone(), options()),
        Running::start(stage::store(&url).await, wire.clone(), options()),
    ];
    let mut ledger: Ledger = generator::run(&database, Plan::sized(2_000)).await;
    drained(&database.client().await.unwrap(), Duration::from_secs(20)).await;
    for relay in relays {
        relay.stop().await;
    }
    wire.seen().into_iter().for_each(|id| ledger.on_wire(id));
    assert_eq!(ledger.assert_clean().wire_duplicates.count, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_and_parked_rows_work_behind_a_transaction_pooler() {
    let postgres = or_skip!(services::own_postgres().await);
    let pooler = or_skip!(services::pgbouncer(&postgres).await);
    let database = stage::outbox(&postgres).await;
    let client = database.client().await.unwrap();
    let store = stage::store(&database.url_via(&pooler.address()).unwrap()).await;
    store.check().await.unwrap();
    let ttl = Duration::from_secs(30);
    let lease = store.acquire(Owner::new(), 1, ttl).await.unwrap()[0];
    assert!(store.acquire(Owner::new(), 1, ttl).await.unwrap().is_empty());
    assert_eq!(
        store.renew(&[lease], ttl).await.unwrap(),
        [outbox::store::Renewed::Held]
    );
    let position = insert(&client, "k", "k/1").await;
    let park = Park {
        position,
        state: ParkState::Retry,
        attempts: 1,
        delay: Duration::ZERO,
        error: Some("refused".to_owned()),
    };
    let settlement = Settlement {
        published: Vec::new(),
        park: vec![park],
    };
    store.settle(&lease, &settlement).await.unwrap();
    let due = store.due(&lease, 10, false).await.unwrap();
    assert_eq!(due.len(), 1);
    store.begin_attempts(&lease, &[due[0].sequence]).await.unwrap();
    store.release(&[lease]).await.unwrap();
    let next = store.acquire(Owner::new(), 1, ttl).await.unwrap();
    assert!(!next[0].after_expiry, "it was released");
}

#[tokio::test]
async fn a_listener_behind_a_transaction_pooler_says_that_it_polls() {
    let postgres = or_skip!(services::own_postgres().await);
    let pooler = or_skip!(services::pgbouncer(&postgres).await);
    let database = stage::outbox(&postgres).await;
    let log = Log::default();
    let _kept = log.keep();
    let url = database.url_via(&pooler.address()).unwrap();
    let store = stage::store(&url).await;
    let wire = Arc::new(Wire::default());
    let relay = Running::start(store, wire.clone(), options());
    until("the log says so", Duration::from_secs(10), async || {
        let text = log.text();
        (text.contains("notifications do not arrive") && text.contains("pooler")).then_some(())
    })
    .await;
    let notifier = PostgresNotifier::start(&PostgresConfig::new(&url)).unwrap();
    insert(&database.client().await.unwrap(), "k", "k/1").await;
    notifier.wakeup().notify();
    until("the message is polled for", Duration::from_secs(5), async || {
        (wire.len() == 1).then_some(())
    })
    .await;
    relay.stop().await;
}

#[tokio::test]
async fn a_direct_listener_says_nothing() {
    let postgres = or_skip!(services::postgres().await);
    let database = stage::outbox(postgres).await;
    let log = Log::default();
    let _kept = log.keep();
    let config = PostgresConfig {
        poll_min: Duration::from_secs(30),
        poll_max: Duration::from_secs(30),
        ..PostgresConfig::new(database.url())
    };
    let store = PostgresStore::connect(config).await.unwrap();
    // The signal of the new connection, then that of its own trial.
    for _ in 0..2 {
        let waiting = store.wait(Duration::from_secs(10));
        tokio::time::timeout(Duration::from_secs(5), waiting)
            .await
            .expect("a signal")
            .unwrap();
    }
    assert!(!log.text().contains("do not arrive"), "{}", log.text());
}
