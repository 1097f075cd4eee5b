//! A group's view of a topic: what it has not begun, what waits, what is in flight, what is dead.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::state::{Entry, Partition};
use crate::{Lag, Malformed, Message, Verdict};

/// Entries of a partition that may wait beside the cursor. Chosen: bounds the walk of one receive; reached
/// only when that many messages were nacked or follow a key that waits, and then the cursor stops.
const WAITING_LIMIT: usize = 10_000;

/// A message that a group gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The message, or the bytes that are none.
    pub content: Result<Message, Malformed>,
    /// Why it was given up.
    pub reason: String,
    /// How often it had been handed out.
    pub attempt: u32,
}

pub(super) struct Group {
    cursors: Vec<Cursor>,
    /// When deliveries in flight are taken back, earliest first.
    deadlines: BTreeSet<(Instant, usize, u64)>,
    /// Deliveries in flight of each member.
    loads: HashMap<u64, usize>,
    next_generation: u64,
    /// The partition the next receive begins with, so that none starves.
    next_partition: usize,
    dead: VecDeque<DeadLetter>,
    dead_limit: usize,
    arrived: Arc<Notify>,
}

/// A group's place in one partition. An offset below `next` that neither waits nor is in flight is done.
struct Cursor {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    in_flight: BTreeMap<u64, InFlight>,
    /// Who holds deliveries of a key, and how many.
    owners: HashMap<u64, Owner>,
}

struct Waiting {
    ready_at: Instant,
    attempt: u32,
}

struct InFlight {
    member: u64,
    generation: u64,
    attempt: u32,
    deadline: Instant,
}

struct Owner {
    member: u64,
    deliveries: usize,
}

/// The name of one delivery: settling with an old generation is stale.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub(super) partition: usize,
    pub(super) offset: u64,
    pub(super) generation: u64,
}

/// One delivery handed out.
pub(super) struct Taken {
    pub(super) ticket: Ticket,
    pub(super) attempt: u32,
    pub(super) content: Result<Message, Malformed>,
}

/// Who takes, and how much it may hold.
#[derive(Clone, Copy)]
pub(super) struct Taker {
    pub(super) member: u64,
    pub(super) prefetch: usize,
    pub(super) visibility: Duration,
}

impl Group {
    pub(super) fn new(starts: impl Iterator<Item = u64>, dead_limit: usize) -> Self {
        let cursor = |next| Cursor {
            next,
            waiting: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            owners: HashMap::new(),
        };
        Self {
            cursors: starts.map(cursor).collect(),
            deadlines: BTreeSet::new(),
            loads: HashMap::new(),
            next_generation: 1,
            next_partition: 0,
            dead: VecDeque::new(),
            dead_limit,
            arrived: Arc::new(Notify::new()),
        }
    }

    pub(super) fn arrived(&self) -> Arc<Notify> {
        Arc::clone(&self.arrived)
    }

    pub(super) fn wake(&self) {
        self.arrived.notify_waiters();
    }

    /// Hands up to `max` deliveries to `taker`.
    pub(super) fn take(&mut self, log: &[Partition], taker: Taker, max: usize, now: Instant) -> Vec<Taken> {
        self.expire(log, now);
        let held = self.loads.get(&taker.member).copied().unwrap_or(0);
        let room = max.min(taker.prefetch.saturating_sub(held));
        let mut out = Vec::new();
        for step in 0..self.cursors.len() {
            let partition = (self.next_partition + step) % self.cursors.len();
            let offsets =
                self.cursors[partition].choose(&log[partition], taker.member, room - out.len(), now);
            for (offset, attempt) in offsets {
                let ticket = Ticket {
                    partition,
                    offset,
                    generation: self.next_generation,
                };
                self.next_generation += 1;
                let deadline = now + taker.visibility;
                let delivery = InFlight {
                    member: taker.member,
                    generation: ticket.generation,
                    attempt,
                    deadline,
                };
                self.cursors[partition].in_flight.insert(offset, delivery);
                self.deadlines.insert((deadline, partition, offset));
                if let Some(entry) = log[partition].entry(offset) {
                    out.push(Taken {
                        ticket,
                        attempt,
                        content: entry.content.clone(),
                    });
                }
            }
        }
        self.next_partition = (self.next_partition + 1) % self.cursors.len();
        *self.loads.entry(taker.member).or_default() += out.len();
        out
    }

