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
