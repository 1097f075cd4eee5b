//! The outbox in MariaDB 10.6 or newer and MySQL 8.0 or newer.
//!
//! # Connections
//! A small pool of the store's own (deadpool over mysql_async, the driver under diesel-async), without TLS.
//! Every session is set to READ COMMITTED, whatever the server's default is: under REPEATABLE READ a settle
//! would lock the gaps that producers insert into. Every call is one script of plain statements, sent in one
//! flush; a script that meets a deadlock is repeated. A dropped call closes its connection, so that no
//! transaction stays open.
//!
//! # Locks
//! A claim is a plain SELECT outside any transaction: no lock, and one statement for late and new rows, so
//! one snapshot. A settle locks the lease's row and the rows it deletes, and none beside them.
//!
//! # Gaps
//! Transactions commit out of the order of their positions, and InnoDB gives no snapshot function. Its
//! transaction ids would not do either: a statement takes its position before its transaction has an id,
//! `information_schema.innodb_trx` needs the privilege PROCESS and is a copy that is not renewed while it is
//! read often. Instead the relay asks every few seconds, by a dirty read that waits for nobody, which of the
//! missing positions have a row ([`Store::present`]): one that has belongs to an open transaction and is
//! waited for, however long; one that has not had a row for a minute is given up. Within that minute falls
//! only what lies between taking a position and writing the row: the rest of one statement, a wait for a lock
//! (50 s by default) included. A row that comes later still is found by the sweep.
//!
//! # Durability
//! Commits are as durable as the server's `innodb_flush_log_at_trx_commit`, which is one setting for all:
//! settles cannot be asynchronous here, they are coalesced instead. The check warns if it is not 1.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{LeaseState, Renewed, Settled, Store, StoreTraits};
use crate::record::{
    Backlog, Claim, ClaimRequest, Lease, Owner, Parked, ParkedSettlement, Position, Settlement,
};
use crate::{Database, Error};

mod check;
mod claim;
mod config;
mod error;
mod lease;
mod parked;
mod poll;
mod pool;
mod rows;
mod settle;

pub use config::MysqlConfig;

use pool::Pool;

/// The [`Store`] of a MariaDB or MySQL database. Clones share the connections.
#[derive(Clone)]
pub struct MysqlStore {
    pool: Pool,
    poll: Arc<poll::Poll>,
    config: Arc<MysqlConfig>,
    large: Arc<claim::Large>,
}

impl std::fmt::Debug for MysqlStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MysqlStore")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl MysqlStore {
    /// Opens a first connection, so that a wrong address or password shows at once.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): the URL cannot be read. `Unreachable`, `Unauthorized`, or
    /// `Schema` if the database does not exist.
    pub async fn connect(config: MysqlConfig) -> Result<Self, Error> {
        let store = Self {
            pool: Pool::new(&config)?,
            poll: Arc::new(poll::Poll::new(&config)),
            config: Arc::new(config),
            large: Arc::default(),
        };
        let session = store.pool.session("connect").await?;
        session.end(Ok(()))?;
        Ok(store)
    }

    /// The rows of a script of one SELECT, as `read` understands them.
    async fn ask<T>(
        &self,
        operation: &'static str,
        statement: &str,
        read: impl FnOnce(Vec<mysql_async::Row>) -> Result<T, mysql_async::Error>,
    ) -> Result<T, Error> {
        let mut answers = self.pool.run(operation, statement).await?;
        let rows = answers.pop().map(|answer| answer.rows).unwrap_or_default();
        read(rows).map_err(|error| error::from_driver(operation, error))
    }
}

#[async_trait]
impl Store for MysqlStore {
    fn traits(&self) -> StoreTraits {
        StoreTraits {
            name: "mysql",
            late_rows: true,
            horizon: false,
            dirty_reads: true,
        }
    }

    async fn check(&self) -> Result<(), Error> {
        let mut session = self.pool.session("check").await?;
        let found = session
            .within(async |connection| check::found(connection).await)
            .await?;
        session
            .end(found)?
            .verify(crate::migration::OUTBOX.version(Database::Mysql))
    }

