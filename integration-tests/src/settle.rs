//! Waiting until everything is quiet: a barrier instead of a sleep.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

/// Shortest and longest pause between two rounds of questions; it doubles from one to the other.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// Rounds in a row that must find everything quiet: one alone may look at each place just before a message
/// that goes round, a follow-up, arrives there.
const QUIET_ROUNDS: usize = 2;

type BoxError = Box<dyn StdError + Send + Sync>;

/// One thing that must come to rest.
pub struct Condition<'a> {
    name: String,
    ask: Box<dyn Fn() -> BoxFuture<'a, Result<Option<String>, BoxError>> + Send + Sync + 'a>,
}

impl<'a> Condition<'a> {
    /// Something counted that must fall to zero: rows of the backlog, messages in a queue, handlers at work.
    ///
    /// An error counts as "not yet": a server may be restarting.
    pub fn zero<F, E>(name: impl Into<String>, count: impl Fn() -> F + Send + Sync + 'a) -> Self
    where
        F: Future<Output = Result<u64, E>> + Send + 'a,
        E: Into<BoxError>,
    {
        Self::new(name, move || {
            let count = count();
            async move {
                Ok::<_, BoxError>(
                    Some(count.await.map_err(Into::into)?)
                        .filter(|n| *n > 0)
                        .map(|n| n.to_string()),
                )
            }
        })
    }

    /// Anything else: `None` when it is at rest, else what it still waits for.
    pub fn new<F, E>(name: impl Into<String>, ask: impl Fn() -> F + Send + Sync + 'a) -> Self
    where
        F: Future<Output = Result<Option<String>, E>> + Send + 'a,
        E: Into<BoxError>,
    {
        let ask = move || -> BoxFuture<'a, Result<Option<String>, BoxError>> {
            let answer = ask();
            Box::pin(async move { answer.await.map_err(Into::into) })
        };
        Self {
            name: name.into(),
            ask: Box::new(ask),
        }
    }
}

impl fmt::Debug for Condition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Condition").field(&self.name).finish()
    }
}

/// Time ran out while something was still moving.
#[derive(Debug, thiserror::Error)]
#[error("not settled after {after:?}: {}", reasons.join("; "))]
pub struct Unsettled {
    after: Duration,
    reasons: Vec<String>,
}

/// Waits until all conditions hold, twice in a row.
///
/// List the conditions from the producer to the consumer: a message then cannot pass behind the question.
///
/// # Errors
/// [`Unsettled`] after `deadline`, naming each condition that did not hold and its last value.
///
/// # Cancel safety
/// Safe: nothing but questions is lost.
pub async fn settle(deadline: Duration, conditions: &[Condition<'_>]) -> Result<(), Unsettled> {
    let (started, mut pause, mut quiet) = (Instant::now(), PAUSE.0, 0);
    loop {
        let reasons = round(started + deadline, conditions).await;
        if reasons.is_empty() {
            quiet += 1;
            if quiet == QUIET_ROUNDS {
                return Ok(());
            }
        } else {
            quiet = 0;
            if started.elapsed() >= deadline {
                return Err(Unsettled {
                    after: deadline,
                    reasons,
                });
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

async fn round(end: Instant, conditions: &[Condition<'_>]) -> Vec<String> {
    let mut reasons = Vec::new();
    for Condition { name, ask } in conditions {
        match tokio::time::timeout_at(end, ask()).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(state))) => reasons.push(format!("{name}: {state}")),
            Ok(Err(error)) => reasons.push(format!("{name}: cannot tell ({error})")),
            Err(_) => reasons.push(format!("{name}: no answer")),
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn settling_waits_until_the_last_count_is_zero() {
        let left = AtomicU64::new(7);
        let backlog = Condition::zero("backlog", || async {
            Ok::<_, Infallible>(
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                    .unwrap_or(0),
            )
        });
        settle(Duration::from_secs(5), &[backlog]).await.unwrap();
        assert_eq!(left.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_quiet_round_is_not_enough() {
        let asked = AtomicU64::new(0);
        // Quiet, busy again, then quiet for good.
        let consumer = Condition::zero("in flight", || async {
            Ok::<_, Infallible>(u64::from(asked.fetch_add(1, Ordering::Relaxed) == 1))
        });
        settle(Duration::from_secs(5), &[consumer]).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_says_which_condition_and_its_last_value() {
        let conditions = [
            Condition::zero("backlog", || async { Ok::<_, Infallible>(0) }),
            Condition::zero("queue lag", || async { Ok::<_, Infallible>(3) }),
            Condition::zero("dead letters", || async {
                Err::<u64, _>(std::io::Error::other("gone"))
            }),
            Condition::new("consumer", || {
                std::future::pending::<Result<Option<String>, Infallible>>()
            }),
        ];
        let error = settle(Duration::from_secs(1), &conditions)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("queue lag: 3"), "{error}");
        assert!(error.contains("dead letters: cannot tell (gone)"), "{error}");
        assert!(error.contains("consumer: no answer"), "{error}");
        assert!(!error.contains("backlog"), "{error}");
    }
}
