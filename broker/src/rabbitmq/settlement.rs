//! What becomes of a delivery.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lapin::Acker;
use lapin::options::{BasicAckOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::error::Failure;
use super::link::Link;
use super::shelf::{self, Shelf};
use super::{RabbitMqConfig, envelope};
use crate::{Bytes, Error, ErrorKind, Settle, Settled, Verdict};

/// The queue that a subscription reads, and where its dead letters go.
pub(super) struct Place {
    pub(super) link: Arc<Link>,
    pub(super) queue: String,
    pub(super) dead_queue: String,
    /// The channel for dead letters, one letter at a time.
    burial: tokio::sync::Mutex<Option<Channel>>,
}

impl Place {
    pub(super) fn new(link: Arc<Link>, topic: &str, group: &str) -> Self {
        let queue = RabbitMqConfig::queue_name(topic, group);
        let dead_queue = RabbitMqConfig::dead_queue_name(topic, group);
        Self {
            link,
            queue,
            dead_queue,
            burial: tokio::sync::Mutex::new(None),
        }
    }

    /// Puts a dead letter on its queue and waits for the confirm.
    async fn bury(&self, properties: BasicProperties, body: &[u8], deadline: Instant) -> Result<(), Failure> {
        let mut slot = self.burial.lock().await;
        let channel = match slot.take() {
            Some(channel) if channel.status().connected() => channel,
            _ => {
                let channel = self.link.channel(deadline).await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                channel
            }
        };
        let options = BasicPublishOptions {
            mandatory: true,
            immediate: false,
        };
        let queue = self.dead_queue.as_str().into();
        let confirm = channel
            .basic_publish("".into(), queue, options, body, properties)
            .await?;
        let confirmation = confirm.await?;
        *slot = Some(channel);
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => Err(Failure::new(
                ErrorKind::UnknownDestination,
                "the dead-letter queue is gone; declare it",
            )),
            _ => Err(Failure::new(
                ErrorKind::Rejected,
                "the dead-letter queue did not take it",
            )),
        }
    }
}

/// A message as it came from the queue.
pub(super) struct Parcel {
    tag: u64,
    key: Option<String>,
    acker: Acker,
    pub(super) redelivered: bool,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
    /// How often it was given back in this process.
    pub(super) nacks: u32,
}

impl From<lapin::message::Delivery> for Parcel {
    fn from(delivery: lapin::message::Delivery) -> Self {
        Self {
            tag: delivery.delivery_tag,
            key: envelope::key(&delivery.properties),
            acker: delivery.acker,
            redelivered: delivery.redelivered,
            properties: delivery.properties,
            body: Bytes::from(delivery.data),
            nacks: 0,
        }
    }
}

impl shelf::Parcel for Parcel {
    fn tag(&self) -> u64 {
        self.tag
    }

    fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

/// The way back from deliveries to their subscription, as long as its channel lives.
#[derive(Default)]
pub(super) struct Returns {
    shelf: Mutex<Shelf<Parcel>>,
    /// Handed out and neither settled nor given back.
    pub(super) outside: AtomicUsize,
    /// Something was put on the shelf.
    pub(super) came: Notify,
}

impl Returns {
    pub(super) fn shelf(&self) -> MutexGuard<'_, Shelf<Parcel>> {
        // The shelf moves whole parcels, so it is whole whatever panics.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivered and not acknowledged, apart from what was not handed out yet.
    pub(super) fn held(&self) -> usize {
        self.shelf().len() + self.outside.load(Ordering::Acquire)
    }
}

/// The right to settle one delivery, valid as long as its channel.
pub(super) struct RabbitMqSettlement {
    pub(super) place: Arc<Place>,
    pub(super) returns: Arc<Returns>,
    pub(super) parcel: Parcel,
}

impl RabbitMqSettlement {
    async fn carry_out(self, verdict: Verdict) -> Result<Settled, Failure> {
        if !self.parcel.acker.usable() {
            return Ok(Settled::Stale);
        }
        let deadline = Instant::now() + self.place.link.config.publish_timeout;
        match verdict {
            Verdict::Ack => self.ack(deadline).await,
            Verdict::Nack { delay } => {
                self.give_back(delay);
                Ok(Settled::Done)
            }
            Verdict::Dead { reason } => {
                let properties = envelope::dead_letter(&self.parcel.properties, &reason);
                let bury = self.place.bury(properties, &self.parcel.body, deadline);
                timeout_at(deadline, bury)
                    .await
                    .unwrap_or(Err(Failure::silent()))?;
                self.ack(deadline).await
            }
        }
    }

    async fn ack(&self, deadline: Instant) -> Result<Settled, Failure> {
        let told = timeout_at(deadline, self.parcel.acker.ack(BasicAckOptions::default())).await;
        if !told.map_err(|_| Failure::silent())?? {
            return Ok(Settled::Stale);
        }
        self.returns.outside.fetch_sub(1, Ordering::AcqRel);
        Ok(Settled::Done)
    }

    fn give_back(self, delay: Duration) {
        let ready_at = Instant::now() + delay.min(self.place.link.config.max_nack_delay);
        let parcel = Parcel {
            nacks: self.parcel.nacks.saturating_add(1),
            ..self.parcel
        };
        self.returns.shelf().put(parcel, ready_at);
        self.returns.outside.fetch_sub(1, Ordering::AcqRel);
        self.returns.came.notify_one();
    }
}

#[async_trait]
impl Settle for RabbitMqSettlement {
    async fn settle(self: Box<Self>, verdict: Verdict) -> Result<Settled, Error> {
        self.carry_out(verdict)
            .await
            .map_err(|failure| failure.during("settle"))
    }
}
