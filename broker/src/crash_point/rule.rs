//! When to abort, as one line of text: what `OUTBOX_CRASH` holds.

use std::fmt;
use std::io::Write as _;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{CrashPoint, arm};

/// The environment variable that [`arm_from_environment`] reads.
pub const CRASH_VARIABLE: &str = "OUTBOX_CRASH";

/// Decides at which crash point a process aborts.
///
/// | text | meaning |
/// |---|---|
/// | `published_not_settled` | abort the first time the point is reached |
/// | `published_not_settled@3` | abort the third time it is reached |
/// | `random:42:0.01` | abort each time any point is reached with probability 0.01, drawn from seed 42 |
///
/// A random rule draws from (seed, point, how often that point was reached), so its decisions do not depend
/// on how threads interleave.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum CrashRule {
    /// Abort when `point` is reached for the `nth` time, counted from 1 in this process.
    At {
        /// The place to die at.
        point: CrashPoint,
        /// Which passage, from 1.
        nth: u64,
    },
    /// Abort at any point with a fixed probability.
    Random {
        /// Where the draws come from; the same seed draws the same.
        seed: u64,
        /// Chance at each passage, 0 to 1.
        probability: f64,
    },
}

impl CrashRule {
    /// Whether the `nth` passage (from 1) of `point` is the last act of the process.
    pub fn strikes(&self, point: CrashPoint, nth: u64) -> bool {
        match *self {
            Self::At {
                point: wanted,
                nth: last,
            } => point == wanted && nth == last,
            Self::Random { seed, probability } => {
                let draw = mix(seed ^ mix(point as u64 ^ mix(nth)));
                // The upper 53 bits fill a float's mantissa: an even draw from [0, 1).
                ((draw >> 11) as f64 / (1_u64 << 53) as f64) < probability
            }
        }
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): spreads neighbouring inputs over all 64 bits.
fn mix(input: u64) -> u64 {
    let mut z = input.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl fmt::Display for CrashRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At { point, nth } => write!(f, "{point}@{nth}"),
            Self::Random { seed, probability } => write!(f, "random:{seed}:{probability}"),
        }
    }
}

/// The text is no [`CrashRule`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` says not when to crash ({reason}); write `published_not_settled@3` or `random:SEED:PROBABILITY`"
)]
pub struct InvalidCrashRule {
    text: String,
    reason: String,
}

impl FromStr for CrashRule {
    type Err = InvalidCrashRule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |reason: &str| InvalidCrashRule {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        if let Some(rest) = text.strip_prefix("random:") {
            let (seed, probability) = rest.split_once(':').ok_or_else(|| invalid("a part is missing"))?;
            let seed = seed.parse().map_err(|_| invalid("the seed is no whole number"))?;
            let probability: f64 = probability
                .parse()
                .map_err(|_| invalid("the probability is no number"))?;
            if !(0.0..=1.0).contains(&probability) {
                return Err(invalid("the probability is not between 0 and 1"));
            }
            return Ok(Self::Random { seed, probability });
        }
        let (name, nth) = text.split_once('@').unwrap_or((text, "1"));
        let point = name
            .parse::<CrashPoint>()
            .map_err(|unknown| invalid(&unknown.to_string()))?;
        let nth = nth.parse().ok().filter(|nth| *nth > 0);
        Ok(Self::At {
            point,
            nth: nth.ok_or_else(|| invalid("after `@` stands a count from 1"))?,
        })
    }
}

/// Arms the process with the rule in `OUTBOX_CRASH`, if there is one: the first thing a crash child does.
///
/// When the rule strikes, the process writes `OUTBOX_CRASH aborted at POINT@N` to standard error and calls
/// [`std::process::abort`]: no destructor runs, no buffer is flushed, as under `kill -9`.
///
/// Returns the rule, or `None` when the variable is unset or empty, or the process was armed before.
///
/// # Errors
/// [`InvalidCrashRule`] when the variable holds something else; a program should then stop, because a crash
/// test that never crashes proves nothing.
pub fn arm_from_environment() -> Result<Option<CrashRule>, InvalidCrashRule> {
    let text = match std::env::var(CRASH_VARIABLE) {
        Ok(text) if !text.is_empty() => text,
        Ok(_) | Err(std::env::VarError::NotPresent) => return Ok(None),
        Err(std::env::VarError::NotUnicode(text)) => text.to_string_lossy().into_owned(),
    };
    let rule = text.parse::<CrashRule>()?;
    let passages = [const { AtomicU64::new(0) }; CrashPoint::ALL.len()];
    let armed = arm(move |point| {
        let nth = passages[point as usize].fetch_add(1, Ordering::Relaxed) + 1;
        if rule.strikes(point, nth) {
            // One write of one line; a closed standard error must not keep the process alive.
            let line = format!("{CRASH_VARIABLE} aborted at {point}@{nth}\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            std::process::abort();
        }
    });
    Ok(armed.then_some(rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_reads_back_from_its_text() {
        for text in [
            "published_not_settled@3",
            "received_not_begun@1",
            "random:42:0.01",
        ] {
            assert_eq!(text.parse::<CrashRule>().unwrap().to_string(), text);
        }
        let short = "handled_not_committed".parse::<CrashRule>().unwrap();
        assert_eq!(
            short,
            CrashRule::At {
                point: CrashPoint::HandledNotCommitted,
                nth: 1
            }
        );
    }

    #[test]
    fn a_wrong_rule_is_refused_with_its_reason() {
        for (text, reason) in [
            ("published@3", "no crash point"),
            ("published_not_settled@0", "count from 1"),
            ("published_not_settled@x", "count from 1"),
            ("random:1", "missing"),
            ("random:x:0.5", "seed"),
            ("random:1:x", "no number"),
            ("random:1:1.5", "between 0 and 1"),
            ("random:1:NaN", "between 0 and 1"),
        ] {
            let message = text.parse::<CrashRule>().unwrap_err().to_string();
            assert!(message.contains(reason), "{text}: {message}");
        }
    }

    #[test]
    fn a_counted_rule_strikes_at_its_passage_only() {
        let rule: CrashRule = "published_not_settled@3".parse().unwrap();
        let struck: Vec<u64> = (1..10)
            .filter(|n| rule.strikes(CrashPoint::PublishedNotSettled, *n))
            .collect();
        assert_eq!(struck, [3]);
        assert!(!rule.strikes(CrashPoint::ClaimedNotPublished, 3));
    }

    #[test]
    fn a_random_rule_keeps_its_probability_and_its_seed() {
        let rule: CrashRule = "random:7:0.1".parse().unwrap();
        let other: CrashRule = "random:8:0.1".parse().unwrap();
        let draws = |rule: CrashRule| -> Vec<u64> {
            (1..=10_000)
                .filter(|n| rule.strikes(CrashPoint::ClaimedNotPublished, *n))
                .collect()
        };
        assert_eq!(draws(rule), draws(rule));
        assert_ne!(draws(rule), draws(other));
        assert!(
            (800..1200).contains(&draws(rule).len()),
            "{} of 10,000 at 0.1",
            draws(rule).len()
        );
        let never: CrashRule = "random:7:0".parse().unwrap();
        let always: CrashRule = "random:7:1".parse().unwrap();
        assert!(draws(never).is_empty());
        assert_eq!(draws(always).len(), 10_000);
    }

    #[test]
    fn points_are_numbered_in_the_order_of_all() {
        for (index, point) in CrashPoint::ALL.into_iter().enumerate() {
            assert_eq!(point as usize, index);
        }
    }
}
