//! Settling: outcomes are collected for a few milliseconds and written in one statement.
//!
//! One write at a time, so that rows reach the parked table in their order. A write that failed is repeated
//! as it was, before anything newer: it may have been committed.

use std::sync::Arc;

use tokio::time::Instant;

use super::work::{self, Wrote};
use super::{End, STORE_RETRY, ShardTask, is_lost};
use crate::record::{Park, ParkState, ParkedFailure, ParkedSettlement, Position, Settlement};
use crate::relay::options::RelayOptions;
use crate::relay::status::chain;

/// What is to be written and what is being written.
#[derive(Default)]
pub(super) struct Settling {
    next: Write,
    since: Option<Instant>,
    writing: Option<Arc<Write>>,
    under_way: bool,
    retry_at: Option<Instant>,
    failures: u32,
}

/// One write and what it changes in memory once it is done.
#[derive(Default)]
struct Write {
    hot: Arc<Settlement>,
    /// The key that each entry of `hot.park` holds.
    parks: Vec<Option<String>>,
    parked: Arc<ParkedSettlement>,
    /// Keys whose parked rows are gone for good.
    gone: Vec<String>,
}

impl Write {
    fn is_empty(&self) -> bool {
        self.hot.is_empty() && self.parked.published.is_empty() && self.parked.failed.is_empty()
    }

    fn rows(&self) -> usize {
        self.hot.published.len()
            + self.hot.park.len()
            + self.parked.published.len()
            + self.parked.failed.len()
    }
}

impl Settling {
    pub(super) fn is_idle(&self) -> bool {
        self.writing.is_none() && self.next.is_empty()
    }

    pub(super) fn publish(&mut self, position: Position) {
        self.hot().published.push(position);
    }

    /// Parks a row; `key` is the one it will hold.
    pub(super) fn park(&mut self, park: Park, key: Option<String>) {
        self.hot().park.push(park);
        self.next.parks.push(key);
    }

    /// `key`: the one whose row this was.
    pub(super) fn publish_parked(&mut self, sequence: i64, key: Option<String>) {
        self.parked().published.push(sequence);
        self.next.gone.extend(key);
    }

    /// `gone`: the key that the row held and holds no more.
    pub(super) fn fail_parked(&mut self, failure: ParkedFailure, gone: Option<String>) {
        self.parked().failed.push(failure);
        self.next.gone.extend(gone);
    }

    fn hot(&mut self) -> &mut Settlement {
        self.since.get_or_insert_with(Instant::now);
        Arc::make_mut(&mut self.next.hot)
    }

    fn parked(&mut self) -> &mut ParkedSettlement {
        self.since.get_or_insert_with(Instant::now);
        Arc::make_mut(&mut self.next.parked)
    }

    /// Positions of the hot table not settled yet.
    pub(super) fn positions(&self) -> impl Iterator<Item = Position> {
        let writes = [Some(&self.next), self.writing.as_deref()];
        writes.into_iter().flatten().flat_map(|write| {
            let parks = write.hot.park.iter().map(|park| park.position);
            write.hot.published.iter().copied().chain(parks)
        })
    }

    /// When the next write is to start, if its time alone decides.
    pub(super) fn due_at(&self, options: &RelayOptions) -> Option<Instant> {
        if self.under_way {
            return None;
        }
        self.retry_at
            .or(self.since.map(|since| since + options.settle_interval))
    }
}

impl ShardTask {
    pub(super) fn start_settle(&mut self, now: Instant) {
        let settling = &self.settling;
        if settling.under_way || settling.retry_at.is_some_and(|at| now < at) {
            return;
        }
        // A settle without rows still tells the bound of the gaps: worth one, when none comes by itself.
        let for_bound = self.ctx.store.traits().horizon
            && self.unsettled == 0
            && self.gaps.want_bound()
            && !self.draining;
        if settling.writing.is_none() && !(for_bound && settling.next.is_empty()) && !self.settle_is_due(now)
        {
            return;
        }
        let (write, repeated) = match self.settling.writing.take() {
            Some(write) => (write, true),
            None => (Arc::new(std::mem::take(&mut self.settling.next)), false),
        };
        if !repeated {
            self.settling.since = None;
        }
        self.settling.under_way = true;
        let number = self.gaps.settle_sent();
        let hot = (!write.hot.is_empty() || write.is_empty()).then(|| write.hot.clone());
        self.work.spawn(work::settle(
            self.ctx.clone(),
            self.lease,
            number,
            hot,
            write.parked.clone(),
        ));
        self.settling.writing = Some(write);
    }

    fn settle_is_due(&self, now: Instant) -> bool {
        let (settling, options) = (&self.settling, &self.ctx.options);
        if settling.next.is_empty() {
            return false;
        }
        let all_there = self.calls.is_empty() && self.lanes.queued() == 0;
        self.draining
            || settling.next.rows() >= options.batch_size
            || settling.since.is_some_and(|since| now >= since + options.settle_interval)
            // Parked rows are tried in rounds: the next one waits for this write.
            || (all_there && !self.round.is_empty())
            || self.unsettled + options.batch_size > options.max_in_flight
    }

    pub(super) fn wrote(&mut self, wrote: Wrote) -> Result<(), End> {
        self.settling.under_way = false;
        if let Some(bound) = wrote.hot.and_then(|settled| settled.bound) {
            self.gaps.settled(wrote.number, bound);
        }
        if let Some(error) = wrote.error {
            if is_lost(&error) {
                tracing::warn!(shard = %self.lease.shard, error = %chain(&error), "the lease is lost; nothing was settled");
                return Err(End::Lost);
            }
            let settling = &mut self.settling;
            if settling.failures == 0 {
                tracing::warn!(shard = %self.lease.shard, error = %chain(&error), "settle failed; it is repeated");
            }
            settling.failures = settling.failures.saturating_add(1);
            settling.retry_at = Some(Instant::now() + STORE_RETRY.delay(settling.failures, rand::random()));
            self.ctx.store_failed("settle", &error);
            return Ok(());
        }
        self.settling.failures = 0;
        self.settling.retry_at = None;
        self.ctx.status.works("settle");
        let Some(write) = self.settling.writing.take() else {
            return Ok(());
        };
        self.written(&write);
        Ok(())
    }

    /// The rows of `write` are out of memory, and the keys learn of it.
    fn written(&mut self, write: &Write) {
        let now = Instant::now();
        self.unsettled -= write.hot.published.len() + write.hot.park.len();
        for (park, key) in write.hot.park.iter().zip(&write.parks) {
            if let Some(key) = key {
                self.keys.arrived(key);
            }
            if park.state == ParkState::Retry {
                self.round.expect(now + park.delay);
            }
        }
        for sequence in &write.parked.published {
            self.round.forget(*sequence);
        }
        for failure in &write.parked.failed {
            self.round.forget(failure.sequence);
            if failure.state == ParkState::Retry {
                self.round.expect(now + failure.delay);
            }
        }
        if !write.hot.park.is_empty() {
            let parked = write.hot.park.len() as u64;
            self.ctx.status.count(|totals| totals.parked += parked);
        }
        if write.rows() > write.hot.published.len() {
            // What waited behind these rows may be due at once.
            self.round.expect(now);
        }
        for key in &write.gone {
            let free = self.keys.gone(key);
            self.let_go(free);
        }
        if !write.parked.published.is_empty() && self.keys.is_empty() && !self.circuit.is_open() {
            // What failed has been published, and nothing waits behind it any more.
            self.ctx.status.works("publish");
        }
    }
}
