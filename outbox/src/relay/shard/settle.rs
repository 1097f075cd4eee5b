//! Settling: outcomes are collected for a few milliseconds and written in one statement.
//!
//! One write at a time, so that rows reach the parked table in their order. A write that failed is repeated
//! as it was, before anything newer: it may have been committed.

use std::collections::HashSet;
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
    /// Confirmed positions that the last write left out, because their neighbours were on their way.
    kept: Vec<Position>,
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
        self.writing.is_none() && self.next.is_empty() && self.kept.is_empty()
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
        writes
            .into_iter()
            .flatten()
            .flat_map(|write| {
                let parks = write.hot.park.iter().map(|park| park.position);
                write.hot.published.iter().copied().chain(parks)
            })
            .chain(self.kept.iter().copied())
    }

    /// Rows that wait to be written.
    fn waiting(&self) -> usize {
        self.next.rows() + self.kept.len()
    }

    /// What is to be written now. With `hold`, positions that are no part of a run stay back, once: their
    /// neighbours are being published, and a run is deleted at half the cost.
    fn take_next(&mut self, hold: bool) -> Write {
        let kept = std::mem::take(&mut self.kept);
        self.since = None;
        if !kept.is_empty() {
            self.hot().published.extend(&kept);
        }
        if hold && !self.next.hot.published.is_empty() {
            let published = std::mem::take(&mut self.hot().published);
            let (send, keep) = hold_back(published, &kept);
            self.hot().published = send;
            self.kept = keep;
        }
        self.since = (!self.kept.is_empty()).then(Instant::now);
        std::mem::take(&mut self.next)
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

/// Positions in a row that are worth a write. Chosen: what the databases delete as a range.
const RUN: usize = 64;

/// Divides `published` into what is written now and what waits for its neighbours: positions outside of a
/// run that did not wait before. Everything, if there is no run.
fn hold_back(mut published: Vec<Position>, kept: &[Position]) -> (Vec<Position>, Vec<Position>) {
    published.sort_unstable();
    let waited: HashSet<Position> = kept.iter().copied().collect();
    let (mut send, mut keep) = (Vec::with_capacity(published.len()), Vec::new());
    let mut any_run = false;
    for run in published.chunk_by(|before, after| before.checked_add(1) == Some(*after)) {
        if run.len() >= RUN {
            any_run = true;
            send.extend(run);
        } else {
            keep.extend(run.iter().filter(|position| !waited.contains(position)));
            send.extend(run.iter().filter(|position| waited.contains(position)));
        }
    }
    if any_run {
        (send, keep)
    } else {
        (published, Vec::new())
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
        let nothing = settling.waiting() == 0;
        if settling.writing.is_none() && !(for_bound && nothing) && !self.settle_is_due(now) {
            return;
        }
        let hold = !self.draining && !self.calls.is_empty();
        let write = match self.settling.writing.take() {
            Some(write) => write,
            None => Arc::new(self.settling.take_next(hold)),
        };
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
        if settling.waiting() == 0 {
            return false;
        }
        let all_there = self.calls.is_empty() && self.lanes.queued() == 0;
        self.draining
            || settling.waiting() >= options.batch_size
            || settling.since.is_some_and(|since| now >= since + options.settle_interval)
            // Parked rows are tried in rounds: the next one waits for this write.
            || (all_there && !self.round.is_empty())
            // Claiming waits for room; calls under way will fill this write.
            || (self.calls.is_empty() && self.unsettled + options.batch_size > options.max_in_flight)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: Position) -> Vec<Position> {
        (first..).take(RUN).collect()
    }

    #[test]
    fn what_is_no_part_of_a_run_waits_once() {
        let first: Vec<Position> = run(1).into_iter().chain([1_000, 1_002]).collect();
        let (send, keep) = hold_back(first, &[]);
        assert_eq!((send, &keep[..]), (run(1), &[1_000, 1_002][..]));

        let second: Vec<Position> = run(2_000).into_iter().chain([1_000, 1_002, 1_004]).collect();
        let (send, kept) = hold_back(second, &keep);
        assert!(send.contains(&1_000) && send.contains(&1_002), "they waited once");
        assert_eq!(kept, [1_004]);
        assert_eq!(send.len(), RUN + 2);
    }

    #[test]
    fn what_waited_joins_its_neighbours() {
        let late = run(1).split_off(1);
        let (send, keep) = hold_back(run(1), &late);
        assert_eq!((send, keep), (run(1), Vec::new()));
    }

    #[test]
    fn without_a_run_nothing_waits() {
        let (send, keep) = hold_back(vec![9, 1, 5], &[]);
        assert_eq!((send, keep), (vec![1, 5, 9], Vec::new()));
        assert_eq!(hold_back(Vec::new(), &[]), (Vec::new(), Vec::new()));
    }
}
