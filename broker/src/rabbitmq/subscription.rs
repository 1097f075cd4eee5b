//! A member of a group: a consumer on the group's queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::error::Failure;
use super::link::Link;
use super::settlement::{Parcel, Place, RabbitMqSettlement, Returns};
use super::{QueueKind, RabbitMqConfig, envelope};
use crate::{Delivery, Error, ErrorKind, Lag, SubscribeOptions, Subscription};

/// A membership in a group. Dropping it leaves the group.
pub struct RabbitMqSubscription {
    place: Arc<Place>,
    options: SubscribeOptions,
    inlet: Option<Inlet>,
    paused: bool,
}

/// A consumer and the channel its deliveries are settled on. When it is lost, its deliveries are stale.
struct Inlet {
    channel: Channel,
    consumer: Consumer,
    /// Delivered to this process, not yet handed out.
    arrived: VecDeque<Parcel>,
    returns: Arc<Returns>,
}

impl Inlet {
    /// Moves what the consumer has to `arrived`.
    fn drain(&mut self) -> Result<(), Failure> {
        while let Some(next) = self.consumer.next().now_or_never() {
            self.arrived.push_back(parcel(next)?);
        }
        Ok(())
    }

    /// What can be handed out now, and when to look again.
    fn take(&mut self, max: usize) -> Result<(Vec<Parcel>, Option<Instant>), Failure> {
        self.drain()?;
        let now = Instant::now();
        let mut shelf = self.returns.shelf();
        let parcels = shelf.take(&mut self.arrived, max, now);
        Ok((parcels, shelf.next_ready(now)))
    }

    /// Waits until something may be handed out, at most until `until`.
    async fn wait(&mut self, until: Instant) -> Result<(), Failure> {
        tokio::select! {
            next = self.consumer.next() => self.arrived.push_back(parcel(next)?),
            () = self.returns.came.notified() => {}
            () = sleep_until(until) => {}
        }
        Ok(())
    }
}

impl RabbitMqSubscription {
    pub(super) fn new(link: Arc<Link>, options: SubscribeOptions) -> Self {
        let place = Arc::new(Place::new(link, &options.topic, &options.group));
        Self {
            place,
            options,
            inlet: None,
            paused: false,
        }
    }

    /// Declares queue and binding and begins to consume.
    pub(super) async fn open(&mut self, deadline: Instant) -> Result<(), Failure> {
        let channel = self.place.link.channel(deadline).await?;
        let consumer = match timeout_at(deadline, self.consume(&channel)).await {
            Ok(consumer) => consumer?,
            Err(_) => return Err(Failure::silent()),
        };
        self.inlet = Some(Inlet {
            channel,
            consumer,
            arrived: VecDeque::new(),
            returns: Arc::default(),
        });
        Ok(())
    }

    async fn consume(&self, channel: &Channel) -> Result<Consumer, Failure> {
        let place = &self.place;
        let config = &place.link.config;
        let topic = name(&self.options.topic)?;
        let (queue, dead_queue) = (name(&place.queue)?, name(&place.dead_queue)?);
        if config.declare {
            let options = QueueDeclareOptions {
                durable: true,
                ..QueueDeclareOptions::default()
            };
            channel
                .queue_declare(dead_queue, options, dead_arguments(config))
                .await?;
            let arguments = arguments(config, &place.dead_queue);
            channel.queue_declare(queue.clone(), options, arguments).await?;
            let exchange = config.exchange.as_str().into();
            let bind = QueueBindOptions::default();
            channel
                .queue_bind(queue.clone(), exchange, topic, bind, FieldTable::default())
                .await?;
        }
        channel
            .basic_qos(self.options.prefetch, BasicQosOptions::default())
            .await?;
        let options = BasicConsumeOptions::default();
        Ok(channel
            .basic_consume(queue, "".into(), options, FieldTable::default())
            .await?)
    }

    /// The consumer, opened again if it was lost.
    async fn inlet(&mut self, deadline: Instant) -> Result<&mut Inlet, Failure> {
        if self.place.link.is_closed() {
            self.inlet = None;
            return Err(Failure::closed());
        }
        if self
            .inlet
            .as_ref()
            .is_none_or(|inlet| !inlet.channel.status().connected())
        {
            self.inlet = None;
            self.open(deadline).await?;
        }
        self.inlet
            .as_mut()
            .ok_or(Failure::new(ErrorKind::Broker, "no consumer"))
    }

