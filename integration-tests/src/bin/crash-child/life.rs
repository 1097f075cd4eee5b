//! Puts the parts together and runs them until the work is done.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, bail};
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use outbox::Outbox;
use outbox::relay::{Relay, RelayOptions};
use outbox::store::Store;
use outbox::store::postgres::{PostgresConfig, PostgresStore};
use outbox::store::sqlite::{SqliteConfig, SqliteStore};
use outbox_broker::rabbitmq::{RabbitMq, RabbitMqConfig};
use outbox_broker::sql::{SqlBroker, SqlConfig};
use outbox_broker::{Publisher, Subscriber};
use outbox_consumer::{Consumer, Inbox, Mode};
use tokio_util::sync::CancellationToken;

use crate::faults::{NoRenewals, Slow};
use crate::workload::{self, Apply, Sqlite};
use crate::{Arguments, Role};

/// Short, because the next life waits for it.
const LEASE: Duration = Duration::from_millis(1_000);

/// Short for the same reason; the handler takes microseconds.
const VISIBILITY: Duration = Duration::from_secs(2);

/// How far the broker is. Longer than the relay's settle interval: were a record settled before its confirm,
/// an abort would find it gone and not published.
const DISTANCE: Duration = Duration::from_millis(30);

/// A life on SQLite; returns the duplicates its consumer absorbed.
pub(crate) async fn sqlite(arguments: &Arguments) -> anyhow::Result<u64> {
    let path = PathBuf::from(arguments.store.trim_start_matches("sqlite:"));
    let text = path.to_str().context("the path is not UTF-8")?;
    let mut connection = Sqlite::establish(text).await?;
    connection
        .batch_execute("PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
        .await?;
    workload::sqlite::prepare(&mut connection, arguments).await?;
    let mut watcher = Sqlite::establish(text).await?;
    watcher.batch_execute("PRAGMA busy_timeout = 10000").await?;
    let store: Arc<dyn Store> = Arc::new(SqliteStore::connect(SqliteConfig::new(&path)).await?);
    let (publisher, subscriber) = broker(arguments).await?;
    let outbox = Outbox::new("/crash-child");
    let consumer = Consumer::builder("apply", subscriber, Inbox::sqlite(&path)?)
        .topic(&arguments.topic)
        .mode(Mode::KeyOrdered { lanes: 4 })
        .visibility(VISIBILITY)
        .handler(Apply)
        .build()?;
    let status = consumer.status();
    let stop = CancellationToken::new();
    let role = arguments.role;
    let relay = tokio::spawn(relay(
        arguments,
        Arc::clone(&store),
        publisher,
        &outbox,
        stop.clone(),
    )?);
    let consumer = tokio::spawn(async move {
        match role {
            Role::Relay => {
                stop.cancelled_owned().await;
                Ok(())
            }
            Role::All | Role::Services => consumer.run(stop).await.map(|_| ()),
        }
    });
    let work = async {
        if arguments.role == Role::Relay {
            return std::future::pending().await;
        }
        workload::sqlite::produce(&mut connection, &outbox, arguments).await?;
        workload::sqlite::settle(&mut watcher, store.as_ref(), arguments).await
    };
    tokio::select! {
        done = work => done?,
        ended = relay => bail!("the relay ended early: {ended:?}"),
        ended = consumer => bail!("the consumer ended early: {ended:?}"),
    }
    Ok(status.duplicates())
}

/// A life on PostgreSQL; returns the duplicates its consumer absorbed.
pub(crate) async fn postgres(arguments: &Arguments) -> anyhow::Result<u64> {
    let mut connection = AsyncPgConnection::establish(&arguments.store).await?;
    workload::postgres::prepare(&mut connection, arguments).await?;
    let mut watcher = AsyncPgConnection::establish(&arguments.store).await?;
    let store: Arc<dyn Store> =
        Arc::new(PostgresStore::connect(PostgresConfig::new(&arguments.store)).await?);
    let (publisher, subscriber) = broker(arguments).await?;
    let outbox = Outbox::new("/crash-child");
    let consumer = Consumer::builder("apply", subscriber, Inbox::postgres(&arguments.store, 8)?)
        .topic(&arguments.topic)
        .mode(Mode::KeyOrdered { lanes: 4 })
        .visibility(VISIBILITY)
        .handler(Apply)
        .build()?;
    let status = consumer.status();
    let stop = CancellationToken::new();
    let role = arguments.role;
    let relay = tokio::spawn(relay(
        arguments,
        Arc::clone(&store),
        publisher,
        &outbox,
        stop.clone(),
    )?);
    let consumer = tokio::spawn(async move {
        match role {
            Role::Relay => {
                stop.cancelled_owned().await;
                Ok(())
            }
            Role::All | Role::Services => consumer.run(stop).await.map(|_| ()),
        }
    });
    let work = async {
        if arguments.role == Role::Relay {
            return std::future::pending().await;
        }
        workload::postgres::produce(&mut connection, &outbox, arguments).await?;
        workload::postgres::settle(&mut watcher, store.as_ref(), arguments).await
    };
    tokio::select! {
        done = work => done?,
        ended = relay => bail!("the relay ended early: {ended:?}"),
        ended = consumer => bail!("the consumer ended early: {ended:?}"),
    }
    Ok(status.duplicates())
}

async fn broker(arguments: &Arguments) -> anyhow::Result<(Arc<dyn Publisher>, Arc<dyn Subscriber>)> {
    if arguments.broker.starts_with("amqp:") {
        let broker = RabbitMq::new(RabbitMqConfig::new(&arguments.broker))?;
        return Ok((Arc::new(broker.publisher()), Arc::new(broker.subscriber())));
    }
    let broker = SqlBroker::connect(SqlConfig::new(&arguments.broker)).await?;
    broker.migrate().await?;
    Ok((Arc::new(broker.publisher()), Arc::new(broker.subscriber())))
}

/// The relay's part of the life; for a process without one, a future that never ends.
fn relay(
    arguments: &Arguments,
    store: Arc<dyn Store>,
    publisher: Arc<dyn Publisher>,
    outbox: &Outbox,
    stop: CancellationToken,
) -> anyhow::Result<impl Future<Output = Result<(), outbox::Error>> + Send + 'static> {
    let slow = |first_answer| Slow {
        inner: Arc::clone(&publisher),
        before: DISTANCE,
        first_answer,
        answered: AtomicBool::new(false),
    };
    let (store, publisher): (Arc<dyn Store>, Arc<dyn Publisher>) = match arguments.role {
        Role::All if arguments.lapse_lease => (Arc::new(NoRenewals(store)), Arc::new(slow(3 * LEASE))),
        Role::All => (store, Arc::new(slow(Duration::ZERO))),
        Role::Relay | Role::Services => (store, publisher),
    };
    let options = match arguments.role {
        Role::All => RelayOptions {
            lease_ttl: LEASE,
            // Many small batches, so that a life passes the points of a batch several times.
            batch_size: 4,
            max_in_flight: 16,
            ..RelayOptions::default()
        },
        Role::Relay | Role::Services => RelayOptions::default(),
    };
    let relay = Relay::builder(store, publisher)
        .options(options)
        .wakeup(outbox.wakeup())
        .build()?;
    let role = arguments.role;
    Ok(async move {
        if role == Role::Services {
            std::future::pending::<()>().await;
        }
        relay.run(stop).await.map(|_| ())
    })
}
