//! What a relay is doing, for people and health checks.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::time::Instant;

use crate::Error;
use crate::record::{Backlog, Bloat, Shard};
use crate::store::Store;

/// Bytes kept of an error's text: in the status and with a parked row. Chosen: a page.
const ERROR_BYTES: usize = 2_048;

/// A view on a relay; clones are cheap and outlive it.
#[derive(Clone)]
pub struct RelayStatus {
    shared: Arc<Mutex<Inner>>,
    store: Arc<dyn Store>,
}

struct Inner {
    state: RelayState,
    owner: String,
    heartbeat: Instant,
    totals: Totals,
    last_error: Option<LastError>,
    shards: BTreeMap<Shard, ShardView>,
}

struct ShardView {
    snapshot: ShardSnapshot,
    deadline: Instant,
}

/// Where a relay stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RelayState {
    /// Not running yet, or still waiting for the database.
    Starting,
    /// Running without a shard: another relay holds them.
    Standby,
    /// Running and holding at least one shard.
    Active,
    /// Finishing what is under way.
    Draining,
    /// Ended.
    Stopped,
}

/// Counts since the relay started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Messages confirmed by the broker.
    pub published: u64,
    /// Publishes that were not confirmed, whatever the reason.
    pub failed: u64,
    /// Rows moved to the parked table.
    pub parked: u64,
    /// Messages that became dead letters.
    pub dead: u64,
    /// Expired messages deleted unpublished.
    pub dropped: u64,
}

/// The last thing that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastError {
    /// What was being done, such as `publish` or `claim`.
    pub operation: &'static str,
    /// The stable name of its kind.
    pub kind: &'static str,
    /// The error and its causes.
    pub text: String,
    /// When it happened first.
    pub since: DateTime<Utc>,
    /// The same operation has not succeeded since.
    pub ongoing: bool,
}

/// Whether the relay believes that its broker answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// It answers.
    #[default]
    Closed,
    /// It does not: one message at a time is tried, with growing pauses.
    Open,
}

/// One shard that this relay holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ShardSnapshot {
    /// The shard.
    pub shard: i16,
    /// Changes of holder so far.
    pub epoch: i64,
    /// Milliseconds in which publishes may still start without a renewal; 0: fenced, nothing is published.
    pub lease_left_ms: u64,
    /// Highest position read.
    pub floor: i64,
    /// Records in memory: read and not settled.
    pub in_flight: usize,
    /// Of them, those waiting for a publish call.
    pub queued: usize,
    /// Bytes of messages in memory.
    pub bytes: usize,
    /// Publish calls under way.
    pub calls: usize,
    /// Positions below the floor that may still appear.
    pub gaps: u64,
    /// Keys held back by a failed message.
    pub blocked_keys: usize,
    /// Whether the broker answers.
    pub circuit: CircuitState,
}

/// What a relay is doing now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RelaySnapshot {
    /// Where it stands.
    pub state: RelayState,
    /// Its name in the lease table.
    pub owner: String,
    /// Milliseconds since its loop last turned; more than a few seconds: it hangs.
    pub heartbeat_age_ms: u64,
    /// Counts since it started.
    pub totals: Totals,
    /// The last thing that went wrong, if anything did.
    pub last_error: Option<LastError>,
    /// The shards it holds, in order.
    pub shards: Vec<ShardSnapshot>,
}

impl RelayStatus {
    pub(super) fn new(owner: String, store: Arc<dyn Store>) -> Self {
        Self {
            shared: Arc::new(Mutex::new(Inner {
                state: RelayState::Starting,
                owner,
                heartbeat: Instant::now(),
                totals: Totals::default(),
                last_error: None,
                shards: BTreeMap::new(),
            })),
            store,
        }
    }

    /// What the relay is doing now. Takes a lock for less than a microsecond; no I/O.
    pub fn snapshot(&self) -> RelaySnapshot {
        let inner = self.lock();
        let now = Instant::now();
        RelaySnapshot {
            state: inner.state,
            owner: inner.owner.clone(),
            heartbeat_age_ms: millis(now.duration_since(inner.heartbeat)),
            totals: inner.totals,
            last_error: inner.last_error.clone(),
            shards: inner
                .shards
                .values()
                .map(|view| ShardSnapshot {
                    lease_left_ms: millis(view.deadline.saturating_duration_since(now)),
                    ..view.snapshot.clone()
                })
                .collect(),
        }
    }

    /// How much waits in the database; asks it.
    ///
    /// # Errors
    /// Those of [`Store::backlog`].
    pub async fn backlog(&self) -> Result<Backlog, Error> {
        self.store.backlog().await
    }

    /// What settled rows leave behind in the database; asks it.
    ///
    /// # Errors
    /// Those of [`Store::bloat`].
    pub async fn bloat(&self) -> Result<Option<Bloat>, Error> {
        self.store.bloat().await
    }

    pub(super) fn set_state(&self, state: RelayState) {
        self.lock().state = state;
    }

    pub(super) fn beat(&self) {
        self.lock().heartbeat = Instant::now();
    }

    pub(super) fn totals(&self) -> Totals {
        self.lock().totals
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut Totals)) {
        add(&mut self.lock().totals);
    }

    pub(super) fn show(&self, shard: Shard, snapshot: ShardSnapshot, deadline: Instant) {
        self.lock().shards.insert(shard, ShardView { snapshot, deadline });
    }

    pub(super) fn hide(&self, shard: Shard) {
        self.lock().shards.remove(&shard);
    }

    /// Notes an error; the time of the first one stays while it repeats.
    pub(super) fn failed(&self, operation: &'static str, kind: &'static str, text: String) {
        let mut inner = self.lock();
        let since = match &inner.last_error {
            Some(last) if last.ongoing && last.operation == operation && last.kind == kind => last.since,
            _ => Utc::now(),
        };
        inner.last_error = Some(LastError {
            operation,
            kind,
            text,
            since,
            ongoing: true,
        });
    }

    /// Notes that `operation` works (again).
    pub(super) fn works(&self, operation: &'static str) {
        if let Some(last) = &mut self.lock().last_error
            && last.operation == operation
        {
            last.ongoing = false;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every write under the lock is a plain assignment: a panic elsewhere leaves nothing half done.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for RelayStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RelayStatus").field(&self.snapshot()).finish()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An error and its causes on one line, cut to [`ERROR_BYTES`].
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    if text.len() > ERROR_BYTES {
        let mut end = ERROR_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}
