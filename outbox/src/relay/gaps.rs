//! Positions below the floor that were missing when their neighbours were read.
//!
//! A missing position belongs to a transaction that is still open, was rolled back, or was settled long
//! ago. Until it is known which, every claim asks for it again in the same snapshot as the new rows, so that
//! a late row is never read after a successor of its key.
//!
//! When is a gap dead? Its transaction took its id before it took the position. So any transaction id taken
//! *after* the gap was seen (a settle's own id) is larger: the gap's *bound*. Once every transaction up to
//! the bound has ended before a claim that asked for the gap, and the row was not there, it never comes.
//!
//! A database that has no such ids but dirty reads tells which gaps have a row that is not committed yet:
//! those are waited for, and the others given up after [`UNBOUNDED_LIFE`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::record::{Position, TransactionId};

/// Ranges kept apart; beyond it the two oldest become one. Chosen: 10,000 ranges take about 1 MiB, and a
/// wider range only makes a claim read more rows that it knows.
const MOST_RANGES: usize = 10_000;

/// A gap on a database without bounds is given up this long after its row was last seen, or else after it
/// was discovered; the sweep remains. Chosen: longer than a statement may wait for a lock between taking its
/// position and writing its row (50 s by default on MySQL), and where there are no dirty reads either,
/// longer than most transactions.
const UNBOUNDED_LIFE: Duration = Duration::from_secs(60);

/// The gap list of one shard.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    ranges: BTreeMap<Position, Gap>,
    positions: u64,
    settles_sent: u64,
    /// The bound that came last.
    newest_bound: TransactionId,
    merged: bool,
}

#[derive(Debug, Clone, Copy)]
struct Gap {
    last: Position,
    /// Settles sent when it was seen: only a later one gives its bound.
    after: u64,
    bound: Option<TransactionId>,
    /// When it was discovered, or later its row was seen by a dirty read.
    seen: Instant,
}

impl Gap {
    fn len(&self, first: Position) -> u64 {
        self.last.abs_diff(first).saturating_add(1)
    }
}

impl Gaps {
    /// Whether nothing is missing.
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Missing positions.
    pub(super) fn positions(&self) -> u64 {
        self.positions
    }

    /// Whether a settle would tell something: there are gaps that no settle has been sent after.
    pub(super) fn want_bound(&self) -> bool {
        self.ranges
            .values()
            .any(|gap| gap.bound.is_none() && gap.after == self.settles_sent)
    }

    /// Notes that `first..=last` was missing in a claim.
    pub(super) fn discover(&mut self, first: Position, last: Position, now: Instant) {
        if first > last {
            return;
        }
        let gap = Gap {
            last,
            after: self.settles_sent,
            bound: None,
            seen: now,
        };
        self.positions = self.positions.saturating_add(gap.len(first));
        self.ranges.insert(first, gap);
        if self.ranges.len() > MOST_RANGES {
            self.merge_oldest();
        }
    }

    fn merge_oldest(&mut self) {
        let (Some((first, low)), Some((second, high))) = (self.ranges.pop_first(), self.ranges.pop_first())
        else {
            return;
        };
        let merged = Gap {
            last: high.last,
            after: low.after.max(high.after),
            bound: low.bound.zip(high.bound).map(|(low, high)| low.max(high)),
            seen: high.seen,
        };
        let apart = low.len(first).saturating_add(high.len(second));
        self.positions = self
            .positions
            .saturating_sub(apart)
            .saturating_add(merged.len(first));
        self.ranges.insert(first, merged);
        self.merged = true;
    }

    /// Removes a position that appeared; says whether it was missing.
    pub(super) fn fill(&mut self, position: Position) -> bool {
        let Some((&first, &gap)) = self.ranges.range(..=position).next_back() else {
            return false;
        };
        if gap.last < position {
            return false;
        }
        self.ranges.remove(&first);
        self.positions = self.positions.saturating_sub(1);
        if first < position {
            self.ranges.insert(
                first,
                Gap {
                    last: position - 1,
                    ..gap
                },
            );
        }
        if position < gap.last {
            self.ranges.insert(position + 1, gap);
        }
        true
    }

