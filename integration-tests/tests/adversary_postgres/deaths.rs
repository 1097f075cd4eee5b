//! Relays that die, sleep through their lease or lose their connection at any step.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use outbox::record::*;
use outbox::relay::RelayOptions;
use outbox::store::postgres::{PostgresConfig, PostgresStore};
use outbox::store::{LeaseState, Renewed, Settled, Store, StoreTraits};
use outbox_testing::crash::{Child, Program};
use outbox_testing::ledger::Report;
use outbox_testing::proxy::Proxy;
use outbox_testing::services::postgres::Database;
use outbox_testing::{or_skip, services};
use rand::Rng as _;
use tokio_postgres::Client;

use super::generator::{self, Plan};
use super::stage::{self, Running, Wire, drained, options, until};

/// Records a relay has in memory at most: what its death may publish again.
const WINDOW: usize = 200;

const LEASE: Duration = Duration::from_millis(900);

/// A relay in a process of its own that publishes to table `wire` of another database.
fn spawn(source: &str, wire: &str) -> Child {
    Program::new(env!("CARGO_BIN_EXE_adversary-relay"))
        .arg(source)
        .arg(wire)
        .arg(LEASE.as_millis().to_string())
        .arg(WINDOW.to_string())
        .spawn(None)
        .unwrap()
}

async fn wire_table(database: &Database) -> Client {
    let client = database.client().await.unwrap();
    client
        .batch_execute("CREATE TABLE wire (n bigint GENERATED ALWAYS AS IDENTITY, id text NOT NULL)")
        .await
        .unwrap();
    client
}

/// Kills or freezes one of `count` relays after another while the generator runs.
async fn survives_mishaps(count: usize, freeze: bool) -> Report {
    let postgres = services::own_postgres().await.unwrap();
    let (database, broker) = (stage::outbox(&postgres).await, postgres.database().await.unwrap());
    let sink = wire_table(&broker).await;
    let mut relays: Vec<Child> = (0..count).map(|_| spawn(database.url(), broker.url())).collect();
    let producing = async { generator::run(&database, Plan::sized(6_000)).await };
    let mishaps = async {
        let mut strikes = 0;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(8) {
            let pause = rand::rng().random_range(100..700);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let victim = rand::rng().random_range(0..count);
            if freeze {
                relays[victim].pause().unwrap();
                tokio::time::sleep(LEASE * 2).await;
                relays[victim].resume().unwrap();
            } else {
                relays[victim].kill().unwrap();
                relays[victim] = spawn(database.url(), broker.url());
            }
            strikes += 1;
        }
        strikes
    };
    let (mut ledger, strikes) = tokio::join!(producing, mishaps);
    drained(&database.client().await.unwrap(), Duration::from_secs(60)).await;
    let rows = sink.query("SELECT id FROM wire ORDER BY n", &[]).await.unwrap();
    rows.iter()
        .for_each(|row| ledger.on_wire(row.get::<_, String>(0)));
    let report = ledger.assert_clean();
    eprintln!("{count} relays, {strikes} mishaps (freeze: {freeze})\n{report}");
    let allowed = (strikes * WINDOW) as u64;
    assert!(
        report.wire_duplicates.count <= allowed,
        "more than {allowed}:\n{report}"
    );
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_relays_killed_again_and_again_lose_and_invert_nothing() {
    let _ = or_skip!(services::postgres().await);
    survives_mishaps(2, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_relays_frozen_past_their_lease_lose_and_invert_nothing() {
    let _ = or_skip!(services::postgres().await);
    survives_mishaps(3, true).await;
}

/// A call of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Claim,
    Settle,
    Renew,
    Attempt,
}

/// What the network does to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The connections break while the call is under way.
    Cut,
    /// It is carried out and nobody learns of it.
    Swallowed,
}

/// A store whose network fails at every so-manieth call of one step.
struct Faulty {
    inner: Arc<PostgresStore>,
    proxy: Proxy,
    step: Step,
    fault: Fault,
    calls: AtomicUsize,
    struck: AtomicUsize,
}

impl Faulty {
    async fn around<T>(&self, step: Step, call: impl Future<Output = T>) -> T {
        let every = if step == Step::Renew { 2 } else { 7 };
        if step != self.step || self.calls.fetch_add(1, Ordering::Relaxed) % every != every - 1 {
            return call.await;
        }
        self.struck.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Fault::Swallowed => self.proxy.swallow_next_replies(1),
            Fault::Cut => {
                let delay = Duration::from_micros(rand::rng().random_range(0..1_500));
                let cut = async {
                    tokio::time::sleep(delay).await;
                    self.proxy.reset();
                };
                return tokio::join!(call, cut).0;
            }
        }
        call.await
    }
}

type Answer<T> = Result<T, outbox::Error>;

