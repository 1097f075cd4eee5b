//! Who may run now: one message per lane key at a time, a bounded number of keys at once.
//!
//! Every key has a queue of its own, so a key that waits for its retry holds up nobody else; it takes no
//! running place while it waits. The memory is bounded by the consumer's prefetch.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

/// The key that two messages must share to exclude each other.
pub(crate) type LaneKey = Arc<str>;

#[derive(Debug, PartialEq, Eq)]
enum State {
    Ready,
    Running,
    Held,
}

#[derive(Debug)]
struct Queue<W> {
    waiting: VecDeque<W>,
    state: State,
}

/// The queues of all keys.
#[derive(Debug)]
pub(crate) struct Lanes<W> {
    limit: usize,
    running: usize,
    waiting: usize,
    queues: HashMap<LaneKey, Queue<W>>,
    ready: VecDeque<LaneKey>,
    held: BinaryHeap<Reverse<(Instant, LaneKey)>>,
}

impl<W> Lanes<W> {
    /// Lanes that run at most `limit` keys at once.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            running: 0,
            waiting: 0,
            queues: HashMap::new(),
            ready: VecDeque::new(),
            held: BinaryHeap::new(),
        }
    }

    /// Adds work behind what its key already has.
    pub(crate) fn push(&mut self, key: LaneKey, work: W) {
        self.waiting += 1;
        match self.queues.get_mut(&key) {
            Some(queue) => queue.waiting.push_back(work),
            None => {
                self.ready.push_back(key.clone());
                self.queues.insert(
                    key,
                    Queue {
                        waiting: VecDeque::from([work]),
                        state: State::Ready,
                    },
                );
            }
        }
    }

    /// The next work that may run, if a place is free. End it with [`Lanes::finish`] or [`Lanes::hold`].
    pub(crate) fn next(&mut self) -> Option<(LaneKey, W)> {
        if self.running >= self.limit {
            return None;
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(queue) = self.queues.get_mut(&key) else {
                continue;
            };
            match queue.waiting.pop_front() {
                Some(work) => {
                    queue.state = State::Running;
                    self.running += 1;
                    self.waiting -= 1;
                    return Some((key, work));
                }
                None => {
                    self.queues.remove(&key);
                }
            }
        }
        None
    }

    /// The running work of `key` is over; its successor may run.
    pub(crate) fn finish(&mut self, key: &LaneKey) {
        self.running = self.running.saturating_sub(1);
        let Some(queue) = self.queues.get_mut(key) else {
            return;
        };
        if queue.waiting.is_empty() {
            self.queues.remove(key);
        } else {
            queue.state = State::Ready;
            self.ready.push_back(key.clone());
        }
    }

    /// The running work of `key` goes back to the head of its queue and its key rests until `until`.
    pub(crate) fn hold(&mut self, key: &LaneKey, work: W, until: Instant) {
        self.running = self.running.saturating_sub(1);
        self.waiting += 1;
        let queue = self.queues.entry(key.clone()).or_insert_with(|| Queue {
            waiting: VecDeque::new(),
            state: State::Held,
        });
        queue.waiting.push_front(work);
        queue.state = State::Held;
        self.held.push(Reverse((until, key.clone())));
    }

    /// Makes the keys ready whose rest is over.
    pub(crate) fn wake(&mut self, now: Instant) {
        while let Some(Reverse((until, _))) = self.held.peek() {
            if *until > now {
                break;
            }
            let Some(Reverse((_, key))) = self.held.pop() else {
                break;
            };
            if let Some(queue) = self.queues.get_mut(&key)
                && queue.state == State::Held
            {
                queue.state = State::Ready;
                self.ready.push_back(key);
            }
        }
    }

    /// When [`Lanes::wake`] has something to do.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.held.peek().map(|Reverse((until, _))| *until)
    }

    /// Forgets all work that does not run, and returns how much it was.
    pub(crate) fn clear(&mut self) -> usize {
        let dropped = self.waiting;
        self.waiting = 0;
        self.ready.clear();
        self.held.clear();
        self.queues.clear();
        dropped
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn key(text: &str) -> LaneKey {
        Arc::from(text)
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_key_lets_other_keys_pass_and_its_successor_waits() {
        let mut lanes = Lanes::new(1);
        lanes.push(key("a"), 1);
        lanes.push(key("a"), 2);
        lanes.push(key("b"), 3);
        let (a, first) = lanes.next().unwrap();
        assert_eq!(first, 1);
        let until = Instant::now() + Duration::from_secs(10);
        lanes.hold(&a, first, until);
        let (b, other) = lanes.next().unwrap();
        assert_eq!(other, 3);
        lanes.finish(&b);
        assert!(lanes.next().is_none(), "2 must not overtake 1");
        lanes.wake(until);
        assert_eq!(lanes.next().unwrap().1, 1);
    }

    #[test]
    fn no_more_keys_run_at_once_than_there_are_lanes() {
        let mut lanes = Lanes::new(2);
        for name in ["a", "b", "c"] {
            lanes.push(key(name), name);
        }
        let (first, _) = lanes.next().unwrap();
        assert!(lanes.next().is_some());
        assert!(lanes.next().is_none());
        lanes.finish(&first);
        assert_eq!(lanes.next().unwrap().1, "c");
    }

    proptest! {
        #[test]
        fn work_of_a_key_runs_in_order_and_never_overlaps(
            keys in proptest::collection::vec(0..4u8, 1..60),
            choices in proptest::collection::vec((0..3u8, 0..3usize), 1..400),
        ) {
            let mut lanes = Lanes::new(3);
            for (number, name) in keys.iter().enumerate() {
                lanes.push(key(&name.to_string()), number);
            }
            let start = Instant::now();
            let mut running: Vec<(LaneKey, usize)> = Vec::new();
            let mut done: HashMap<LaneKey, usize> = HashMap::new();
            let mut finished = 0;
            for (choice, index) in choices.into_iter().chain(std::iter::repeat_n((0, 0), 400)) {
                lanes.wake(start);
                while let Some((name, work)) = lanes.next() {
                    prop_assert!(running.iter().all(|(other, _)| *other != name));
                    running.push((name, work));
                }
                if running.is_empty() { break; }
                let (name, work) = running.swap_remove(index % running.len());
                if choice == 2 {
                    lanes.hold(&name, work, start);
                } else {
                    if let Some(before) = done.insert(name.clone(), work) {
                        prop_assert!(before < work);
                    }
                    finished += 1;
                    lanes.finish(&name);
                }
            }
            prop_assert_eq!(finished, keys.len());
        }
    }
}