    /// Forgets what is missing above `floor`: it is read as new.
    pub(super) fn forget_above(&mut self, floor: Position) {
        drop(self.ranges.split_off(&floor.saturating_add(1)));
        if let Some(mut lowest) = self.ranges.last_entry() {
            lowest.get_mut().last = lowest.get().last.min(floor);
        }
        self.count();
    }

    /// Counts a settle about to be sent and returns its number.
    pub(super) fn settle_sent(&mut self) -> u64 {
        self.settles_sent += 1;
        self.settles_sent
    }

    /// Gives its bound to every gap seen before settle `number` was sent.
    pub(super) fn settled(&mut self, number: u64, bound: TransactionId) {
        if bound < self.newest_bound {
            // Ids went back: the database was restored. What they bounded has to be bounded anew.
            for gap in self.ranges.values_mut().filter(|gap| gap.bound.is_some()) {
                (gap.bound, gap.after) = (None, number);
            }
        }
        self.newest_bound = bound;
        for gap in self.ranges.values_mut() {
            if gap.bound.is_none() && gap.after < number {
                gap.bound = Some(bound);
            }
        }
    }

    /// Drops the gaps that are dead, after a claim that asked for all of them.
    ///
    /// `horizon`: every transaction below it had ended before that claim read; `None`: the database cannot
    /// tell.
    pub(super) fn expire(&mut self, horizon: Option<TransactionId>, now: Instant) {
        self.ranges.retain(|_, gap| match horizon {
            Some(horizon) => gap.bound.is_none_or(|bound| horizon <= bound),
            None => now.duration_since(gap.seen) < UNBOUNDED_LIFE,
        });
        self.count();
    }

    fn count(&mut self) {
        self.positions = self
            .ranges
            .iter()
            .fold(0, |sum: u64, (first, gap)| sum.saturating_add(gap.len(*first)));
        if self.ranges.is_empty() {
            self.merged = false;
        }
    }

    /// The lowest and the highest missing position.
    pub(super) fn span(&self) -> Option<(Position, Position)> {
        let (first, _) = self.ranges.first_key_value()?;
        let (_, highest) = self.ranges.last_key_value()?;
        Some((*first, highest.last))
    }

    /// Drops the gaps that had no row for long, after a dirty read that found rows at `present`.
    pub(super) fn looked(&mut self, present: &BTreeSet<Position>, now: Instant) {
        for (first, gap) in &mut self.ranges {
            if present.range(*first..=gap.last).next().is_some() {
                gap.seen = now;
            }
        }
        self.expire(None, now);
    }

    /// What is missing at or below `above`, as ascending ranges.
    pub(super) fn up_to(&self, above: Position) -> Vec<(Position, Position)> {
        let lower = self.ranges.range(..=above);
        lower.map(|(first, gap)| (*first, gap.last.min(above))).collect()
    }