    async fn receive_some(&mut self, max: usize, until: Instant) -> Result<Vec<Delivery>, Failure> {
        let connect_by = until.max(Instant::now() + self.place.link.config.connect_timeout);
        let paused = self.paused;
        let place = Arc::clone(&self.place);
        let inlet = self.inlet(connect_by).await?;
        if paused {
            sleep_until(until).await;
            return Ok(Vec::new());
        }
        loop {
            let (parcels, next_ready) = inlet.take(max)?;
            if !parcels.is_empty() || Instant::now() >= until {
                let returns = &inlet.returns;
                return Ok(parcels
                    .into_iter()
                    .map(|parcel| hand_out(&place, returns, parcel))
                    .collect());
            }
            inlet
                .wait(next_ready.map_or(until, |ready| ready.min(until)))
                .await?;
        }
    }

    /// Messages ready in the queue.
    async fn ready(&self) -> Result<u64, Failure> {
        let deadline = Instant::now() + self.place.link.config.connect_timeout;
        let count = async {
            // A channel of its own: asking for a queue that is gone closes the channel.
            let channel = self.place.link.channel(deadline).await?;
            let options = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            let queue = channel
                .queue_declare(name(&self.place.queue)?, options, FieldTable::default())
                .await?;
            channel.close(200, "counted".into()).await?;
            Ok(u64::from(queue.message_count()))
        };
        timeout_at(deadline, count)
            .await
            .unwrap_or(Err(Failure::silent()))
    }
}

#[async_trait]
impl Subscription for RabbitMqSubscription {
    async fn receive(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>, Error> {
        if max == 0 {
            return Ok(Vec::new());
        }
        let received = self.receive_some(max, Instant::now() + wait).await;
        received.map_err(|failure| {
            self.inlet = None; // opened again by the next call
            failure.during("receive")
        })
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
        let ready = self.ready().await.map_err(|failure| failure.during("lag"))?;
        let Some(inlet) = &mut self.inlet else {
            return Ok(Lag {
                messages: ready,
                age: None,
            });
        };
        inlet.drain().map_err(|failure| failure.during("lag"))?;
        let held = (inlet.arrived.len() + inlet.returns.held()) as u64;
        Ok(Lag {
            messages: ready + held,
            age: None,
        })
    }

    async fn close(mut self: Box<Self>) -> Result<(), Error> {
        let Some(inlet) = self.inlet.take() else {
            return Ok(());
        };
        let deadline = Instant::now() + self.place.link.config.connect_timeout;
        match timeout_at(deadline, inlet.channel.close(200, "left".into())).await {
            Ok(Err(cause)) if inlet.channel.status().connected() => Err(Failure::from(cause).during("close")),
            Ok(_) => Ok(()), // closed, or lost meanwhile, which is as closed
            Err(_) => Err(Failure::silent().during("close")),
        }
    }
}

fn hand_out(place: &Arc<Place>, returns: &Arc<Returns>, parcel: Parcel) -> Delivery {
    let content = envelope::message(&parcel.properties, parcel.body.clone());
    let attempt = envelope::attempt(&parcel.properties, parcel.redelivered).saturating_add(parcel.nacks);
    returns.outside.fetch_add(1, Ordering::AcqRel);
    let settlement = RabbitMqSettlement {
        place: Arc::clone(place),
        returns: Arc::clone(returns),
        parcel,
    };
    Delivery::new(content, attempt, settlement)
}

fn parcel(next: Option<lapin::Result<lapin::message::Delivery>>) -> Result<Parcel, Failure> {
    match next {
        Some(delivery) => Ok(Parcel::from(delivery?)),
        None => Err(Failure::new(
            ErrorKind::Unreachable,
            "the consumer was cancelled or its channel closed",
        )),
    }
}

fn name(text: &str) -> Result<lapin::types::ShortString, Failure> {
    envelope::short(text.to_owned(), "name").map_err(|_| {
        Failure::new(
            ErrorKind::Unsupported,
            "a queue name is longer than the 255 bytes of AMQP",
        )
    })
}

fn arguments(config: &RabbitMqConfig, dead_queue: &str) -> FieldTable {
    let mut arguments = dead_arguments(config);
    if config.single_active_consumer {
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    // For what the broker itself gives up, see `delivery_limit`.
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
    arguments.insert(
        "x-dead-letter-routing-key".into(),
        AMQPValue::LongString(dead_queue.into()),
    );
    if let (Some(limit), QueueKind::Quorum) = (config.delivery_limit, config.queue) {
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit.into()));
    }
    arguments
}

fn dead_arguments(config: &RabbitMqConfig) -> FieldTable {
    let kind = match config.queue {
        QueueKind::Quorum => "quorum",
        QueueKind::Classic => "classic",
    };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    arguments
}
