//! Keys that are held back, because rows of theirs wait in the parked table.

use std::collections::{HashMap, VecDeque};

use super::lanes::Item;

/// The held-back keys of one shard.
#[derive(Debug, Default)]
pub(super) struct Keys {
    held: HashMap<String, Held>,
    clock: u64,
}

#[derive(Debug, Default)]
struct Held {
    /// Rows of the parked table that hold the key, as far as we know.
    rows: u64,
    /// Rows on their way there.
    moving: u64,
    /// Rows on their way out of it.
    leaving: u64,
    /// Its oldest row failed; false: its rows are being published and it will soon be free.
    failing: bool,
    /// Later messages kept in memory until it is free.
    waiting: VecDeque<Item>,
    /// When it last changed, by `Keys::clock`.
    touched: u64,
}

/// What becomes of a claimed message.
pub(super) enum Admission {
    /// Its key is free.
    Free(Item),
    /// It waits in memory.
    Waits,
    /// It goes to the parked table.
    Park(Item),
}

impl Keys {
    /// Starts from what the database holds.
    pub(super) fn load(rows: Vec<(String, u64)>) -> Self {
        let mut keys = Self::default();
        for (key, rows) in rows {
            keys.held.insert(
                key,
                Held {
                    rows,
                    failing: true,
                    ..Held::default()
                },
            );
        }
        keys
    }

    /// Keys held back.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether no key is held back.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The messages kept in memory behind their keys.
    pub(super) fn waiting_items(&self) -> impl Iterator<Item = &Item> {
        self.held.values().flat_map(|held| &held.waiting)
    }

    /// Says what becomes of a claimed message.
    ///
    /// Behind a failing row it is parked. Behind rows that are being published it waits in memory, because a
    /// busy key would otherwise pass through the parked table for ever; it counts as in flight, so that
    /// claiming stops before too many wait.
    pub(super) fn admit(&mut self, item: Item) -> Admission {
        let Some(held) = item.1.key.as_ref().and_then(|key| self.held.get_mut(key)) else {
            return Admission::Free(item);
        };
        if held.failing {
            return Admission::Park(item);
        }
        held.waiting.push_back(item);
        Admission::Waits
    }

    /// Holds `key` back behind a row that failed; returns what waited in memory, to be parked behind it.
    pub(super) fn fail(&mut self, key: &str) -> Vec<Item> {
        let held = self.touch(key);
        held.failing = true;
        held.waiting.drain(..).collect()
    }

    /// Notes a row of `key` on its way to the parked table, where it will hold the key.
    pub(super) fn moving(&mut self, key: &str) {
        self.touch(key).moving += 1;
    }

    /// Notes that a moving row arrived.
    pub(super) fn arrived(&mut self, key: &str) {
        let held = self.touch(key);
        held.moving = held.moving.saturating_sub(1);
        held.rows += 1;
    }

    /// Notes a parked row of `key` whose end is about to be written.
    pub(super) fn leaving(&mut self, key: &str) {
        if self.held.contains_key(key) {
            self.touch(key).leaving += 1;
        }
    }

    /// Notes that a row that lies in the parked table holds `key` from now on.
    pub(super) fn hold(&mut self, key: &str) {
        self.touch(key).rows += 1;
    }

    /// Notes that the oldest parked row of `key` was published: the next ones follow.
    pub(super) fn passed(&mut self, key: &str) {
        if let Some(held) = self.held.get_mut(key) {
            held.failing = false;
        }
    }

    /// Notes that a parked row of `key` is gone for good; returns what may go on if it was the last.
    pub(super) fn gone(&mut self, key: &str) -> Vec<Item> {
        if !self.held.contains_key(key) {
            return Vec::new();
        }
        let held = self.touch(key);
        held.leaving = held.leaving.saturating_sub(1);
        held.rows = held.rows.saturating_sub(1);
        self.free_if_done(key)
    }

    fn free_if_done(&mut self, key: &str) -> Vec<Item> {
        if self
            .held
            .get(key)
            .is_none_or(|held| held.rows > 0 || held.moving > 0)
        {
            return Vec::new();
        }
        self.held
            .remove(key)
            .map(|held| held.waiting.into())
            .unwrap_or_default()
    }

