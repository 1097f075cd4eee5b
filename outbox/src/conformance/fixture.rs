//! What a database under test offers, and what the scenarios do with it.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use diesel_async::{AsyncConnection, SimpleAsyncConnection, TransactionManager};

use crate::connection::Driver;
use crate::record::{Claim, ClaimRequest, Lease, Owner, Park, ParkState, Position, Settlement};
use crate::store::Store;
use crate::{Database, Message, Outbox};

/// Longest that a scenario waits for something that must happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// What a scenario will do to its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: a database of its own on any server will do.
    Shared,
    /// Restart it: a server of its own.
    Restart,
}

/// A database of one test, with the tables of the outbox in it.
#[async_trait]
pub trait Fixture: Send + Sync + 'static {
    /// Which database it is.
    fn database(&self) -> Database;

    /// Another store on it, with connections of its own.
    async fn store(&self) -> Arc<dyn Store>;

    /// A connection in an open transaction, see [`OpenTransaction::begin`].
    async fn begin(&self) -> Box<dyn Business>;

    /// Runs statements on a connection of its own, outside a transaction.
    async fn execute(&self, sql: &str);

    /// Sequences of all parked rows, in order.
    async fn parked_sequences(&self) -> Vec<i64>;

    /// Creates the tables, or brings them up to date.
    async fn migrate(&self) -> Result<(), crate::Error>;

    /// Stops the server hard and starts it again; false: the database is no server.
    async fn restart(&self) -> bool {
        false
    }
}

/// A business transaction that stays open until the scenario ends it.
#[async_trait]
pub trait Business: Send {
    /// Writes `messages`.
    async fn enqueue(&mut self, messages: Vec<Message>);

    /// Runs a statement.
    async fn execute(&mut self, sql: &str);

    /// Commits.
    async fn commit(self: Box<Self>);

    /// Rolls back.
    async fn rollback(self: Box<Self>);
}

/// [`Business`] on a diesel-async connection.
pub struct OpenTransaction<D> {
    connection: D,
    outbox: Outbox,
}

impl<D: Driver> OpenTransaction<D> {
    /// Begins a transaction on `connection`.
    pub async fn begin(mut connection: D) -> Self {
        connection.begin().await.unwrap();
        Self {
            connection,
            outbox: Outbox::new("/suite"),
        }
    }
}

#[async_trait]
impl<D: Driver + crate::Connection<Driver = D> + Send> Business for OpenTransaction<D> {
    async fn enqueue(&mut self, messages: Vec<Message>) {
        self.outbox
            .enqueue_all(&mut self.connection, messages)
            .await
            .unwrap();
    }

    async fn execute(&mut self, sql: &str) {
        SimpleAsyncConnection::batch_execute(&mut self.connection, sql)
            .await
            .unwrap();
    }

    async fn commit(mut self: Box<Self>) {
        <D as AsyncConnection>::TransactionManager::commit_transaction(&mut self.connection)
            .await
            .unwrap();
    }

    async fn rollback(mut self: Box<Self>) {
        <D as AsyncConnection>::TransactionManager::rollback_transaction(&mut self.connection)
            .await
            .unwrap();
    }
}

/// One scenario's view: a store, and the lease of shard 0.
pub struct Stage {
    /// The database.
    pub fixture: Arc<dyn Fixture>,
    /// The store under test.
    pub store: Arc<dyn Store>,
}

impl Stage {
    /// Takes the lease of shard 0 for a minute.
    pub async fn lease(&self) -> Lease {
        let mut leases = self
            .store
            .acquire(Owner::new(), 1, Duration::from_secs(60))
            .await
            .unwrap();
        assert_eq!(leases.len(), 1, "the shard is free");
        leases.remove(0)
    }

    /// Commits `messages` in one transaction.
    pub async fn enqueue(&self, messages: Vec<Message>) {
        let mut business = self.fixture.begin().await;
        business.enqueue(messages).await;
        business.commit().await;
    }

    /// Claims up to 1,000 rows above `above`.
    pub async fn claim(&self, lease: &Lease, above: Position, missing: &[Position]) -> Claim {
        let missing: Vec<_> = missing.iter().map(|position| (*position, *position)).collect();
        self.store
            .claim(ClaimRequest {
                lease,
                above,
                limit: 1_000,
                max_bytes: usize::MAX,
                missing: &missing,
            })
            .await
            .unwrap()
    }

    /// Commits `messages` and parks them all in `state`, due after `delay`; returns their sequences.
    pub async fn parked(
        &self,
        lease: &Lease,
        messages: Vec<Message>,
        state: ParkState,
        delay: Duration,
    ) -> Vec<i64> {
        let count = messages.len();
        self.enqueue(messages).await;
        let claim = self.claim(lease, 0, &[]).await;
        let park = claim
            .records
            .iter()
            .map(|record| Park {
                position: record.position,
                state,
                attempts: 3,
                delay,
                error: Some("refused".to_owned()),
            })
            .collect();
        let settlement = Settlement {
            published: Vec::new(),
            park,
        };
        self.store.settle(lease, &settlement).await.unwrap();
        let sequences = self.fixture.parked_sequences().await;
        sequences[sequences.len() - count..].to_vec()
    }
}

/// Polls `condition` until it holds.
pub(super) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let begin = Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A message of `key` numbered `n`.
pub(super) fn message(key: &str, n: usize) -> Message {
    Message::builder("suite", "suite.ran")
        .source("/suite")
        .key(key)
        .json(&n)
        .build()
        .unwrap()
}

/// Runs `scenario` on a fresh fixture, or says why not.
pub async fn run<F, S, R>(name: &str, setup: impl Future<Output = Result<F, String>>, scenario: S)
where
    F: Fixture,
    S: FnOnce(Stage) -> R,
    R: Future<Output = ()>,
{
    match setup.await {
        Ok(fixture) => {
            let store = fixture.store().await;
            scenario(Stage {
                fixture: Arc::new(fixture),
                store,
            })
            .await;
        }
        Err(reason) => println!("skipped: {name}: {reason}"),
    }
}
