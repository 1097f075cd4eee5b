//! Reading: when to claim, what to ask for, and where the rows go.

use std::time::Duration;

use chrono::Utc;
use outbox_broker::Message;
use tokio::time::Instant;

use super::work::{self, ClaimCall, Read};
use super::{STORE_RETRY, ShardTask};
use crate::record::{Claim, Park, ParkState, Position, Record};
use crate::relay::keys::Admission;
use crate::relay::lanes::{Item, Origin, Tag};
use crate::relay::options::OnExpired;

/// First pause of an idle relay, doubled up to `poll_interval`. Chosen: an empty claim costs the database
/// about 70 µs, so this one costs 1.4 % of a core, for a moment.
const FIRST_POLL: Duration = Duration::from_millis(5);

/// Longest pause while positions are missing: their rows may come any moment, maybe without a wake-up.
const GAP_POLL: Duration = Duration::from_millis(50);

/// Least time between claims that return one row or none. Chosen: 1,000 claims a second is 7 % of a core
/// of the database.
const SINGLE_ROW_PAUSE: Duration = Duration::from_millis(1);

/// How often an idle relay compares the table with its memory.
const IDLE_SWEEP: Duration = Duration::from_secs(1);

/// How often a database without a horizon is asked which missing positions have a row. Chosen: a dozen times
/// within the life of a gap, so that one answer may fail.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A sweep takes at most this share of the time: a table full of dead rows makes it slow.
const SWEEP_SHARE: u32 = 20;

/// When to claim.
pub(super) struct Reading {
    under_way: bool,
    pub(super) woken: bool,
    /// The next claim if nobody wakes us.
    next_at: Instant,
    /// A wake-up makes it this early.
    earliest: Instant,
    idle: Duration,
    sweep_at: Instant,
    sweep: Sweep,
    look_at: Instant,
    failures: u32,
    /// Rows that the previous, dead relay may have had in flight and that are parked unseen.
    pub(super) suspects: usize,
}

impl Reading {
    pub(super) fn new(suspects: usize, now: Instant) -> Self {
        Self {
            under_way: false,
            woken: true,
            next_at: now,
            earliest: now,
            idle: FIRST_POLL,
            // The first claim starts at the bottom anyway.
            sweep_at: now + IDLE_SWEEP,
            sweep: Sweep::default(),
            look_at: now + LOOK_INTERVAL,
            failures: 0,
            suspects,
        }
    }
}

/// How far the comparison of the table with memory has come: a table that was restored has more unknown rows
/// than fit into one claim.
#[derive(Default)]
struct Sweep {
    /// It goes on above this position.
    from: Position,
    /// It found rows that nobody expected.
    surprised: bool,
}

impl ShardTask {
    /// Whether memory and broker have room for another batch.
    pub(super) fn can_claim(&self) -> bool {
        let options = &self.ctx.options;
        !self.reading.under_way
            && !self.draining
            && !self.fenced()
            && self.ready
            && self.unsettled + options.batch_size <= options.max_in_flight
            && self.bytes < options.max_bytes
            && (!self.circuit.is_open() || self.lanes.queued() == 0)
    }

    pub(super) fn claim_at(&self) -> Option<Instant> {
        let reading = &self.reading;
        Some(if reading.woken {
            reading.earliest.min(reading.next_at)
        } else {
            reading.next_at
        })
    }

    pub(super) fn start_claim(&mut self, now: Instant) {
        if !self.can_claim() || self.claim_at().is_some_and(|at| now < at) {
            return;
        }
        let call = self.claim_call(now);
        self.reading.under_way = true;
        self.reading.woken = false;
        self.work.spawn(work::claim(self.ctx.clone(), call));
    }

    /// What to ask for. One statement, one snapshot: new rows together with everything still missing.
    fn claim_call(&mut self, now: Instant) -> ClaimCall {
        let options = &self.ctx.options;
        let mut call = ClaimCall {
            lease: self.lease,
            above: self.floor,
            limit: options.batch_size,
            max_bytes: options.max_bytes.saturating_sub(self.bytes).max(1),
            missing: Vec::new(),
            known: None,
            sweep: now >= self.reading.sweep_at,
            look: None,
        };
        if self.ctx.store.traits().dirty_reads && now >= self.reading.look_at {
            call.look = self.gaps.span();
            self.reading.look_at = now + LOOK_INTERVAL;
        }
        if call.sweep {
            call.above = self.reading.sweep.from;
        }
        call.missing = self.gaps.up_to(call.above);
        if call.above < self.floor || self.gaps.hold_known_rows() {
            // Rows in memory are read again and passed over: there must be room for the others.
            let known = self.known();
            call.limit += known.len();
            call.max_bytes = call.max_bytes.saturating_add(self.bytes);
            call.known = Some(known);
        }
        call
    }

