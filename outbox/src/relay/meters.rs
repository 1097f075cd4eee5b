//! The relay's metrics, by the names an operator's dashboards use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::Utc;
use metrics::{
    Counter, Gauge, Histogram, Label, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use outbox_broker::{Message, Outcome};

use super::status::chain;
use crate::record::{Backlog, Bloat};
use crate::store::Store;

/// Topics with a label of their own; further ones are counted together as `_other`. Chosen: what one
/// dashboard can show.
const MOST_TOPICS: usize = 200;

/// From here on a pinned table is worth a line in the log. Chosen: what autovacuum would remove ten times over.
const DEAD_TUPLES_TO_WARN_OF: u64 = 100_000;

/// As [`DEAD_TUPLES_TO_WARN_OF`]. Chosen: longer than a transaction of a service.
const PINNED_TO_WARN_OF: Duration = Duration::from_secs(60);

/// The handles, made once so that counting is an atomic add.
#[derive(Clone)]
pub(super) struct Meters {
    source: Arc<str>,
    topics: Arc<Mutex<HashMap<String, Counter>>>,
    pub(super) claim_seconds: Histogram,
    pub(super) settle_seconds: Histogram,
    pub(super) publish_seconds: Histogram,
    pub(super) batch_messages: Histogram,
    end_to_end: Histogram,
    pub(super) retries: Counter,
    pub(super) late_rows: Counter,
    pub(super) held_shards: Gauge,
}

impl Meters {
    pub(super) fn new(source: &str) -> Self {
        describe();
        let source: Arc<str> = source.into();
        let label = || vec![Label::new("source", source.to_string())];
        Self {
            topics: Arc::default(),
            claim_seconds: histogram!("outbox_claim_seconds", label()),
            settle_seconds: histogram!("outbox_mark_seconds", label()),
            publish_seconds: histogram!("messaging_client_operation_duration_seconds", label()),
            batch_messages: histogram!("outbox_batch_messages", label()),
            end_to_end: histogram!("outbox_end_to_end_seconds", label()),
            retries: counter!("outbox_retries_total", label()),
            late_rows: counter!("outbox_late_rows_total", label()),
            held_shards: gauge!("outbox_lease_held_shards", label()),
            source,
        }
    }

    /// Counts a publish call by topic. The end-to-end time is sampled: the first message of the call.
    pub(super) fn sent(&self, messages: &[Message], outcomes: &[Outcome], took: Duration) {
        self.publish_seconds.record(took.as_secs_f64());
        self.batch_messages.record(messages.len() as f64);
        let mut first = 0;
        while first < messages.len() {
            let topic = &messages[first].topic;
            let run = messages[first..]
                .iter()
                .zip(outcomes[first.min(outcomes.len())..].iter())
                .take_while(|(message, outcome)| message.topic == *topic && outcome.is_ok())
                .count();
            if run > 0 {
                self.topic(topic).increment(run as u64);
            } else if let Some(Err(error)) = outcomes.get(first) {
                counter!("messaging_client_sent_messages_total", "source" => self.source.to_string(),
                    "messaging_destination_template" => self.template(topic),
                    "messaging_operation_name" => "send", "error_type" => error.kind().as_str())
                .increment(1);
            }
            first += run.max(1);
        }
        if let (Some(message), Some(Ok(_))) = (messages.first(), outcomes.first()) {
            let age = Utc::now().signed_duration_since(message.time);
            self.end_to_end
                .record(age.to_std().unwrap_or_default().as_secs_f64());
        }
    }

    fn template(&self, topic: &str) -> String {
        let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if topics.len() < MOST_TOPICS || topics.contains_key(topic) {
            topic.to_owned()
        } else {
            "_other".to_owned()
        }
    }

    fn topic(&self, topic: &str) -> Counter {
        let template = self.template(topic);
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = topics.get(&template) {
            return counter.clone();
        }
        let counter = counter!("messaging_client_sent_messages_total", "source" => self.source.to_string(),
            "messaging_destination_template" => template.clone(),
            "messaging_operation_name" => "send", "error_type" => "");
        topics.insert(template, counter.clone());
        counter
    }

    pub(super) fn dead(&self, kind: &'static str) {
        counter!("outbox_dead_total", "source" => self.source.to_string(), "error_type" => kind).increment(1);
    }

    pub(super) fn woken(&self, reason: &'static str) {
        counter!("outbox_wakeups_total", "source" => self.source.to_string(), "reason" => reason)
            .increment(1);
    }

    pub(super) fn lease(&self, transition: &'static str) {
        counter!("outbox_lease_transitions_total", "source" => self.source.to_string(), "to" => transition)
            .increment(1);
    }

    pub(super) fn shard(&self, shard: i16, in_flight: usize, gaps: u64, blocked: usize, open: bool) {
        let gauge = |name: &'static str, value: f64| {
            gauge!(name, "source" => self.source.to_string(), "shard" => shard.to_string()).set(value);
        };
        gauge("outbox_in_flight_messages", in_flight as f64);
        gauge("outbox_gap_positions", gaps as f64);
        gauge("outbox_blocked_keys", blocked as f64);
        gauge("outbox_circuit_open", f64::from(u8::from(open)));
    }

    /// Asks the database how much waits and how much it drags along.
    pub(super) async fn measure(&self, store: &dyn Store) {
        match store.backlog().await {
            Ok(backlog) => self.backlog(&backlog),
            Err(error) => tracing::debug!(error = %chain(&error), "backlog not measured"),
        }
        match store.bloat().await {
            Ok(Some(bloat)) => self.bloat(&bloat),
            Ok(None) => {}
            Err(error) => tracing::debug!(error = %chain(&error), "dead rows not measured"),
        }
    }

    fn bloat(&self, bloat: &Bloat) {
        let pinned = bloat.pin.as_ref().and_then(|pin| pin.age).unwrap_or_default();
        let set =
            |name: &'static str, value: f64| gauge!(name, "source" => self.source.to_string()).set(value);
        set("outbox_dead_tuples", bloat.dead_tuples as f64);
        set("outbox_table_bytes", bloat.bytes as f64);
        set("outbox_vacuum_pinned_seconds", pinned.as_secs_f64());
        if let Some(pin) = &bloat.pin
            && bloat.dead_tuples >= DEAD_TUPLES_TO_WARN_OF
            && pinned >= PINNED_TO_WARN_OF
        {
            tracing::warn!(source = %self.source, dead_tuples = bloat.dead_tuples, bytes = bloat.bytes,
                seconds = pinned.as_secs(), holder = pin.holder,
                "an old transaction keeps settled rows in the table, which grows until it ends");
        }
    }

    fn backlog(&self, backlog: &Backlog) {
        let age = backlog.oldest_age.unwrap_or_default().as_secs_f64();
        gauge!("outbox_oldest_pending_age_seconds", "source" => self.source.to_string()).set(age);
        let bounded = |count: u64| count < Backlog::COUNT_LIMIT;
        for (state, count, exact) in [
            ("pending", backlog.pending, backlog.exact),
            ("scheduled", backlog.scheduled, bounded(backlog.scheduled)),
            ("retry", backlog.retry, bounded(backlog.retry)),
            ("dead", backlog.dead, bounded(backlog.dead)),
        ] {
            let gauge = |exact: bool| {
                gauge!("outbox_backlog_messages", "source" => self.source.to_string(), "state" => state,
                    "exact" => if exact { "1" } else { "0" })
            };
            gauge(exact).set(count as f64);
            gauge(!exact).set(0.0);
        }
    }
}

