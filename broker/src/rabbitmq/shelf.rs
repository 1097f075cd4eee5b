//! Deliveries that a consumer gave back, waiting in this process for their next turn.
//!
//! A nack is not sent to the broker: RabbitMQ puts a requeued message at the end of a quorum queue, behind
//! the later messages of its key. The delivery stays unacknowledged instead, waits here, and holds the later
//! ones of its key back; if the process dies, the broker has all of them.

use std::collections::{BTreeMap, HashSet, VecDeque};

use tokio::time::Instant;

/// What the shelf must know of a delivery.
pub(super) trait Parcel {
    /// Its place in the queue.
    fn tag(&self) -> u64;

    /// Its ordering key.
    fn key(&self) -> Option<&str>;
}

/// Deliveries by their place in the queue.
pub(super) struct Shelf<P> {
    waiting: BTreeMap<u64, Waiting<P>>,
}

struct Waiting<P> {
    ready_at: Instant,
    parcel: P,
}

impl<P> Default for Shelf<P> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
        }
    }
}

impl<P: Parcel> Shelf<P> {
    /// Keeps `parcel` until `ready_at`.
    pub(super) fn put(&mut self, parcel: P, ready_at: Instant) {
        self.waiting.insert(parcel.tag(), Waiting { ready_at, parcel });
    }

    /// Up to `max` parcels whose turn it is: first from the shelf, then from `arrived`, both in queue order;
    /// one that follows a waiting one of its key waits too.
    pub(super) fn take(&mut self, arrived: &mut VecDeque<P>, max: usize, now: Instant) -> Vec<P> {
        let mut held_back = HashSet::new();
        let mut turn = Vec::new();
        for (&tag, Waiting { ready_at, parcel }) in &self.waiting {
            let follows = parcel.key().is_some_and(|key| held_back.contains(key));
            if turn.len() < max && *ready_at <= now && !follows {
                turn.push(tag);
            } else if let Some(key) = parcel.key() {
                held_back.insert(key.to_owned());
            }
        }
        let mut out: Vec<P> = turn
            .iter()
            .filter_map(|tag| self.waiting.remove(tag))
            .map(|waiting| waiting.parcel)
            .collect();
        while out.len() < max
            && let Some(parcel) = arrived.pop_front()
        {
            if parcel.key().is_some_and(|key| held_back.contains(key)) {
                self.put(parcel, now);
            } else {
                out.push(parcel);
            }
        }
        out
    }

    /// When the next parcel that is not ready now will be.
    pub(super) fn next_ready(&self, now: Instant) -> Option<Instant> {
        self.waiting
            .values()
            .map(|waiting| waiting.ready_at)
            .filter(|&ready_at| ready_at > now)
            .min()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    type Sample = (u64, Option<&'static str>);

    impl Parcel for Sample {
        fn tag(&self) -> u64 {
            self.0
        }

        fn key(&self) -> Option<&str> {
            self.1
        }
    }

    const A: Option<&str> = Some("a");
    const B: Option<&str> = Some("b");

    #[test]
    fn later_messages_of_a_waiting_key_wait_and_others_pass() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut shelf = Shelf::default();
        let mut arrived = VecDeque::from([(2, A), (3, B), (4, None), (5, A)]);
        shelf.put((1, A), later);
        assert_eq!(shelf.take(&mut arrived, 10, now), [(3, B), (4, None)]);
        assert_eq!(shelf.next_ready(now), Some(later));
        assert_eq!(shelf.take(&mut arrived, 2, later), [(1, A), (2, A)]);
        assert_eq!(shelf.take(&mut arrived, 2, later), [(5, A)]);
        assert_eq!((shelf.len(), shelf.next_ready(later)), (0, None));
    }

    #[test]
    fn parcels_given_back_out_of_order_keep_queue_order() {
        let now = Instant::now();
        let mut shelf = Shelf::default();
        for tag in [3, 1, 2] {
            shelf.put((tag, A), now);
        }
        assert_eq!(
            shelf.take(&mut VecDeque::from([(4, A)]), 10, now),
            [(1, A), (2, A), (3, A), (4, A)]
        );
    }

    #[test]
    fn a_full_hand_leaves_the_rest_in_order() {
        let now = Instant::now();
        let mut shelf = Shelf::default();
        let mut arrived = VecDeque::from([(3, A)]);
        shelf.put((1, A), now);
        shelf.put((2, A), now);
        assert_eq!(shelf.take(&mut arrived, 1, now), [(1, A)]);
        assert_eq!(shelf.take(&mut arrived, 5, now), [(2, A), (3, A)]);
    }
}