    fn touch(&mut self, key: &str) -> &mut Held {
        self.clock += 1;
        if !self.held.contains_key(key) {
            self.held.insert(key.to_owned(), Held::default());
        }
        let held = self.held.entry(key.to_owned()).or_default();
        held.touched = self.clock;
        held
    }

    /// The moment a refresh starts, for [`Keys::refresh`].
    pub(super) fn now(&self) -> u64 {
        self.clock
    }

    /// Corrects the counts by what the database says, where nothing changed since `started`: a person may
    /// have discarded rows. Returns what may go on.
    pub(super) fn refresh(&mut self, rows: &[(String, u64)], started: u64) -> Vec<Item> {
        let rows: HashMap<&str, u64> = rows.iter().map(|(key, rows)| (key.as_str(), *rows)).collect();
        let mut done = Vec::new();
        for (key, held) in &mut self.held {
            // A write that the read may or may not have seen would be counted twice or not at all.
            if held.touched > started || held.moving > 0 || held.leaving > 0 {
                continue;
            }
            held.rows = rows.get(key.as_str()).copied().unwrap_or(0);
            if held.rows == 0 {
                done.push(key.clone());
            }
        }
        done.iter().flat_map(|key| self.free_if_done(key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use outbox_broker::Message;

    use super::*;
    use crate::relay::lanes::{Origin, Tag};

    fn item(position: i64) -> Item {
        let message = Message::builder("orders", "order.placed")
            .source("/test")
            .key("k");
        let message = message.build().unwrap();
        (Tag::new(Origin::Hot(position), &message), message)
    }

    fn positions(items: &[Item]) -> Vec<i64> {
        let position = |(tag, _): &Item| match tag.origin {
            Origin::Hot(position) => position,
            Origin::Parked { sequence, .. } => sequence,
        };
        items.iter().map(position).collect()
    }

    #[test]
    fn behind_a_failing_row_messages_are_parked_until_the_last_one_is_gone() {
        let mut keys = Keys::default();
        assert!(matches!(keys.admit(item(1)), Admission::Free(_)));
        keys.moving("k");
        assert!(keys.fail("k").is_empty());
        assert!(matches!(keys.admit(item(2)), Admission::Park(_)));
        keys.moving("k");
        keys.arrived("k");
        keys.arrived("k");
        assert!(keys.gone("k").is_empty());
        assert_eq!(keys.len(), 1);
        keys.gone("k");
        assert!(matches!(keys.admit(item(3)), Admission::Free(_)));
    }

    #[test]
    fn behind_rows_being_published_messages_wait_in_memory_and_follow_in_order() {
        let mut keys = Keys::default();
        keys.moving("k");
        keys.arrived("k");
        for position in 1..=3 {
            assert!(matches!(keys.admit(item(position)), Admission::Waits));
        }
        assert_eq!(keys.waiting_items().count(), 3);
        assert_eq!(positions(&keys.gone("k")), [1, 2, 3]);
        assert!(keys.is_empty());
    }

    #[test]
    fn a_row_on_its_way_keeps_the_key_when_the_others_are_gone() {
        let mut keys = Keys::load(vec![("k".to_owned(), 1)]);
        keys.moving("k");
        assert!(keys.gone("k").is_empty());
        assert_eq!(keys.len(), 1);
    }

    #[test]
    fn a_refresh_frees_keys_whose_rows_a_person_discarded_and_trusts_no_old_read() {
        let mut keys = Keys::load(vec![("k".to_owned(), 2)]);
        let started = keys.now();
        keys.fail("k");
        keys.refresh(&[], started);
        assert_eq!(keys.len(), 1, "it changed after the read began");
        keys.leaving("k");
        keys.refresh(&[], keys.now());
        assert_eq!(keys.len(), 1, "a write is under way");
        keys.gone("k");
        keys.passed("k");
        keys.admit(item(1));
        assert_eq!(positions(&keys.refresh(&[], keys.now())), [1]);
        assert!(keys.is_empty());
    }
}
