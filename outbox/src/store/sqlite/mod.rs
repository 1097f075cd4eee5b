//! The outbox in SQLite.
//!
//! Commits are serial, so a position is never late and no gap is tracked. The store opens three connections
//! of its own: one to write (short `BEGIN IMMEDIATE` transactions, at most 1,000 deletes each, so that
//! producers wait a few milliseconds at most), one to read, one to watch `PRAGMA data_version`.
//!
//! The write connection runs with `synchronous = NORMAL`: a settle lost with the machine's power publishes
//! again. That setting belongs to a connection, so what the application commits stays as durable as the
//! application chose. Times are by the clock of this machine, to the millisecond.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use diesel::Connection as _;
use diesel::SqliteConnection;
use diesel::connection::SimpleConnection;

use super::{LeaseState, Renewed, Settled, Store, StoreTraits};
use crate::record::{Backlog, Claim, ClaimRequest, Lease, Owner, Parked, ParkedSettlement, Settlement};
use crate::{Error, ErrorKind};

mod check;
mod claim;
mod lease;
mod parked;
mod settle;
mod tables;
mod watch;

/// How often a write that found the database locked is tried again after `busy_timeout`. Chosen: a writer
/// that holds the lock for three timeouts is stuck, and the relay backs off by itself.
const BUSY_RETRIES: u32 = 2;

/// Where the database is and how to use it.
#[derive(Debug, Clone)]
#[must_use]
pub struct SqliteConfig {
    /// The file.
    pub path: PathBuf,
    /// How long a statement waits for another writer. Default 5 s: longer than any write transaction of a
    /// service that is well.
    pub busy_timeout: Duration,
    /// Whether a settle is synced to the disk before it counts. Default false: losing it publishes again.
    pub durable_settles: bool,
}

impl SqliteConfig {
    /// The database in the file `path`, all else default.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            busy_timeout: Duration::from_secs(5),
            durable_settles: false,
        }
    }
}

