//! The receiving side: opens subscriptions on one connection.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;

use super::agreed_partitions;
use super::error::Failure;
use super::link::Link;
use super::settlement::Seat;
use super::subscription::RedisSubscription;
use crate::{Capabilities, Error, SubscribeOptions, Subscriber, Subscription};

/// Opens subscriptions at a Redis server: one connection for all, and one each for waiting.
pub struct RedisSubscriber {
    link: Arc<Link>,
    capabilities: Capabilities,
    /// Who must leave when the subscriber closes: nothing in Redis hangs on a connection.
    seats: Mutex<Vec<Weak<Seat>>>,
}

impl RedisSubscriber {
    pub(super) fn new(link: Link, capabilities: Capabilities) -> Self {
        Self {
            link: Arc::new(link),
            capabilities,
            seats: Mutex::new(Vec::new()),
        }
    }

    async fn open(&self, options: SubscribeOptions) -> Result<RedisSubscription, Failure> {
        let partitions = agreed_partitions(&self.link, &options.topic).await?;
        let seat = Arc::new(Seat::new(Arc::clone(&self.link), &options, partitions));
        let mut subscription = RedisSubscription::new(Arc::clone(&seat), options);
        subscription.join().await?;
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|seat| seat.strong_count() > 0);
        seats.push(Arc::downgrade(&seat));
        Ok(subscription)
    }
}

#[async_trait]
impl Subscriber for RedisSubscriber {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn subscribe(&self, options: SubscribeOptions) -> Result<Box<dyn Subscription>, Error> {
        match self.open(options).await {
            Ok(subscription) => Ok(Box::new(subscription)),
            Err(failure) => Err(failure.during("subscribe")),
        }
    }

    async fn close(&self) -> Result<(), Error> {
        let seats = std::mem::take(&mut *self.seats.lock().unwrap_or_else(PoisonError::into_inner));
        let mut left = Ok(());
        for seat in seats.iter().filter_map(Weak::upgrade) {
            left = left.and(seat.leave().await);
        }
        self.link.close().await;
        left.map_err(|failure| failure.during("close"))
    }
}
