//! The RabbitMQ adapter keeps the contract, on quorum queues and on classic ones.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use async_trait::async_trait;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::{BasicProperties, Channel, types::FieldTable};
use outbox_broker::conformance::{Fixture, Need, Server};
use outbox_broker::rabbitmq::{QueueKind, RabbitMq, RabbitMqConfig};
use outbox_broker::{Bytes, Capability, Publisher, Subscriber};
use outbox_testing::services;
use outbox_testing::services::rabbitmq::Vhost;
use tokio::sync::{Mutex, MutexGuard};

const CLAIMS: [Capability; 7] = [
    Capability::KeyOrder,
    Capability::PrefixOrder,
    Capability::NackDelay,
    Capability::Durable,
    Capability::Shared,
    Capability::ReportsUnroutable,
    Capability::DeadLetters,
];

struct Rabbit {
    broker: RabbitMq,
    vhost: Vhost,
    own: Option<Own>,
}

/// A server of its own, and the turn to have one: several at once starve a small machine.
struct Own {
    server: services::RabbitMq,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::const_new(());

async fn rabbit(need: Need, queue: QueueKind) -> Result<Rabbit, String> {
    let unavailable = |error: services::Error| {
        assert!(error.is_unavailable(), "{error}");
        error.to_string()
    };
    let (vhost, own) = match need {
        Need::Shared => (
            services::rabbitmq().await.map_err(unavailable)?.vhost().await,
            None,
        ),
        Need::OwnServer => {
            let _turn = TURN.lock().await;
            let server = services::own_rabbitmq().await.map_err(unavailable)?;
            (server.vhost().await, Some(Own { server, _turn }))
        }
    };
    let vhost = vhost.map_err(unavailable)?;
    let config = RabbitMqConfig {
        queue,
        ..RabbitMqConfig::new(vhost.url())
    };
    Ok(Rabbit {
        broker: RabbitMq::new(config).unwrap(),
        vhost,
        own,
    })
}

impl Rabbit {
    async fn channel(&self) -> (lapin::Connection, Channel) {
        let connection = self.vhost.connection().await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }
}

#[async_trait]
impl Fixture for Rabbit {
    async fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(self.broker.publisher())
    }

    async fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(self.broker.subscriber())
    }

    fn claims(&self) -> Vec<Capability> {
        CLAIMS.to_vec()
    }

    fn server(&self) -> Option<&dyn Server> {
        self.own.as_ref().map(|own| own as &dyn Server)
    }

    async fn inject(&self, topic: &str, body: Bytes) -> bool {
        let (_connection, channel) = self.channel().await;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let sent = channel
            .basic_publish("outbox".into(), topic.into(), options, &body, properties)
            .await;
        sent.unwrap().await.unwrap().is_ack()
    }

    async fn dead_letters(&self, topic: &str, group: &str) -> Option<usize> {
        let (_connection, channel) = self.channel().await;
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let queue = RabbitMqConfig::dead_queue_name(topic, group);
        let queue = channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
            .unwrap();
        usize::try_from(queue.message_count()).ok()
    }
}

#[async_trait]
impl Server for Own {
    async fn kill(&self) {
        self.server.kill().await.unwrap();
    }

    async fn stop(&self) {
        self.server.stop().await.unwrap();
    }

    async fn start(&self) {
        self.server.restart().await.unwrap();
    }

    async fn pause(&self) {
        self.server.pause().await.unwrap();
    }

    async fn resume(&self) {
        self.server.resume().await.unwrap();
    }
}

mod quorum {
    use super::*;

    async fn setup(need: Need) -> Result<Rabbit, String> {
        rabbit(need, QueueKind::Quorum).await
    }

    outbox_broker::conformance!(setup);
}

mod classic {
    use super::*;

    async fn setup(need: Need) -> Result<Rabbit, String> {
        rabbit(need, QueueKind::Classic).await
    }

    outbox_broker::conformance!(setup);
}
