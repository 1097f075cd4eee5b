//! The decision: what becomes of a published batch, given the broker's outcomes. Pure.
//!
//! | outcome | the message | its key's later messages |
//! |---|---|---|
//! | accepted | settled | go on |
//! | unreachable, outcome unknown, unauthorized, closed | again, from the front of its lane; no attempt counts | again, after it |
//! | rejected, other answers of the broker | parked; dead after `max_attempts` | parked behind it |
//! | unknown destination, unroutable | parked, for ever if need be | parked behind it |
//! | too large, invalid, unsupported | dead at once | wait behind it, or go on by [`OnExhausted`] |
//!
//! If the broker refuses everything, one message is not the reason: from [`OVERLOAD`] refusals on, and
//! nothing accepted, the whole call counts as the broker's failure.

use std::collections::HashMap;
use std::time::Duration;

use outbox_broker::{ErrorKind, Message, Outcome};

use super::lanes::{Origin, Tag};
use super::options::{OnExhausted, RetryPolicy};
use crate::record::ParkState;

/// Independent refusals in one call, none accepted, that count as an overloaded broker. Chosen: that many
/// poisonous messages in a row are less likely than a full disk.
pub(super) const OVERLOAD: usize = 16;

/// What becomes of one message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Step {
    /// The broker has it: settle.
    Published,
    /// Publish it again, from the front of its lane.
    Again,
    /// Move it to the parked table, or keep it there, with its own error.
    Park {
        /// `Retry` or `Dead`.
        state: ParkState,
        /// Attempts so far.
        attempts: u32,
        /// Until the next one.
        delay: Duration,
    },
    /// Move it to the parked table, or leave it there, behind an earlier message of its key.
    Behind,
}

/// What becomes of a batch.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// One step per message, in order.
    pub(super) steps: Vec<Step>,
    /// The outcome that says that the broker itself fails; `None`: it answers.
    pub(super) broker_failure: Option<usize>,
    /// The broker answers, and refuses everything.
    pub(super) overload: bool,
}

/// Who is to blame for an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blame {
    /// The broker or the way to it: nothing would pass.
    Broker,
    /// This message, at this time; counts towards `max_attempts`.
    Refused,
    /// The destination: someone will declare it.
    Destination,
    /// This message, for good.
    Message,
}

fn blame(kind: ErrorKind) -> Blame {
    match kind {
        ErrorKind::Unreachable | ErrorKind::OutcomeUnknown | ErrorKind::Unauthorized | ErrorKind::Closed => {
            Blame::Broker
        }
        ErrorKind::UnknownDestination | ErrorKind::Unroutable => Blame::Destination,
        ErrorKind::TooLarge | ErrorKind::Invalid | ErrorKind::Unsupported => Blame::Message,
        // `ErrorKind` may grow: what is not known yet is tried again and ends as a dead letter.
        _ => Blame::Refused,
    }
}

/// Decides over a batch; `random` gives numbers uniform in 0..1.
///
/// A message without an outcome (an adapter that returned too few) counts as outcome unknown.
pub(super) fn plan(
    messages: &[Message],
    tags: &[Tag],
    outcomes: &[Outcome],
    retry: &RetryPolicy,
    on_exhausted: OnExhausted,
    mut random: impl FnMut() -> f64,
) -> Plan {
    let blames: Vec<Option<Blame>> = (0..messages.len())
        .map(|index| match outcomes.get(index) {
            Some(Ok(_)) => None,
            Some(Err(error)) => Some(blame(error.kind())),
            None => Some(Blame::Broker),
        })
        .collect();
    if let Some(first) = overloaded(messages, &blames) {
        return Plan {
            steps: vec![Step::Again; messages.len()],
            broker_failure: Some(first),
            overload: true,
        };
    }
    let mut failed: HashMap<&str, Step> = HashMap::new();
    let steps = blames.iter().enumerate().map(|(index, blame)| {
        let Some(blame) = *blame else {
            return Step::Published;
        };
        let key = messages[index].key.as_deref();
        if let Some(behind) = key.and_then(|key| failed.get(key)) {
            return *behind;
        }
        let step = first_failure(blame, tags[index].origin, retry, &mut random);
        if let Some(key) = key {
            failed.insert(key, behind(step, on_exhausted));
        }
        step
    });
    Plan {
        steps: steps.collect(),
        broker_failure: blames.iter().position(|blame| *blame == Some(Blame::Broker)),
        overload: false,
    }
}

