//! How a relay behaves: every limit with its unit, default and reason.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units;
use crate::{Error, ErrorKind};

/// How a relay behaves. `RelayOptions::default()` suits one service with one relay and hot standbys.
///
/// In a configuration file durations and sizes are text with a unit (`"15s"`, `"64MiB"`), an unknown field
/// is an error, and a missing one takes its default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelayOptions {
    /// Label of this outbox in metrics, logs and spans. Default `outbox`; set it when one process relays
    /// several.
    pub source: String,
    /// Rows read by one claim and messages handed over in one publish, at most. Default 1,000: past that
    /// the drain rate grows by less than 10 % while a claim and its memory grow in proportion.
    pub batch_size: usize,
    /// Records in memory, from claim to settle. Default 8,000: eight batches keep the database and a broker
    /// 5 ms away both busy. It bounds the duplicates after a crash and the memory while a broker is down.
    pub max_in_flight: usize,
    /// Bytes of messages in memory. Default 64 MiB: full batches of 8 KiB messages fit; larger ones shrink
    /// the batches instead of the machine.
    #[serde(with = "units::bytes")]
    pub max_bytes: usize,
    /// Publish calls under way at once, each with its own keys. Default 8: hides the round trip of a broker
    /// in the same site. Use 1 where every publish is a transaction of its own (a database as the broker).
    pub lanes: usize,
    /// Pause before the next claim when the last one was less than half full. Default 5 ms: fewer, larger
    /// reads cost producers nothing measurable; a greedy loop costs about 5 % of their throughput.
    #[serde(with = "units::duration")]
    pub linger: Duration,
    /// Longest time between two looks at an idle outbox. Default 250 ms: only the backstop of wake-ups.
    #[serde(with = "units::duration")]
    pub poll_interval: Duration,
    /// How long confirmed records wait for others to be settled in one statement. Default 10 ms: at most
    /// 100 small writes a second, and a crash republishes no more than that.
    #[serde(with = "units::duration")]
    pub settle_interval: Duration,
    /// How long a shard stays ours without a renewal; a dead relay's shards move after it. Renewed at a
    /// third. Default 12 s: longer than a restart of a database, and a relay that dies right after a renewal is
    /// still replaced within 15 s.
    #[serde(with = "units::duration")]
    pub lease_ttl: Duration,
    /// No publish starts in the last part of the lease. Default: a third of `lease_ttl`. Raise it above the
    /// request timeout of the broker's adapter if that is longer.
    #[serde(with = "units::optional_duration")]
    pub lease_margin: Option<Duration>,
    /// How often a relay that wants more shards asks for them. Default 1 s.
    #[serde(with = "units::duration")]
    pub acquire_interval: Duration,
    /// Shards to hold at most. Default: all. Lower it to share shards among relays: what one does not want
    /// the next one takes.
    #[serde(skip_serializing_if = "all_shards")]
    pub shards: usize,
    /// How often the whole hot table is compared with memory while busy; an idle relay does it every
    /// second. Default 15 s: finds rows that appear below the floor (a restored backup, a failover to a
    /// lagging standby).
    #[serde(with = "units::duration")]
    pub sweep_interval: Duration,
    /// How often parked rows are looked for whose time nobody told us. Default 500 ms: the precision of
    /// delayed messages enqueued elsewhere; our own retries are timed exactly.
    #[serde(with = "units::duration")]
    pub due_interval: Duration,
    /// How often the backlog is measured for the metrics. Default 10 s; counts are bounded.
    #[serde(with = "units::duration")]
    pub backlog_interval: Duration,
    /// When a failed message is tried again and for how long.
    pub retry: RetryPolicy,
    /// What happens to a key whose message is dead. Default [`OnExhausted::Wait`].
    pub on_exhausted: OnExhausted,
    /// What happens to a message past its `expires_at`. Default [`OnExpired::Publish`].
    pub on_expired: OnExpired,
    /// How long a shutdown waits for publishes under way and their settlement. Default 20 s: below the 30 s
    /// that Kubernetes gives a pod.
    #[serde(with = "units::duration")]
    pub drain_timeout: Duration,
}

impl Default for RelayOptions {
    fn default() -> Self {
        Self {
            source: "outbox".to_owned(),
            batch_size: 1_000,
            max_in_flight: 8_000,
            max_bytes: 64 << 20,
            lanes: 8,
            linger: Duration::from_millis(5),
            poll_interval: Duration::from_millis(250),
            settle_interval: Duration::from_millis(10),
            lease_ttl: Duration::from_secs(12),
            lease_margin: None,
            acquire_interval: Duration::from_secs(1),
            shards: usize::MAX,
            sweep_interval: Duration::from_secs(15),
            due_interval: Duration::from_millis(500),
            backlog_interval: Duration::from_secs(10),
            retry: RetryPolicy::default(),
            on_exhausted: OnExhausted::default(),
            on_expired: OnExpired::default(),
            drain_timeout: Duration::from_secs(20),
        }
    }
}

impl RelayOptions {
    /// The part of the lease in which no publish starts.
    pub fn margin(&self) -> Duration {
        self.lease_margin.unwrap_or(self.lease_ttl / 3)
    }

    /// Time between two renewals of a lease.
    pub(super) fn renew_interval(&self) -> Duration {
        self.lease_ttl / 3
    }

