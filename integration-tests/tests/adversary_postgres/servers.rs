//! Servers that crash, restored backups, and settings that end sessions.

use std::sync::Arc;
use std::time::Duration;

use outbox_testing::ledger::Ledger;
use outbox_testing::{or_skip, services};

use super::generator::{self, Plan};
use super::stage::{self, Running, Wire, drained, insert, options, until};

/// Settles commit asynchronously: a crash takes them back, and their messages come again, nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_with_settles_pending_publishes_again_and_loses_nothing() {
    let postgres = or_skip!(services::own_postgres().await);
    let database = stage::outbox(&postgres).await;
    let client = database.client().await.unwrap();
    // What nobody waits for stays in memory until the crash.
    for setting in [
        "ALTER SYSTEM SET wal_writer_delay = '10s'",
        "SELECT pg_reload_conf()",
    ] {
        client.batch_execute(setting).await.unwrap();
    }
    let wire = Arc::new(Wire::default());
    let relay = Running::start(stage::store(database.url()).await, wire.clone(), options());
    let mut ledger: Ledger = generator::run(&database, Plan::sized(2_000)).await;
    drained(&client, Duration::from_secs(20)).await;
    postgres.kill().await.unwrap();
    postgres.restart().await.unwrap();
    let client = database.client().await.unwrap();
    for n in 1..=100 {
        let id = format!("after/{n}");
        insert(&client, "after", &id).await;
        ledger.committed(id, "after", n);
    }
    drained(&client, Duration::from_secs(20)).await;
    relay.stop().await;
    wire.seen().into_iter().for_each(|id| ledger.on_wire(id));
    let report = ledger.assert_clean();
    eprintln!("{report}");
    assert!(
        report.wire_duplicates.count > 0,
        "no settle was pending: the test shows nothing"
    );
}

/// The table and its sequence as they were long ago: positions that were settled come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_restored_backup_are_published_at_once_although_their_positions_were_settled() {
    let postgres = or_skip!(services::postgres().await);
    let database = stage::outbox(postgres).await;
    let client = database.client().await.unwrap();
    let wire = Arc::new(Wire::default());
    let relay = Running::start(stage::store(database.url()).await, wire.clone(), options());
    client
        .batch_execute(
            "INSERT INTO outbox (topic, type, payload) SELECT 'a', 'b', 'before' FROM generate_series(1, 50000)",
        )
        .await
        .unwrap();
    drained(&client, Duration::from_secs(30)).await;
    client
        .batch_execute(
            "ALTER TABLE outbox ALTER COLUMN id RESTART WITH 100; \
             INSERT INTO outbox (topic, key, type, payload) \
               SELECT 'a', 'k', 'b', convert_to('restored/' || n, 'UTF8') FROM generate_series(1, 20000) n",
        )
        .await
        .unwrap();
    until(
        "the restored messages are published",
        Duration::from_secs(20),
        async || (wire.len() == 70_000).then_some(()),
    )
    .await;
    // From here on they are found as new rows are: the sweep of an idle relay takes a second for each.
    let begun = std::time::Instant::now();
    for n in 0..30 {
        insert(&client, "k", "next").await;
        until("the next message", Duration::from_secs(5), async || {
            (wire.len() == 70_001 + n).then_some(())
        })
        .await;
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let mut ledger = Ledger::new();
    (1..=20_000).for_each(|n| ledger.committed(format!("restored/{n}"), "k", n));
    let seen = wire.seen();
    seen.into_iter()
        .filter(|id| id.starts_with("restored"))
        .for_each(|id| ledger.on_wire(id));
    assert_eq!(ledger.assert_clean().wire_duplicates.count, 0);
    relay.stop().await;
}

/// The server ends sessions that idle, inside a transaction or between two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_the_server_ends_early_delay_nothing_for_long() {
    let postgres = or_skip!(services::postgres().await);
    let database = stage::outbox(postgres).await;
    let client = database.client().await.unwrap();
    client
        .batch_execute(&format!(
            "ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '40ms'; \
             ALTER DATABASE {name} SET idle_session_timeout = '200ms'; \
             ALTER DATABASE {name} SET lock_timeout = '1s'; \
             ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'; \
             SET idle_session_timeout = 0",
            name = database.name()
        ))
        .await
        .unwrap();
    let wire = Arc::new(Wire::default());
    let relay = Running::start(stage::store(database.url()).await, wire.clone(), options());
    for n in 1..=20 {
        insert(&client, "k", "k").await;
        until("the message", Duration::from_secs(5), async || {
            (wire.len() == n).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(n as u64 * 25)).await;
    }
    drained(&client, Duration::from_secs(5)).await;
    relay.stop().await;
}