/// The step of a message whose key had no failure before it in the batch.
fn first_failure(
    blame: Blame,
    origin: Origin,
    retry: &RetryPolicy,
    random: &mut impl FnMut() -> f64,
) -> Step {
    let attempts = match origin {
        Origin::Hot(_) => 1,
        Origin::Parked { attempts, .. } => attempts,
    };
    let state = match blame {
        Blame::Broker => return Step::Again,
        Blame::Message => ParkState::Dead,
        Blame::Refused if attempts >= retry.max_attempts => ParkState::Dead,
        Blame::Refused | Blame::Destination => ParkState::Retry,
    };
    let delay = match state {
        ParkState::Retry => retry.delay(attempts, random()),
        ParkState::Dead | ParkState::Scheduled => Duration::ZERO,
    };
    Step::Park {
        state,
        attempts,
        delay,
    }
}

/// The step of the later messages of a key, not accepted themselves.
fn behind(first: Step, on_exhausted: OnExhausted) -> Step {
    match first {
        Step::Park {
            state: ParkState::Dead,
            ..
        } if on_exhausted == OnExhausted::SkipAhead => Step::Again,
        Step::Park { .. } => Step::Behind,
        step => step,
    }
}

/// The first refusal, if the broker refuses everything.
fn overloaded(messages: &[Message], blames: &[Option<Blame>]) -> Option<usize> {
    if messages.len() < OVERLOAD || blames.iter().any(|blame| *blame != Some(Blame::Refused)) {
        return None;
    }
    let keys: std::collections::HashSet<&str> = messages
        .iter()
        .filter_map(|message| message.key.as_deref())
        .collect();
    let unkeyed = messages.iter().filter(|message| message.key.is_none()).count();
    (keys.len() + unkeyed >= OVERLOAD).then_some(0)
}

#[cfg(test)]
mod tests {
    use ErrorKind::{OutcomeUnknown, Rejected, TooLarge, Unreachable, Unroutable};
    use outbox_broker::{Error, Receipt};
    use proptest::prelude::*;

    use super::*;

    const RETRY: RetryPolicy = RetryPolicy {
        initial: Duration::from_millis(100),
        max: Duration::from_secs(10),
        jitter: 0.0,
        max_attempts: 3,
    };

    /// Key, attempts before this one if it was parked, outcome.
    type Case = (Option<u8>, Option<u32>, Option<ErrorKind>);

    fn decide(cases: &[Case], on_exhausted: OnExhausted) -> Plan {
        let (mut messages, mut tags, mut outcomes) = (Vec::new(), Vec::new(), Vec::new());
        for (number, (key, parked, outcome)) in cases.iter().enumerate() {
            let builder = Message::builder("orders", "order.placed").source("/test");
            let builder = match key {
                Some(key) => builder.key(format!("k{key}")),
                None => builder,
            };
            messages.push(builder.build().unwrap());
            let origin = match parked {
                None => Origin::Hot(number as i64),
                Some(attempts) => Origin::Parked {
                    sequence: number as i64,
                    attempts: attempts + 1,
                    holds: true,
                },
            };
            tags.push(Tag::new(origin, &messages[number]));
            outcomes.push(match outcome {
                None => Ok(Receipt::default()),
                Some(kind) => Err(Error::new(*kind, "publish", "a fault was asked for")),
            });
        }
        plan(&messages, &tags, &outcomes, &RETRY, on_exhausted, || 0.0)
    }

    fn parked(attempts: u32, millis: u64) -> Step {
        Step::Park {
            state: ParkState::Retry,
            attempts,
            delay: Duration::from_millis(millis),
        }
    }

    fn dead(attempts: u32) -> Step {
        Step::Park {
            state: ParkState::Dead,
            attempts,
            delay: Duration::ZERO,
        }
    }

    #[test]
    fn a_refused_message_is_parked_with_the_later_ones_of_its_key_behind_it() {
        let plan = decide(
            &[
                (Some(1), None, None),
                (Some(1), None, Some(Rejected)),
                (Some(2), None, None),
                (Some(1), None, Some(Rejected)),
                (None, None, Some(Rejected)),
            ],
            OnExhausted::Wait,
        );
        let expected = [
            Step::Published,
            parked(1, 100),
            Step::Published,
            Step::Behind,
            parked(1, 100),
        ];
        assert_eq!(plan.steps, expected);
        assert_eq!(plan.broker_failure, None);
    }

