//! The queues between claim and publish: first in, first out per key.
//!
//! A key always maps to the same lane, and a lane has at most one publish call under way. So messages of one
//! key are never in two calls, and what comes back unpublished goes to the front of the lane in its order.

use std::collections::{HashSet, VecDeque};

use outbox_broker::Message;

use crate::record::Position;
use crate::shard::fnv1a;

/// Where a message came from, and thus how its outcome is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A row of the hot table.
    Hot(Position),
    /// A row of the parked table; its attempt is counted already.
    Parked {
        /// The row.
        sequence: i64,
        /// Attempts begun, this one included.
        attempts: u32,
        /// It holds back its key.
        holds: bool,
    },
}

/// What is remembered of a message while it travels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tag {
    pub(super) origin: Origin,
    /// Hash of the key; of the position where there is no key.
    pub(super) hash: u64,
    pub(super) bytes: usize,
}

impl Tag {
    pub(super) fn new(origin: Origin, message: &Message) -> Self {
        let hash = match (&message.key, origin) {
            (Some(key), _) => hash(key),
            (None, Origin::Hot(number) | Origin::Parked { sequence: number, .. }) => number.cast_unsigned(),
        };
        Self {
            origin,
            hash,
            bytes: message.size(),
        }
    }
}

/// That of the shards, stirred: the keys of one shard share the remainder of theirs.
fn hash(key: &str) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 divided by the golden ratio, odd
    fnv1a(key.as_bytes()).wrapping_mul(GOLDEN).rotate_left(32)
}

/// A message on its way.
pub(super) type Item = (Tag, Message);

/// Messages taken for one publish call, in order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) messages: Vec<Message>,
    pub(super) tags: Vec<Tag>,
    /// The lanes it was taken from; they rest until it comes back.
    pub(super) lanes: Vec<usize>,
}

/// The queues of one shard.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    /// Where the next batch starts, so that every lane gets its turn.
    turn: usize,
    queued: usize,
    /// One message of a key in each call: the broker promises nothing about the others when one fails.
    single: bool,
}

#[derive(Debug, Default)]
struct Lane {
    queue: VecDeque<Item>,
    busy: bool,
}

impl Lanes {
    /// `count` lanes; `single`: at most one message of a key in a batch.
    pub(super) fn new(count: usize, single: bool) -> Self {
        Self {
            lanes: (0..count.max(1)).map(|_| Lane::default()).collect(),
            turn: 0,
            queued: 0,
            single,
        }
    }

    /// Messages queued.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Puts a message behind those of its lane.
    pub(super) fn push(&mut self, item: Item) {
        let lane = self.of(item.0.hash);
        self.lanes[lane].queue.push_back(item);
        self.queued += 1;
    }

    fn of(&self, hash: u64) -> usize {
        (hash % self.lanes.len() as u64) as usize
    }

    /// Takes messages of resting lanes for one call: at most `limit`, and no further lane once `enough`.
    ///
    /// A small batch spans lanes, so that a trickle becomes few calls; a full one leaves the other lanes to
    /// other calls.
    pub(super) fn take(&mut self, limit: usize, enough: usize) -> Option<Batch> {
        let count = self.lanes.len();
        let mut batch = Batch::default();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let lane = &mut self.lanes[index];
            if lane.busy || lane.queue.is_empty() {
                continue;
            }
            lane.busy = true;
            batch.lanes.push(index);
            let room = limit - batch.messages.len();
            if self.single {
                lane.take_single(room, &mut batch);
            } else {
                lane.take(room, &mut batch);
            }
            if batch.messages.len() >= enough.min(limit) {
                break;
            }
        }
        self.turn = batch.lanes.last().map_or(self.turn, |last| (last + 1) % count);
        self.queued -= batch.messages.len();
        (!batch.messages.is_empty()).then_some(batch)
    }

    /// Lets the lanes of a returned batch be taken from again.
    pub(super) fn rest(&mut self, lanes: &[usize]) {
        for lane in lanes {
            self.lanes[*lane].busy = false;
        }
    }

    /// Puts messages back before all others of their lanes, in their order.
    pub(super) fn put_back(&mut self, items: Vec<Item>) {
        for item in items.into_iter().rev() {
            let lane = self.of(item.0.hash);
            self.lanes[lane].queue.push_front(item);
            self.queued += 1;
        }
    }

    /// Takes out every queued message of `lanes` that `wanted` picks, in order.
    pub(super) fn extract(&mut self, lanes: &[usize], mut wanted: impl FnMut(&Item) -> bool) -> Vec<Item> {
        let mut out = Vec::new();
        for index in lanes {
            let queue = &mut self.lanes[*index].queue;
            if !queue.iter().any(&mut wanted) {
                continue;
            }
            let (taken, kept): (Vec<Item>, Vec<Item>) = queue.drain(..).partition(&mut wanted);
            queue.extend(kept);
            self.queued -= taken.len();
            out.extend(taken);
        }
        out
    }

    /// As [`Lanes::extract`], of all lanes.
    pub(super) fn extract_all(&mut self, wanted: impl FnMut(&Item) -> bool) -> Vec<Item> {
        let all: Vec<usize> = (0..self.lanes.len()).collect();
        self.extract(&all, wanted)
    }

    /// The tags of all queued messages.
    pub(super) fn tags(&self) -> impl Iterator<Item = &Tag> {
        self.lanes
            .iter()
            .flat_map(|lane| lane.queue.iter().map(|(tag, _)| tag))
    }
}

