//! Who may hold a key: a decision on the rows of that key, without a clock or a database.

use std::time::Duration;

use crate::backend::Shape;

/// What remains of a hold or place is told as at least this, so that nobody asks in a tight loop.
const SHORTEST_RETRY: Duration = Duration::from_millis(1);

/// A hold or a place, as its row says. Times are microseconds by the database's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) owner: String,
    pub(super) writes: bool,
    pub(super) token: i64,
    pub(super) until: i64,
}

/// Everything there is about one key and class, without what has expired.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) now: i64,
    pub(super) holders: Vec<Entry>,
    /// In order of arrival.
    pub(super) places: Vec<Entry>,
}

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It holds the key already, with this token.
    Again(i64),
    /// It gets the key.
    Grant {
        /// And gives up its place.
        had_place: bool,
    },
    /// It waits.
    Wait {
        /// As [`Acquire::Held`](crate::Acquire::Held) says.
        retry_after: Duration,
    },
}

impl Line {
    /// Whether the holders leave room for `shape` with `ahead` in front.
    fn has_room(&self, shape: Shape, ahead: &[Entry]) -> bool {
        let writes = |entries: &[Entry]| entries.iter().any(|entry| entry.writes);
        match shape {
            Shape::Exclusive | Shape::Write => self.holders.is_empty() && ahead.is_empty(),
            Shape::Read => !writes(&self.holders) && !writes(ahead),
            Shape::Permit { limit } => self.holders.len() + ahead.len() < limit as usize,
        }
    }

    /// Whether those who hold the key leave no room, whoever waits.
    pub(super) fn is_taken(&self, shape: Shape) -> bool {
        !self.has_room(shape, &[])
    }

    pub(super) fn holder(&self, owner: &str) -> Option<&Entry> {
        self.holders.iter().find(|holder| holder.owner == owner)
    }

    pub(super) fn decide(&self, owner: &str, shape: Shape) -> Decision {
        if let Some(holder) = self.holder(owner) {
            return Decision::Again(holder.token);
        }
        let own = self.places.iter().position(|place| place.owner == owner);
        let ahead = &self.places[..own.unwrap_or(self.places.len())];
        if self.has_room(shape, ahead) {
            return Decision::Grant {
                had_place: own.is_some(),
            };
        }
        let stands_in_the_way = if self.is_taken(shape) {
            &self.holders
        } else {
            ahead
        };
        let first = stands_in_the_way.iter().map(|entry| entry.until).min();
        let remains = first.unwrap_or(self.now).saturating_sub(self.now);
        Decision::Wait {
            retry_after: Duration::from_micros(u64::try_from(remains).unwrap_or(0)).max(SHORTEST_RETRY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(owner: &str, writes: bool, until: i64) -> Entry {
        Entry {
            owner: owner.to_owned(),
            writes,
            token: 7,
            until,
        }
    }

    fn line(holders: &[Entry], places: &[Entry]) -> Line {
        Line {
            now: 1_000_000,
            holders: holders.to_vec(),
            places: places.to_vec(),
        }
    }

    const WAIT: fn(u64) -> Decision = |millis| Decision::Wait {
        retry_after: Duration::from_millis(millis),
    };
    const GRANT: Decision = Decision::Grant { had_place: false };

    #[test]
    fn who_holds_the_key_holds_it_again() {
        let line = line(&[entry("a", true, 2_000_000)], &[entry("b", true, 3_000_000)]);
        assert_eq!(line.decide("a", Shape::Exclusive), Decision::Again(7));
    }

    #[test]
    fn the_shortest_hold_that_stands_in_the_way_is_told() {
        let line = line(
            &[entry("a", false, 3_000_000), entry("b", false, 1_500_000)],
            &[entry("c", false, 1_200_000)],
        );
        assert_eq!(line.decide("d", Shape::Permit { limit: 2 }), WAIT(500));
        assert_eq!(line.decide("d", Shape::Permit { limit: 3 }), WAIT(200));
        assert_eq!(line.decide("d", Shape::Permit { limit: 4 }), GRANT);
    }

    #[test]
    fn the_first_in_the_line_goes_first() {
        let line = line(&[], &[entry("a", true, 1_700_000), entry("b", true, 1_800_000)]);
        assert_eq!(
            line.decide("a", Shape::Exclusive),
            Decision::Grant { had_place: true }
        );
        assert_eq!(line.decide("b", Shape::Exclusive), WAIT(700));
        assert_eq!(line.decide("c", Shape::Exclusive), WAIT(700));
    }

    #[test]
    fn readers_share_until_a_writer_waits() {
        let holders = [entry("a", false, 2_000_000)];
        assert_eq!(line(&holders, &[]).decide("b", Shape::Read), GRANT);
        assert_eq!(line(&holders, &[]).decide("b", Shape::Write), WAIT(1_000));
        let waiting = line(&holders, &[entry("w", true, 1_100_000)]);
        assert_eq!(waiting.decide("b", Shape::Read), WAIT(100));
    }
}
