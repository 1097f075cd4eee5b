//! Publishing: which lanes go out, and carrying out the plan for what came back.

use std::collections::HashSet;
use std::time::Duration;

use outbox_broker::{Error as BrokerError, ErrorKind as BrokerErrorKind, Message, Outcome};
use tokio::time::Instant;

use super::work::{self, Answer, Returned};
use super::{ShardTask, chain, key_of};
use crate::record::{ParkState, ParkedFailure};
use crate::relay::circuit::Allowed;
use crate::relay::lanes::{Batch, Item, Origin, Tag};
use crate::relay::options::OnExhausted;
use crate::relay::plan::{Plan, Step, plan};

/// A publish call under way.
pub(super) struct Call {
    pub(super) tags: Vec<Tag>,
    lanes: Vec<usize>,
    probe: bool,
}

impl ShardTask {
    pub(super) fn start_publishes(&mut self, now: Instant) {
        if self.fenced() {
            return;
        }
        let options = &self.ctx.options;
        let (full, enough) = (options.batch_size, (options.batch_size / options.lanes).max(1));
        match self.circuit.allowed(now) {
            Allowed::Nothing(_) => {}
            Allowed::Probe(size) => {
                if let Some(batch) = self.lanes.take(size, 1) {
                    self.circuit.probe_started();
                    self.start_call(batch, true);
                }
            }
            Allowed::All => {
                while let Some(batch) = self.lanes.take(full, enough) {
                    self.start_call(batch, false);
                }
            }
        }
    }

    fn start_call(&mut self, batch: Batch, probe: bool) {
        let id = self.next_call;
        self.next_call += 1;
        // The keys of parked rows are needed afterwards, to let go of what waits behind them.
        let keep = batch
            .tags
            .iter()
            .any(|tag| matches!(tag.origin, Origin::Parked { .. }));
        let deadline = *self.signals.deadline.borrow();
        self.work.spawn(work::publish(
            self.ctx.clone(),
            id,
            batch.messages,
            deadline,
            keep,
        ));
        self.calls.insert(
            id,
            Call {
                tags: batch.tags,
                lanes: batch.lanes,
                probe,
            },
        );
    }

    pub(super) fn published(&mut self, returned: Returned) {
        let Some(call) = self.calls.remove(&returned.call) else {
            return;
        };
        match returned.answer {
            Answer::AllAccepted => {
                self.broker_answers(call.probe);
                for tag in &call.tags {
                    self.bytes -= tag.bytes;
                    if let Origin::Hot(position) = tag.origin {
                        self.settling.publish(position);
                    }
                }
                self.ctx
                    .status
                    .count(|totals| totals.published += call.tags.len() as u64);
            }
            Answer::NotStarted(messages) => {
                if call.probe {
                    self.circuit.probe_untried();
                }
                self.lanes.put_back(call.tags.into_iter().zip(messages).collect());
            }
            Answer::Mixed { messages, outcomes } => {
                self.carry_out(call.tags, messages, outcomes, &call.lanes, call.probe);
            }
        }
        self.lanes.rest(&call.lanes);
    }

    fn carry_out(
        &mut self,
        tags: Vec<Tag>,
        messages: Vec<Message>,
        outcomes: Vec<Outcome>,
        lanes: &[usize],
        probe: bool,
    ) {
        let options = &self.ctx.options;
        let plan = plan(
            &messages,
            &tags,
            &outcomes,
            &options.retry,
            options.on_exhausted,
            rand::random,
        );
        self.judge_the_broker(&plan, &outcomes, probe);
        let mut again: Vec<Item> = Vec::new();
        let mut failing: HashSet<String> = HashSet::new();
        let mut outcomes = outcomes.into_iter();
        for ((tag, message), step) in tags.into_iter().zip(messages).zip(plan.steps) {
            let error = outcomes.next().and_then(Result::err);
            match step {
                Step::Again => again.push((tag, message)),
                Step::Published => self.accepted(tag, message),
                Step::Behind => self.park_items(vec![(tag, message)]),
                Step::Park {
                    state,
                    attempts,
                    delay,
                } => {
                    if state == ParkState::Retry || !self.ctx.skip_dead() {
                        failing.extend(key_of(&message).map(str::to_owned));
                    }
                    self.park_failed((tag, message), state, attempts, delay, error.as_ref());
                }
            }
        }
        self.lanes.put_back(again);
        let failing: Vec<String> = failing.into_iter().collect();
        self.fail_keys(lanes, &failing);
    }

