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
