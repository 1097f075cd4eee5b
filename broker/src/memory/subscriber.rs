//! The receiving side.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::MemoryBroker;
use super::group::{Taken, Taker, Ticket};
use crate::{
    Capabilities, Delivery, Error, ErrorKind, Lag, Settle, Settled, SubscribeOptions, Subscriber,
    Subscription, Verdict,
};

/// Opens subscriptions at a [`MemoryBroker`].
pub struct MemorySubscriber {
    broker: MemoryBroker,
    closing: Arc<Closing>,
}

/// Tells the subscriptions of a subscriber that it was closed.
#[derive(Default)]
struct Closing {
    closed: AtomicBool,
    changed: Notify,
    members: Mutex<HashMap<u64, Arc<Place>>>,
}

impl Closing {
    fn members(&self) -> MutexGuard<'_, HashMap<u64, Arc<Place>>> {
        // Inserting and removing cannot leave the map half changed.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemorySubscriber {
    pub(super) fn new(broker: MemoryBroker) -> Self {
        Self {
            broker,
            closing: Arc::default(),
        }
    }
}

#[async_trait]
impl Subscriber for MemorySubscriber {
    fn capabilities(&self) -> Capabilities {
        self.broker.capabilities()
    }

    async fn subscribe(&self, options: SubscribeOptions) -> Result<Box<dyn Subscription>, Error> {
        if self.closing.closed.load(Ordering::Acquire) {
            return Err(closed("subscribe"));
        }
        let arrived = self
            .broker
            .lock()
            .join(&options.topic, &options.group, options.start)
            .arrived();
        let taker = Taker {
            member: self.broker.new_member(),
            prefetch: usize::from(options.prefetch.max(1)),
            visibility: options.visibility,
        };
        let place = Arc::new(Place {
            broker: self.broker.clone(),
            topic: options.topic,
            group: options.group,
        });
        let closing = Arc::clone(&self.closing);
        closing.members().insert(taker.member, Arc::clone(&place));
        Ok(Box::new(MemorySubscription {
            place,
            taker,
            arrived,
            closing,
            paused: false,
        }))
    }

    async fn close(&self) -> Result<(), Error> {
        self.closing.closed.store(true, Ordering::Release);
        let members = std::mem::take(&mut *self.closing.members());
        for (member, place) in members {
            place.leave(member);
        }
        self.closing.changed.notify_waiters();
        Ok(())
    }
}

/// The group that a subscription and its deliveries belong to.
struct Place {
    broker: MemoryBroker,
    topic: String,
    group: String,
}

impl Place {
    /// Gives back what `member` holds.
    fn leave(&self, member: u64) {
        let mut state = self.broker.lock();
        if let Some((group, log)) = state.group_mut(&self.topic, &self.group) {
            group.leave(log, member, Instant::now());
        }
    }
}

/// A membership in a group of a [`MemoryBroker`]. Dropping it leaves the group.
pub struct MemorySubscription {
    place: Arc<Place>,
    taker: Taker,
    arrived: Arc<Notify>,
    closing: Arc<Closing>,
    paused: bool,
}

impl MemorySubscription {
    /// What is to be had now, and when to look again if that is nothing.
    fn take(&self, max: usize) -> Result<(Vec<Delivery>, Option<Instant>), Error> {
        let now = Instant::now();
        let mut state = self.place.broker.lock();
        // Asked under the lock: close() raises the flag before it takes the deliveries back.
        if self.closing.closed.load(Ordering::Acquire) {
            return Err(closed("receive"));
        }
        if self.paused {
            return Ok((Vec::new(), None));
        }
        let Some((group, log)) = state.group_mut(&self.place.topic, &self.place.group) else {
            return Ok((Vec::new(), None));
        };
        let taken = group.take(log, self.taker, max, now);
        let next_change = group.next_change(now);
        drop(state);
        Ok((
            taken.into_iter().map(|taken| self.delivery(taken)).collect(),
            next_change,
        ))
    }

    fn delivery(&self, taken: Taken) -> Delivery {
        let settlement = MemorySettlement {
            place: Arc::clone(&self.place),
            ticket: taken.ticket,
            visibility: self.taker.visibility,
        };
        Delivery::new(taken.content, taken.attempt, settlement)
    }
}

#[async_trait]
impl Subscription for MemorySubscription {
    async fn receive(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>, Error> {
        let until = Instant::now() + wait;
        loop {
            // Registered before looking, so that nothing which arrives in between is slept through.
            let arrived = self.arrived.notified();
            let closed = self.closing.changed.notified();
            tokio::pin!(arrived, closed);
            arrived.as_mut().enable();
            closed.as_mut().enable();
            let (deliveries, next_change) = self.take(max)?;
            if !deliveries.is_empty() || max == 0 || Instant::now() >= until {
                return Ok(deliveries);
            }
            let look_again = next_change.map_or(until, |change| change.min(until));
            let woken = async {
                tokio::select! {
                    () = arrived => {}
                    () = closed => {}
                }
            };
            // A timeout is no error here: it is the moment to look again.
            let _ = timeout_at(look_again, woken).await;
        }
    }

    async fn pause(&mut self) -> Result<(), Error> {
        self.paused = true;
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), Error> {
        self.paused = false;
        Ok(())
    }

    async fn lag(&mut self) -> Result<Lag, Error> {
        let mut state = self.place.broker.lock();
        let group = state.group_mut(&self.place.topic, &self.place.group);
        Ok(group
            .map(|(group, log)| group.lag(log, Instant::now()))
            .unwrap_or_default())
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        Ok(()) // dropping leaves the group
    }
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        self.closing.members().remove(&self.taker.member);
        self.place.leave(self.taker.member);
    }
}

struct MemorySettlement {
    place: Arc<Place>,
    ticket: Ticket,
    visibility: Duration,
}

#[async_trait]
impl Settle for MemorySettlement {
    async fn settle(self: Box<Self>, verdict: Verdict) -> Result<Settled, Error> {
        let mut state = self.place.broker.lock();
        let Some((group, log)) = state.group_mut(&self.place.topic, &self.place.group) else {
            return Ok(Settled::Stale);
        };
        let done = group.settle(log, self.ticket, verdict, Instant::now());
        if done {
            state.trim(&self.place.topic);
        }
        Ok(settled(done))
    }

    async fn extend(&self) -> Result<Settled, Error> {
        let mut state = self.place.broker.lock();
        let Some((group, log)) = state.group_mut(&self.place.topic, &self.place.group) else {
            return Ok(Settled::Stale);
        };
        let now = Instant::now();
        Ok(settled(group.extend(
            log,
            self.ticket,
            now + self.visibility,
            now,
        )))
    }
}

fn settled(done: bool) -> Settled {
    if done { Settled::Done } else { Settled::Stale }
}

fn closed(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Closed,
        operation,
        "the subscriber was closed; open a new one",
    )
}
