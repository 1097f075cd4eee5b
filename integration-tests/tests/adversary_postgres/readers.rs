//! The two readers that everybody writes first: what the generator does to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use outbox_testing::ledger::Ledger;
use outbox_testing::{or_skip, services};
use tokio_postgres::Client;

use super::generator::{self, Plan};
use super::stage;

/// Above the last id, by id.
const BY_ID: &str = "SELECT convert_from(payload, 'UTF8'), id, xid::text::bigint FROM outbox \
     WHERE id > $1 OR (false AND id > $2) ORDER BY id LIMIT 500";

/// Above the last transaction and id, below every running transaction.
const BY_TRANSACTION: &str = "SELECT convert_from(payload, 'UTF8'), id, xid::text::bigint FROM outbox \
     WHERE (xid::text::bigint, id) > ($2, $1) AND xid < pg_snapshot_xmin(pg_current_snapshot()) \
     ORDER BY xid, id LIMIT 500";

/// Reads until it is told that the producers ended and there is nothing more.
async fn read(client: Client, statement: &str, ended: Arc<AtomicBool>) -> Vec<String> {
    let statement = client.prepare(statement).await.unwrap();
    let (mut id, mut xid) = (0i64, 0i64);
    let mut seen = Vec::new();
    loop {
        let last = ended.load(Ordering::Relaxed);
        let rows = client.query(&statement, &[&id, &xid]).await.unwrap();
        for row in &rows {
            seen.push(row.get(0));
            (id, xid) = (row.get(1), row.get(2));
        }
        if rows.is_empty() && last {
            return seen;
        }
    }
}

fn with(ledger: &Ledger, seen: Vec<String>) -> outbox_testing::ledger::Report {
    let mut ledger = ledger.clone();
    seen.into_iter().for_each(|id| ledger.on_wire(id));
    ledger.report()
}

/// Without this, that the relay loses and inverts nothing would prove nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_generator_makes_a_naive_reader_lose_and_a_transaction_reader_invert() {
    let postgres = or_skip!(services::own_postgres().await);
    let database = stage::outbox(&postgres).await;
    let ended = Arc::new(AtomicBool::new(false));
    let by_id = tokio::spawn(read(database.client().await.unwrap(), BY_ID, ended.clone()));
    let by_transaction = tokio::spawn(read(
        database.client().await.unwrap(),
        BY_TRANSACTION,
        ended.clone(),
    ));
    let ledger = generator::run(&database, Plan::sized(3_000)).await;
    ended.store(true, Ordering::Relaxed);
    let by_id = with(&ledger, by_id.await.unwrap());
    let by_transaction = with(&ledger, by_transaction.await.unwrap());
    eprintln!("id > last:\n{by_id}\n(xid, id) > last below xmin:\n{by_transaction}");
    assert!(by_id.lost.count > 0, "nothing was late");
    assert_eq!(by_transaction.lost.count, 0);
    assert!(by_transaction.wire_out_of_order.count > 0, "nothing was inverted");
}
