//! The decision: what to do with a delivery, given its inbox verdict and its handler's result.
//!
//! Pure: no clock, no I/O, no randomness. The worker carries the action out.

use std::time::Duration;

/// What the delivery holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A message that may be handled.
    Message,
    /// A message whose time has passed; `keep` says whether it goes to the dead letters or is dropped.
    Expired {
        /// Whether a dead letter is kept.
        keep: bool,
    },
    /// Bytes that are no message.
    Malformed,
}

/// What the insert of the inbox row said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbox {
    /// The row is ours and uncommitted: nobody has handled the message.
    Fresh,
    /// A committed row exists: the message was handled or given up before.
    Duplicate,
    /// An earlier message of its key is a dead letter that blocks the key.
    Behind,
    /// Another transaction holds the row and has not committed.
    InFlight,
    /// The database did not answer, or no connection was free.
    Unavailable,
}

/// What became of the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ran {
    /// It has not been called.
    NotYet,
    /// It returned `Ok`.
    Done,
    /// It returned a retryable error, panicked, took too long, or its commit was refused.
    Failed {
        /// The delay the handler asked for.
        asked: Option<Duration>,
    },
    /// It said that no retry will help.
    Refused,
    /// It was stopped from outside: shutdown.
    Stopped,
}

/// How often this message was begun, and what the policy says comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempts {
    /// The attempts that ended in failure or with their process, before this one.
    pub failed: u32,
    /// The attempts the policy allows.
    pub limit: u32,
    /// The policy's delay before the next attempt, jitter included.
    pub delay: Duration,
}

/// Why a message becomes a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Burial {
    /// The bytes are no message.
    Malformed,
    /// Its time has passed.
    Expired,
    /// The handler said that no retry will help.
    Refused,
    /// The attempts are used up.
    Exhausted,
    /// Attempts kept ending without a verdict: the handler takes its process down.
    Crashing,
    /// An earlier message of its key is a dead letter.
    Behind,
}

/// What the worker does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Call the handler inside the open transaction.
    Run,
    /// Write the follow-up messages, commit, then ack.
    Commit,
    /// Nothing to write: roll back and ack.
    Ack,
    /// Roll back what the handler did; commit inbox row and dead letter; then ack.
    Bury(Burial),
    /// Roll back, count the attempt, try again after the delay in a new transaction.
    Retry(Duration),
    /// Roll back, count nothing, try again soon.
    Defer,
    /// Roll back, count nothing, leave the delivery to the broker.
    Leave,
}

