//! Owning shards: acquire, renew, hand to shard tasks, release.
//!
//! ```text
//!            acquired                    renewed: deadline = sent + ttl − margin
//!  (none) ─────────────► held ◄────────────────────────────┐
//!     ▲                   │ │ deadline passes               │
//!     │ lost, released    │ └──────────► fenced ────────────┘
//!     └───────────────────┴─────────────────┘ (no publish starts)
//! ```
//!
//! The deadline counts from the instant a request was *sent*, on the local monotonic clock: the database
//! prolongs the lease later than that, so we stop before it lets another relay in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Summary;
use super::options::RetryPolicy;
use super::shard::{Context, End, ShardTask, Signals};
use super::status::{RelayState, chain};
use crate::record::{Lease, Owner, Shard};
use crate::store::Renewed;
use crate::{Error, Wakeup};

/// How long a release may take. Chosen: the lease ends by itself, so there is no point in waiting long.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Least time between two looks for producers of other processes, for databases that answer at once.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// Pause after the database refused such a look.
const LOOK_RETRY: Duration = Duration::from_secs(1);

/// Pauses before a broken shard starts again.
const BREAKS: RetryPolicy = RetryPolicy {
    initial: Duration::from_millis(100),
    max: Duration::from_secs(60),
    jitter: 0.2,
    max_attempts: u32::MAX,
};

/// A shard that ran so long without breaking is as good as new.
const FORGIVEN: Duration = Duration::from_secs(300);

/// A relay that holds a shard asks for more so many times less often than a standby.
const CONTENT: u32 = 5;

/// The main loop turns at least this often; the status shows when it last did.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Runs a relay to its end.
pub(super) async fn run(
    ctx: Arc<Context>,
    owner: Owner,
    wakeup: Option<Wakeup>,
    shutdown: CancellationToken,
) -> Result<Summary, Error> {
    if !checked(&ctx, &shutdown).await? {
        ctx.status.set_state(RelayState::Stopped);
        return Ok(Summary::default());
    }
    tracing::info!(%owner, source = %ctx.options.source, store = ctx.store.traits().name, "relay started");
    let (wake, _) = watch::channel(0);
    let mut aside = JoinSet::new();
    aside.spawn(look_for_producers(ctx.clone(), wakeup, wake.clone()));
    aside.spawn(measure_backlog(ctx.clone()));
    let summary = Owned::new(ctx.clone(), owner, wake).run(shutdown).await;
    ctx.status.set_state(RelayState::Stopped);
    tracing::info!(%owner, published = summary.totals.published, released = summary.released,
        abandoned = summary.abandoned, "relay stopped");
    Ok(summary)
}

