//! The outbox in PostgreSQL 13 and newer.
//!
//! # Connections
//! A small pool of the store's own (deadpool over tokio-postgres, the driver under diesel-async), and one
//! connection that listens for notifications. Every statement is unnamed, no session state is set, and a
//! transaction is sent to its COMMIT in one flush: so the store works behind a transaction pooler
//! (pgbouncer), where only LISTEN is lost and polling takes over, and a dropped call leaves no transaction
//! open.
//!
//! # Gaps
//! Transactions commit out of the order of their positions. [`Claim::horizon`] is the oldest transaction
//! that was running before the read (every quarter of a second, while positions are missing, the oldest that
//! had written to the outbox, so that strangers cannot hold it back), [`Settled::bound`] the id of the settling transaction: a position that
//! was missing when that settle was sent belongs to a transaction below the bound, so it is dead once the
//! horizon has passed the bound.
//!
//! # Durability
//! A settle commits with `synchronous_commit = off` unless asked otherwise: losing it publishes again.
//! Attempts, redrives and discards wait for the disk. Producers' transactions are not touched.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use super::{LeaseState, Renewed, Settled, Store, StoreTraits};
use crate::record::{
    Backlog, Bloat, Claim, ClaimRequest, Lease, Owner, Parked, ParkedSettlement, Settlement,
};
use crate::{Database, Error};

mod check;
mod claim;
mod config;
mod error;
mod horizon;
mod lease;
mod listen;
mod notifier;
mod parked;
mod pool;
mod rows;
mod settle;

pub use config::PostgresConfig;
pub use notifier::PostgresNotifier;

use pool::{Pool, Session};

/// The [`Store`] of a PostgreSQL database. Clones share the connections.
#[derive(Clone)]
pub struct PostgresStore {
    pool: Pool,
    listener: Arc<listen::Listener>,
    config: Arc<PostgresConfig>,
    pace: Arc<claim::Pace>,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Opens a first connection, so that a wrong address or password shows at once.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): the URL cannot be read. `Unreachable`, `Unauthorized`, or
    /// `Schema` if the database does not exist.
    pub async fn connect(config: PostgresConfig) -> Result<Self, Error> {
        let store = Self {
            pool: Pool::new(&config)?,
            listener: Arc::new(listen::Listener::new(&config)?),
            config: Arc::new(config),
            pace: Arc::default(),
        };
        let session = store.session("connect").await?;
        session.end(Ok(Ok(())))?;
        Ok(store)
    }

    async fn session(&self, operation: &'static str) -> Result<Session, Error> {
        self.pool.session(operation).await
    }

    /// `BEGIN` for a transaction whose loss only publishes again.
    fn begin(&self) -> &'static str {
        if self.config.durable_settles {
            DURABLE
        } else {
            "BEGIN; SET LOCAL synchronous_commit = off"
        }
    }
}

/// `BEGIN` for a transaction that must survive a crash of the server, whatever the database's default is.
const DURABLE: &str = "BEGIN; SET LOCAL synchronous_commit = on";

#[async_trait]
impl Store for PostgresStore {
    fn traits(&self) -> StoreTraits {
        StoreTraits {
            name: "postgres",
            late_rows: true,
            horizon: true,
            dirty_reads: false,
        }
    }

    async fn check(&self) -> Result<(), Error> {
        let session = self.session("check").await?;
        let found = timeout(self.config.statement_timeout, check::found(session.client())).await;
        let found = session.end(found)?;
        found.verify(crate::migration::OUTBOX.version(Database::Postgres))
    }

