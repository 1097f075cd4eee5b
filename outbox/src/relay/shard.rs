//! One shard, from take-over to release.
//!
//! ```text
//!             ┌────────────── claim (one at a time, prefetches)
//!   database ─┤                 │
//!             │   keys held? ───┤ no: lanes ──► publish calls (one per lane) ──► plan
//!             │                 │ yes                                             │
//!             └─ settle ◄───────┴──── published, parked ◄──────────────────────────┘
//!                (one at a time, coalesced)
//! ```
//!
//! Claims, publishes and settles run as tasks of their own and overlap; this task alone decides, and owns
//! all state. Whatever happens to it, the rows are in the database: a new start reads them again.

mod claim;
mod parked;
mod publish;
mod settle;
mod work;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use outbox_broker::crash_point::{self, CrashPoint};
use outbox_broker::{Message, Publisher};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::circuit::{Allowed, Circuit};
use super::gaps::Gaps;
use super::keys::Keys;
use super::lanes::{Item, Lanes, Origin};
use super::meters::Meters;
use super::options::{OnExhausted, RelayOptions};
use super::status::{CircuitState, RelayStatus, ShardSnapshot, chain};
use crate::record::{Lease, Position};
use crate::store::Store;
use crate::{Error, ErrorKind};
use claim::Reading;
use parked::Round;
use publish::Call;
use settle::Settling;
use work::Done;

/// What all shards of a relay share.
pub(super) struct Context {
    pub(super) store: Arc<dyn Store>,
    pub(super) publisher: Arc<dyn Publisher>,
    pub(super) options: RelayOptions,
    pub(super) status: RelayStatus,
    pub(super) meters: Meters,
}

impl Context {
    /// Makes an error of the database visible.
    pub(super) fn store_failed(&self, operation: &'static str, error: &Error) {
        self.status.failed(operation, error.kind().as_str(), chain(error));
    }

    fn skip_dead(&self) -> bool {
        self.options.on_exhausted == OnExhausted::SkipAhead
    }
}

/// How a shard is told what happens to its relay.
pub(super) struct Signals {
    /// No publish starts after this instant.
    pub(super) deadline: watch::Receiver<Instant>,
    /// Changes when rows may have come.
    pub(super) wake: watch::Receiver<u64>,
    /// Finish what is under way, then end.
    pub(super) drain: CancellationToken,
    /// The lease is gone: end at once.
    pub(super) lost: CancellationToken,
}

/// How a shard ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing is under way and everything known is settled.
    Drained,
    /// Another relay may hold it.
    Lost,
    /// A task of it panicked; its state is not to be trusted.
    Broken,
}

/// The first pause after a database error, and the longest. Chosen: a restart of a database takes seconds.
const STORE_RETRY: super::options::RetryPolicy = super::options::RetryPolicy {
    initial: Duration::from_millis(50),
    max: Duration::from_secs(2),
    jitter: 0.2,
    max_attempts: u32::MAX,
};

/// How often the counts of held-back keys are compared with the database. Chosen: how long a key waits
/// after a person discarded what held it.
const KEYS_REFRESH: Duration = Duration::from_secs(2);

/// How often the gauges of a shard are set.
const GAUGES: Duration = Duration::from_millis(250);

/// The state of one shard.
pub(super) struct ShardTask {
    ctx: Arc<Context>,
    lease: Lease,
    signals: Signals,
    draining: bool,
    work: JoinSet<Done>,

    reading: Reading,
    gaps: Gaps,
    /// Highest position read.
    floor: Position,
    /// Known once the held-back keys are loaded.
    ready: bool,
    keys: Keys,
    keys_at: Option<Instant>,

    lanes: Lanes,
    calls: HashMap<u64, Call>,
    next_call: u64,
    circuit: Circuit,
    /// Rows of the hot table in memory, from claim to settle.
    unsettled: usize,
    /// Bytes of messages in memory.
    bytes: usize,
    fence_seen: Option<Instant>,

    settling: Settling,
    round: Round,
    gauges_at: Instant,
    start_at: Instant,
}