/// The [`Store`] of a SQLite file. Clones share the connections.
#[derive(Clone)]
pub struct SqliteStore {
    writer: Arc<Mutex<SqliteConnection>>,
    reader: Arc<Mutex<SqliteConnection>>,
    watch: Arc<Mutex<watch::Watch>>,
    durable_settles: bool,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the file, which must exist, and switches it to write-ahead logging if it is not.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`]: the file is missing or cannot be opened.
    pub async fn connect(config: SqliteConfig) -> Result<Self, Error> {
        blocking("connect", move || {
            let writer = open(&config, "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")?;
            let reader = open(&config, "PRAGMA query_only = ON")?;
            let watch = watch::Watch::new(open(&config, "PRAGMA query_only = ON; PRAGMA busy_timeout = 0")?)?;
            Ok(Self {
                writer: Arc::new(Mutex::new(writer)),
                reader: Arc::new(Mutex::new(reader)),
                watch: Arc::new(Mutex::new(watch)),
                durable_settles: config.durable_settles,
            })
        })
        .await
    }

    /// Runs `work` on the read connection.
    async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut SqliteConnection) -> diesel::QueryResult<T> + Send + 'static,
    ) -> Result<T, Error> {
        let reader = Arc::clone(&self.reader);
        blocking(operation, move || {
            let mut connection = reader.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut connection).map_err(|error| Error::database(operation, error))
        })
        .await
    }

    /// Runs `work` in a write transaction, again if another writer held the lock for too long.
    async fn write<T: Send + 'static>(
        &self,
        operation: &'static str,
        durable: bool,
        mut work: impl FnMut(&mut SqliteConnection) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Error> {
        let writer = Arc::clone(&self.writer);
        blocking(operation, move || {
            let mut connection = writer.lock().unwrap_or_else(PoisonError::into_inner);
            if durable {
                synchronous(&mut connection, "FULL");
            }
            let mut tried = 0;
            let result = loop {
                match connection.immediate_transaction(|connection| work(connection)) {
                    Err(Refused::Database(error)) if tried < BUSY_RETRIES && is_busy(&error) => tried += 1,
                    result => break result,
                }
            };
            if durable {
                synchronous(&mut connection, "NORMAL"); // the setting outlives the transaction
            }
            result.map_err(|refused| refused.into_error(operation))
        })
        .await
    }
}

/// Why a write transaction was rolled back.
#[derive(Debug)]
enum Refused {
    /// The lease is not ours any more.
    LeaseLost,
    /// The database said no.
    Database(diesel::result::Error),
}

impl Refused {
    fn into_error(self, operation: &'static str) -> Error {
        match self {
            Self::LeaseLost => Error::new(
                ErrorKind::LeaseLost,
                operation,
                "the shard has another owner; nothing was changed",
            ),
            Self::Database(error) => Error::database(operation, error),
        }
    }
}

impl From<diesel::result::Error> for Refused {
    fn from(error: diesel::result::Error) -> Self {
        Self::Database(error)
    }
}

/// SQLite's words for SQLITE_BUSY and SQLITE_LOCKED; diesel keeps no code.
fn is_busy(error: &diesel::result::Error) -> bool {
    let text = error.to_string();
    text.contains("database is locked") || text.contains("database table is locked")
}

/// A duration as microseconds, the unit of the tables.
fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 2)
}

fn synchronous(connection: &mut SqliteConnection, level: &str) {
    if let Err(error) = connection.batch_execute(&format!("PRAGMA synchronous = {level}")) {
        tracing::warn!(%error, level, "cannot change `synchronous`");
    }
}

/// Opens a connection to a file that must exist: a wrong path must not leave an empty database behind.
fn open(config: &SqliteConfig, pragmas: &str) -> Result<SqliteConnection, Error> {
    let unreachable = |context: String| Error::new(ErrorKind::Unreachable, "connect", context);
    if !config.path.exists() {
        return Err(unreachable(format!(
            "there is no file {}; create it with `outbox-relay migrate` or outbox::migrate",
            config.path.display()
        )));
    }
    let mut connection = SqliteConnection::establish(&config.path.display().to_string())
        .map_err(|error| unreachable(format!("cannot open {}", config.path.display())).with_cause(error))?;
    connection
        .batch_execute(&format!(
            "PRAGMA busy_timeout = {}; {pragmas}",
            config.busy_timeout.as_millis()
        ))
        .map_err(|error| unreachable(format!("cannot use {}", config.path.display())).with_cause(error))?;
    Ok(connection)
}

/// Runs `work` where it may block. The work goes on if the future is dropped.
async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::new(
            ErrorKind::Database,
            operation,
            "the thread of the database call failed",
        )
        .with_cause(error))
    })
}

#[async_trait]
impl Store for SqliteStore {
    fn traits(&self) -> StoreTraits {
        StoreTraits {
            name: "sqlite",
            late_rows: false,
            horizon: false,
            dirty_reads: false,
        }
    }

    async fn check(&self) -> Result<(), Error> {
        let found = self.read("check", check::found).await?;
        super::layout::compare(&found, crate::migration::OUTBOX.version(crate::Database::Sqlite))
    }

    async fn acquire(&self, owner: Owner, want: usize, ttl: Duration) -> Result<Vec<Lease>, Error> {
        // Most calls find nothing: look before taking the write lock.
        if want == 0 || !self.read("acquire", lease::any_free).await? {
            return Ok(Vec::new());
        }
        self.write("acquire", false, move |connection| {
            lease::acquire(connection, owner, want, ttl)
        })
        .await
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Renewed>, Error> {
        let leases = leases.to_vec();
        self.write("renew", false, move |connection| {
            lease::renew(connection, &leases, ttl)
        })
        .await
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), Error> {
        let leases = leases.to_vec();
        self.write("release", false, move |connection| {
            lease::release(connection, &leases)
        })
        .await
    }

    async fn claim(&self, request: ClaimRequest<'_>) -> Result<Claim, Error> {
        let read = claim::Read::new(&request);
        self.read("claim", move |connection| read.run(connection)).await
    }

    async fn settle(&self, lease: &Lease, settlement: &Settlement) -> Result<Settled, Error> {
        let lease = *lease;
        let mut settled = Settled::default();
        // Parks first: rows behind a parked one must not be gone before it is in its place.
        if !settlement.park.is_empty() || settlement.published.is_empty() {
            let park = settlement.park.clone();
            settled.rows += self
                .write("settle", self.durable_settles, move |connection| {
                    lease::guard(connection, &lease)?;
                    settle::park(connection, lease.shard, &park)
                })
                .await?;
        }
        for part in settlement.published.chunks(settle::DELETES) {
            let part = part.to_vec();
            settled.rows += self
                .write("settle", self.durable_settles, move |connection| {
                    lease::guard(connection, &lease)?;
                    settle::delete(connection, lease.shard, &part)
                })
                .await?;
        }
        Ok(settled)
    }

    async fn due(&self, lease: &Lease, limit: usize, skip_dead: bool) -> Result<Vec<Parked>, Error> {
        let shard = lease.shard;
        self.read("due", move |connection| {
            parked::due(connection, shard, limit, skip_dead)
        })
        .await
    }

    async fn begin_attempts(&self, lease: &Lease, sequences: &[i64]) -> Result<(), Error> {
        let (lease, sequences) = (*lease, sequences.to_vec());
        self.write("begin_attempts", true, move |connection| {
            lease::guard(connection, &lease)?;
            parked::begin_attempts(connection, lease.shard, &sequences)
        })
        .await
    }

    async fn settle_parked(&self, lease: &Lease, settlement: &ParkedSettlement) -> Result<Settled, Error> {
        let (lease, settlement) = (*lease, settlement.clone());
        let rows = self
            .write("settle_parked", self.durable_settles, move |connection| {
                lease::guard(connection, &lease)?;
                parked::settle(connection, lease.shard, &settlement)
            })
            .await?;
        Ok(Settled { rows, bound: None })
    }

    async fn blocked_keys(&self, lease: &Lease, skip_dead: bool) -> Result<Vec<(String, u64)>, Error> {
        let shard = lease.shard;
        self.read("blocked_keys", move |connection| {
            parked::blocked_keys(connection, shard, skip_dead)
        })
        .await
    }

    async fn next_due(&self, lease: &Lease, skip_dead: bool) -> Result<Option<Duration>, Error> {
        let shard = lease.shard;
        self.read("next_due", move |connection| {
            parked::next_due(connection, shard, skip_dead)
        })
        .await
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        self.read("backlog", check::backlog).await
    }

    async fn leases(&self) -> Result<Vec<LeaseState>, Error> {
        self.read("leases", lease::states).await
    }

    async fn wait(&self, at_most: Duration) -> Result<(), Error> {
        watch::wait(&self.watch, at_most).await
    }

    async fn dead(&self, after: i64, limit: usize) -> Result<Vec<Parked>, Error> {
        self.read("dead", move |connection| parked::dead(connection, after, limit))
            .await
    }

    async fn redrive(&self, sequences: &[i64]) -> Result<u64, Error> {
        let sequences = sequences.to_vec();
        self.write("redrive", true, move |connection| {
            parked::redrive(connection, &sequences)
        })
        .await
    }

    async fn discard(&self, sequences: &[i64]) -> Result<u64, Error> {
        let sequences = sequences.to_vec();
        self.write("discard", true, move |connection| {
            parked::discard(connection, &sequences)
        })
        .await
    }
}