    async fn acquire(&self, owner: Owner, want: usize, ttl: Duration) -> Result<Vec<Lease>, Error> {
        if want == 0 {
            return Ok(Vec::new());
        }
        let session = self.session("acquire").await?;
        let leases = timeout(
            self.config.statement_timeout,
            lease::acquire(session.client(), owner, want, ttl),
        )
        .await;
        session.end(leases)
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Renewed>, Error> {
        let session = self.session("renew").await?;
        let renewed = timeout(
            self.config.statement_timeout,
            lease::renew(session.client(), leases, ttl),
        )
        .await;
        session.end(renewed)
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), Error> {
        let session = self.session("release").await?;
        let released = timeout(
            self.config.statement_timeout,
            lease::release(session.client(), leases),
        )
        .await;
        session.end(released)
    }

    async fn claim(&self, request: ClaimRequest<'_>) -> Result<Claim, Error> {
        let session = self.session("claim").await?;
        let claim = timeout(
            self.config.statement_timeout,
            claim::claim(session.client(), &self.pace, &request),
        )
        .await;
        let claim = session.end(claim)?;
        if !claim.records.is_empty() {
            self.listener.found_rows();
        }
        Ok(claim)
    }

    async fn settle(&self, lease: &Lease, settlement: &Settlement) -> Result<Settled, Error> {
        let session = self.session("settle").await?;
        let settled = timeout(
            self.config.statement_timeout,
            settle::settle(session.client(), self.begin(), lease, settlement),
        )
        .await;
        lease::held("settle", session.end(settled)?)
    }

    async fn due(&self, lease: &Lease, limit: usize, skip_dead: bool) -> Result<Vec<Parked>, Error> {
        let session = self.session("due").await?;
        let due = timeout(
            self.config.statement_timeout,
            parked::due(session.client(), lease.shard, limit, skip_dead),
        )
        .await;
        session.end(due)
    }

    async fn begin_attempts(&self, lease: &Lease, sequences: &[i64]) -> Result<(), Error> {
        let session = self.session("begin_attempts").await?;
        let begun = timeout(
            self.config.statement_timeout,
            parked::begin_attempts(session.client(), DURABLE, lease, sequences),
        )
        .await;
        lease::held("begin_attempts", session.end(begun)?).map(|_| ())
    }

    async fn settle_parked(&self, lease: &Lease, settlement: &ParkedSettlement) -> Result<Settled, Error> {
        let session = self.session("settle_parked").await?;
        let settled = timeout(
            self.config.statement_timeout,
            parked::settle(session.client(), self.begin(), lease, settlement),
        )
        .await;
        lease::held("settle_parked", session.end(settled)?)
    }

    async fn blocked_keys(&self, lease: &Lease, skip_dead: bool) -> Result<Vec<(String, u64)>, Error> {
        let session = self.session("blocked_keys").await?;
        let keys = timeout(
            self.config.statement_timeout,
            parked::blocked_keys(session.client(), lease.shard, skip_dead),
        )
        .await;
        session.end(keys)
    }

    async fn next_due(&self, lease: &Lease, skip_dead: bool) -> Result<Option<Duration>, Error> {
        let session = self.session("next_due").await?;
        let next = timeout(
            self.config.statement_timeout,
            parked::next_due(session.client(), lease.shard, skip_dead),
        )
        .await;
        session.end(next)
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        let session = self.session("backlog").await?;
        let backlog = timeout(self.config.statement_timeout, check::backlog(session.client())).await;
        session.end(backlog)
    }

    async fn bloat(&self) -> Result<Option<Bloat>, Error> {
        let session = self.session("bloat").await?;
        let bloat = timeout(self.config.statement_timeout, horizon::bloat(session.client())).await;
        session.end(bloat)
    }

    async fn leases(&self) -> Result<Vec<LeaseState>, Error> {
        let session = self.session("leases").await?;
        let leases = timeout(self.config.statement_timeout, lease::states(session.client())).await;
        session.end(leases)
    }

    async fn wait(&self, at_most: Duration) -> Result<(), Error> {
        self.listener.wait(at_most).await;
        Ok(())
    }

    async fn dead(&self, after: i64, limit: usize) -> Result<Vec<Parked>, Error> {
        let session = self.session("dead").await?;
        let dead = timeout(
            self.config.statement_timeout,
            parked::dead(session.client(), after, limit),
        )
        .await;
        session.end(dead)
    }

    async fn redrive(&self, sequences: &[i64]) -> Result<u64, Error> {
        let session = self.session("redrive").await?;
        let rows = timeout(
            self.config.statement_timeout,
            parked::redrive(session.client(), sequences),
        )
        .await;
        session.end(rows)
    }

    async fn discard(&self, sequences: &[i64]) -> Result<u64, Error> {
        let session = self.session("discard").await?;
        let rows = timeout(
            self.config.statement_timeout,
            parked::discard(session.client(), sequences),
        )
        .await;
        session.end(rows)
    }
}
