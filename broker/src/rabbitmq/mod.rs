//! RabbitMQ, AMQP 0.9.1.
//!
//! ```text
//! publish ──► exchange "outbox" (topic) ──routing key = topic──► queue "orders.billing" ──► member (active)
//!                                                             │        └─ dead ─► "orders.billing.dead"
//!                                                             └► queue "orders.mailing" ──► member …
//! ```
//!
//! **Publishing.** Confirms and `mandatory`: a message that no queue takes is *returned*, and RabbitMQ still
//! confirms it; it fails here as unroutable. Each call has a channel to itself, because lapin hands a
//! return to whichever confirm completes next: only when all confirms of a channel are in is it known which
//! messages came back, and they are told apart by id and routing key.
//!
//! **Order.** RabbitMQ can refuse a message and accept a later one of its key: a binding appears in between
//! (the first is returned, the second kept), a full queue drains, a node dies with one message on disk and
//! not the one before. What is sent cannot be recalled, so within a call a message goes out only after the
//! one before it in its key is confirmed; different keys share the window. That is what `prefix_order`
//! promises, and why throughput with one single key is bounded by the broker's round trip. A queue has
//! one active consumer at a time (`x-single-active-consumer`) and gives it the messages in order; that is
//! what `key_order` promises. Scale by topics, or give the order up with
//! [`RabbitMqConfig::single_active_consumer`].
//!
//! **Groups.** A group is a durable queue, named `<topic>.<group>`, that begins when the first member
//! subscribes. There is no past to read: until a queue exists, publishing to the topic fails as unroutable
//! and the messages stay in the outbox, so a first group misses nothing, and a second one begins at its
//! own subscription whatever [`Start`](crate::Start) says.
//!
//! **Nack.** A delivery that is given back waits, unacknowledged, in this process until its delay is over
//! and is handed out again, before the later messages of its key. Requeueing at the broker would put it behind
//! them (a quorum queue appends what is requeued). It counts against the prefetch meanwhile, and comes back
//! at once, in order, if the process dies. The broker counts the deliveries to processes that died; nacks
//! are counted here on top and forgotten with the process, so the attempt is a hint.
//!
//! **Dead letters.** The message is published to `<topic>.<group>.dead` with the reason in the header
//! `outbox-dead-reason`, confirmed, and then acknowledged: a crash in between leaves two copies, never none.
//!
//! **New queues.** RabbitMQ 3.10 seems to write a new quorum queue's registration to disk up to a second after it has
//! confirmed the declaration; killed before, it loses the queue's log, confirmed messages included. The suite
//! showed it; an orderly stop is safe, and so is `queue = "classic"`.
//!
//! lapin logs a returned message with its payload at level warn (target `lapin::returned_messages`); switch
//! that target off where payloads must not reach logs.

mod config;
mod confirms;
mod envelope;
mod error;
mod link;
mod publisher;
mod settlement;
mod shelf;
mod subscriber;
mod subscription;

use std::sync::Arc;

use lapin::uri::AMQPUri;

pub use config::{QueueKind, RabbitMqConfig, RabbitMqUrl};
pub use publisher::RabbitMqPublisher;
pub use subscriber::RabbitMqSubscriber;
pub use subscription::RabbitMqSubscription;

use crate::{Capabilities, Error, ErrorKind};
use link::Link;

/// A RabbitMQ server with checked settings. Connecting is left to the first call that needs it.
#[derive(Debug, Clone)]
pub struct RabbitMq {
    config: Arc<RabbitMqConfig>,
    uri: AMQPUriSecret,
}

/// The parsed URL; lapin's own type would print the password.
#[derive(Clone)]
struct AMQPUriSecret(AMQPUri);

impl std::fmt::Debug for AMQPUriSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl RabbitMq {
    /// Checks the settings; does no I/O.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: the URL is no AMQP URL, or a limit is zero.
    pub fn new(config: RabbitMqConfig) -> Result<Self, Error> {
        let wrong = |context: &'static str| Error::new(ErrorKind::Unsupported, "configure", context);
        let mut uri: AMQPUri = config
            .url
            .expose()
            .parse()
            .map_err(|_| wrong("the url is no AMQP URL; write amqp://user:password@host:5672/vhost"))?;
        if config.window == 0 || config.window_bytes == 0 || config.channels == 0 {
            return Err(wrong("window, window_bytes and channels must be at least 1"));
        }
        if config.exchange.is_empty() || config.exchange.len() > 255 {
            return Err(wrong("the exchange needs a name of 1 to 255 bytes"));
        }
        let heartbeat = u16::try_from(config.heartbeat.as_secs()).unwrap_or(u16::MAX);
        uri.query.heartbeat.get_or_insert(heartbeat);
        Ok(Self {
            config: Arc::new(config),
            uri: AMQPUriSecret(uri),
        })
    }

    /// A publisher with a connection of its own.
    pub fn publisher(&self) -> RabbitMqPublisher {
        RabbitMqPublisher::new(self.link("outbox publisher"), self.capabilities())
    }

    /// A subscriber with a connection of its own.
    pub fn subscriber(&self) -> RabbitMqSubscriber {
        RabbitMqSubscriber::new(self.link("outbox subscriber"), self.capabilities())
    }

    /// What is promised with these settings.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities {
            key_order: self.config.single_active_consumer,
            prefix_order: true,
            nack_delay: true,
            durable: true,
            shared: true,
            reports_unroutable: true,
            dead_letters: true,
            max_payload: Some(self.config.max_payload_bytes),
            ..Capabilities::NONE
        }
    }

    fn link(&self, name: &'static str) -> Link {
        Link::new(Arc::clone(&self.config), self.uri.0.clone(), name)
    }
}
