//! Transactions that commit out of the order of their positions and of their ids.
//!
//! A key's transactions exclude each other, so its sequence numbers rise in the order of commits. Everything
//! else is adverse: ids taken early and then blocked behind the key's row lock, the outbox row as the first
//! write, rolled-back savepoints, rollbacks, transactions held open, prepared ones, and rolled-back bulks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outbox_testing::ledger::Ledger;
use outbox_testing::services::postgres::Database;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::stage::insert;

const PRODUCERS: u64 = 12;
const KEYS: u64 = 40;

/// What to generate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Messages committed at least.
    pub(crate) messages: u64,
    /// Some transactions are prepared and decided later; the server must allow it.
    pub(crate) two_phase: bool,
    /// Rows of each rolled-back bulk; 0: none.
    pub(crate) bulk: u32,
}

impl Plan {
    /// The size asked for by the environment, or `small`.
    pub(crate) fn sized(small: u64) -> Self {
        let asked = std::env::var("OUTBOX_ADVERSARY_MESSAGES").ok();
        Self {
            messages: asked.map_or(small, |text| {
                text.parse().expect("OUTBOX_ADVERSARY_MESSAGES: a number")
            }),
            two_phase: false,
            bulk: 0,
        }
    }
}

fn seed() -> u64 {
    let seed = std::env::var("OUTBOX_ADVERSARY_SEED").ok();
    let seed = seed.map_or_else(rand::random, |text| {
        text.parse().expect("OUTBOX_ADVERSARY_SEED: a number")
    });
    eprintln!("OUTBOX_ADVERSARY_SEED={seed}");
    seed
}

struct Shared {
    ledger: Mutex<Ledger>,
    committed: AtomicU64,
    nonce: AtomicU64,
    plan: Plan,
}

/// Runs the producers to their end and returns what they committed and rolled back.
pub(crate) async fn run(database: &Database, plan: Plan) -> Ledger {
    let client = database.client().await.unwrap();
    client
        .batch_execute(&format!(
            "CREATE TABLE acct (key text PRIMARY KEY, n bigint NOT NULL DEFAULT 0); \
             INSERT INTO acct (key) SELECT 'key-' || n FROM generate_series(0, {KEYS} - 1) n"
        ))
        .await
        .unwrap();
    let shared = Arc::new(Shared {
        ledger: Mutex::default(),
        committed: AtomicU64::new(0),
        nonce: AtomicU64::new(0),
        plan,
    });
    let seed = seed();
    let mut producers = JoinSet::new();
    for number in 0..PRODUCERS {
        let client = database.client().await.unwrap();
        let draws = StdRng::seed_from_u64(seed.wrapping_add(number));
        producers.spawn(produce(client, draws, shared.clone()));
    }
    while let Some(ended) = producers.join_next().await {
        ended.unwrap();
    }
    let shared = Arc::into_inner(shared).expect("the producers ended");
    shared.ledger.into_inner()
}

async fn produce(client: Client, mut draws: StdRng, shared: Arc<Shared>) {
    while shared.committed.load(Ordering::Relaxed) < shared.plan.messages {
        if shared.plan.bulk > 0 && draws.random_ratio(1, 1_500) {
            roll_back_a_bulk(&client, shared.plan.bulk).await;
        }
        transaction(&client, &mut draws, &shared).await;
    }
}

async fn roll_back_a_bulk(client: &Client, rows: u32) {
    client
        .batch_execute(&format!(
            "BEGIN; INSERT INTO outbox (topic, type, payload) \
               SELECT 'adversary', 'bulk', 'bulk' FROM generate_series(1, {rows}); ROLLBACK"
        ))
        .await
        .unwrap();
}

async fn transaction(client: &Client, draws: &mut StdRng, shared: &Shared) {
    let number = draws.random_range(0..KEYS);
    let key = format!("key-{number}");
    client.batch_execute("BEGIN").await.unwrap();
    if draws.random_ratio(1, 3) {
        // The id is taken now, then the transaction waits for its key: it commits late under an early id.
        client.batch_execute("SELECT pg_current_xact_id()").await.unwrap();
    }
    let rows: u64 = if draws.random_ratio(1, 10) { 3 } else { 1 };
    let first_write_is_the_message = number % 2 == 1;
    let sequence: i64 = if first_write_is_the_message {
        let lock = i64::try_from(number).unwrap();
        client
            .execute("SELECT pg_advisory_xact_lock($1)", &[&lock])
            .await
            .unwrap();
        let read = "SELECT n + 1 FROM acct WHERE key = $1";
        client.query_one(read, &[&key]).await.unwrap().get(0)
    } else {
        let write = "UPDATE acct SET n = n + 1 WHERE key = $1 RETURNING n";
        client.query_one(write, &[&key]).await.unwrap().get(0)
    };
    let sequence = u64::try_from(sequence).unwrap() * 4;
    if draws.random_ratio(1, 20) {
        client.batch_execute("SAVEPOINT s").await.unwrap();
        insert(client, &key, "a message of a rolled-back savepoint").await;
        client.batch_execute("ROLLBACK TO s").await.unwrap();
    }
    let nonce = shared.nonce.fetch_add(1, Ordering::Relaxed);
    let ids: Vec<(String, u64)> = (sequence..sequence + rows)
        .map(|sequence| (format!("{key}/{sequence}/{nonce}"), sequence))
        .collect();
    for (id, _) in &ids {
        insert(client, &key, id).await;
    }
    if first_write_is_the_message {
        let write = "UPDATE acct SET n = n + 1 WHERE key = $1";
        client.execute(write, &[&key]).await.unwrap();
    }
    if draws.random_ratio(1, 200) {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let commits = !draws.random_ratio(1, 20);
    let end = if commits { "COMMIT" } else { "ROLLBACK" };
    if shared.plan.two_phase && draws.random_ratio(1, 100) {
        let name = format!("adversary-{nonce}");
        client
            .batch_execute(&format!("PREPARE TRANSACTION '{name}'"))
            .await
            .unwrap();
        let held = Duration::from_millis(draws.random_range(0..500));
        tokio::time::sleep(held).await;
        client
            .batch_execute(&format!("{end} PREPARED '{name}'"))
            .await
            .unwrap();
    } else {
        client.batch_execute(end).await.unwrap();
    }
    let mut ledger = shared.ledger.lock().await;
    for (id, sequence) in ids {
        if commits {
            ledger.committed(id, key.clone(), sequence);
        } else {
            ledger.rolled_back(id);
        }
    }
    if commits {
        shared.committed.fetch_add(rows, Ordering::Relaxed);
    }
}