impl ShardTask {
    /// The task of a shard held by `lease`, which does nothing before `start_at`.
    pub(super) fn new(ctx: Arc<Context>, lease: Lease, signals: Signals, start_at: Instant) -> Self {
        let options = &ctx.options;
        let suspects = if lease.after_expiry {
            options.max_in_flight
        } else {
            0
        };
        let lanes = Lanes::new(options.lanes, !ctx.publisher.capabilities().prefix_order);
        let now = Instant::now();
        Self {
            reading: Reading::new(suspects, now),
            round: Round::new(lease.after_expiry, now),
            lease,
            signals,
            draining: false,
            work: JoinSet::new(),
            gaps: Gaps::default(),
            floor: 0,
            ready: false,
            keys: Keys::default(),
            keys_at: Some(now),
            lanes,
            calls: HashMap::new(),
            next_call: 0,
            circuit: Circuit::default(),
            unsettled: 0,
            bytes: 0,
            fence_seen: None,
            settling: Settling::default(),
            gauges_at: now,
            start_at,
            ctx,
        }
    }

    /// Works until the lease is lost or a drain is done.
    pub(super) async fn run(mut self) -> End {
        tokio::select! {
            () = self.signals.lost.cancelled() => return End::Lost,
            () = self.signals.drain.cancelled() => return End::Drained,
            () = sleep_until(self.start_at) => {}
        }
        loop {
            let now = Instant::now();
            self.start_what_can_start(now);
            self.show(now);
            if self.draining && self.calls.is_empty() && self.settling.is_idle() {
                return End::Drained;
            }
            let timer = self.next_timer(now);
            tokio::select! {
                biased;
                () = self.signals.lost.cancelled() => return End::Lost,
                Some(done) = self.work.join_next() => {
                    if let Err(end) = self.take_done(done) {
                        return end;
                    }
                }
                () = self.signals.drain.cancelled(), if !self.draining => self.draining = true,
                Ok(()) = self.signals.wake.changed() => self.reading.woken = true,
                Ok(()) = self.signals.deadline.changed() => {}
                () = sleep_until(timer) => {}
            }
        }
    }

    fn start_what_can_start(&mut self, now: Instant) {
        self.watch_the_fence(now);
        if self.draining {
            self.hand_back();
        } else {
            self.start_keys(now);
            if self.ready {
                self.start_publishes(now);
                self.start_claim(now);
                self.start_due(now);
            }
        }
        self.start_settle(now);
    }

    fn take_done(&mut self, first: Result<Done, tokio::task::JoinError>) -> Result<(), End> {
        let mut next = Some(first);
        while let Some(done) = next {
            match done {
                Ok(Done::Claimed(read)) => self.claimed(read),
                Ok(Done::Published(returned)) => self.published(returned),
                Ok(Done::Wrote(wrote)) => self.wrote(wrote)?,
                Ok(Done::Due(due)) => self.due(due),
                Ok(Done::Begun(begun)) => self.begun(begun)?,
                Ok(Done::Keys { rows, started }) => self.keys_read(rows, started),
                Err(error) => {
                    tracing::error!(shard = %self.lease.shard, %error, "a task of the relay panicked; the shard starts afresh");
                    self.ctx.status.failed("publish", "panic", error.to_string());
                    return Err(End::Broken);
                }
            }
            next = self.work.try_join_next();
        }
        Ok(())
    }

    /// No publish starts past the deadline of the lease; the ones under way are noticed once.
    fn watch_the_fence(&mut self, now: Instant) {
        let deadline = *self.signals.deadline.borrow_and_update();
        if now < deadline {
            if self.fence_seen.take().is_some() {
                tracing::info!(shard = %self.lease.shard, "the lease is renewed; publishing goes on");
            }
            return;
        }
        if self.fence_seen != Some(deadline) {
            self.fence_seen = Some(deadline);
            tracing::warn!(shard = %self.lease.shard, calls = self.calls.len(),
                "the lease could not be renewed in time; no publish starts until it is");
            if !self.calls.is_empty() {
                crash_point::reach(CrashPoint::LeaseExpiredWhilePublishing);
            }
        }
    }

    fn fenced(&self) -> bool {
        self.fence_seen.is_some()
    }

