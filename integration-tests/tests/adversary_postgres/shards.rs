//! Several shards, each with its sequence and its owner; and who keeps dead rows alive.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel_async::{AsyncConnection, AsyncPgConnection};
use outbox::Outbox;
use outbox::relay::RelayOptions;
use outbox::store::Store;
use outbox_testing::ledger::Ledger;
use outbox_testing::services::postgres::Database;
use outbox_testing::{or_skip, services};

use super::stage::{self, Running, Wire, drained, insert, options, until};

const SHARDS: i16 = 4;

async fn divided(server: &services::Postgres) -> Database {
    let database = stage::outbox(server).await;
    let client = database.client().await.unwrap();
    client
        .batch_execute(&outbox::shards_ddl(SHARDS).unwrap())
        .await
        .unwrap();
    database
}

/// `rounds` messages of each of 20 keys, noted in the ledger.
async fn enqueue(database: &Database, ledger: &mut Ledger, rounds: std::ops::Range<u64>) {
    let outbox = Outbox::builder("/shards").shards(SHARDS).build().unwrap();
    let mut connection = AsyncPgConnection::establish(database.url()).await.unwrap();
    for round in rounds {
        let keys = || (0..20).map(move |key| (format!("key-{key}"), format!("key-{key}/{round}")));
        let messages = keys().map(|(key, id)| {
            let message = outbox
                .message("adversary", "step")
                .key(key)
                .payload(id, "text/plain");
            message.build().unwrap()
        });
        outbox.enqueue_all(&mut connection, messages).await.unwrap();
        for (key, id) in keys() {
            ledger.committed(id, key, round);
        }
    }
}

fn half() -> RelayOptions {
    RelayOptions {
        shards: usize::from(SHARDS.unsigned_abs()) / 2,
        lease_ttl: Duration::from_secs(60),
        ..options()
    }
}

async fn holders(store: &dyn Store) -> HashMap<String, usize> {
    let mut holders = HashMap::new();
    for lease in store.leases().await.unwrap() {
        if let Some(owner) = lease.owner {
            *holders.entry(owner.to_string()).or_default() += 1;
        }
    }
    holders
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_positions_of_a_shard_are_dense_and_a_missing_shard_is_refused() {
    let postgres = or_skip!(services::postgres().await);
    let database = divided(postgres).await;
    stage::store(database.url()).await.check().await.unwrap();
    enqueue(&database, &mut Ledger::new(), 0..20).await;
    let client = database.client().await.unwrap();
    let sparse =
        "SELECT count(*) FROM (SELECT FROM outbox GROUP BY shard HAVING max(id) - min(id) + 1 <> count(*)) s";
    let row = client.query_one(sparse, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0, "another shard's rows leave gaps");
    let stray = "INSERT INTO outbox (shard, topic, type, payload) VALUES (9, 'a', 'b', 'c')";
    assert!(client.batch_execute(stray).await.is_err());
    let again = client.batch_execute(&outbox::shards_ddl(2).unwrap()).await;
    let text = format!("{:?}", again.expect_err("the outbox is not empty"));
    assert!(text.contains("let the relays drain it"), "{text}");
    client
        .batch_execute("ROLLBACK; DROP SEQUENCE outbox_position_3")
        .await
        .unwrap();
    assert!(stage::store(database.url()).await.check().await.is_err());
}

/// Two relays of half the shards each divide them; a third takes over at once what one of them hands back,
/// and nobody takes anything from the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_share_shards_and_a_drained_one_hands_its_share_over_at_once() {
    let postgres = or_skip!(services::postgres().await);
    let database = divided(postgres).await;
    let store = stage::store(database.url()).await;
    let wire = Arc::new(Wire::default());
    let start = || Running::start(store.clone(), wire.clone(), half());
    let (first, second) = (start(), start());
    let mut ledger = Ledger::new();
    enqueue(&database, &mut ledger, 0..50).await;
    until("both have their share", Duration::from_secs(20), async || {
        let holders = holders(store.as_ref()).await;
        (holders.len() == 2 && holders.values().all(|shards| *shards == 2)).then_some(())
    })
    .await;
    let third = start();
    let incumbent = second.status.snapshot().owner;
    enqueue(&database, &mut ledger, 50..100).await;
    assert!(
        third.status.snapshot().shards.is_empty(),
        "nothing is taken from an incumbent"
    );
    let summary = first.stop().await;
    assert_eq!((summary.released, summary.abandoned), (2, 0));
    let released = Instant::now();
    let successor = third.status.snapshot().owner;
    until(
        "the third relay has the share",
        Duration::from_secs(10),
        async || {
            let holders = holders(store.as_ref()).await;
            (holders.get(&successor) == Some(&2) && holders.get(&incumbent) == Some(&2)).then_some(())
        },
    )
    .await;
    eprintln!("handed over after {:?}", released.elapsed());
    enqueue(&database, &mut ledger, 100..150).await;
    drained(&database.client().await.unwrap(), Duration::from_secs(20)).await;
    second.stop().await;
    third.stop().await;
    wire.seen().into_iter().for_each(|id| ledger.on_wire(id));
    assert_eq!(ledger.assert_clean().wire_duplicates.count, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_pins_dead_rows_is_named() {
    let postgres = or_skip!(services::own_postgres().await);
    let database = stage::outbox(&postgres).await;
    let (client, pin) = (database.client().await.unwrap(), database.client().await.unwrap());
    let relay = Running::start(
        stage::store(database.url()).await,
        Arc::new(Wire::default()),
        options(),
    );
    let open = "SET application_name = 'nightly-report'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1";
    pin.batch_execute(open).await.unwrap();
    for n in 0..50 {
        insert(&client, "k", &format!("k/{n}")).await;
    }
    drained(&client, Duration::from_secs(10)).await;
    let bloat = until("the dead rows are counted", Duration::from_secs(20), async || {
        let bloat = relay.status.bloat().await.unwrap()?;
        let named = |name: &str| bloat.pin.as_ref().is_some_and(|pin| pin.holder.contains(name));
        (bloat.dead_tuples >= 50 && named("nightly-report")).then_some(bloat)
    })
    .await;
    let holder = bloat.pin.unwrap();
    assert!(holder.age.unwrap() > Duration::ZERO);
    pin.batch_execute("COMMIT").await.unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    insert(&client, "k", "prepared").await;
    client
        .batch_execute("PREPARE TRANSACTION 'forgotten'")
        .await
        .unwrap();
    let named = until(
        "the prepared transaction is named",
        Duration::from_secs(10),
        async || {
            let pin = relay.status.bloat().await.unwrap()?.pin?;
            pin.holder.contains("forgotten").then_some(pin)
        },
    )
    .await;
    assert!(named.holder.starts_with("prepared transaction"));
    client
        .batch_execute("ROLLBACK PREPARED 'forgotten'")
        .await
        .unwrap();
    relay.stop().await;
}
