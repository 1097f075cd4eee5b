//! The receiving side: opens subscriptions on one connection.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;

use super::link::Link;
use super::subscription::RabbitMqSubscription;
use crate::{Capabilities, Error, SubscribeOptions, Subscriber, Subscription};

/// Opens subscriptions at a RabbitMQ server, all on one connection, each with a channel of its own.
pub struct RabbitMqSubscriber {
    link: Arc<Link>,
    capabilities: Capabilities,
}

impl RabbitMqSubscriber {
    pub(super) fn new(link: Link, capabilities: Capabilities) -> Self {
        Self {
            link: Arc::new(link),
            capabilities,
        }
    }
}

#[async_trait]
impl Subscriber for RabbitMqSubscriber {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn subscribe(&self, options: SubscribeOptions) -> Result<Box<dyn Subscription>, Error> {
        let mut subscription = RabbitMqSubscription::new(Arc::clone(&self.link), options);
        let deadline = Instant::now() + self.link.config.connect_timeout;
        subscription
            .open(deadline)
            .await
            .map_err(|failure| failure.during("subscribe"))?;
        Ok(Box::new(subscription))
    }

    async fn close(&self) -> Result<(), Error> {
        self.link.close().await
    }
}
