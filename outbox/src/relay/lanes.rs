//! The queues between claim and publish: first in, first out per key.
//!
//! A key always maps to the same lane, and a lane has at most one publish call under way. So messages of one
//! key are never in two calls, and what comes back unpublished goes to the front of the lane in its order.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use outbox_broker::Message;

use crate::record::Position;

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

fn hash(key: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
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
            let queue = std::mem::take(&mut self.lanes[*index].queue);
            let (taken, kept): (Vec<Item>, VecDeque<Item>) = queue.into_iter().partition_mixed(&mut wanted);
            self.queued -= taken.len();
            self.lanes[*index].queue = kept;
            out.extend(taken);
        }
        out
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

/// `partition` into two different collections.
trait PartitionMixed<T> {
    fn partition_mixed(self, wanted: impl FnMut(&T) -> bool) -> (Vec<T>, VecDeque<T>);
}

impl<T, I: Iterator<Item = T>> PartitionMixed<T> for I {
    fn partition_mixed(self, mut wanted: impl FnMut(&T) -> bool) -> (Vec<T>, VecDeque<T>) {
        let (mut taken, mut kept) = (Vec::new(), VecDeque::new());
        for item in self {
            if wanted(&item) {
                taken.push(item);
            } else {
                kept.push_back(item);
            }
        }
        (taken, kept)
    }
}
