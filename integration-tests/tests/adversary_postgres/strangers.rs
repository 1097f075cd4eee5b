//! Transactions that hold the horizon of the cluster back and have nothing to do with the outbox.

use std::sync::Arc;
use std::time::Duration;

use outbox_testing::{or_skip, services};
use tokio_postgres::Client;

use super::stage::{self, Running, Wire, drained, insert, options, until};

/// Rollbacks and commits in turn: each pair leaves a gap.
async fn leave_gaps(client: &Client, pairs: usize) {
    for n in 0..pairs {
        client.batch_execute("BEGIN").await.unwrap();
        insert(client, "k", "rolled back").await;
        client.batch_execute("ROLLBACK").await.unwrap();
        insert(client, "k", &format!("k/{n}")).await;
    }
}

/// While `stranger` is in a transaction with an id, delivery goes on and gaps are retired.
async fn does_not_matter(stranger: &Client, client: &Client, url: &str) {
    stranger
        .batch_execute("BEGIN; CREATE TABLE elsewhere (n int)")
        .await
        .unwrap();
    let wire = Arc::new(Wire::default());
    let relay = Running::start(stage::store(url).await, wire.clone(), options());
    leave_gaps(client, 1_000).await;
    drained(client, Duration::from_secs(10)).await;
    assert_eq!(wire.len(), 1_000);
    until("the gaps are retired", Duration::from_secs(3), async || {
        (relay.gaps() == 0).then_some(())
    })
    .await;
    stranger.batch_execute("ROLLBACK").await.unwrap();
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_transaction_in_another_database_neither_stalls_delivery_nor_gathers_gaps() {
    let postgres = or_skip!(services::own_postgres().await);
    let (database, other) = (stage::outbox(&postgres).await, postgres.database().await.unwrap());
    let client = database.client().await.unwrap();
    does_not_matter(&other.client().await.unwrap(), &client, database.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_transaction_that_does_not_write_to_the_outbox_does_not_either() {
    let postgres = or_skip!(services::own_postgres().await);
    let database = stage::outbox(&postgres).await;
    let client = database.client().await.unwrap();
    does_not_matter(&database.client().await.unwrap(), &client, database.url()).await;
}

/// The lock table shows prepared transactions too: their gaps live on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_keeps_its_gap_until_it_is_decided() {
    let postgres = or_skip!(services::own_postgres().await);
    let database = stage::outbox(&postgres).await;
    let client = database.client().await.unwrap();
    let wire = Arc::new(Wire::default());
    let relay = Running::start(stage::store(database.url()).await, wire.clone(), options());
    for (end, expected) in [("COMMIT", 1), ("ROLLBACK", 0)] {
        client.batch_execute("BEGIN").await.unwrap();
        insert(&client, "k", "prepared").await;
        client.batch_execute("PREPARE TRANSACTION 'held'").await.unwrap();
        // Long enough for a settle's bound and several looks at the lock table; never idle, so no sweep.
        for _ in 0..200 {
            insert(&client, "other", "other").await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(relay.gaps() > 0, "the prepared transaction may still commit");
        let decide = format!("{end} PREPARED 'held'");
        client.batch_execute(&decide).await.unwrap();
        let before = wire.len();
        insert(&client, "k", "successor").await;
        until("the gap is retired", Duration::from_secs(3), async || {
            (relay.gaps() == 0 && wire.len() > before + expected).then_some(())
        })
        .await;
        let seen = wire.seen();
        let of_key: Vec<_> = seen[before..].iter().filter(|id| *id != "other").collect();
        match expected {
            1 => assert_eq!(of_key, ["prepared", "successor"]),
            _ => assert_eq!(of_key, ["successor"]),
        }
    }
    relay.stop().await;
}