    async fn acquire(&self, owner: Owner, want: usize, ttl: Duration) -> Result<Vec<Lease>, Error> {
        let free = self
            .ask("acquire", lease::ANY_FREE, |rows| Ok(!rows.is_empty()))
            .await?;
        if want == 0 || !free {
            return Ok(Vec::new());
        }
        let mut session = self.pool.session("acquire").await?;
        let leases = lease::acquire(&mut session, owner, want, ttl).await?;
        session.end(leases)
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Renewed>, Error> {
        let answers = self.pool.run("renew", &lease::renew(leases, ttl)).await?;
        Ok(lease::renewed(leases, &answers))
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), Error> {
        self.pool
            .run("release", &lease::release(leases))
            .await
            .map(|_| ())
    }

    async fn claim(&self, request: ClaimRequest<'_>) -> Result<Claim, Error> {
        let mut session = self.pool.session("claim").await?;
        let claim = session
            .within(async |connection| claim::claim(connection, &self.large, &request).await)
            .await?;
        let claim = session.end(claim)?;
        if !claim.records.is_empty() {
            self.poll.found_rows();
        }
        Ok(claim)
    }

    async fn present(
        &self,
        lease: &Lease,
        first: Position,
        last: Position,
    ) -> Result<Option<Vec<Position>>, Error> {
        self.ask("present", &claim::present(lease.shard, first, last), |rows| {
            rows.iter()
                .map(|row| rows::required(row, 0))
                .collect::<Result<_, _>>()
                .map(Some)
        })
        .await
    }

    async fn settle(&self, lease: &Lease, settlement: &Settlement) -> Result<Settled, Error> {
        let mut session = self.pool.session("settle").await?;
        let mut script = settle::script(lease, settlement);
        let mut answers = session.run(&script.text).await?;
        if answers.as_ref().is_err_and(error::is_lock_wait) {
            match settle::script_of_present(&mut session, lease, settlement).await? {
                Ok(present) => {
                    answers = session.run(&present.text).await?;
                    script = present;
                }
                Err(error) => answers = Err(error),
            }
        }
        let answers = session.end(answers)?;
        Ok(Settled {
            rows: script.rows(lease::held("settle", &answers)?),
            bound: None,
        })
    }

    async fn due(&self, lease: &Lease, limit: usize, skip_dead: bool) -> Result<Vec<Parked>, Error> {
        self.ask("due", &parked::due(lease.shard, limit, skip_dead), parked::parked)
            .await
    }

    async fn begin_attempts(&self, lease: &Lease, sequences: &[i64]) -> Result<(), Error> {
        let script = parked::begin_attempts(lease, sequences);
        let answers = self.pool.run("begin_attempts", &script).await?;
        lease::held("begin_attempts", &answers).map(|_| ())
    }

    async fn settle_parked(&self, lease: &Lease, settlement: &ParkedSettlement) -> Result<Settled, Error> {
        let script = parked::settle(lease, settlement);
        let answers = self.pool.run("settle_parked", &script).await?;
        Ok(Settled {
            rows: parked::affected(lease::held("settle_parked", &answers)?),
            bound: None,
        })
    }

    async fn blocked_keys(&self, lease: &Lease, skip_dead: bool) -> Result<Vec<(String, u64)>, Error> {
        self.ask(
            "blocked_keys",
            &parked::blocked_keys(lease.shard, skip_dead),
            parked::keys,
        )
        .await
    }

    async fn next_due(&self, lease: &Lease, skip_dead: bool) -> Result<Option<Duration>, Error> {
        self.ask("next_due", &parked::next_due(lease.shard, skip_dead), |rows| {
            Ok(parked::wait(&rows))
        })
        .await
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        self.ask("backlog", &check::backlog(), |rows| check::counted(&rows))
            .await
    }

    async fn leases(&self) -> Result<Vec<LeaseState>, Error> {
        self.ask("leases", lease::STATES, |rows| lease::states(&rows))
            .await
    }

    async fn wait(&self, at_most: Duration) -> Result<(), Error> {
        self.poll.wait(at_most).await;
        Ok(())
    }

    async fn dead(&self, after: i64, limit: usize) -> Result<Vec<Parked>, Error> {
        self.ask("dead", &parked::dead(after, limit), parked::parked)
            .await
    }

    async fn redrive(&self, sequences: &[i64]) -> Result<u64, Error> {
        let answers = self.pool.run("redrive", &parked::redrive(sequences)).await?;
        Ok(parked::affected(&answers))
    }

    async fn discard(&self, sequences: &[i64]) -> Result<u64, Error> {
        let answers = self.pool.run("discard", &parked::discard(sequences)).await?;
        Ok(parked::affected(&answers))
    }
}