    pub(super) fn claimed(&mut self, read: Read) {
        let now = Instant::now();
        self.reading.under_way = false;
        let Read {
            call,
            result,
            present,
            started,
        } = read;
        match result {
            Ok(claim) => {
                if self.reading.failures > 0 {
                    self.reading.failures = 0;
                    tracing::info!(shard = %self.lease.shard, "the database answers again");
                }
                self.ctx.status.works("claim");
                let returned = claim.records.len();
                let full = claim.more || returned >= call.limit;
                let (more, last) = (claim.more, claim.records.last().map(|record| record.position));
                let accepted = self.accept(&call, claim, now);
                if let Some(present) = present {
                    self.gaps.looked(&present, now);
                }
                if call.sweep {
                    self.swept(&call, if more { last } else { None }, last);
                }
                if self.reading.suspects > 0 && !full {
                    self.reading.suspects = 0;
                }
                tracing::debug!(shard = %self.lease.shard, accepted, floor = self.floor, sweep = call.sweep, "claimed");
                self.schedule_claim(&call, accepted, full, started, now);
            }
            Err(error) => {
                if self.reading.failures == 0 {
                    tracing::warn!(shard = %self.lease.shard, error = %super::chain(&error), "claim failed; it is repeated");
                }
                self.ctx.store_failed("claim", &error);
                self.reading.failures = self.reading.failures.saturating_add(1);
                self.reading.next_at = now + STORE_RETRY.delay(self.reading.failures, rand::random());
                self.reading.earliest = self.reading.next_at;
            }
        }
    }

    /// Idle: at once when woken. Busy: linger, unless there is more than fits in a batch.
    fn schedule_claim(
        &mut self,
        call: &ClaimCall,
        accepted: usize,
        full: bool,
        started: Instant,
        now: Instant,
    ) {
        let options = &self.ctx.options;
        let reading = &mut self.reading;
        if call.sweep && reading.sweep.from > 0 {
            reading.sweep_at = now;
        } else if call.sweep {
            let pause = if accepted == 0 && self.unsettled == 0 {
                IDLE_SWEEP.min(options.sweep_interval)
            } else {
                options.sweep_interval
            };
            reading.sweep_at = now + pause.max(now.duration_since(started) * SWEEP_SHARE);
        } else if accepted == 0 && self.unsettled == 0 {
            // Falling idle: the longer pause of a busy time no longer applies.
            reading.sweep_at = reading.sweep_at.min(now + IDLE_SWEEP);
        }
        let pause = match accepted {
            0 | 1 => SINGLE_ROW_PAUSE.min(options.linger),
            _ => options.linger,
        };
        reading.earliest = started + pause;
        reading.next_at = if (full && accepted > 0) || accepted * 2 >= options.batch_size {
            reading.earliest = now;
            now
        } else if accepted > 0 {
            reading.idle = FIRST_POLL;
            reading.earliest + FIRST_POLL.min(options.poll_interval)
        } else {
            let longest = match self.gaps.is_empty() {
                true => options.poll_interval,
                false => options.poll_interval.min(GAP_POLL),
            };
            let idle = reading.idle.min(longest);
            reading.idle = (idle * 2).min(options.poll_interval);
            now + idle
        };
    }

    /// Takes over what a claim read; returns how many rows were new to us.
    fn accept(&mut self, call: &ClaimCall, claim: Claim, now: Instant) -> usize {
        let tracks_gaps = self.ctx.store.traits().late_rows;
        let floor_before = self.floor;
        let mut accepted = 0;
        let mut late = 0;
        let expired_before = (self.ctx.options.on_expired != OnExpired::Publish).then(Utc::now);
        let mut found = Vec::new();
        let last = claim.records.last().map(|record| record.position);
        for record in claim.records {
            let position = record.position;
            if position <= floor_before {
                if call.known.as_ref().is_some_and(|known| known.contains(&position)) {
                    continue;
                }
                self.reading.sweep.surprised |= !self.gaps.fill(position);
                late += 1;
            } else {
                if tracks_gaps && position > self.floor + 1 {
                    found.push((self.floor + 1, position - 1));
                }
                self.floor = self.floor.max(position);
            }
            accepted += 1;
            self.unsettled += 1;
            self.accept_one(record, expired_before);
        }
        // A read that stopped at its limit may not have reached all gaps.
        let saw_all_gaps = !claim.more || last.is_some_and(|last| last >= floor_before);
        let traits = self.ctx.store.traits();
        if saw_all_gaps && (claim.horizon.is_some() || !(traits.horizon || traits.dirty_reads)) {
            self.gaps.expire(claim.horizon, now);
        }
        for (first, last) in found {
            self.gaps.discover(first, last, now);
        }
        if late > 0 && floor_before > 0 {
            self.ctx.meters.late_rows.increment(late);
        }
        accepted
    }