    #[test]
    fn a_broker_that_does_not_answer_costs_no_attempt() {
        let plan = decide(
            &[
                (Some(1), None, None),
                (Some(2), Some(2), Some(Unreachable)),
                (Some(2), None, Some(OutcomeUnknown)),
            ],
            OnExhausted::Wait,
        );
        assert_eq!(plan.steps, [Step::Published, Step::Again, Step::Again]);
        assert_eq!(plan.broker_failure, Some(1));
        assert!(!plan.overload);
    }

    #[test]
    fn the_last_attempt_is_a_dead_letter_and_a_missing_binding_never_is() {
        let plan = decide(
            &[
                (Some(1), Some(1), Some(Rejected)),
                (Some(2), Some(2), Some(Rejected)),
                (Some(3), Some(99), Some(Unroutable)),
            ],
            OnExhausted::Wait,
        );
        assert_eq!(plan.steps, [parked(2, 200), dead(3), parked(100, 10_000)]);
    }

    #[test]
    fn behind_a_dead_letter_a_key_waits_or_skips_ahead_by_policy() {
        let cases = [(Some(1), None, Some(TooLarge)), (Some(1), None, Some(Rejected))];
        assert_eq!(decide(&cases, OnExhausted::Wait).steps, [dead(1), Step::Behind]);
        assert_eq!(
            decide(&cases, OnExhausted::SkipAhead).steps,
            [dead(1), Step::Again]
        );
    }

    #[test]
    fn a_broker_that_refuses_everything_is_overloaded() {
        let many: Vec<Case> = (0..OVERLOAD as u8)
            .map(|key| (Some(key), None, Some(Rejected)))
            .collect();
        let plan = decide(&many, OnExhausted::Wait);
        assert!(plan.overload && plan.steps.iter().all(|step| *step == Step::Again));

        let few = decide(&many[1..], OnExhausted::Wait);
        assert!(!few.overload && few.broker_failure.is_none());
        let mut one_accepted = many.clone();
        one_accepted.push((None, None, None));
        assert!(!decide(&one_accepted, OnExhausted::Wait).overload);
        let one_key = decide(&vec![(Some(1), None, Some(Rejected)); 100], OnExhausted::Wait);
        assert!(!one_key.overload, "one poisonous message and its followers");
        assert_eq!(one_key.steps[..2], [parked(1, 100), Step::Behind]);
    }

    #[test]
    fn a_missing_outcome_is_an_unknown_one() {
        let message = Message::builder("orders", "order.placed")
            .source("/test")
            .build()
            .unwrap();
        let tag = Tag::new(Origin::Hot(1), &message);
        let plan = plan(&[message], &[tag], &[], &RETRY, OnExhausted::Wait, || 0.0);
        assert_eq!((plan.steps, plan.broker_failure), (vec![Step::Again], Some(0)));
    }

    fn outcome() -> impl Strategy<Value = Option<ErrorKind>> {
        use ErrorKind::{Broker, Closed, Invalid, Unauthorized, UnknownDestination, Unsupported};
        let kinds = [
            Unreachable,
            OutcomeUnknown,
            Rejected,
            Unauthorized,
            UnknownDestination,
            Unroutable,
            TooLarge,
            Invalid,
            Unsupported,
            Closed,
            Broker,
        ];
        prop_oneof![2 => Just(None), 1 => proptest::sample::select(kinds.to_vec()).prop_map(Some)]
    }

    proptest! {
        #[test]
        fn accepted_is_settled_the_rest_is_not_and_no_key_is_overtaken(
            cases in proptest::collection::vec(
                (proptest::option::of(0u8..4), proptest::option::of(0u32..5), outcome()), 0..60),
            skip_ahead: bool,
        ) {
            let policy = if skip_ahead { OnExhausted::SkipAhead } else { OnExhausted::Wait };
            let plan = decide(&cases, policy);
            prop_assert_eq!(plan.steps.len(), cases.len());
            for ((key, _, outcome), step) in cases.iter().zip(&plan.steps) {
                prop_assert_eq!(outcome.is_none(), *step == Step::Published);
                prop_assert!(key.is_some() || *step != Step::Behind);
            }
            for key in 0u8..4 {
                let steps = cases.iter().zip(&plan.steps).filter(|((of, ..), _)| *of == Some(key));
                let mut failed = steps.map(|(_, step)| *step).filter(|step| *step != Step::Published);
                // The first failure of a key decides over all later ones.
                if let Some(first) = failed.next() {
                    let later = behind(first, policy);
                    prop_assert!(failed.all(|step| step == later));
                }
            }
        }
    }
}
