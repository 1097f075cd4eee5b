//! The database as the broker: SQLite or PostgreSQL, durable, shared by processes, no server of its own.
//!
//! ```text
//!  publish ──► outbox_queue_message     the log: inserted, never updated; unique on (id, source, topic)
//!                    │
//!                    │ beyond outbox_queue_group.read_to_seq, one cursor a group
//!                    ▼
//!  claim ────► outbox_queue_pending     read and not settled: a lease, a delay, or parked behind its key
//!                    │
//!                    ├── ack    DELETE
//!                    ├── nack   no owner, visible later
//!                    └── dead   outbox_queue_dead
//! ```
//!
//! **Publishing costs one row a message**, whatever the number of groups: a group is a cursor over the log,
//! and only what it has read and not settled has a row of its own, inserted by the claim and deleted by the
//! ack. (Rows inserted per group at publish and updated by the claim would write as often for one group,
//! and once more for every further one.) A topic without groups is simply a log; a group that begins at the
//! earliest message reads what is retained.
//!
//! **Order.** A topic has one order, `seq`. In PostgreSQL a publish holds a lock on its topics from before
//! its rows get their `seq` until they are visible, so a cursor can never step over a row that appears later
//! with a lower `seq`; SQLite's writers are serial by nature. One key is with one member at a time, and
//! nothing overtakes a key's row that is held or delayed (see the table in `plan.rs`).
//!
//! **A lease** is an owner, an attempt and a time by the database's clock. Whoever settles must still hold
//! the lease, else the verdict is [`Settled::Stale`](crate::Settled::Stale) and changes nothing. A process
//! that dies keeps its leases until they end ([`SubscribeOptions::visibility`](crate::SubscribeOptions)).
//!
//! **Cost of durability.** Verdicts that arrive while a commit is under way go together in the next one, so
//! many deliveries settled at the same time cost one flush. A claim is one short transaction; an empty look
//! is one read without a lock, as cheap as SQLite's `PRAGMA data_version`.
//!
//! **Duplicates.** A second publish of an id (with its source, to the same topic) within the retention is
//! suppressed and answered with [`Receipt::duplicate`](crate::Receipt::duplicate), acknowledged or not.
//!
//! This does not: keep a group from pinning the log (a group that nobody reads any more keeps every message
//! after its cursor; [`SqlBroker::remove_group`] ends it), hold a message back until its `available_at`, or
//! drop one that has expired: the outbox and the consumer do that. TLS to PostgreSQL is not offered.

mod config;
mod plan;
mod postgres;
mod publisher;
mod rows;
mod settle;
mod sqlite;
mod store;
mod subscriber;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;

pub use self::config::{DatabaseUrl, SqlConfig};
pub use self::publisher::SqlPublisher;
pub use self::subscriber::SqlSubscriber;

use self::config::Place;
use self::settle::Settler;
use self::store::{Fault, MISSING_TABLE, SCHEMA_VERSION, Store};
use crate::{Capabilities, Error, ErrorKind};

/// The tables in SQLite's dialect, for migration tools of your own.
pub const SQLITE_DDL: &str = sqlite::DDL;

/// The tables in PostgreSQL's dialect, for migration tools of your own.
pub const POSTGRES_DDL: &str = postgres::DDL;

/// Pause between two walks over the log to delete what is past its retention. Chosen: an hour of messages
/// is little beside a day of them, and a walk touches every retained row.
const PURGE_PAUSE: Duration = Duration::from_secs(300);

/// Pause between two steps of a walk, so that other writers get the file.
const PURGE_STEP_PAUSE: Duration = Duration::from_millis(20);

/// A database used as a broker. Clones share the connections.
///
/// ```no_run
/// # async fn example() -> Result<(), outbox_broker::Error> {
/// use outbox_broker::sql::{SqlBroker, SqlConfig};
/// use outbox_broker::{Message, Publisher, SubscribeOptions, Subscriber};
///
/// let broker = SqlBroker::connect(SqlConfig::sqlite("queue.db")).await?;
/// broker.migrate().await?;
/// let mut orders = broker.subscriber().subscribe(SubscribeOptions::new("orders", "billing")).await?;
/// # let message: Message = unimplemented!();
/// broker.publisher().publish(&[message]).await;
/// for delivery in orders.receive(10, std::time::Duration::from_secs(1)).await? {
///     delivery.ack().await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct SqlBroker {
    shared: Arc<Shared>,
}