    fn next_timer(&self, now: Instant) -> Instant {
        let far = now + Duration::from_secs(1);
        let mut timer = far;
        let mut at = |instant: Option<Instant>| timer = timer.min(instant.unwrap_or(far));
        if !self.fenced() {
            at(Some(*self.signals.deadline.borrow()));
        }
        at(self.settling.due_at(&self.ctx.options));
        if !self.draining {
            at(self.keys_at);
            if self.can_look_for_due(now) {
                at(self.round.at);
            }
            if self.can_claim() {
                at(self.claim_at());
            }
            if let Allowed::Nothing(until) = self.circuit.allowed(now) {
                at(until);
            }
        }
        timer
    }

    fn show(&mut self, now: Instant) {
        let snapshot = ShardSnapshot {
            shard: self.lease.shard.0,
            epoch: self.lease.epoch,
            lease_left_ms: 0,
            floor: self.floor,
            in_flight: self.in_memory(),
            queued: self.lanes.queued(),
            bytes: self.bytes,
            calls: self.calls.len(),
            gaps: self.gaps.positions(),
            blocked_keys: self.keys.len(),
            circuit: if self.circuit.is_open() {
                CircuitState::Open
            } else {
                CircuitState::Closed
            },
        };
        if now >= self.gauges_at {
            self.gauges_at = now + GAUGES;
            self.ctx.meters.shard(
                snapshot.shard,
                snapshot.in_flight,
                snapshot.gaps,
                snapshot.blocked_keys,
                self.circuit.is_open(),
            );
        }
        let deadline = *self.signals.deadline.borrow();
        self.ctx.status.show(self.lease.shard, snapshot, deadline);
    }

    /// Records in memory: rows of the hot table not settled, and parked rows being tried.
    fn in_memory(&self) -> usize {
        self.unsettled + self.round.len()
    }

    /// Every position of the hot table that is in memory.
    fn known(&self) -> HashSet<Position> {
        let hot = |origin: &Origin| match origin {
            Origin::Hot(position) => Some(*position),
            Origin::Parked { .. } => None,
        };
        let mut known: HashSet<Position> = HashSet::with_capacity(self.unsettled);
        known.extend(self.lanes.tags().filter_map(|tag| hot(&tag.origin)));
        known.extend(
            self.calls
                .values()
                .flat_map(|call| call.tags.iter().filter_map(|tag| hot(&tag.origin))),
        );
        known.extend(self.keys.waiting_items().filter_map(|(tag, _)| hot(&tag.origin)));
        known.extend(self.settling.positions());
        known
    }

    fn start_keys(&mut self, now: Instant) {
        if self.keys_at.is_none_or(|at| now < at) {
            return;
        }
        if self.ready && self.keys.is_empty() {
            self.keys_at = Some(now + KEYS_REFRESH);
            return;
        }
        self.keys_at = None;
        let (ctx, lease, started) = (self.ctx.clone(), self.lease, self.keys.now());
        self.work.spawn(async move {
            let rows = ctx.store.blocked_keys(&lease, ctx.skip_dead()).await;
            Done::Keys { rows, started }
        });
    }

    fn keys_read(&mut self, rows: Result<Vec<(String, u64)>, Error>, started: u64) {
        let now = Instant::now();
        self.keys_at = Some(now + KEYS_REFRESH);
        match rows {
            Ok(rows) if self.ready => {
                let free = self.keys.refresh(&rows, started);
                self.let_go(free);
            }
            Ok(rows) => {
                self.keys = Keys::load(rows);
                self.ready = true;
                self.ctx.status.works("read blocked keys");
            }
            Err(error) => {
                self.ctx.store_failed("read blocked keys", &error);
                self.keys_at = Some(now + STORE_RETRY.delay(3, rand::random()));
            }
        }
    }

    /// Puts messages whose key is free again into their lanes.
    fn let_go(&mut self, items: Vec<Item>) {
        for item in items {
            self.lanes.push(item);
        }
    }
}

/// The ordering key of a message, where it has one.
fn key_of(message: &Message) -> Option<&str> {
    message.key.as_deref()
}

fn is_lost(error: &Error) -> bool {
    error.kind() == ErrorKind::LeaseLost
}
