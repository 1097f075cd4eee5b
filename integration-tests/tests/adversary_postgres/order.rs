//! Late rows: in order, complete, and none destroyed by a settle of its neighbours.

use std::sync::Arc;
use std::time::Duration;

use outbox::relay::RelayOptions;
use outbox_testing::ledger::{Ledger, Report};
use outbox_testing::services::Postgres;
use outbox_testing::{or_skip, services};
use tokio_postgres::Client;

use super::generator::{self, Plan};
use super::stage::{self, Running, Wire, drained, insert, options, until};

/// The generator against the relay; at the end nothing is missing and no gap is left.
async fn relayed(server: &Postgres, plan: Plan) -> Report {
    let database = stage::outbox(server).await;
    let wire = Arc::new(Wire::taking(Duration::from_millis(1)));
    let relay = Running::start(stage::store(database.url()).await, wire.clone(), options());
    let mut ledger = generator::run(&database, plan).await;
    let client = database.client().await.unwrap();
    drained(&client, Duration::from_secs(30)).await;
    until("every gap is retired", Duration::from_secs(10), async || {
        (relay.gaps() == 0).then_some(())
    })
    .await;
    relay.stop().await;
    wire.seen().into_iter().for_each(|id| ledger.on_wire(id));
    let report = ledger.assert_clean();
    eprintln!("{report}");
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_that_commit_out_of_order_lose_nothing_and_keep_the_order_of_keys() {
    let postgres = or_skip!(services::own_postgres().await);
    let plan = Plan {
        two_phase: true,
        ..Plan::sized(4_000)
    };
    let report = relayed(&postgres, plan).await;
    assert_eq!(
        report.wire_duplicates.count, 0,
        "nothing failed: nothing comes twice"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolled_back_bulks_leave_ranges_and_no_memory() {
    let postgres = or_skip!(services::own_postgres().await);
    let plan = Plan {
        bulk: 100_000,
        ..Plan::sized(4_000)
    };
    let report = relayed(&postgres, plan).await;
    assert_eq!(report.wire_duplicates.count, 0);
}

/// Keeps a relay too busy for the sweep of an idle one, which would find any row.
async fn trickle(client: &Client, rounds: usize) {
    for _ in 0..rounds {
        insert(client, "trickle", "trickle").await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_row_is_published_before_its_successor_and_survives_the_settle_of_its_neighbours() {
    let postgres = or_skip!(services::postgres().await);
    let database = stage::outbox(postgres).await;
    let wire = Arc::new(Wire::default());
    let relay = Running::start(stage::store(database.url()).await, wire.clone(), options());
    let (slow, fast) = (database.client().await.unwrap(), database.client().await.unwrap());
    let mut ledger = Ledger::new();
    for round in 1..=40u64 {
        slow.batch_execute("BEGIN").await.unwrap();
        let late = format!("late/{round}");
        let position = insert(&slow, "k", &late).await;
        trickle(&fast, 3).await;
        until("its neighbours are settled", Duration::from_secs(5), async || {
            let left = "SELECT EXISTS (SELECT FROM outbox WHERE id > $1)";
            let row = fast.query_one(left, &[&position]).await.unwrap();
            (!row.get::<_, bool>(0)).then_some(())
        })
        .await;
        slow.batch_execute("COMMIT").await.unwrap();
        let successor = format!("successor/{round}");
        insert(&fast, "k", &successor).await;
        ledger.committed(late, "k", 2 * round);
        ledger.committed(successor, "k", 2 * round + 1);
    }
    drained(&fast, Duration::from_secs(10)).await;
    relay.stop().await;
    for id in wire.seen() {
        if id != "trickle" {
            ledger.on_wire(id);
        }
    }
    assert_eq!(ledger.assert_clean().wire_duplicates.count, 0);
}

/// 20,000 rows at once below the floor come in portions: memory stays bounded and nothing newer overtakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_that_commits_late_is_claimed_in_bounded_portions_in_order() {
    let postgres = or_skip!(services::postgres().await);
    let database = stage::outbox(postgres).await;
    let wire = Arc::new(Wire::default());
    let bounded = RelayOptions {
        batch_size: 200,
        max_in_flight: 1_000,
        ..options()
    };
    let relay = Running::start(stage::store(database.url()).await, wire.clone(), bounded);
    let (slow, fast) = (database.client().await.unwrap(), database.client().await.unwrap());
    let bulk = "BEGIN; INSERT INTO outbox (topic, key, type, payload) \
        SELECT 'adversary', 'k', 'step', convert_to('k/' || n, 'UTF8') FROM generate_series(1, 20000) n";
    slow.batch_execute(bulk).await.unwrap();
    trickle(&fast, 5).await;
    until(
        "the floor is above the bulk",
        Duration::from_secs(5),
        async || (wire.len() == 5).then_some(()),
    )
    .await;
    slow.batch_execute("COMMIT").await.unwrap();
    insert(&fast, "k", "k/20001").await;
    let mut most = 0;
    until("the bulk is published", Duration::from_secs(30), async || {
        let shards = relay.status.snapshot().shards;
        most = most.max(shards.iter().map(|shard| shard.in_flight).sum());
        (wire.len() == 20_006).then_some(())
    })
    .await;
    assert!(most <= 1_000, "{most} records in memory");
    relay.stop().await;
    let mut ledger = Ledger::new();
    for n in 1..=20_001 {
        ledger.committed(format!("k/{n}"), "k", n);
    }
    for id in wire.seen() {
        if id != "trickle" {
            ledger.on_wire(id);
        }
    }
    assert_eq!(ledger.assert_clean().wire_duplicates.count, 0);
}
