//! Two relays on one database: one works, one stands by; the other takes over.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test program"
)]

mod lives;

use std::time::{Duration, Instant};

use lives::{DEADLINE, Place, Run};
use outbox::store::Store;
use outbox::store::postgres::{PostgresConfig, PostgresStore};
use outbox_testing::crash::{Child, Exit};
use outbox_testing::{or_skip, services};

/// Within this a dead relay's shard has a new owner and messages flow again.
const TAKEOVER: Duration = Duration::from_secs(15);

async fn until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The last words of a process that did its work.
async fn finished(mut child: Child) -> String {
    let ended = child.wait(DEADLINE).await.unwrap();
    assert_eq!(ended, Exit::Code(0), "{}", child.tail());
    child.tail().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_healthy_relays_put_nothing_on_the_wire_twice() {
    let postgres = or_skip!(services::postgres().await);
    let rabbitmq = or_skip!(services::rabbitmq().await);
    let place = Place::servers(postgres, rabbitmq).await;
    let run = Run::new(&place, "healthy").size(20, 100);
    let _first = run.spawn("relay", None, false);
    let _second = run.spawn("relay", None, false);
    let last_words = finished(run.spawn("services", None, false)).await;
    run.ledger().await.assert_clean();
    assert_eq!(last_words, "done, 0 duplicates absorbed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_relay_is_replaced_within_fifteen_seconds() {
    let postgres = or_skip!(services::postgres().await);
    let rabbitmq = or_skip!(services::rabbitmq().await);
    let place = Place::servers(postgres, rabbitmq).await;
    let run = Run::new(&place, "takeover").size(20, 400);
    let first = run.spawn("relay", None, false);
    let store = PostgresStore::connect(PostgresConfig::new(&place.store))
        .await
        .unwrap();
    let owner = async || Some(store.leases().await.ok()?.first()?.owner?);
    let first_owner = until("the first relay has the lease", Duration::from_secs(30), owner).await;
    let _second = run.spawn("relay", None, false);
    let services = run.spawn("services", None, false);
    until("messages flow", Duration::from_secs(30), async || {
        (run.effects().await > 500).then_some(())
    })
    .await;

    first.kill().unwrap();
    let killed = Instant::now();
    until("the second relay has the lease", TAKEOVER, async || {
        (owner().await? != first_owner).then_some(())
    })
    .await;
    // What the dead relay had published still trickles into effects; what it had not shows the successor.
    let at_takeover = run.effects().await;
    until(
        "messages flow again",
        TAKEOVER.saturating_sub(killed.elapsed()),
        async || (run.effects().await > at_takeover).then_some(()),
    )
    .await;
    eprintln!("taken over after {:?}", killed.elapsed());

    let last_words = finished(services).await;
    eprintln!("{last_words}");
    run.ledger().await.assert_clean();
}
