//! Parked rows: reading the due ones, counting their attempt, and handing them to the lanes.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::work;
use super::{End, STORE_RETRY, ShardTask, is_lost};
use crate::Error;
use crate::record::{ParkState, Parked, ParkedFailure};
use crate::relay::circuit::Allowed;
use crate::relay::lanes::{Item, Origin, Tag};
use crate::relay::retry::{self, Hopeless};

/// Least pause after a look that found nothing to try.
const PAUSE: Duration = Duration::from_millis(10);

/// The parked rows being tried: one round at a time.
pub(super) struct Round {
    sequences: HashSet<i64>,
    under_way: bool,
    /// The next look at the parked table.
    pub(super) at: Option<Instant>,
    failures: u32,
    /// The previous relay died, maybe of one of these rows.
    careful: bool,
}

impl Round {
    pub(super) fn new(careful: bool, now: Instant) -> Self {
        Self {
            sequences: HashSet::new(),
            under_way: false,
            at: Some(now),
            failures: 0,
            careful,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    pub(super) fn forget(&mut self, sequence: i64) {
        self.sequences.remove(&sequence);
    }

    /// A row may be due at `at`.
    pub(super) fn expect(&mut self, at: Instant) {
        self.at = Some(self.at.map_or(at, |planned| planned.min(at)));
    }
}

impl ShardTask {
    pub(super) fn start_due(&mut self, now: Instant) {
        if !self.can_look_for_due(now) || self.round.at.is_some_and(|at| now < at) {
            return;
        }
        self.round.under_way = true;
        self.round.at = None;
        self.work.spawn(work::due(
            self.ctx.clone(),
            self.lease,
            self.ctx.options.batch_size,
        ));
    }

    /// One round at a time; while the broker does not answer, only if there is nothing else to probe with.
    pub(super) fn can_look_for_due(&self, now: Instant) -> bool {
        let wanted = match self.circuit.allowed(now) {
            Allowed::All => true,
            Allowed::Probe(_) => self.lanes.queued() == 0,
            Allowed::Nothing(_) => false,
        };
        wanted && self.ready && !self.fenced() && !self.round.under_way && self.round.sequences.is_empty()
    }

    pub(super) fn due(&mut self, due: Result<(Vec<Parked>, Option<Duration>), Error>) {
        let now = Instant::now();
        self.round.under_way = false;
        let (rows, next) = match due {
            Ok(due) => due,
            Err(error) => return self.parked_failed("read due rows", &error),
        };
        self.round.failures = 0;
        self.ctx.status.works("read due rows");
        let longest = self.ctx.options.due_interval;
        if rows.is_empty() {
            self.round.careful &= self.reading.suspects > 0 || !self.settling.is_idle();
            self.round
                .expect(now + next.unwrap_or(longest).clamp(PAUSE.min(longest), longest));
            return;
        }
        let options = &self.ctx.options;
        let chosen = retry::select(
            rows,
            options.batch_size,
            options.retry.max_attempts,
            self.round.careful,
        );
        for hopeless in chosen.dead {
            self.give_up(hopeless);
        }
        if chosen.begin.is_empty() {
            self.round.expect(now + PAUSE);
            return;
        }
        self.round.under_way = true;
        self.work
            .spawn(work::begin(self.ctx.clone(), self.lease, chosen.begin));
    }

    fn give_up(&mut self, hopeless: Hopeless) {
        let Hopeless { failure, key, kind } = hopeless;
        self.dead(kind);
        tracing::error!(shard = %self.lease.shard, sequence = failure.sequence, kind, "a message became a dead letter");
        self.round.sequences.insert(failure.sequence);
        let mut gone = None;
        if let Some((key, holds)) = key {
            if !self.ctx.skip_dead() {
                if !holds {
                    self.keys.hold(&key);
                }
                self.fail_keys(&[], std::slice::from_ref(&key));
            } else if holds {
                self.keys.leaving(&key);
                gone = Some(key);
            }
        }
        self.settling.fail_parked(failure, gone);
    }

    pub(super) fn begun(&mut self, begun: Result<Vec<Parked>, (Error, Vec<Parked>)>) -> Result<(), End> {
        self.round.under_way = false;
        let rows = match begun {
            Ok(rows) => rows,
            Err((error, _)) if is_lost(&error) => return Err(End::Lost),
            Err((error, _)) => {
                self.parked_failed("count attempts", &error);
                return Ok(());
            }
        };
        self.ctx.status.works("count attempts");
        self.round.expect(Instant::now());
        for row in rows {
            let Ok(message) = row.message else {
                continue;
            };
            let origin = Origin::Parked {
                sequence: row.sequence,
                attempts: row.attempts.saturating_add(1),
                holds: row.state == ParkState::Retry,
            };
            let tag = Tag::new(origin, &message);
            self.bytes += tag.bytes;
            self.round.sequences.insert(row.sequence);
            self.lanes.push((tag, message));
        }
        Ok(())
    }

    /// Gives the attempts that were counted and not made an error, so that the next relay does not suspect
    /// these rows of having killed this one.
    pub(super) fn hand_back(&mut self) {
        let parked = |(tag, _): &Item| matches!(tag.origin, Origin::Parked { .. });
        for (tag, _) in self.lanes.extract_all(parked) {
            self.bytes -= tag.bytes;
            if let Origin::Parked { sequence, .. } = tag.origin {
                let failure = ParkedFailure {
                    sequence,
                    state: ParkState::Retry,
                    delay: Duration::ZERO,
                    error: "not tried: the relay was stopped first".to_owned(),
                };
                self.settling.fail_parked(failure, None);
            }
        }
    }

    fn parked_failed(&mut self, operation: &'static str, error: &Error) {
        let round = &mut self.round;
        round.failures = round.failures.saturating_add(1);
        round.at = Some(Instant::now() + STORE_RETRY.delay(round.failures, rand::random()));
        self.ctx.store_failed(operation, error);
    }
}
