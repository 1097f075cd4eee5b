//! The decision of a claim, without a database: which rows a member takes, which it parks, which wait.
//!
//! | row | its key | decision |
//! |---|---|---|
//! | pending, lease running, mine | – | stays with me and uses up prefetch |
//! | pending, lease running, another's | held | stays; nothing of its key goes to me, earlier or later |
//! | pending, nacked with a delay | waits | stays; nothing *later* of its key goes to anyone |
//! | pending, visible | free | taken, its attempt is one higher |
//! | pending, visible | held or waits | stays behind |
//! | fresh (beyond the cursor) | free | taken, first attempt |
//! | fresh | held, waits or cut off by the limit | parked: pending, visible, no owner |
//!
//! So one key is with one member at a time, and its rows are handed out in `seq` order. The cursor moves
//! over what was taken or parked, never over a row that was neither.

use std::collections::HashSet;

/// A row that the group has read and not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PendingRow {
    pub(super) seq: i64,
    pub(super) key: Option<String>,
    /// The member that holds it; `None`: nacked, parked or given back.
    pub(super) owner: Option<i64>,
    /// Nobody else gets it before this, µs since 1970 by the database's clock.
    pub(super) visible_at: i64,
}

/// A row of the log beyond the group's cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FreshRow {
    pub(super) seq: i64,
    pub(super) key: Option<String>,
}

/// Who asks, and for how much.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) member: i64,
    /// Present time of the database, µs since 1970.
    pub(super) now: i64,
    /// Rows at most in this claim.
    pub(super) max: usize,
    /// Rows at most that the member may hold.
    pub(super) prefetch: usize,
    /// Pending rows at most before no more are parked.
    pub(super) pending_limit: usize,
}

/// What to write.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Pending rows to hand out again.
    pub(super) again: Vec<i64>,
    /// Fresh rows to hand out.
    pub(super) fresh: Vec<i64>,
    /// Fresh rows to make pending without handing them out.
    pub(super) park: Vec<i64>,
    /// The group's new cursor, if it moves.
    pub(super) cursor: Option<i64>,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.again.is_empty() && self.cursor.is_none()
    }

    pub(super) fn taken(&self) -> Vec<i64> {
        self.again.iter().chain(&self.fresh).copied().collect()
    }
}