#[async_trait]
impl Store for Faulty {
    fn traits(&self) -> StoreTraits {
        self.inner.traits()
    }
    async fn check(&self) -> Answer<()> {
        self.inner.check().await
    }
    async fn acquire(&self, owner: Owner, want: usize, ttl: Duration) -> Answer<Vec<Lease>> {
        self.inner.acquire(owner, want, ttl).await
    }
    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Answer<Vec<Renewed>> {
        self.around(Step::Renew, self.inner.renew(leases, ttl)).await
    }
    async fn release(&self, leases: &[Lease]) -> Answer<()> {
        self.inner.release(leases).await
    }
    async fn claim(&self, request: ClaimRequest<'_>) -> Answer<Claim> {
        self.around(Step::Claim, self.inner.claim(request)).await
    }
    async fn settle(&self, lease: &Lease, settlement: &Settlement) -> Answer<Settled> {
        self.around(Step::Settle, self.inner.settle(lease, settlement))
            .await
    }
    async fn due(&self, lease: &Lease, limit: usize, skip_dead: bool) -> Answer<Vec<Parked>> {
        self.inner.due(lease, limit, skip_dead).await
    }
    async fn begin_attempts(&self, lease: &Lease, sequences: &[i64]) -> Answer<()> {
        self.around(Step::Attempt, self.inner.begin_attempts(lease, sequences))
            .await
    }
    async fn settle_parked(&self, lease: &Lease, settlement: &ParkedSettlement) -> Answer<Settled> {
        self.around(Step::Settle, self.inner.settle_parked(lease, settlement))
            .await
    }
    async fn blocked_keys(&self, lease: &Lease, skip_dead: bool) -> Answer<Vec<(String, u64)>> {
        self.inner.blocked_keys(lease, skip_dead).await
    }
    async fn next_due(&self, lease: &Lease, skip_dead: bool) -> Answer<Option<Duration>> {
        self.inner.next_due(lease, skip_dead).await
    }
    async fn backlog(&self) -> Answer<Backlog> {
        self.inner.backlog().await
    }
    async fn leases(&self) -> Answer<Vec<LeaseState>> {
        self.inner.leases().await
    }
    async fn wait(&self, at_most: Duration) -> Answer<()> {
        self.inner.wait(at_most).await
    }
    async fn dead(&self, after: i64, limit: usize) -> Answer<Vec<Parked>> {
        self.inner.dead(after, limit).await
    }
    async fn redrive(&self, sequences: &[i64]) -> Answer<u64> {
        self.inner.redrive(sequences).await
    }
    async fn discard(&self, sequences: &[i64]) -> Answer<u64> {
        self.inner.discard(sequences).await
    }
}

async fn faulty(postgres: &services::Postgres, database: &Database, step: Step, fault: Fault) -> Arc<Faulty> {
    let proxy = Proxy::start(postgres.address()).await.unwrap();
    let config = PostgresConfig {
        statement_timeout: Duration::from_millis(400),
        connect_timeout: Duration::from_millis(400),
        ..PostgresConfig::new(database.url_via(&proxy.address()).unwrap())
    };
    Arc::new(Faulty {
        inner: Arc::new(PostgresStore::connect(config).await.unwrap()),
        proxy,
        step,
        fault,
        calls: AtomicUsize::new(0),
        struck: AtomicUsize::new(0),
    })
}

/// Two relays behind networks that fail at `step`.
async fn survives(step: Step, fault: Fault) {
    let postgres = or_skip!(services::own_postgres().await);
    let database = stage::outbox(&postgres).await;
    let wire = Arc::new(Wire::taking(Duration::from_millis(2)));
    let behaviour = RelayOptions {
        lease_ttl: LEASE,
        batch_size: 50,
        max_in_flight: WINDOW,
        ..options()
    };
    let stores = [
        faulty(&postgres, &database, step, fault).await,
        faulty(&postgres, &database, step, fault).await,
    ];
    let relays: Vec<Running> = stores
        .iter()
        .map(|store| Running::start(store.clone(), wire.clone(), behaviour.clone()))
        .collect();
    let struck = || {
        stores
            .iter()
            .map(|store| store.struck.load(Ordering::Relaxed))
            .sum::<usize>()
    };
    let mut ledger = generator::run(&database, Plan::sized(2_500)).await;
    drained(&database.client().await.unwrap(), Duration::from_secs(60)).await;
    if step != Step::Attempt {
        // Attempts are counted only after a lease that expired.
        until("the network failed twice", Duration::from_secs(20), async || {
            (struck() >= 2).then_some(())
        })
        .await;
    }
    let strikes = struck();
    for relay in relays {
        relay.stop().await;
    }
    wire.seen().into_iter().for_each(|id| ledger.on_wire(id));
    let report = ledger.assert_clean();
    eprintln!("{step:?}, {fault:?}, {strikes} times\n{report}");
    let allowed = (strikes * WINDOW) as u64;
    assert!(
        report.wire_duplicates.count <= allowed,
        "more than {allowed}:\n{report}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_while_claiming_loses_and_inverts_nothing() {
    survives(Step::Claim, Fault::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_while_settling_loses_and_inverts_nothing() {
    survives(Step::Settle, Fault::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_while_renewing_loses_and_inverts_nothing() {
    survives(Step::Renew, Fault::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swallowed_reply_to_a_claim_loses_and_inverts_nothing() {
    survives(Step::Claim, Fault::Swallowed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swallowed_reply_to_a_settle_loses_and_inverts_nothing() {
    survives(Step::Settle, Fault::Swallowed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swallowed_reply_to_a_renewal_loses_and_inverts_nothing() {
    survives(Step::Renew, Fault::Swallowed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swallowed_reply_to_a_counted_attempt_loses_and_inverts_nothing() {
    survives(Step::Attempt, Fault::Swallowed).await;
}