    /// When something that is not to be had now may come back by itself.
    pub(super) fn next_change(&self, now: Instant) -> Option<Instant> {
        let ready = self
            .cursors
            .iter()
            .flat_map(|cursor| cursor.waiting.values().map(|waiting| waiting.ready_at))
            .filter(|&ready_at| ready_at > now)
            .min();
        let deadline = self.deadlines.first().map(|&(deadline, ..)| deadline);
        ready.into_iter().chain(deadline).min()
    }

    /// Carries out a verdict; false if the delivery is no longer this one's.
    pub(super) fn settle(
        &mut self,
        log: &[Partition],
        ticket: Ticket,
        verdict: Verdict,
        now: Instant,
    ) -> bool {
        self.expire(log, now);
        let Some(delivery) = self.end(log, ticket) else {
            return false;
        };
        match verdict {
            Verdict::Ack => {}
            Verdict::Nack { delay } => {
                let waiting = Waiting {
                    ready_at: now + delay,
                    attempt: delivery.attempt,
                };
                self.cursors[ticket.partition]
                    .waiting
                    .insert(ticket.offset, waiting);
            }
            Verdict::Dead { reason } => {
                if let Some(entry) = log[ticket.partition].entry(ticket.offset) {
                    let content = entry.content.clone();
                    self.dead.push_back(DeadLetter {
                        content,
                        reason,
                        attempt: delivery.attempt,
                    });
                    if self.dead.len() > self.dead_limit {
                        self.dead.pop_front();
                    }
                }
            }
        }
        self.wake();
        true
    }

    /// Moves the deadline of a delivery; false if it is no longer this one's.
    pub(super) fn extend(&mut self, log: &[Partition], ticket: Ticket, until: Instant, now: Instant) -> bool {
        self.expire(log, now);
        let Some(delivery) = self.cursors[ticket.partition].in_flight.get_mut(&ticket.offset) else {
            return false;
        };
        if delivery.generation != ticket.generation {
            return false;
        }
        self.deadlines
            .remove(&(delivery.deadline, ticket.partition, ticket.offset));
        delivery.deadline = until;
        self.deadlines.insert((until, ticket.partition, ticket.offset));
        true
    }

    /// Takes everything back that `member` holds.
    pub(super) fn leave(&mut self, log: &[Partition], member: u64, now: Instant) {
        for partition in 0..self.cursors.len() {
            let held: Vec<Ticket> = self.cursors[partition]
                .in_flight
                .iter()
                .filter(|(_, delivery)| delivery.member == member)
                .map(|(&offset, delivery)| Ticket {
                    partition,
                    offset,
                    generation: delivery.generation,
                })
                .collect();
            for ticket in held {
                self.take_back(log, ticket, now);
            }
        }
        self.loads.remove(&member);
        self.wake();
    }

    /// Offset below which the group is done with `partition`.
    pub(super) fn floor(&self, partition: usize) -> u64 {
        let cursor = &self.cursors[partition];
        let waiting = cursor.waiting.first_key_value().map(|(&offset, _)| offset);
        let in_flight = cursor.in_flight.first_key_value().map(|(&offset, _)| offset);
        waiting
            .into_iter()
            .chain(in_flight)
            .chain([cursor.next])
            .min()
            .unwrap_or(cursor.next)
    }

    pub(super) fn lag(&self, log: &[Partition], now: Instant) -> Lag {
        let mut lag = Lag::default();
        for (index, cursor) in self.cursors.iter().enumerate() {
            let begun = cursor.waiting.len() + cursor.in_flight.len();
            lag.messages += log[index].end().saturating_sub(cursor.next) + begun as u64;
            let oldest = log[index]
                .entry(self.floor(index))
                .map(|entry| now - entry.appended);
            lag.age = lag.age.max(oldest);
        }
        lag
    }

