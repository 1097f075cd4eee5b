//! A database with an outbox, a broker that keeps books, and relays between them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use diesel_async::{AsyncConnection, AsyncPgConnection};
use outbox::Message;
use outbox::relay::{Relay, RelayOptions, RelayStatus};
use outbox::store::Store;
use outbox::store::postgres::{PostgresConfig, PostgresStore};
use outbox_broker::{Capabilities, Error, Outcome, Publisher, Receipt};
use outbox_testing::services::Postgres;
use outbox_testing::services::postgres::Database;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// A database of one test with the tables of an outbox.
pub(crate) async fn outbox(server: &Postgres) -> Database {
    let database = server.database().await.unwrap();
    let mut connection = AsyncPgConnection::establish(database.url()).await.unwrap();
    outbox::migrate(&mut connection).await.unwrap();
    database
}

pub(crate) async fn store(url: &str) -> Arc<PostgresStore> {
    Arc::new(PostgresStore::connect(PostgresConfig::new(url)).await.unwrap())
}

/// Inserts a message as another language would: its text is its payload.
pub(crate) async fn insert(client: &Client, key: &str, text: &str) -> i64 {
    const INSERT: &str = "INSERT INTO outbox (topic, key, type, payload) \
         VALUES ('adversary', $1, 'step', convert_to($2, 'UTF8')) RETURNING id";
    client.query_one(INSERT, &[&key, &text]).await.unwrap().get(0)
}

/// Ids on the wire in the order of their arrival, with repetitions.
#[derive(Default)]
pub(crate) struct Wire {
    seen: Mutex<Vec<String>>,
    latency: Duration,
}

impl Wire {
    pub(crate) fn taking(latency: Duration) -> Self {
        Self {
            latency,
            ..Self::default()
        }
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

#[async_trait]
impl Publisher for Wire {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::NONE;
        capabilities.key_order = true;
        capabilities.prefix_order = true;
        capabilities
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency).await;
        }
        let texts = batch
            .iter()
            .map(|message| String::from_utf8_lossy(&message.payload).into_owned());
        self.seen.lock().unwrap().extend(texts);
        batch.iter().map(|_| Ok(Receipt::default())).collect()
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Options under which a test does not wait long and a sweep does not hide what a claim misses.
pub(crate) fn options() -> RelayOptions {
    RelayOptions {
        lease_ttl: Duration::from_millis(1_500),
        acquire_interval: Duration::from_millis(100),
        sweep_interval: Duration::from_secs(3_600),
        ..RelayOptions::default()
    }
}

/// A relay in this process.
pub(crate) struct Running {
    pub(crate) status: RelayStatus,
    shutdown: CancellationToken,
    task: JoinHandle<Result<outbox::relay::Summary, outbox::Error>>,
}

impl Running {
    pub(crate) fn start(store: Arc<dyn Store>, publisher: Arc<dyn Publisher>, options: RelayOptions) -> Self {
        let relay = Relay::builder(store, publisher).options(options).build().unwrap();
        let shutdown = CancellationToken::new();
        Self {
            status: relay.status(),
            task: tokio::spawn(relay.run(shutdown.clone())),
            shutdown,
        }
    }

    /// Ends it in order.
    pub(crate) async fn stop(self) -> outbox::relay::Summary {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap()
    }

    /// Positions the relay waits for.
    pub(crate) fn gaps(&self) -> u64 {
        let shards = self.status.snapshot().shards;
        shards.iter().map(|shard| shard.gaps).sum()
    }
}

/// Polls until `look` finds something.
pub(crate) async fn until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the outbox has no row, parked ones included.
pub(crate) async fn drained(client: &Client, limit: Duration) {
    const ROWS: &str = "SELECT EXISTS (SELECT FROM outbox) OR EXISTS (SELECT FROM outbox_parked)";
    until("the outbox is empty", limit, async || {
        let row = client.query_one(ROWS, &[]).await.ok()?;
        (!row.get::<_, bool>(0)).then_some(())
    })
    .await;
}
