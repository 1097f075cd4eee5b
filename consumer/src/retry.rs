//! When a failed attempt is repeated.

use std::time::Duration;

/// How often a message is tried, and how long each wait is.
///
/// The default is 1 + 3 + 4 = 8 attempts: three immediate repeats absorb deadlocks and serialization
/// failures, the delays of 10 s, 1 min, 10 min and 1 h outlast a deployment and a short outage (NServiceBus:
/// 5 immediate and 3 delayed; RocketMQ: 16 levels from 10 s). Jitter is added, never subtracted: a wait is
/// never shorter than configured.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Repeats without a wait. Default 3.
    pub immediate: u32,
    /// Waits before the repeats that follow. Default 10 s, 1 min, 10 min, 1 h.
    pub delays: Vec<Duration>,
    /// Largest share of a delay that is added at random, 0.0 to 1.0. Default 0.2.
    pub jitter: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            immediate: 3,
            delays: [10, 60, 600, 3600].map(Duration::from_secs).to_vec(),
            jitter: 0.2,
        }
    }
}

impl RetryPolicy {
    /// One attempt, no repeat.
    pub const fn never() -> Self {
        Self {
            immediate: 0,
            delays: Vec::new(),
            jitter: 0.0,
        }
    }

    /// The same with another number of immediate repeats.
    #[must_use]
    pub fn immediate(mut self, repeats: u32) -> Self {
        self.immediate = repeats;
        self
    }

    /// The same with other delays.
    #[must_use]
    pub fn delays(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        self.delays = delays.into_iter().collect();
        self
    }

    /// The same with another jitter.
    #[must_use]
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.jitter = jitter;
        self
    }

    /// The attempts a message gets, the first included.
    pub fn attempts(&self) -> u32 {
        let delayed = u32::try_from(self.delays.len()).unwrap_or(u32::MAX);
        1u32.saturating_add(self.immediate).saturating_add(delayed)
    }

    /// The longest time between the first and the last attempt that the policy itself adds.
    pub fn span(&self) -> Duration {
        self.delays.iter().fold(Duration::ZERO, |sum, delay| {
            sum.saturating_add(stretch(*delay, self.jitter))
        })
    }

    /// The wait after `failed` failed attempts; `roll` is a random number from 0.0 to 1.0.
    pub fn delay(&self, failed: u32, roll: f64) -> Duration {
        if failed <= self.immediate {
            return Duration::ZERO;
        }
        let place = (failed - self.immediate - 1) as usize;
        match self.delays.get(place).or(self.delays.last()) {
            Some(delay) => stretch(*delay, self.jitter * roll.clamp(0.0, 1.0)),
            None => Duration::ZERO,
        }
    }
}

fn stretch(delay: Duration, share: f64) -> Duration {
    delay.saturating_add(delay.mul_f64(share.clamp(0.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_gives_eight_attempts_over_little_more_than_an_hour() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.attempts(), 8);
        assert_eq!(policy.delay(3, 0.5), Duration::ZERO);
        assert_eq!(policy.delay(4, 0.0), Duration::from_secs(10));
        assert_eq!(policy.delay(7, 1.0), Duration::from_secs(4320));
        assert!(policy.span() < Duration::from_secs(2 * 3600));
    }

    proptest! {
        #[test]
        fn jitter_never_shortens_a_delay(failed in 4..8u32, roll in 0.0..=1.0f64) {
            let policy = RetryPolicy::default();
            let plain = policy.delays[(failed - 4) as usize];
            let actual = policy.delay(failed, roll);
            prop_assert!(actual >= plain && actual <= plain.mul_f64(1.2) + Duration::from_millis(1));
        }
    }
}