    pub(super) fn dead_letters(&self) -> Vec<DeadLetter> {
        self.dead.iter().cloned().collect()
    }

    /// Takes back what was in flight past its deadline.
    fn expire(&mut self, log: &[Partition], now: Instant) {
        while let Some(&(deadline, partition, offset)) = self.deadlines.first()
            && deadline <= now
        {
            let generation = self.cursors[partition]
                .in_flight
                .get(&offset)
                .map_or(0, |delivery| delivery.generation);
            self.take_back(
                log,
                Ticket {
                    partition,
                    offset,
                    generation,
                },
                now,
            );
            self.deadlines.remove(&(deadline, partition, offset));
        }
    }

    fn take_back(&mut self, log: &[Partition], ticket: Ticket, now: Instant) {
        if let Some(delivery) = self.end(log, ticket) {
            let waiting = Waiting {
                ready_at: now,
                attempt: delivery.attempt,
            };
            self.cursors[ticket.partition]
                .waiting
                .insert(ticket.offset, waiting);
        }
    }

    /// Ends a delivery if it is still the one of `ticket`.
    fn end(&mut self, log: &[Partition], ticket: Ticket) -> Option<InFlight> {
        let cursor = &mut self.cursors[ticket.partition];
        if cursor.in_flight.get(&ticket.offset)?.generation != ticket.generation {
            return None;
        }
        let delivery = cursor.in_flight.remove(&ticket.offset)?;
        if let Some(key) = log[ticket.partition]
            .entry(ticket.offset)
            .and_then(|entry| entry.key)
            && let Some(owner) = cursor.owners.get_mut(&key)
        {
            owner.deliveries -= 1;
            if owner.deliveries == 0 {
                cursor.owners.remove(&key);
            }
        }
        self.deadlines
            .remove(&(delivery.deadline, ticket.partition, ticket.offset));
        if let Some(load) = self.loads.get_mut(&delivery.member) {
            *load = load.saturating_sub(1);
        }
        Some(delivery)
    }
}

impl Cursor {
    /// Chooses up to `room` offsets for `member`, with the attempt each of them begins, and notes the
    /// member as owner of their keys.
    fn choose(&mut self, log: &Partition, member: u64, room: usize, now: Instant) -> Vec<(u64, u32)> {
        let mut chosen = Vec::new();
        if room == 0 {
            return chosen;
        }
        let mut held_back = HashSet::new();
        for (&offset, waiting) in &self.waiting {
            if chosen.len() == room {
                break;
            }
            let key = log.entry(offset).and_then(|entry| entry.key);
            if waiting.ready_at <= now && may_take(&self.owners, &held_back, key, member) {
                own(&mut self.owners, key, member);
                chosen.push((offset, waiting.attempt + 1));
            } else {
                held_back.extend(key);
            }
        }
        for (offset, _) in &chosen {
            self.waiting.remove(offset);
        }
        while chosen.len() < room
            && self.waiting.len() < WAITING_LIMIT
            && let Some(&Entry { key, .. }) = log.entry(self.next)
        {
            if may_take(&self.owners, &held_back, key, member) {
                own(&mut self.owners, key, member);
                chosen.push((self.next, 1));
            } else {
                held_back.extend(key);
                self.waiting.insert(
                    self.next,
                    Waiting {
                        ready_at: now,
                        attempt: 0,
                    },
                );
            }
            self.next += 1;
        }
        chosen
    }
}

fn may_take(owners: &HashMap<u64, Owner>, held_back: &HashSet<u64>, key: Option<u64>, member: u64) -> bool {
    let Some(key) = key else { return true };
    !held_back.contains(&key) && owners.get(&key).is_none_or(|owner| owner.member == member)
}

fn own(owners: &mut HashMap<u64, Owner>, key: Option<u64>, member: u64) {
    if let Some(key) = key {
        owners
            .entry(key)
            .or_insert(Owner {
                member,
                deliveries: 0,
            })
            .deliveries += 1;
    }
}