impl Lane {
    fn take(&mut self, room: usize, batch: &mut Batch) {
        let count = room.min(self.queue.len());
        batch.messages.reserve(count);
        batch.tags.reserve(count);
        for (tag, message) in self.queue.drain(..count) {
            batch.tags.push(tag);
            batch.messages.push(message);
        }
    }

    /// As [`Lane::take`], with the first message of each key only. Looks at `room` messages, so that a call
    /// costs no more than its batch; keys are told apart by their hash, which errs on the safe side.
    fn take_single(&mut self, room: usize, batch: &mut Batch) {
        let mut keys = HashSet::new();
        let mut left = Vec::new();
        for (tag, message) in self.queue.drain(..room.min(self.queue.len())) {
            if message.key.is_none() || keys.insert(tag.hash) {
                batch.tags.push(tag);
                batch.messages.push(message);
            } else {
                left.push((tag, message));
            }
        }
        for item in left.into_iter().rev() {
            self.queue.push_front(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(position: Position, key: Option<u8>) -> Item {
        let builder = Message::builder("orders", "order.placed").source("/test");
        let builder = match key {
            Some(key) => builder.key(format!("k{key}")),
            None => builder,
        };
        let message = builder.build().unwrap();
        (Tag::new(Origin::Hot(position), &message), message)
    }

    fn position(tag: &Tag) -> Position {
        match tag.origin {
            Origin::Hot(position) => position,
            Origin::Parked { sequence, .. } => sequence,
        }
    }

    #[test]
    fn a_trickle_of_many_keys_becomes_one_call() {
        let mut lanes = Lanes::new(8, false);
        for number in 0..20 {
            lanes.push(item(i64::from(number), Some(number)));
        }
        let batch = lanes.take(1_000, 125).unwrap();
        assert_eq!(batch.messages.len(), 20);
        assert!(lanes.take(1_000, 125).is_none());
    }

    #[test]
    fn a_flood_becomes_one_call_a_lane() {
        let mut lanes = Lanes::new(4, false);
        for number in 0..4_000 {
            lanes.push(item(number, None));
        }
        let batches: Vec<Batch> = std::iter::from_fn(|| lanes.take(1_000, 250)).collect();
        assert_eq!(batches.len(), 4);
        assert!(batches.iter().all(|batch| batch.messages.len() == 1_000));
    }

    #[test]
    fn what_is_extracted_leaves_the_others_in_order() {
        let mut lanes = Lanes::new(1, false);
        for number in 0..6 {
            lanes.push(item(number, Some((number % 2) as u8)));
        }
        let taken = lanes.extract(&[0], |(_, message)| message.key.as_deref() == Some("k1"));
        let taken: Vec<Position> = taken.iter().map(|(tag, _)| position(tag)).collect();
        assert_eq!(taken, [1, 3, 5]);
        assert_eq!(lanes.queued(), 3);
        let left = lanes.take(10, 10).unwrap();
        assert_eq!(left.tags.iter().map(position).collect::<Vec<_>>(), [0, 2, 4]);
    }

    proptest! {
        /// Calls come back in any order, whole or with a part put back; every key is handed out in order,
        /// by one call at a time.
        #[test]
        fn a_key_is_in_one_call_at_a_time_and_in_order(
            keys in proptest::collection::vec(proptest::option::of(0u8..6), 1..200),
            choices in proptest::collection::vec(any::<(u8, u8)>(), 1..500),
            count in 1usize..6,
            limit in 1usize..30,
            single: bool,
        ) {
            let mut lanes = Lanes::new(count, single);
            for (number, key) in keys.iter().enumerate() {
                lanes.push(item(number as i64, *key));
            }
            let mut out: Vec<Batch> = Vec::new();
            let mut done: Vec<Position> = Vec::new();
            for (which, part) in choices {
                if let Some(batch) = lanes.take(limit, limit / count) {
                    let keys: Vec<&String> = batch.messages.iter().filter_map(|m| m.key.as_ref()).collect();
                    for other in &out {
                        let shared = |m: &Message| m.key.as_ref().is_some_and(|key| keys.contains(&key));
                        prop_assert!(!other.messages.iter().any(shared));
                    }
                    let distinct: HashSet<&&String> = keys.iter().collect();
                    prop_assert!(!single || distinct.len() == keys.len());
                    prop_assert!(batch.messages.len() <= limit);
                    out.push(batch);
                } else if out.is_empty() {
                    break;
                }
                if out.is_empty() || which % 3 == 0 {
                    continue;
                }
                let mut batch = out.swap_remove(which as usize % out.len());
                let accepted = part as usize % (batch.tags.len() + 1);
                let tags = batch.tags.split_off(accepted);
                let messages = batch.messages.split_off(accepted);
                lanes.put_back(tags.into_iter().zip(messages).collect());
                lanes.rest(&batch.lanes);
                done.extend(batch.tags.iter().map(position));
            }
            for key in 0u8..6 {
                let of_key = |position: &&Position| keys[**position as usize] == Some(key);
                let order: Vec<&Position> = done.iter().filter(of_key).collect();
                prop_assert!(order.is_sorted());
                prop_assert!(order.windows(2).all(|pair| pair[0] != pair[1]));
            }
        }
    }
}
