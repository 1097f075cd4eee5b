//! The relay's side of the database: lease · claim · settle · park · due · backlog.
//!
//! One contract, one folder a database. Presence is pending: a row of the hot table is a message to
//! publish, settling it deletes it. No method holds a transaction open when it returns, and none takes a row
//! lock that a producer could wait for.

use std::time::Duration;

use async_trait::async_trait;

use crate::Error;
use crate::record::{
    Backlog, Bloat, Claim, ClaimRequest, Lease, Owner, Parked, ParkedSettlement, Position, Settlement,
    TransactionId,
};

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod decode;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod layout;
#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "sqlite")]
pub mod sqlite;

/// What the algorithm needs to know of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreTraits {
    /// Its name in logs, metrics and configuration, such as `postgres`.
    pub name: &'static str,
    /// Rows can become visible below positions already read, because transactions commit out of the order
    /// of their positions. False where commits are serial: then no gap is tracked.
    pub late_rows: bool,
    /// [`Claim::horizon`] and [`Settled::bound`] are given, so that a gap can be known to be dead.
    pub horizon: bool,
    /// [`Store::present`] tells rows of open transactions from rows that never came; used where there is no
    /// horizon.
    pub dirty_reads: bool,
}

/// What a settle did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settled {
    /// Rows that were still there.
    pub rows: u64,
    /// The settling transaction's own id: every position allocated before the settle was sent belongs to a
    /// transaction with a smaller id.
    pub bound: Option<TransactionId>,
}

/// How a lease's row stands after [`Store::renew`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// Ours for another `ttl` from the database's now.
    Held,
    /// Ended or taken: stop publishing at once.
    Lost,
}

/// The database of an outbox, as the relay uses it.
///
/// Object-safe: the database is chosen by configuration. All calls may run concurrently; each takes a
/// connection for its own duration and repairs broken ones. All times are by the database's clock.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// What this database does; constant.
    fn traits(&self) -> StoreTraits;

    /// Checks that the schema is there, complete and of the version this library knows, and that the
    /// settings allow the guarantees.
    ///
    /// # Errors
    /// [`Schema`](crate::ErrorKind::Schema) with the command that mends it, `Unreachable`, `Unauthorized`.
    async fn check(&self) -> Result<(), Error>;

    /// Takes up to `want` shards whose lease ended or was released, each for `ttl`.
    ///
    /// # Errors
    /// Nothing was taken, or what was taken ends by itself after `ttl`.
    async fn acquire(&self, owner: Owner, want: usize, ttl: Duration) -> Result<Vec<Lease>, Error>;

    /// Prolongs `leases` to `ttl` from now; one entry per lease, in order. An ended lease is not revived.
    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Renewed>, Error>;

    /// Gives `leases` back so that another relay can take them at once. Leases that moved are left alone.
    async fn release(&self, leases: &[Lease]) -> Result<(), Error>;

    /// Reads new rows above a position and late rows in the missing ranges, in one snapshot, by position, the
    /// lowest first where a limit cuts them off.
    ///
    /// A plain read: no lock, no write, safe to repeat.
    async fn claim(&self, request: ClaimRequest<'_>) -> Result<Claim, Error>;

    /// Positions of `first..=last` that have a row, committed or not, without waiting for anybody; `None`: the
    /// database cannot say. Asked every few seconds while positions are missing, if
    /// [`StoreTraits::dirty_reads`] says so.
    async fn present(
        &self,
        _lease: &Lease,
        _first: Position,
        _last: Position,
    ) -> Result<Option<Vec<Position>>, Error> {
        Ok(None)
    }

    /// Deletes what was published and parks what was not, in one transaction guarded by the lease.
    ///
    /// Rows that are gone already are skipped. May commit asynchronously: losing it publishes again.
    ///
    /// # Errors
    /// [`LeaseLost`](crate::ErrorKind::LeaseLost): nothing was changed; stop. Others: unknown; repeat it.
    async fn settle(&self, lease: &Lease, settlement: &Settlement) -> Result<Settled, Error>;

    /// Parked rows of the shard that may be tried now, at most `limit`, by sequence.
    ///
    /// Not returned: rows before their time, dead rows, and rows of a key behind a `Retry` row that is not
    /// due or, unless `skip_dead`, behind a dead row.
    async fn due(&self, lease: &Lease, limit: usize, skip_dead: bool) -> Result<Vec<Parked>, Error>;

    /// Counts an attempt of `sequences`, clears their errors, and commits it durably, before they are
    /// published. So a row with attempts and without an error is one whose last attempt has no outcome: its
    /// relay died, and it may be the reason.
    ///
    /// # Errors
    /// As [`Store::settle`].
    async fn begin_attempts(&self, lease: &Lease, sequences: &[i64]) -> Result<(), Error>;

    /// Writes the outcome of attempts of parked rows, guarded by the lease.
    ///
    /// # Errors
    /// As [`Store::settle`].
    async fn settle_parked(&self, lease: &Lease, settlement: &ParkedSettlement) -> Result<Settled, Error>;

    /// The keys of the shard held back by `Retry` rows (and by dead rows unless `skip_dead`), with the
    /// number of such rows.
    async fn blocked_keys(&self, lease: &Lease, skip_dead: bool) -> Result<Vec<(String, u64)>, Error>;

    /// Time until [`Store::due`] may return a row, zero if it does now; `None`: nothing waits but dead rows
    /// and, unless `skip_dead`, the rows of their keys behind them.
    async fn next_due(&self, lease: &Lease, skip_dead: bool) -> Result<Option<Duration>, Error>;

    /// How much waits, over all shards; bounded cost.
    async fn backlog(&self) -> Result<Backlog, Error>;

    /// Dead rows of the hot table and who pins them; `None` where the database keeps none. Bounded cost.
    async fn bloat(&self) -> Result<Option<Bloat>, Error> {
        Ok(None)
    }

    /// Who holds which shard and for how long yet, for `status`.
    async fn leases(&self) -> Result<Vec<LeaseState>, Error>;

    /// Waits until a producer of another process may have committed, or for `at_most`; a cheap poll or a
    /// notification, whatever the database has. Returning early without a new row is fine.
    async fn wait(&self, at_most: Duration) -> Result<(), Error>;

    /// Dead letters, oldest first, at most `limit`, of sequences above `after`.
    async fn dead(&self, after: i64, limit: usize) -> Result<Vec<Parked>, Error>;

    /// Puts dead letters back to `Retry`, due now, attempts 0, keeping id and order; returns how many.
    async fn redrive(&self, sequences: &[i64]) -> Result<u64, Error>;

    /// Deletes dead letters for good; returns how many. The only way a message leaves unpublished.
    async fn discard(&self, sequences: &[i64]) -> Result<u64, Error>;
}

/// One row of the lease table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseState {
    /// The shard.
    pub shard: crate::record::Shard,
    /// The last holder, if there was one and it has not released it.
    pub owner: Option<Owner>,
    /// Changes of holder so far.
    pub epoch: i64,
    /// Time until it ends; `None`: it has ended or was released.
    pub remaining: Option<Duration>,
}
