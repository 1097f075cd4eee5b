//! The whole system in one process: shop, relay, queue, billing.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use diesel::QueryDsl;
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use outbox::Outbox;
use outbox::relay::{Relay, RelayOptions};
use outbox::store::Store;
use outbox::store::sqlite::{SqliteConfig, SqliteStore};
use outbox_broker::sql::{SqlBroker, SqlConfig};
use outbox_consumer::{Consumer, Inbox, Mode};
use tokio_util::sync::CancellationToken;

use crate::arguments::Arguments;
use crate::billing::{self, Bill};
use crate::input::{BadLine, Orders};
use crate::shop::{self, Connection, Shop};
use crate::witness::Witness;

/// File of the queue between the two.
const QUEUE_FILE: &str = "queue.sqlite";

/// How long a dead relay keeps its lease. The default of 15 s suits servers; here the only other relay is
/// the next life of this process, and waiting for it is all that a crash costs.
const LEASE: Duration = Duration::from_millis(1_000);

/// How long deliveries of a dead consumer stay hidden: above the slowest handler here by far.
const VISIBILITY: Duration = Duration::from_secs(2);

/// Without any progress for this long, the run gives up and lets the ledger speak.
const STALL: Duration = Duration::from_secs(60);

/// Opens an SQLite file as this example uses it: write-ahead log, durable commits.
pub(crate) async fn connect(path: &Path) -> anyhow::Result<Connection> {
    let text = path.to_str().context("the directory's name is not UTF-8")?;
    let mut connection = Connection::establish(text)
        .await
        .with_context(|| format!("cannot open {}", path.display()))?;
    connection
        .batch_execute("PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
        .await?;
    Ok(connection)
}

/// Names a line that is no order.
#[expect(clippy::print_stderr, reason = "a command-line program")]
pub(crate) fn refuse(bad: &BadLine) {
    eprintln!("{bad}; skipped");
}

/// Places all orders and waits until each is billed; returns how many lines were refused.
pub(crate) async fn run(arguments: &Arguments, directory: &Path) -> anyhow::Result<u64> {
    let outbox = Outbox::new("/shop");
    let shop = Shop::open(directory, outbox.clone()).await?;
    let queue = queue(directory).await?;
    let stop = CancellationToken::new();

    let store: Arc<dyn Store> =
        Arc::new(SqliteStore::connect(SqliteConfig::new(directory.join(shop::FILE))).await?);
    let relay = Relay::builder(Arc::clone(&store), Arc::new(queue.publisher()))
        .options(RelayOptions {
            lease_ttl: LEASE,
            ..RelayOptions::default()
        })
        .wakeup(outbox.wakeup())
        .build()?;
    let relay = tokio::spawn(relay.run(stop.clone()));

    let consumer = tokio::spawn(consumer(directory, &queue).await?.run(stop.clone()));

    let work = async {
        let (placed, refused) = place_all(arguments, shop).await?;
        settle(directory, store.as_ref(), placed).await?;
        anyhow::Ok(refused)
    };
    let refused = tokio::select! {
        refused = work => refused?,
        ended = relay => bail!("the relay ended early: {ended:?}"),
        ended = consumer => bail!("the consumer ended early: {ended:?}"),
    };
    stop.cancel();
    Ok(refused)
}

async fn queue(directory: &Path) -> anyhow::Result<SqlBroker> {
    let path = directory.join(QUEUE_FILE);
    let path = path.to_str().context("the directory's name is not UTF-8")?;
    let queue = SqlBroker::connect(SqlConfig::new(format!("sqlite:{path}"))).await?;
    queue.migrate().await?;
    Ok(queue)
}

async fn consumer(directory: &Path, queue: &SqlBroker) -> anyhow::Result<Consumer<Connection>> {
    let path = directory.join(billing::FILE);
    let mut connection = connect(&path).await?;
    connection.batch_execute(billing::SCHEMA).await?;
    outbox_consumer::migrate(&mut connection).await?;
    let subscriber = Witness::open(directory, Arc::new(queue.subscriber())).await?;
    Ok(
        Consumer::builder("billing", Arc::new(subscriber), Inbox::sqlite(&path)?)
            .topic(shop::TOPIC)
            .mode(Mode::KeyOrdered { lanes: 16 })
            .visibility(VISIBILITY)
            .handler(Bill)
            .build()?,
    )
}

/// One transaction an order. Returns how many orders there are now, and how many lines were refused.
async fn place_all(arguments: &Arguments, mut shop: Shop) -> anyhow::Result<(u64, u64)> {
    let orders = Orders::open(arguments)?;
    let bar = crate::progress::bar("placed", orders.expected);
    let limit = arguments
        .limit
        .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let mut refused = 0;
    for line in orders.take(limit) {
        match line? {
            Ok(order) => {
                shop.place(&order).await?;
                bar.inc(1);
            }
            Err(bad) => {
                bar.suspend(|| refuse(&bad));
                refused += 1;
            }
        }
    }
    bar.finish_and_clear();
    Ok((shop.orders().await?, refused))
}

/// Waits until the outbox is empty and every order has an invoice, or until nothing has moved for
/// [`STALL`]. A barrier, not a timer: what is missing then is the ledger's to say.
async fn settle(directory: &Path, store: &dyn Store, placed: u64) -> anyhow::Result<()> {
    /// Between two looks. Chosen: a look costs two indexed counts.
    const LOOK: Duration = Duration::from_millis(20);

    let mut billing = connect(&directory.join(billing::FILE)).await?;
    let bar = crate::progress::bar("billed", Some(placed));
    let mut moved = (Instant::now(), -1);
    loop {
        let invoices: i64 = billing::invoices::table.count().get_result(&mut billing).await?;
        bar.set_position(invoices.unsigned_abs());
        if invoices.unsigned_abs() >= placed && store.backlog().await?.is_drained() {
            bar.finish_and_clear();
            return Ok(());
        }
        if invoices != moved.1 {
            moved = (Instant::now(), invoices);
        } else if moved.0.elapsed() > STALL {
            bar.abandon_with_message("no progress");
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}