    /// Whether ranges may hold positions that were read, because there were too many to keep apart.
    pub(super) fn hold_known_rows(&self) -> bool {
        self.merged
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listed(gaps: &Gaps) -> Vec<Position> {
        let ranges = gaps.up_to(Position::MAX);
        ranges.iter().flat_map(|(first, last)| *first..=*last).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_lives_until_a_bound_taken_after_its_discovery_is_below_the_horizon() {
        let now = Instant::now();
        let mut gaps = Gaps::default();
        let early = gaps.settle_sent();
        gaps.discover(4, 5, now);
        assert!(gaps.want_bound());
        gaps.settled(early, 100);
        gaps.expire(Some(1_000), now);
        assert_eq!(
            listed(&gaps),
            [4, 5],
            "a settle sent before the discovery proves nothing"
        );

        let later = gaps.settle_sent();
        assert!(!gaps.want_bound());
        gaps.settled(later, 200);
        gaps.expire(Some(200), now);
        assert_eq!(listed(&gaps), [4, 5], "transaction 200 itself may still be open");
        gaps.expire(Some(201), now);
        assert!(gaps.is_empty());
        assert_eq!(gaps.positions(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_row_splits_its_gap() {
        let mut gaps = Gaps::default();
        gaps.discover(10, 14, Instant::now());
        gaps.fill(12);
        gaps.fill(99);
        assert_eq!(listed(&gaps), [10, 11, 13, 14]);
        assert_eq!(gaps.positions(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rolled_back_bulk_insert_is_one_range() {
        let mut gaps = Gaps::default();
        gaps.discover(7, 100_006, Instant::now());
        assert_eq!(gaps.up_to(200_000), [(7, 100_006)]);
        assert_eq!(gaps.up_to(50), [(7, 50)]);
        assert_eq!(gaps.up_to(6), []);
        assert_eq!(gaps.positions(), 100_000);
    }

    #[tokio::test(start_paused = true)]
    async fn without_transaction_ids_a_gap_is_given_up_by_age() {
        let mut gaps = Gaps::default();
        gaps.discover(1, 1, Instant::now());
        gaps.expire(None, Instant::now());
        assert!(!gaps.is_empty());
        gaps.expire(None, Instant::now() + UNBOUNDED_LIFE);
        assert!(gaps.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_whose_row_is_seen_uncommitted_outlives_any_age() {
        let mut gaps = Gaps::default();
        let begin = Instant::now();
        gaps.discover(3, 3, begin);
        gaps.discover(5, 8, begin);
        assert_eq!(gaps.span(), Some((3, 8)));
        let open = BTreeSet::from([1, 6, 9]);
        for halves in 1..=10 {
            gaps.looked(&open, begin + halves * UNBOUNDED_LIFE / 2);
        }
        assert_eq!(listed(&gaps), [5, 6, 7, 8], "3 has had no row for a minute");
        let end = begin + 5 * UNBOUNDED_LIFE;
        gaps.looked(&BTreeSet::new(), end + UNBOUNDED_LIFE / 2);
        assert!(!gaps.is_empty(), "rolled back half a minute ago at most");
        gaps.looked(&BTreeSet::new(), end + UNBOUNDED_LIFE);
        assert!(gaps.is_empty());
        assert_eq!(gaps.positions(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_list_is_bounded_and_still_covers_every_gap() {
        let mut gaps = Gaps::default();
        for number in 0..MOST_RANGES as i64 + 500 {
            gaps.discover(number * 3 + 1, number * 3 + 1, Instant::now());
        }
        assert_eq!(gaps.ranges.len(), MOST_RANGES);
        assert!(gaps.hold_known_rows(), "merged ranges hold known rows too");
        assert_eq!(gaps.up_to(Position::MAX)[0], (1, 1_501));
        let sent = gaps.settle_sent();
        gaps.settled(sent, 5);
        gaps.expire(Some(6), Instant::now());
        assert!(gaps.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn bounds_of_a_database_that_was_restored_since_are_taken_anew() {
        let now = Instant::now();
        let mut gaps = Gaps::default();
        gaps.discover(4, 5, now);
        let sent = gaps.settle_sent();
        gaps.settled(sent, 1_000_000);
        gaps.discover(9, 9, now);
        let sent = gaps.settle_sent();
        gaps.settled(sent, 500);
        gaps.expire(Some(600), now);
        assert_eq!(listed(&gaps), [4, 5], "its bound is of another time");
        assert!(gaps.want_bound());
        let sent = gaps.settle_sent();
        gaps.settled(sent, 700);
        gaps.expire(Some(701), now);
        assert!(gaps.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_lies_above_a_lowered_floor_is_forgotten() {
        let mut gaps = Gaps::default();
        gaps.discover(1, 3, Instant::now());
        gaps.discover(5, 90, Instant::now());
        gaps.discover(95, 99, Instant::now());
        gaps.forget_above(50);
        assert_eq!(gaps.up_to(Position::MAX), [(1, 3), (5, 50)]);
        assert_eq!(gaps.positions(), 49);
        gaps.forget_above(0);
        assert!(gaps.is_empty());
    }

    proptest! {
        #[test]
        fn what_was_missing_and_has_not_come_is_asked_for(
            present in proptest::collection::btree_set(1i64..300, 1..150),
            late in proptest::collection::btree_set(1i64..300, 0..50),
        ) {
            let now = Instant::now();
            let mut gaps = Gaps::default();
            let mut floor = 0;
            for position in &present {
                gaps.discover(floor + 1, position - 1, now);
                floor = *position;
            }
            for position in &late {
                gaps.fill(*position);
            }
            let expected: Vec<i64> = (1..=floor)
                .filter(|position| !present.contains(position) && !late.contains(position))
                .collect();
            prop_assert_eq!(gaps.positions(), expected.len() as u64);
            prop_assert_eq!(listed(&gaps), expected);
        }
    }
}