    fn accepted(&mut self, tag: Tag, message: Message) {
        self.bytes -= tag.bytes;
        self.ctx.status.count(|totals| totals.published += 1);
        match tag.origin {
            Origin::Hot(position) => self.settling.publish(position),
            Origin::Parked { sequence, holds, .. } => {
                if let Some(key) = key_of(&message) {
                    self.keys.passed(key);
                }
                let key = message.key.filter(|_| holds);
                if let Some(key) = &key {
                    self.keys.leaving(key);
                }
                self.settling.publish_parked(sequence, key);
            }
        }
    }

    /// Parks a message with its own error, or keeps it parked.
    fn park_failed(
        &mut self,
        (tag, message): Item,
        state: ParkState,
        attempts: u32,
        delay: Duration,
        error: Option<&BrokerError>,
    ) {
        self.bytes -= tag.bytes;
        let text = error.map_or_else(|| "no outcome".to_owned(), |error| chain(error));
        let kind = error.map_or("no_outcome", |error| error.kind().as_str());
        tracing::debug!(shard = %self.lease.shard, id = %message.id, topic = %message.topic, attempt = attempts,
            error = %text, state = ?state, "publish failed; the message is parked");
        if state == ParkState::Dead {
            self.dead(kind);
            tracing::error!(shard = %self.lease.shard, topic = %message.topic, attempt = attempts, kind,
                "a message became a dead letter");
        } else {
            self.ctx.meters.retries.increment(1);
        }
        self.ctx.status.count(|totals| totals.failed += 1);
        self.ctx.status.failed("publish", kind, text.clone());
        let holds_from_now = state == ParkState::Retry || self.ctx.options.on_exhausted == OnExhausted::Wait;
        let key = message.key;
        match tag.origin {
            Origin::Hot(position) => {
                let key = key.filter(|_| holds_from_now);
                if let Some(key) = &key {
                    self.keys.moving(key);
                }
                let entry = super::claim::park(position, state, attempts, delay, Some(text));
                self.settling.park(entry, key);
            }
            Origin::Parked { sequence, holds, .. } => {
                if let (Some(key), true, false) = (&key, holds_from_now, holds) {
                    self.keys.hold(key);
                }
                let failure = ParkedFailure {
                    sequence,
                    state,
                    delay,
                    error: text,
                };
                let gone = key.filter(|_| holds && !holds_from_now);
                if let Some(key) = &gone {
                    self.keys.leaving(key);
                }
                self.settling.fail_parked(failure, gone);
            }
        }
    }

    /// Holds keys back behind a failed message: what follows in `lanes` and in memory is parked behind it.
    pub(super) fn fail_keys(&mut self, lanes: &[usize], failing: &[String]) {
        if failing.is_empty() {
            return;
        }
        let set: HashSet<&str> = failing.iter().map(String::as_str).collect();
        let followers = self.lanes.extract(lanes, |(_, message)| {
            key_of(message).is_some_and(|key| set.contains(key))
        });
        self.park_items(followers);
        for key in failing {
            let waiting = self.keys.fail(key);
            self.park_items(waiting);
        }
    }

    fn judge_the_broker(&mut self, plan: &Plan, outcomes: &[Outcome], probe: bool) {
        let Some(index) = plan.broker_failure else {
            self.broker_answers(probe);
            return;
        };
        let now = Instant::now();
        let failed = plan.steps.iter().filter(|step| **step == Step::Again).count();
        self.ctx.status.count(|totals| totals.failed += failed as u64);
        let missing = BrokerError::new(
            BrokerErrorKind::OutcomeUnknown,
            "publish",
            "the adapter returned too few outcomes",
        );
        let error = outcomes
            .get(index)
            .and_then(|outcome| outcome.as_ref().err())
            .unwrap_or(&missing);
        let text = chain(error);
        let retry = self.ctx.options.retry;
        if self
            .circuit
            .failed(probe, plan.overload, &retry, rand::random(), now)
        {
            if error.needs_operator() {
                tracing::error!(shard = %self.lease.shard, kind = %error.kind(), error = %text,
                    "the broker refuses this relay; nothing is lost, publishing is tried again");
            } else {
                tracing::warn!(shard = %self.lease.shard, kind = %error.kind(), overload = plan.overload, error = %text,
                    "the broker does not take messages; nothing is lost, publishing is tried again");
            }
        }
        self.ctx.status.failed("publish", error.kind().as_str(), text);
    }

    fn broker_answers(&mut self, probe: bool) {
        if self.circuit.answered(probe) {
            tracing::info!(shard = %self.lease.shard, queued = self.lanes.queued(), "the broker takes messages again");
        }
        if !self.circuit.is_open() && self.keys.is_empty() {
            self.ctx.status.works("publish");
        }
    }
}