/// Checks the database until it answers; false: shut down before it did.
async fn checked(ctx: &Context, shutdown: &CancellationToken) -> Result<bool, Error> {
    loop {
        let result = tokio::select! {
            () = shutdown.cancelled() => return Ok(false),
            result = ctx.store.check() => result,
        };
        match result {
            Ok(()) => {
                ctx.status.works("check");
                return Ok(true);
            }
            Err(error) if error.is_transient() => {
                tracing::warn!(error = %chain(&error), "the database does not answer; the relay waits for it");
                ctx.store_failed("check", &error);
                ctx.status.beat();
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(false),
            () = sleep(ctx.options.acquire_interval) => {}
        }
    }
}

/// Turns every sign of new rows into a wake-up of all shards.
async fn look_for_producers(ctx: Arc<Context>, wakeup: Option<Wakeup>, wake: watch::Sender<u64>) {
    let wakeup = wakeup.unwrap_or_default();
    let store = async {
        loop {
            let started = Instant::now();
            match ctx.store.wait(ctx.options.poll_interval).await {
                Ok(()) => {
                    if started.elapsed() < ctx.options.poll_interval {
                        ctx.meters.woken("notify");
                        wake.send_modify(|count| *count += 1);
                    } else {
                        ctx.meters.woken("poll");
                    }
                    sleep(LOOK_PAUSE.saturating_sub(started.elapsed())).await;
                }
                Err(_) => sleep(LOOK_RETRY).await,
            }
        }
    };
    let here = async {
        loop {
            wakeup.notified().await;
            ctx.meters.woken("commit");
            wake.send_modify(|count| *count += 1);
        }
    };
    tokio::join!(store, here);
}

async fn measure_backlog(ctx: Arc<Context>) {
    loop {
        ctx.meters.measure(ctx.store.as_ref()).await;
        sleep(ctx.options.backlog_interval).await;
    }
}

/// A shard that this relay holds.
struct Held {
    lease: Lease,
    deadline: watch::Sender<Instant>,
    lost: CancellationToken,
    _ends_with_the_relay: DropGuard,
}

/// What a database call about leases came back with.
enum Answer {
    Acquired(Result<Vec<Lease>, Error>, Instant),
    Renewed(Result<Vec<Renewed>, Error>, Vec<Lease>, Instant),
    Released(Result<(), Error>, usize),
}

/// The shards of one relay.
struct Owned {
    ctx: Arc<Context>,
    owner: Owner,
    wake: watch::Sender<u64>,
    drain: CancellationToken,
    drain_until: Option<Instant>,
    held: HashMap<Shard, Held>,
    tasks: JoinSet<(Lease, End)>,
    calls: JoinSet<Answer>,
    acquiring: bool,
    renewing: bool,
    releasing: usize,
    acquire_at: Instant,
    renew_at: Instant,
    failures: u32,
    /// Breaks of shards in a row, and the last one.
    breaks: (u32, Instant),
    summary: Summary,
}

impl Owned {
    fn new(ctx: Arc<Context>, owner: Owner, wake: watch::Sender<u64>) -> Self {
        let now = Instant::now();
        Self {
            ctx,
            owner,
            wake,
            drain: CancellationToken::new(),
            drain_until: None,
            held: HashMap::new(),
            tasks: JoinSet::new(),
            calls: JoinSet::new(),
            acquiring: false,
            renewing: false,
            releasing: 0,
            acquire_at: now,
            renew_at: now,
            failures: 0,
            breaks: (0, now),
            summary: Summary::default(),
        }
    }

    async fn run(mut self, shutdown: CancellationToken) -> Summary {
        loop {
            let now = Instant::now();
            self.ctx.status.beat();
            self.ctx.status.set_state(self.state());
            if let Some(until) = self.drain_until
                && ((self.tasks.is_empty() && self.releasing == 0 && !self.acquiring) || now >= until)
            {
                return self.end();
            }
            self.start_acquire(now);
            self.start_renew(now);
            let timer = self.next_timer(now);
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if self.drain_until.is_none() => self.start_drain(),
                Some(answer) = self.calls.join_next() => match answer {
                    Ok(answer) => self.answered(answer),
                    Err(error) => self.call_broke(&error),
                },
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok((lease, end)) => self.ended(lease, end),
                    Err(error) => self.task_broke(&error),
                },
                () = sleep_until(timer) => {}
            }
        }
    }

    fn state(&self) -> RelayState {
        match (self.drain_until, self.held.is_empty()) {
            (Some(_), _) => RelayState::Draining,
            (None, true) => RelayState::Standby,
            (None, false) => RelayState::Active,
        }
    }

    fn next_timer(&self, now: Instant) -> Instant {
        let mut timer = now + HEARTBEAT;
        if !self.acquiring && self.wants_more() {
            timer = timer.min(self.acquire_at);
        }
        if !self.renewing && !self.held.is_empty() {
            timer = timer.min(self.renew_at);
        }
        self.drain_until.map_or(timer, |until| timer.min(until))
    }

    fn wants_more(&self) -> bool {
        self.drain_until.is_none() && self.held.len() < self.ctx.options.shards
    }

    fn start_acquire(&mut self, now: Instant) {
        if self.acquiring || !self.wants_more() || now < self.acquire_at {
            return;
        }
        self.acquiring = true;
        let (ctx, owner) = (self.ctx.clone(), self.owner);
        let want = ctx.options.shards - self.held.len();
        self.calls.spawn(async move {
            let sent = Instant::now();
            let leases = ctx.store.acquire(owner, want, ctx.options.lease_ttl).await;
            Answer::Acquired(leases, sent)
        });
    }

    fn start_renew(&mut self, now: Instant) {
        if self.renewing || self.held.is_empty() || now < self.renew_at {
            return;
        }
        self.renewing = true;
        let ctx = self.ctx.clone();
        let leases: Vec<Lease> = self.held.values().map(|held| held.lease).collect();
        self.calls.spawn(async move {
            let sent = Instant::now();
            let ttl = ctx.options.lease_ttl;
            let renewed = timeout(ttl, ctx.store.renew(&leases, ttl))
                .await
                .unwrap_or_else(|_| {
                    Err(Error::new(
                        crate::ErrorKind::Unreachable,
                        "renew",
                        "the database did not answer within the lease",
                    ))
                });
            Answer::Renewed(renewed, leases, sent)
        });
    }

    fn start_drain(&mut self) {
        tracing::info!(owner = %self.owner, shards = self.held.len(), "draining");
        self.drain_until = Some(Instant::now() + self.ctx.options.drain_timeout);
        self.drain.cancel();
    }

    fn answered(&mut self, answer: Answer) {
        let now = Instant::now();
        match answer {
            Answer::Acquired(Ok(leases), sent) => {
                self.acquiring = false;
                self.ctx.status.works("acquire");
                self.failures = 0;
                self.acquired(leases, sent);
                let patience = if self.held.is_empty() { 1 } else { CONTENT };
                self.acquire_at = now + self.ctx.options.acquire_interval * patience;
            }
            Answer::Acquired(Err(error), _) => {
                self.acquiring = false;
                self.acquire_at = now + self.ctx.options.acquire_interval;
                self.call_failed("acquire", &error);
            }
            Answer::Renewed(Ok(renewed), leases, sent) => {
                self.renewing = false;
                self.renew_at = sent + self.ctx.options.renew_interval();
                self.ctx.status.works("renew");
                self.failures = 0;
                self.renewed(&leases, &renewed, sent);
            }
            Answer::Renewed(Err(error), _, _) => {
                self.renewing = false;
                // Sooner than usual: the deadline does not wait.
                self.renew_at = now + self.ctx.options.renew_interval() / 5;
                self.call_failed("renew", &error);
            }
            Answer::Released(Ok(()), count) => {
                self.releasing -= 1;
                self.summary.released += count;
            }
            Answer::Released(Err(error), count) => {
                self.releasing -= 1;
                self.summary.abandoned += count;
                tracing::warn!(error = %chain(&error), "a lease was not released; it ends by itself");
            }
        }
    }

    fn call_failed(&mut self, operation: &'static str, error: &Error) {
        if self.failures == 0 {
            tracing::warn!(operation, error = %chain(error), "the database does not answer; it is asked again");
        }
        self.failures = self.failures.saturating_add(1);
        self.ctx.store_failed(operation, error);
    }

    fn acquired(&mut self, leases: Vec<Lease>, sent: Instant) {
        if leases.is_empty() {
            return;
        }
        if self.drain_until.is_some() {
            self.release(leases);
            return;
        }
        if self.held.is_empty() {
            self.renew_at = sent + self.ctx.options.renew_interval();
        }
        for lease in leases {
            tracing::info!(shard = %lease.shard, epoch = lease.epoch, after_expiry = lease.after_expiry, "lease acquired");
            self.ctx.meters.lease("held");
            let deadline = self.deadline(sent);
            self.start_shard(lease, deadline, sent);
        }
        self.ctx.meters.held_shards.set(self.held.len() as f64);
    }

    fn deadline(&self, sent: Instant) -> Instant {
        sent + self
            .ctx
            .options
            .lease_ttl
            .saturating_sub(self.ctx.options.margin())
    }

    fn start_shard(&mut self, lease: Lease, deadline: Instant, start_at: Instant) {
        let (deadline, deadline_seen) = watch::channel(deadline);
        let lost = CancellationToken::new();
        let mut wake = self.wake.subscribe();
        wake.mark_changed();
        let signals = Signals {
            deadline: deadline_seen,
            wake,
            drain: self.drain.clone(),
            lost: lost.clone(),
        };
        let task = ShardTask::new(self.ctx.clone(), lease, signals, start_at);
        self.tasks.spawn(async move { (lease, task.run().await) });
        let held = Held {
            lease,
            deadline,
            _ends_with_the_relay: lost.clone().drop_guard(),
            lost,
        };
        self.held.insert(lease.shard, held);
    }

    fn renewed(&mut self, leases: &[Lease], renewed: &[Renewed], sent: Instant) {
        let deadline = self.deadline(sent);
        for (lease, renewed) in leases.iter().zip(renewed) {
            let Some(held) = self.held.get(&lease.shard) else {
                continue;
            };
            if held.lease.epoch != lease.epoch {
                continue;
            }
            match renewed {
                Renewed::Held => {
                    held.deadline.send_replace(deadline);
                }
                Renewed::Lost => held.lost.cancel(),
            }
        }
    }

    fn ended(&mut self, lease: Lease, end: End) {
        // A shard taken anew while its old task was ending belongs to the new one.
        let ours = |held: &Held| held.lease.epoch == lease.epoch;
        if !self.held.get(&lease.shard).is_some_and(ours) {
            return;
        }
        let Some(held) = self.held.remove(&lease.shard) else {
            return;
        };
        self.ctx.status.hide(lease.shard);
        self.ctx.meters.held_shards.set(self.held.len() as f64);
        match end {
            End::Drained => {
                self.ctx.meters.lease("released");
                self.release(vec![lease]);
            }
            End::Lost => {
                tracing::warn!(shard = %lease.shard, epoch = lease.epoch, "lease lost");
                self.ctx.meters.lease("lost");
                self.acquire_at = Instant::now();
            }
            End::Broken => self.start_again(&held),
        }
    }

    /// Starts a broken shard as if its relay had died: what broke it may be a record. If it breaks again
    /// and again the pauses grow, because then it is hardly the record.
    fn start_again(&mut self, held: &Held) {
        let lease = Lease {
            after_expiry: true,
            ..held.lease
        };
        let now = Instant::now();
        let (count, last) = self.breaks;
        let count = match now.duration_since(last) < FORGIVEN {
            true => count.saturating_add(1),
            false => 1,
        };
        self.breaks = (count, now);
        let deadline = *held.deadline.borrow();
        self.start_shard(lease, deadline, now + BREAKS.delay(count, rand::random()));
    }

    fn release(&mut self, leases: Vec<Lease>) {
        self.releasing += 1;
        let ctx = self.ctx.clone();
        self.calls.spawn(async move {
            let released = timeout(RELEASE_TIMEOUT, ctx.store.release(&leases)).await;
            let released = released.unwrap_or_else(|_| {
                Err(Error::new(
                    crate::ErrorKind::Unreachable,
                    "release",
                    "the database did not answer",
                ))
            });
            Answer::Released(released, leases.len())
        });
    }

    /// A store that panics is a defect; the relay goes on as after an error.
    fn call_broke(&mut self, error: &tokio::task::JoinError) {
        tracing::error!(%error, "a database call of the relay panicked");
        self.ctx.status.failed("lease", "panic", error.to_string());
        (self.acquiring, self.renewing) = (false, false);
        self.releasing = 0;
        self.acquire_at = Instant::now() + self.ctx.options.acquire_interval;
        self.renew_at = Instant::now() + self.ctx.options.renew_interval() / 5;
    }

    /// Ends the shards whose task is gone; their leases end by themselves.
    fn task_broke(&mut self, error: &tokio::task::JoinError) {
        tracing::error!(%error, "a shard of the relay panicked");
        self.ctx.status.failed("relay", "panic", error.to_string());
        let gone = |held: &Held| held.deadline.is_closed();
        for shard in self
            .held
            .iter()
            .filter(|(_, held)| gone(held))
            .map(|(shard, _)| *shard)
            .collect::<Vec<_>>()
        {
            self.held.remove(&shard);
            self.ctx.status.hide(shard);
        }
    }

    fn end(mut self) -> Summary {
        self.summary.abandoned += self.tasks.len();
        self.summary.totals = self.ctx.status.totals();
        for shard in self.held.keys() {
            self.ctx.status.hide(*shard);
        }
        self.ctx.meters.held_shards.set(0.0);
        self.summary
    }
}