    /// Checks that the values are possible and fit each other.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], naming the field and the allowed range.
    pub fn validate(&self) -> Result<(), Error> {
        /// Lanes are scanned after every publish; more than this costs more than it hides.
        const MOST_LANES: usize = 1_024;
        let at_least = |field: &str, value: usize, least: usize| {
            if value >= least {
                return Ok(());
            }
            Err(invalid(format!(
                "`{field}` is {value}; it must be at least {least}"
            )))
        };
        at_least("batch_size", self.batch_size, 1)?;
        at_least("lanes", self.lanes, 1)?;
        at_least("shards", self.shards, 1)?;
        at_least("max_in_flight", self.max_in_flight, self.batch_size)?;
        at_least("max_bytes", self.max_bytes, 64 << 10)?;
        if self.lanes > MOST_LANES {
            return Err(invalid(format!(
                "`lanes` is {}; it must be at most {MOST_LANES}",
                self.lanes
            )));
        }
        for (field, value) in [
            ("poll_interval", self.poll_interval),
            ("acquire_interval", self.acquire_interval),
            ("sweep_interval", self.sweep_interval),
            ("due_interval", self.due_interval),
            ("backlog_interval", self.backlog_interval),
            ("lease_ttl", self.lease_ttl),
        ] {
            if value < Duration::from_millis(1) {
                return Err(invalid(format!("`{field}` must be at least 1ms")));
            }
        }
        if self.margin() + self.renew_interval() >= self.lease_ttl {
            return Err(invalid(format!(
                "`lease_margin` must be below two thirds of `lease_ttl` ({}), or no time is left to publish",
                units::format_duration(self.lease_ttl)
            )));
        }
        self.retry.validate()
    }
}

/// When a failed message, or a broker that does not answer, is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// Pause after the first failure; each further one doubles it. Default 200 ms.
    #[serde(with = "units::duration")]
    pub initial: Duration,
    /// Longest pause. Default 1 min: what a repaired broker keeps waiting at worst.
    #[serde(with = "units::duration")]
    pub max: Duration,
    /// Random part of each pause, 0 to 1, so that relays do not return in step. Default 0.2.
    pub jitter: f64,
    /// Refusals of one message after which it is dead. Default 12: with the other defaults about four
    /// minutes. A broker that is down, a missing queue or a missing binding never count.
    pub max_attempts: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(200),
            max: Duration::from_secs(60),
            jitter: 0.2,
            max_attempts: 12,
        }
    }
}

impl RetryPolicy {
    /// The pause after the `attempt`th failure (from 1); `random` is uniform in 0..1.
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let delay = self.initial.saturating_mul(1 << doublings).min(self.max);
        delay.mul_f64((1.0 - self.jitter * random).clamp(0.0, 1.0))
    }

    fn validate(&self) -> Result<(), Error> {
        if self.initial.is_zero() || self.initial > self.max {
            return Err(invalid("`retry.initial` must be above 0 and at most `retry.max`"));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(invalid("`retry.jitter` must be between 0 and 1"));
        }
        if self.max_attempts == 0 {
            return Err(invalid("`retry.max_attempts` must be at least 1"));
        }
        Ok(())
    }
}

/// What happens to the later messages of a key when one of them is dead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExhausted {
    /// They wait until a person redrives or discards the dead one: order is kept.
    #[default]
    Wait,
    /// They go on without it.
    SkipAhead,
}

/// What happens to a message that is claimed after its `expires_at`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExpired {
    /// It is published; the consumer decides.
    #[default]
    Publish,
    /// It becomes a dead letter, and holds its key back as one.
    Dead,
    /// It is deleted unpublished, and counted.
    Drop,
}

/// "All" has no number in a configuration file.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn all_shards(shards: &usize) -> bool {
    *shards == usize::MAX
}

fn invalid(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Invalid, "configure", context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        RelayOptions::default().validate().unwrap();
    }

    #[test]
    fn a_file_sets_fields_with_units_and_keeps_the_other_defaults() {
        let options: RelayOptions = serde_json::from_str(
            r#"{"batch_size": 10, "lease_ttl": "3s", "max_bytes": "1MiB", "retry": {"initial": "10ms"},
                "on_exhausted": "skip_ahead"}"#,
        )
        .unwrap();
        assert_eq!(options.batch_size, 10);
        assert_eq!(options.margin(), Duration::from_secs(1));
        assert_eq!(options.retry.max_attempts, 12);
        assert_eq!(options.on_exhausted, OnExhausted::SkipAhead);
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<RelayOptions>(&text).unwrap(), options);
    }

    #[test]
    fn an_unknown_field_is_refused() {
        assert!(serde_json::from_str::<RelayOptions>(r#"{"batchsize": 10}"#).is_err());
        assert!(serde_json::from_str::<RelayOptions>(r#"{"retry": {"attempts": 10}}"#).is_err());
    }

    #[test]
    fn a_margin_that_leaves_no_time_to_publish_is_refused() {
        let options = RelayOptions {
            lease_margin: Some(Duration::from_secs(10)),
            ..RelayOptions::default()
        };
        let error = options.validate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("lease_margin"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn delays_grow_stay_below_the_maximum_and_are_never_zero(attempt in 1u32..100, random in 0.0f64..1.0) {
            let policy = RetryPolicy::default();
            let delay = policy.delay(attempt, random);
            proptest::prop_assert!(delay <= policy.max);
            proptest::prop_assert!(delay >= policy.initial.mul_f64(1.0 - policy.jitter));
            proptest::prop_assert!(policy.delay(attempt + 1, random) >= delay);
        }
    }
}
