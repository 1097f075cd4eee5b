//! One key: who holds it, who waits in line, who listens.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::backend::Shape;
use crate::token::{FencingToken, Owner};

/// What remains of a hold or place is told as at least this, so that nobody asks in a tight loop.
const SHORTEST_RETRY: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
pub(super) struct Line {
    holders: Vec<Holder>,
    places: Vec<Place>,
    listeners: HashMap<u64, Listener>,
}

#[derive(Debug)]
pub(super) struct Holder {
    owner: Owner,
    shape: Shape,
    pub(super) token: FencingToken,
    pub(super) until: Instant,
}

#[derive(Debug)]
struct Place {
    owner: Owner,
    shape: Shape,
    until: Instant,
}

#[derive(Debug)]
struct Listener {
    owner: Owner,
    count: watch::Sender<u64>,
}

impl Line {
    /// Removes what has ended.
    pub(super) fn purge(&mut self, now: Instant) {
        self.holders.retain(|holder| holder.until > now);
        self.places.retain(|place| place.until > now);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.places.is_empty() && self.listeners.is_empty()
    }

    pub(super) fn holder(&mut self, owner: Owner) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|holder| holder.owner == owner)
    }

    /// Whether the holders leave room for `shape` with `ahead` in front.
    fn has_room(&self, shape: Shape, ahead: &[Place]) -> bool {
        let writes = |shape: Shape| shape == Shape::Write;
        match shape {
            Shape::Exclusive | Shape::Write => self.holders.is_empty() && ahead.is_empty(),
            Shape::Read => {
                !self.holders.iter().any(|holder| writes(holder.shape))
                    && !ahead.iter().any(|place| writes(place.shape))
            }
            Shape::Permit { limit } => self.holders.len() + ahead.len() < limit as usize,
        }
    }

    /// Whether those who hold the key leave no room, whoever waits.
    pub(super) fn is_taken(&self, shape: Shape) -> bool {
        !self.has_room(shape, &[])
    }

    /// Whether `owner` may hold the key now: nobody before it in the line is overtaken.
    pub(super) fn admits(&self, owner: Owner, shape: Shape) -> bool {
        self.has_room(shape, self.ahead(owner))
    }

    fn ahead(&self, owner: Owner) -> &[Place] {
        let own = self.places.iter().position(|place| place.owner == owner);
        &self.places[..own.unwrap_or(self.places.len())]
    }

    pub(super) fn admit(&mut self, owner: Owner, shape: Shape, token: FencingToken, until: Instant) {
        self.unqueue(owner);
        self.holders.push(Holder {
            owner,
            shape,
            token,
            until,
        });
    }

    /// Takes a place at the end, or keeps the one it has.
    pub(super) fn queue(&mut self, owner: Owner, shape: Shape, until: Instant) {
        if let Some(place) = self.places.iter_mut().find(|place| place.owner == owner) {
            place.until = until;
        } else {
            self.places.push(Place { owner, shape, until });
        }
    }

    /// Whether there was a place to give up.
    pub(super) fn unqueue(&mut self, owner: Owner) -> bool {
        let before = self.places.len();
        self.places.retain(|place| place.owner != owner);
        self.places.len() < before
    }

    /// Whether there was a hold to end.
    pub(super) fn end(&mut self, owner: Owner) -> bool {
        let before = self.holders.len();
        self.holders.retain(|holder| holder.owner != owner);
        self.holders.len() < before
    }

    pub(super) fn retry_after(&self, owner: Owner, shape: Shape, now: Instant) -> Duration {
        let holds = self.holders.iter().map(|holder| holder.until);
        let ends = if self.is_taken(shape) {
            holds.min()
        } else {
            self.ahead(owner).iter().map(|place| place.until).min()
        };
        ends.map_or(SHORTEST_RETRY, |until| {
            until.saturating_duration_since(now).max(SHORTEST_RETRY)
        })
    }

    pub(super) fn listen(&mut self, number: u64, owner: Owner) -> watch::Receiver<u64> {
        let (count, receiver) = watch::channel(0);
        self.listeners.insert(number, Listener { owner, count });
        receiver
    }

    pub(super) fn unlisten(&mut self, number: u64) {
        self.listeners.remove(&number);
    }

    /// Wakes those in the line who may hold the key now, or everybody who listens when there is no line.
    pub(super) fn wake(&self) {
        for listener in self.listeners.values() {
            let place = self.places.iter().find(|place| place.owner == listener.owner);
            let may = place.map_or(self.places.is_empty(), |place| {
                self.admits(place.owner, place.shape)
            });
            if may {
                listener.count.send_modify(|count| *count += 1);
            }
        }
    }
}
