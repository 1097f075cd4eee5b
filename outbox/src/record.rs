//! What the relay reads from the database and what it writes back.

use std::fmt;
use std::time::Duration;

use outbox_broker::{Malformed, Message};
use uuid::Uuid;

/// A fixed part of the outbox: each shard has one owner at a time and its own order. 0 unless raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Shard(pub i16);

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The place of a record in its shard: the database's sequence, growing, dense but for open and
/// rolled-back transactions.
pub type Position = i64;

/// Who owns a lease: one value per relay process and start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub Uuid);

impl Owner {
    /// A new owner.
    pub fn new() -> Self {
        Self(Uuid::new_v4())
    }
}

impl Default for Owner {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The right to publish and settle the records of one shard until the lease ends.
///
/// Every write of the relay is guarded by `(shard, owner, epoch)`, so that a relay that was paused past its
/// lease changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The shard.
    pub shard: Shard,
    /// The holder.
    pub owner: Owner,
    /// Grows with every change of holder.
    pub epoch: i64,
    /// The previous holder did not release it: it died or lost its connection, maybe because of a record.
    pub after_expiry: bool,
}

/// A row of the hot table: present means not yet published.
#[derive(Debug, Clone)]
pub struct Record {
    /// Place in the shard.
    pub position: Position,
    /// The message, or what is wrong with the row (written by foreign hands).
    pub message: Result<Message, Malformed>,
}

/// What to read from a shard, in one snapshot.
#[derive(Debug, Clone)]
pub struct ClaimRequest<'a> {
    /// The lease; reading is not guarded by it, but it names the shard.
    pub lease: &'a Lease,
    /// Read rows above this position.
    pub above: Position,
    /// At most this many rows, late and new ones together, the lowest first.
    pub limit: usize,
    /// At most about this many bytes of payload; at least one row is returned whatever its size.
    pub max_bytes: usize,
    /// Positions at or below `above` known to be missing: rows that appeared there meanwhile are read too.
    /// Inclusive ranges, ascending, apart from each other.
    pub missing: &'a [(Position, Position)],
}

/// What one claim read.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// Late and new rows, by position.
    pub records: Vec<Record>,
    /// Every transaction below this id that can own a position had ended before the read began; `None` where
    /// the database has no such notion.
    pub horizon: Option<TransactionId>,
    /// A limit was reached: there may be more rows above the last one, late ones or new ones.
    pub more: bool,
}

/// A transaction id of the database, comparable within one cluster.
pub type TransactionId = u64;

/// What became of records of the hot table, written in one transaction.
#[derive(Debug, Clone, Default)]
pub struct Settlement {
    /// Confirmed by the broker: deleted.
    pub published: Vec<Position>,
    /// Moved to the parked table, in this order.
    pub park: Vec<Park>,
}

impl Settlement {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.published.is_empty() && self.park.is_empty()
    }
}

/// One record to be moved out of the hot table.
#[derive(Debug, Clone)]
pub struct Park {
    /// The record.
    pub position: Position,
    /// What it waits for.
    pub state: ParkState,
    /// Publishes tried so far.
    pub attempts: u32,
    /// Not to be tried again before this delay from now, by the database's clock.
    pub delay: Duration,
    /// The last error, if there was one.
    pub error: Option<String>,
}

/// What a parked row waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParkState {
    /// Its time (`available_at`); holds nothing else back.
    Scheduled,
    /// Its next attempt, or the rows of its key before it; holds back its key.
    Retry,
    /// A person: a dead letter. Holds back its key unless the policy skips ahead.
    Dead,
}

impl ParkState {
    /// The number stored in the database.
    pub const fn code(self) -> i16 {
        match self {
            Self::Scheduled => 0,
            Self::Retry => 1,
            Self::Dead => 2,
        }
    }

    /// Reads [`ParkState::code`] back.
    pub const fn from_code(code: i16) -> Option<Self> {
        match code {
            0 => Some(Self::Scheduled),
            1 => Some(Self::Retry),
            2 => Some(Self::Dead),
            _ => None,
        }
    }
}

/// A row of the parked table. `sequence` is its own order there: a key's rows keep it.
#[derive(Debug, Clone)]
pub struct Parked {
    /// Place in the parked table.
    pub sequence: i64,
    /// What it waits for.
    pub state: ParkState,
    /// Publishes begun so far.
    pub attempts: u32,
    /// The last error.
    pub error: Option<String>,
    /// The message, or what is wrong with the row.
    pub message: Result<Message, Malformed>,
}

/// What became of parked rows, written in one transaction.
#[derive(Debug, Clone, Default)]
pub struct ParkedSettlement {
    /// Confirmed by the broker: deleted.
    pub published: Vec<i64>,
    /// Failed again.
    pub failed: Vec<ParkedFailure>,
}

/// A parked row whose attempt failed.
#[derive(Debug, Clone)]
pub struct ParkedFailure {
    /// The row.
    pub sequence: i64,
    /// `Retry` or `Dead`.
    pub state: ParkState,
    /// Until the next attempt.
    pub delay: Duration,
    /// What the broker said.
    pub error: String,
}

/// What settled rows leave in the hot table until the database cleans up, and what keeps it from doing so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bloat {
    /// Deleted rows still in the table, as the database estimates them.
    pub dead_tuples: u64,
    /// Bytes of the table with its index.
    pub bytes: u64,
    /// The oldest transaction that may still see them.
    pub pin: Option<Pin>,
}

/// Who keeps old rows alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// How long it has been open, where the database knows.
    pub age: Option<Duration>,
    /// A session with its user and program, a prepared transaction, or a replication slot.
    pub holder: String,
}

/// How much waits in the database, without counting rows where that is not free.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Backlog {
    /// Rows of the hot table, counted up to [`Backlog::COUNT_LIMIT`].
    pub pending: u64,
    /// Whether `pending` is exact (false: there are at least that many).
    pub exact: bool,
    /// Age of the oldest row of the hot table.
    pub oldest_age: Option<Duration>,
    /// Parked rows by state, each counted up to the same limit.
    pub scheduled: u64,
    /// See `scheduled`.
    pub retry: u64,
    /// See `scheduled`.
    pub dead: u64,
    /// Distinct keys held back by a retry or dead row, up to the same limit.
    pub blocked_keys: u64,
}

impl Backlog {
    /// Rows counted at most. Chosen: 10,000 index entries cost a few milliseconds on every database; beyond
    /// that the age says more than the count.
    pub const COUNT_LIMIT: u64 = 10_000;

    /// Nothing waits but dead letters and scheduled messages.
    pub const fn is_drained(&self) -> bool {
        self.pending == 0 && self.retry == 0
    }
}