/// What publisher, subscriptions and settlements have in common.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    config: SqlConfig,
    /// Counts up when something was published or settled here: waiting subscriptions look at once.
    changes: watch::Sender<u64>,
    settler: Settler,
    /// Set once the tables were seen in a version that this library knows.
    checked: OnceCell<()>,
    /// Ends the purge with the last handle.
    ended: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl SqlBroker {
    /// Opens the database that `config` names. A SQLite file that is not there is created, empty.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`]: the settings. [`ErrorKind::Unauthorized`], [`ErrorKind::Unreachable`],
    /// [`ErrorKind::UnknownDestination`] (no such database): the database. Missing tables are no error here,
    /// see [`SqlBroker::check`].
    pub async fn connect(config: SqlConfig) -> Result<Self, Error> {
        let store: Arc<dyn Store> = match config.place()? {
            Place::Sqlite(path) => Arc::new(
                sqlite::Sqlite::open(&path, config.publish_timeout)
                    .await
                    .map_err(|fault| fault.into_error("connect"))?,
            ),
            Place::Postgres(url) => Arc::new(
                postgres::Postgres::open(&url, config.pool_size, config.publish_timeout)
                    .await
                    .map_err(|fault| fault.into_error("connect"))?,
            ),
        };
        let changes = watch::Sender::new(0);
        let settler = Settler::start(Arc::clone(&store), changes.clone());
        let ended = CancellationToken::new();
        tokio::spawn(purge(Arc::clone(&store), config.retention, ended.clone()));
        let checked = OnceCell::new();
        Ok(Self {
            shared: Arc::new(Shared {
                store,
                config,
                changes,
                settler,
                checked,
                ended,
            }),
        })
    }

    /// Creates the tables that are missing; does nothing where they are there.
    ///
    /// # Errors
    /// The database refused, or its tables are of a later version.
    pub async fn migrate(&self) -> Result<(), Error> {
        match self.shared.store.version().await {
            Ok(version) if version > SCHEMA_VERSION => Err(too_new(version).into_error("migrate")),
            _ => self
                .shared
                .store
                .migrate()
                .await
                .map_err(|fault| fault.into_error("migrate")),
        }
    }

    /// Looks whether the tables are there, in a version that this library knows. Publish and subscribe do
    /// so too, before their first statement.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownDestination`]: run [`SqlBroker::migrate`]. [`ErrorKind::Unsupported`]: they were
    /// made by a later version of this library.
    pub async fn check(&self) -> Result<(), Error> {
        self.shared
            .ready()
            .await
            .map_err(|fault| fault.into_error("check"))
    }

    /// The sending side.
    pub fn publisher(&self) -> SqlPublisher {
        SqlPublisher::new(Arc::clone(&self.shared))
    }

    /// The receiving side.
    pub fn subscriber(&self) -> SqlSubscriber {
        SqlSubscriber::new(Arc::clone(&self.shared))
    }

    /// Ends `group` on `topic` with everything it has not settled, so that it no longer holds back the
    /// purge. Returns whether there was one. A member that still reads gets an error.
    ///
    /// # Errors
    /// The database refused; the group is as before.
    pub async fn remove_group(&self, topic: &str, group: &str) -> Result<bool, Error> {
        self.shared
            .store
            .remove_group(topic, group)
            .await
            .map_err(|fault| fault.into_error("remove_group"))
    }

    /// Deletes what is past its retention and what no group waits for, now instead of in the background.
    ///
    /// # Errors
    /// The database refused; what was deleted so far stays deleted.
    pub async fn purge(&self) -> Result<(), Error> {
        walk(&*self.shared.store, self.shared.config.retention)
            .await
            .map_err(|fault| fault.into_error("purge"))
    }
}

impl Shared {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            key_order: true,
            prefix_order: true,
            deduplicates: true,
            nack_delay: true,
            durable: true,
            shared: true,
            counts_attempts: true,
            dead_letters: true,
            max_payload: Some(self.config.max_payload_bytes),
            ..Capabilities::NONE
        }
    }

    async fn ready(&self) -> Result<(), Fault> {
        let check = async || match self.store.version().await? {
            version if version > SCHEMA_VERSION => Err(too_new(version)),
            version if version < SCHEMA_VERSION => {
                Err(Fault::new(ErrorKind::UnknownDestination, MISSING_TABLE))
            }
            _ => Ok(()),
        };
        self.checked.get_or_try_init(check).await.copied()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

fn too_new(version: i32) -> Fault {
    Fault::new(
        ErrorKind::Unsupported,
        format!(
            "the queue's tables have version {version}, this program knows {SCHEMA_VERSION}; run a newer program"
        ),
    )
}

/// Purges in the background until `ended`.
async fn purge(store: Arc<dyn Store>, retention: Duration, ended: CancellationToken) {
    let work = async {
        loop {
            tokio::time::sleep(PURGE_PAUSE).await;
            if let Err(fault) = walk(&*store, retention).await {
                tracing::warn!(
                    operation = "purge",
                    kind = %fault.kind,
                    context = %fault.context,
                    "the queue's old messages were not purged; the next round tries again"
                );
            }
        }
    };
    ended.run_until_cancelled(work).await;
}

/// Goes over the log once, from its oldest row to the first that is within its retention.
async fn walk(store: &dyn Store, retention: Duration) -> Result<(), Fault> {
    let mut after = 0;
    while let Some(last) = store.purge(after, retention).await? {
        after = last;
        tokio::time::sleep(PURGE_STEP_PAUSE).await;
    }
    Ok(())
}