fn describe() {
    describe_histogram!("outbox_claim_seconds", "Time of one claim");
    describe_histogram!("outbox_mark_seconds", "Time of one settle");
    describe_histogram!("outbox_batch_messages", "Messages in one publish call");
    describe_histogram!(
        "outbox_end_to_end_seconds",
        "Message time to broker confirmation, one message a call"
    );
    describe_histogram!(
        "messaging_client_operation_duration_seconds",
        "Time of one publish call"
    );
    describe_counter!(
        "messaging_client_sent_messages_total",
        "Messages handed to the broker, by outcome"
    );
    describe_counter!("outbox_retries_total", "Messages parked for another attempt");
    describe_counter!("outbox_dead_total", "Messages that became dead letters");
    describe_counter!("outbox_late_rows_total", "Rows that appeared below the floor");
    describe_counter!("outbox_wakeups_total", "Wake-ups by reason");
    describe_counter!(
        "outbox_lease_transitions_total",
        "Leases acquired, lost and released"
    );
    describe_gauge!("outbox_lease_held_shards", "Shards this relay holds");
    describe_gauge!("outbox_in_flight_messages", "Records read and not settled");
    describe_gauge!("outbox_gap_positions", "Missing positions below the floor");
    describe_gauge!("outbox_blocked_keys", "Keys held back by a failed message");
    describe_gauge!("outbox_circuit_open", "1 while the broker does not answer");
    describe_gauge!("outbox_dead_tuples", "Settled rows that vacuum has not removed");
    describe_gauge!("outbox_table_bytes", "Size of the hot table with its index");
    describe_gauge!(
        "outbox_vacuum_pinned_seconds",
        "Age of the oldest transaction that may still see settled rows"
    );
    describe_gauge!(
        "outbox_oldest_pending_age_seconds",
        "Age of the oldest message not yet published"
    );
    describe_gauge!(
        "outbox_backlog_messages",
        "Messages in the outbox, counted up to a limit"
    );
}