/// Decides a claim. `pending` and `fresh` come in `seq` order.
pub(super) fn plan(pending: &[PendingRow], fresh: &[FreshRow], asked: Asked) -> Plan {
    let held = |row: &PendingRow| row.visible_at > asked.now && row.owner.is_some();
    let mine = |row: &PendingRow| row.owner == Some(asked.member);
    let mut blocked: HashSet<&str> = pending
        .iter()
        .filter(|row| held(row) && !mine(row))
        .filter_map(|row| row.key.as_deref())
        .collect();
    let in_hand = pending.iter().filter(|row| held(row) && mine(row)).count();
    let room = asked.max.min(asked.prefetch.saturating_sub(in_hand));
    let mut out = Plan::default();
    let mut taken = 0;
    for row in pending {
        if held(row) {
            continue;
        }
        let free = row.key.as_deref().is_none_or(|key| !blocked.contains(key));
        if row.visible_at <= asked.now && free && taken < room {
            out.again.push(row.seq);
            taken += 1;
        } else if let Some(key) = row.key.as_deref() {
            blocked.insert(key);
        }
    }
    if room == 0 {
        return out;
    }
    let mut parkable = asked.pending_limit.saturating_sub(pending.len());
    for row in fresh {
        let free = row.key.as_deref().is_none_or(|key| !blocked.contains(key));
        if free && taken < room {
            out.fresh.push(row.seq);
            taken += 1;
        } else if !free && parkable > 0 {
            out.park.push(row.seq);
            parkable -= 1;
        } else {
            break;
        }
        out.cursor = Some(row.seq);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_000;

    fn asked() -> Asked {
        Asked {
            member: 1,
            now: NOW,
            max: 10,
            prefetch: 10,
            pending_limit: 100,
        }
    }

    fn pending(seq: i64, key: &str, owner: Option<i64>, visible_at: i64) -> PendingRow {
        PendingRow {
            seq,
            key: Some(key.to_owned()),
            owner,
            visible_at,
        }
    }

    fn fresh(seq: i64, key: &str) -> FreshRow {
        FreshRow {
            seq,
            key: Some(key.to_owned()),
        }
    }

    #[test]
    fn a_key_held_by_another_member_is_parked_and_others_pass_it() {
        let plan = plan(
            &[pending(1, "a", Some(2), NOW + 1)],
            &[fresh(2, "a"), fresh(3, "b")],
            asked(),
        );
        assert_eq!((plan.fresh, plan.park, plan.cursor), (vec![3], vec![2], Some(3)));
    }

    #[test]
    fn a_key_held_by_the_same_member_goes_on() {
        let plan = plan(&[pending(1, "a", Some(1), NOW + 1)], &[fresh(2, "a")], asked());
        assert_eq!(plan.fresh, vec![2]);
    }

    #[test]
    fn a_delayed_row_holds_back_the_later_rows_of_its_key() {
        let rows = [
            pending(1, "a", None, NOW + 1),
            pending(2, "a", None, 0),
            pending(3, "b", None, 0),
        ];
        let plan = plan(&rows, &[fresh(4, "a")], asked());
        assert_eq!((plan.again, plan.park), (vec![3], vec![4]));
    }

    #[test]
    fn a_redelivery_waits_while_another_member_holds_a_later_row_of_its_key() {
        let rows = [pending(1, "a", None, 0), pending(2, "a", Some(2), NOW + 1)];
        assert!(plan(&rows, &[], asked()).is_empty());
    }

    #[test]
    fn a_full_member_takes_and_parks_nothing() {
        let rows = [
            pending(1, "a", Some(1), NOW + 1),
            pending(2, "b", Some(2), NOW + 1),
        ];
        let plan = plan(
            &rows,
            &[fresh(3, "b"), fresh(4, "c")],
            Asked {
                prefetch: 1,
                ..asked()
            },
        );
        assert!(plan.is_empty());
    }

    proptest! {
        #[test]
        fn no_row_is_lost_and_no_key_is_inverted_or_shared(
            rows in prop::collection::vec(
                (0u8..4, prop::option::of(1i64..4), prop::bool::ANY), 0..20),
            new in prop::collection::vec(0u8..4, 0..20),
            max in 0usize..8,
            prefetch in 1usize..12,
            limit in 0usize..30,
        ) {
            let rows: Vec<PendingRow> = (1..).zip(&rows).map(|(seq, (key, owner, later))| {
                pending(seq, &key.to_string(), *owner, if *later { NOW + 5 } else { NOW })
            }).collect();
            let first = i64::try_from(rows.len()).unwrap() + 1;
            let new: Vec<FreshRow> =
                (first..).zip(&new).map(|(seq, key)| fresh(seq, &key.to_string())).collect();
            let out = plan(&rows, &new, Asked { max, prefetch, pending_limit: limit, ..asked() });
            let held = |row: &PendingRow| row.visible_at > NOW && row.owner.is_some();
            let in_hand = rows.iter().filter(|row| held(row) && row.owner == Some(1)).count();
            let taken = out.taken();
            prop_assert!(taken.len() <= max);
            prop_assert!(taken.is_empty() || taken.len() + in_hand <= prefetch);
            // Everything up to the cursor was taken or parked, in order and once.
            let mut moved: Vec<i64> = out.fresh.iter().chain(&out.park).copied().collect();
            moved.sort_unstable();
            let expected: Vec<i64> =
                new.iter().map(|row| row.seq).filter(|seq| Some(*seq) <= out.cursor).collect();
            prop_assert_eq!(moved, expected);
            // Per key: taken rows are the first ones that nobody of this member holds.
            let mut open: HashMap<&str, bool> = HashMap::new();
            for row in &rows {
                let key = row.key.as_deref().unwrap();
                if held(row) && row.owner != Some(1) {
                    prop_assert!(!rows.iter().any(|r| r.key == row.key && taken.contains(&r.seq)));
                    prop_assert!(!new.iter().any(|r| r.key == row.key && taken.contains(&r.seq)));
                } else if !held(row) {
                    let was_open = *open.entry(key).or_insert(true);
                    let took = taken.contains(&row.seq);
                    prop_assert!(was_open || !took);
                    open.insert(key, took);
                }
            }
            for row in &new {
                let key = row.key.as_deref().unwrap();
                let was_open = *open.entry(key).or_insert(true);
                let took = taken.contains(&row.seq);
                prop_assert!(was_open || !took);
                open.insert(key, took);
            }
        }
    }
}