/// The next action. Read each row as: content, inbox verdict, handler's result.
pub fn step(content: Content, inbox: Inbox, ran: Ran, attempts: Attempts) -> Action {
    use Action::{Ack, Bury, Commit, Defer, Leave, Retry, Run};
    match (content, inbox, ran) {
        // Stopped before COMMIT: the rollback takes row and effects together, the broker delivers again.
        (_, _, Ran::Stopped) => Leave,

        // A commit survived a crash before its ack: the row is there, so only the ack is missing.
        (_, Inbox::Duplicate, _) => Ack,

        // Another member is between BEGIN and COMMIT. Acking now would lose the message if it dies there.
        (_, Inbox::InFlight, _) => Defer,

        // No transaction began; a database that is away must not use up attempts.
        (_, Inbox::Unavailable, _) => Defer,

        // The verdict and its mark commit together, so a crash in between cannot bury twice or forget.
        (Content::Malformed, Inbox::Fresh | Inbox::Behind, _) => Bury(Burial::Malformed),
        (Content::Expired { keep: true }, Inbox::Fresh | Inbox::Behind, _) => Bury(Burial::Expired),
        (Content::Expired { keep: false }, Inbox::Fresh | Inbox::Behind, _) => Ack,

        // The key's head is a dead letter: its successors queue up behind it and never overtake.
        (Content::Message, Inbox::Behind, _) => Bury(Burial::Behind),

        // Every earlier attempt was begun and none reported back: the process died each time.
        (Content::Message, Inbox::Fresh, Ran::NotYet) if attempts.failed >= attempts.limit => {
            Bury(Burial::Crashing)
        }

        // A crash while the handler runs rolls back the row and the effects together.
        (Content::Message, Inbox::Fresh, Ran::NotYet) => Run,

        // A crash before this COMMIT undoes all, a crash after it leaves all; never a part.
        (Content::Message, Inbox::Fresh, Ran::Done) => Commit,

        // The failed transaction is gone before the wait begins: no connection and no lock outlives it.
        (Content::Message, Inbox::Fresh, Ran::Failed { asked }) => {
            if attempts.failed + 1 >= attempts.limit {
                Bury(Burial::Exhausted)
            } else {
                Retry(asked.unwrap_or(attempts.delay))
            }
        }
        (Content::Message, Inbox::Fresh, Ran::Refused) => Bury(Burial::Refused),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content() -> impl Strategy<Value = Content> {
        prop_oneof![
            Just(Content::Message),
            any::<bool>().prop_map(|keep| Content::Expired { keep }),
            Just(Content::Malformed)
        ]
    }

    fn inbox() -> impl Strategy<Value = Inbox> {
        prop_oneof![
            Just(Inbox::Fresh),
            Just(Inbox::Duplicate),
            Just(Inbox::Behind),
            Just(Inbox::InFlight),
            Just(Inbox::Unavailable)
        ]
    }

    fn ran() -> impl Strategy<Value = Ran> {
        prop_oneof![
            Just(Ran::NotYet),
            Just(Ran::Done),
            proptest::option::of(0..100u64).prop_map(|seconds| Ran::Failed {
                asked: seconds.map(Duration::from_secs)
            }),
            Just(Ran::Refused),
            Just(Ran::Stopped)
        ]
    }

    fn attempts() -> impl Strategy<Value = Attempts> {
        (0..20u32, 1..20u32, 0..3600u64).prop_map(|(failed, limit, seconds)| Attempts {
            failed,
            limit,
            delay: Duration::from_secs(seconds),
        })
    }

    proptest! {
        #[test]
        fn effects_are_committed_only_for_a_fresh_message_whose_handler_is_done(
            content in content(), inbox in inbox(), ran in ran(), attempts in attempts()
        ) {
            let action = step(content, inbox, ran, attempts);
            let may_commit = content == Content::Message && inbox == Inbox::Fresh && ran == Ran::Done;
            prop_assert_eq!(action == Action::Commit, may_commit);
        }

        #[test]
        fn a_delivery_is_acked_unhandled_only_if_it_is_a_duplicate_or_dropped_as_expired(
            content in content(), inbox in inbox(), ran in ran(), attempts in attempts()
        ) {
            if step(content, inbox, ran, attempts) == Action::Ack {
                let dropped = Content::Expired { keep: false };
                prop_assert!(inbox == Inbox::Duplicate || content == dropped);
            }
        }

        #[test]
        fn shutdown_never_counts_and_never_buries(
            content in content(), inbox in inbox(), attempts in attempts()
        ) {
            prop_assert_eq!(step(content, inbox, Ran::Stopped, attempts), Action::Leave);
        }

        #[test]
        fn a_message_is_retried_only_while_attempts_are_left(
            content in content(), inbox in inbox(), ran in ran(), attempts in attempts()
        ) {
            if let Action::Retry(_) = step(content, inbox, ran, attempts) {
                prop_assert!(attempts.failed + 1 < attempts.limit);
            }
        }

        #[test]
        fn a_row_in_flight_elsewhere_or_a_database_away_is_never_settled(
            content in content(), ran in ran(), attempts in attempts()
        ) {
            for inbox in [Inbox::InFlight, Inbox::Unavailable] {
                let action = step(content, inbox, ran, attempts);
                prop_assert!(matches!(action, Action::Defer | Action::Leave));
            }
        }
    }
}