    /// Goes on with a sweep above `next`, or ends it. After surprises the floor comes down to what there is:
    /// a restored database hands out positions again that were read before.
    fn swept(&mut self, call: &ClaimCall, next: Option<Position>, last: Option<Position>) {
        let sweep = &mut self.reading.sweep;
        if let Some(next) = next
            && next < self.floor
        {
            sweep.from = next;
            return;
        }
        let surprised = std::mem::take(sweep).surprised;
        let known = call.known.iter().flatten().copied().max();
        let floor = last.max(known).unwrap_or(call.above).max(call.above);
        if surprised && floor < self.floor {
            tracing::warn!(shard = %self.lease.shard, floor, was = self.floor,
                "rows appeared at positions that were settled; was the database restored, or its sequence reset?");
            self.floor = floor;
            self.gaps.forget_above(floor);
        }
    }

    fn accept_one(&mut self, record: Record, now: Option<chrono::DateTime<Utc>>) {
        let position = record.position;
        let message = match record.message {
            Ok(message) => message,
            Err(malformed) => {
                let error = format!("the row is no message: {}", malformed.reason);
                self.dead("malformed");
                self.settling.park(
                    park(position, ParkState::Dead, 0, Duration::ZERO, Some(error)),
                    None,
                );
                return;
            }
        };
        if self.reading.suspects > 0 {
            self.reading.suspects -= 1;
            self.park_behind(position, message);
            return;
        }
        if message
            .expires_at
            .zip(now)
            .is_some_and(|(expires, now)| expires <= now)
        {
            self.expired(position, message);
            return;
        }
        let tag = Tag::new(Origin::Hot(position), &message);
        self.bytes += tag.bytes;
        if self.keys.is_empty() {
            self.lanes.push((tag, message));
            return;
        }
        match self.keys.admit((tag, message)) {
            Admission::Free(item) => self.lanes.push(item),
            Admission::Waits => {}
            Admission::Park(item) => self.park_items(vec![item]),
        }
    }

    fn expired(&mut self, position: Position, message: Message) {
        if self.ctx.options.on_expired == OnExpired::Drop {
            self.ctx.status.count(|totals| totals.dropped += 1);
            self.settling.publish(position);
            return;
        }
        self.dead("expired");
        let error = "the message was claimed after its expires_at".to_owned();
        let entry = park(position, ParkState::Dead, 0, Duration::ZERO, Some(error));
        let key = message.key.filter(|_| !self.ctx.skip_dead());
        if let Some(key) = &key {
            self.keys.moving(key);
            self.fail_keys(&[], std::slice::from_ref(key));
        }
        self.settling.park(entry, key);
    }

    /// Parks messages behind the rows of their keys.
    pub(super) fn park_items(&mut self, items: Vec<Item>) {
        for (tag, message) in items {
            self.bytes -= tag.bytes;
            match tag.origin {
                Origin::Hot(position) => self.park_behind(position, message),
                Origin::Parked { sequence, .. } => self.round.forget(sequence),
            }
        }
    }

    /// Parks a row without an attempt: it follows the rows of its key, or its first attempt is counted there.
    pub(super) fn park_behind(&mut self, position: Position, message: Message) {
        if let Some(key) = &message.key {
            self.keys.moving(key);
        }
        self.settling.park(
            park(position, ParkState::Retry, 0, Duration::ZERO, None),
            message.key,
        );
    }

    pub(super) fn dead(&self, kind: &'static str) {
        self.ctx.meters.dead(kind);
        self.ctx.status.count(|totals| totals.dead += 1);
    }
}

pub(super) fn park(
    position: Position,
    state: ParkState,
    attempts: u32,
    delay: Duration,
    error: Option<String>,
) -> Park {
    Park {
        position,
        state,
        attempts,
        delay,
        error,
    }
}
