//! The decision: which parked rows are tried together. Pure.
//!
//! A row that was never tried may go in a full batch with the rows of its key behind it. A row that was
//! tried goes without its followers, so that the attempt counts for it alone. And a row whose last attempt
//! has no outcome may have killed its relay: the more often, the fewer rows share its next attempt, down to
//! one, so that a crash loop ends in the dead letter of the row that causes it.

use std::collections::HashSet;
use std::time::Duration;

use crate::record::{ParkState, Parked, ParkedFailure};

/// Rows that share the second attempt of a suspect. Chosen: finds it in three crashes, and settles the
/// 8,000 rows a relay may have had in flight in a few hundred calls.
const SECOND_ATTEMPT: usize = 32;

/// Deaths of its relay that a row is let off with even if `max_attempts` is lower, because at first it shares
/// its attempts with others.
const DEATHS: u32 = 3;

/// What to do with due rows.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// Count an attempt, then publish, in this order.
    pub(super) begin: Vec<Parked>,
    /// Rows that are no message, or that killed their relay too often: dead at once.
    pub(super) dead: Vec<Hopeless>,
}

/// A row that is not tried again.
#[derive(Debug)]
pub(super) struct Hopeless {
    pub(super) failure: ParkedFailure,
    /// Its key, and whether it holds it already.
    pub(super) key: Option<(String, bool)>,
    /// The label of its metric.
    pub(super) kind: &'static str,
}

/// Chooses among `rows` (by sequence) those to try now. `careful`: the previous relay died.
pub(super) fn select(rows: Vec<Parked>, limit: usize, max_attempts: u32, careful: bool) -> Selection {
    let mut chosen = Selection::default();
    let mut closed: HashSet<String> = HashSet::new();
    let mut room = limit.max(1);
    for row in rows {
        let key = match &row.message {
            Ok(message) => message.key.as_deref(),
            Err(malformed) => {
                let error = format!("the row is no message: {}", malformed.reason);
                chosen.dead.push(hopeless(row.sequence, error, None, "malformed"));
                continue;
            }
        };
        if key.is_some_and(|key| closed.contains(key)) {
            continue;
        }
        if row.error.is_none() && row.attempts >= max_attempts.max(DEATHS) {
            let error = format!(
                "{} attempts ended without an outcome: it kills its relay",
                row.attempts
            );
            closed.extend(key.map(str::to_owned));
            let key = key.map(|key| (key.to_owned(), row.state == ParkState::Retry));
            chosen
                .dead
                .push(hopeless(row.sequence, error, key, "kills_relay"));
            continue;
        }
        let share = company(&row, limit.max(1), careful);
        let fits = chosen.begin.len() < room.min(share);
        if !fits || row.attempts > 0 {
            closed.extend(key.map(str::to_owned));
        }
        if fits {
            room = room.min(share);
            chosen.begin.push(row);
        }
    }
    chosen
}

fn hopeless(sequence: i64, error: String, key: Option<(String, bool)>, kind: &'static str) -> Hopeless {
    Hopeless {
        failure: ParkedFailure {
            sequence,
            state: ParkState::Dead,
            delay: Duration::ZERO,
            error,
        },
        key,
        kind,
    }
}

/// How many rows may be tried together with `row`, itself included.
fn company(row: &Parked, limit: usize, careful: bool) -> usize {
    let suspect = careful || row.error.is_none();
    match row.attempts {
        1 if suspect => SECOND_ATTEMPT.min(limit),
        2.. if suspect => 1,
        _ => limit,
    }
}

#[cfg(test)]
mod tests {
    use outbox_broker::Message;

    use super::*;

    fn row(sequence: i64, key: &str, attempts: u32, error: Option<&str>) -> Parked {
        let message = Message::builder("orders", "order.placed")
            .source("/test")
            .key(key);
        Parked {
            sequence,
            state: ParkState::Retry,
            attempts,
            error: error.map(str::to_owned),
            message: Ok(message.build().unwrap()),
        }
    }

    fn many(attempts: u32, error: Option<&str>) -> Vec<Parked> {
        (0..90)
            .map(|number| row(number, &format!("k{number}"), attempts, error))
            .collect()
    }

    fn begun(rows: Vec<Parked>, careful: bool) -> Vec<i64> {
        let chosen = select(rows, 100, 12, careful);
        chosen.begin.iter().map(|row| row.sequence).collect()
    }

    #[test]
    fn rows_never_tried_go_together_with_their_followers() {
        let rows = vec![row(1, "a", 0, None), row(2, "b", 0, None), row(3, "a", 0, None)];
        assert_eq!(begun(rows, true), [1, 2, 3]);
    }

    #[test]
    fn a_row_that_was_refused_goes_without_its_followers() {
        let rows = vec![
            row(1, "a", 2, Some("nack")),
            row(2, "a", 0, None),
            row(3, "b", 5, Some("nack")),
        ];
        assert_eq!(begun(rows, false), [1, 3]);
    }

    #[test]
    fn suspects_are_tried_in_small_groups_and_then_alone() {
        assert_eq!(begun(many(1, None), false), (0..32).collect::<Vec<i64>>());
        assert_eq!(begun(many(2, None), false), [0]);
        assert_eq!(begun(many(2, Some("nack")), false).len(), 90);
        let after_a_death = begun(many(2, Some("nack")), true);
        assert_eq!(after_a_death, [0], "a refused row is a suspect too");
    }

    #[test]
    fn a_suspect_that_does_not_fit_keeps_its_followers_back() {
        let rows = vec![
            row(1, "a", 0, None),
            row(2, "b", 2, None),
            row(3, "b", 0, None),
            row(4, "c", 0, None),
        ];
        assert_eq!(begun(rows, false), [1, 4]);
    }

    #[test]
    fn a_row_that_killed_its_relay_too_often_is_dead() {
        let chosen = select(vec![row(1, "a", 12, None), row(2, "a", 0, None)], 100, 12, true);
        assert!(chosen.begin.is_empty(), "its followers wait for the policy");
        assert_eq!(chosen.dead[0].failure.state, ParkState::Dead);
        assert_eq!(chosen.dead[0].key, Some(("a".to_owned(), true)));
        let refused = select(vec![row(1, "a", 99, Some("unroutable"))], 100, 12, true);
        assert_eq!(refused.begin.len(), 1, "an answer of the broker is no death");
        let shared = select(vec![row(1, "a", 2, None)], 100, 1, true);
        assert_eq!(
            shared.begin.len(),
            1,
            "its first attempts were shared with others"
        );
    }
}
