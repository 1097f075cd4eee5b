//! PostgreSQL as the broker keeps the contract.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::join_all;
use outbox_broker::conformance::{Fixture, Need, Server};
use outbox_broker::sql::{POSTGRES_DDL, SqlBroker, SqlConfig};
use outbox_broker::{Bytes, Capability, ErrorKind, Message, Publisher, SubscribeOptions, Subscriber};
use outbox_testing::or_skip;
use outbox_testing::services::{self, Postgres, postgres::Database};

/// Well above a restart, well below the patience of a test.
const TIMEOUT: Duration = Duration::from_secs(3);

struct Queue {
    database: Database,
    own: Option<Postgres>,
}

impl Queue {
    async fn broker(&self) -> SqlBroker {
        let config = SqlConfig::new(self.database.url()).publish_timeout(TIMEOUT);
        let broker = SqlBroker::connect(config).await.unwrap();
        broker.migrate().await.unwrap();
        broker
    }

    async fn count(&self, from: &str) -> i64 {
        let query = format!("SELECT count(*) FROM {from}");
        self.database
            .client()
            .await
            .unwrap()
            .query_one(&query, &[])
            .await
            .unwrap()
            .get(0)
    }
}

#[async_trait]
impl Fixture for Queue {
    async fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(self.broker().await.publisher())
    }

    async fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(self.broker().await.subscriber())
    }

    fn claims(&self) -> Vec<Capability> {
        vec![
            Capability::KeyOrder,
            Capability::PrefixOrder,
            Capability::Deduplicates,
            Capability::NackDelay,
            Capability::Durable,
            Capability::Shared,
            Capability::CountsAttempts,
            Capability::DeadLetters,
        ]
    }

    fn publish_timeout(&self) -> Duration {
        TIMEOUT
    }

    fn server(&self) -> Option<&dyn Server> {
        self.own.is_some().then_some(self)
    }

    async fn inject(&self, topic: &str, body: Bytes) -> bool {
        let insert = "INSERT INTO outbox_queue_message (topic, source, message_id, attributes, payload) \
                      VALUES ($1, '/elsewhere', gen_random_uuid(), '{}', $2)";
        let client = self.database.client().await.unwrap();
        client.execute(insert, &[&topic, &body.as_ref()]).await.unwrap();
        true
    }

    async fn dead_letters(&self, topic: &str, group: &str) -> Option<usize> {
        let from = format!("outbox_queue_dead WHERE topic = '{topic}' AND group_name = '{group}'");
        usize::try_from(self.count(&from).await).ok()
    }
}

#[async_trait]
impl Server for Queue {
    async fn kill(&self) {
        self.own.as_ref().unwrap().kill().await.unwrap();
    }

    async fn stop(&self) {
        self.own.as_ref().unwrap().stop().await.unwrap();
    }

    async fn start(&self) {
        self.own.as_ref().unwrap().restart().await.unwrap();
    }

    async fn pause(&self) {
        self.own.as_ref().unwrap().pause().await.unwrap();
    }

    async fn resume(&self) {
        self.own.as_ref().unwrap().resume().await.unwrap();
    }
}

async fn setup(need: Need) -> Result<Queue, String> {
    let own = match need {
        Need::OwnServer => Some(
            services::own_postgres()
                .await
                .map_err(|error| error.to_string())?,
        ),
        _ => None,
    };
    let server = match &own {
        Some(own) => own,
        None => services::postgres().await.map_err(|error| error.to_string())?,
    };
    let database = server.database().await.map_err(|error| error.to_string())?;
    Ok(Queue { database, own })
}

outbox_broker::conformance!(setup);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_never_steps_over_a_row_that_becomes_visible_later() {
    const PUBLISHERS: usize = 8;
    const EACH: usize = 100;
    let server = or_skip!(services::postgres().await);
    let queue = Queue {
        database: server.database().await.unwrap(),
        own: None,
    };
    // Commits out of order: every other row dawdles between its number and its commit.
    let broker = queue.broker().await;
    let dawdle = "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ \
                  BEGIN IF NEW.seq % 2 = 0 THEN PERFORM pg_sleep(0.005); END IF; RETURN NEW; END $$; \
                  CREATE TRIGGER dawdle BEFORE INSERT ON outbox_queue_message \
                  FOR EACH ROW EXECUTE FUNCTION dawdle()";
    queue
        .database
        .client()
        .await
        .unwrap()
        .batch_execute(dawdle)
        .await
        .unwrap();
    let mut group = broker
        .subscriber()
        .subscribe(SubscribeOptions::new("orders", "billing"))
        .await
        .unwrap();
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move {
            join_all((0..PUBLISHERS).map(|number| {
                let publisher = broker.publisher();
                async move {
                    for _ in 0..EACH {
                        let source = format!("/{number}");
                        let message = Message::builder("orders", "order.placed")
                            .source(source)
                            .build()
                            .unwrap();
                        for outcome in publisher.publish(&[message]).await {
                            outcome.unwrap();
                        }
                    }
                }
            }))
            .await
        }
    });
    let mut seen = HashSet::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while seen.len() < PUBLISHERS * EACH && Instant::now() < deadline {
        for delivery in group.receive(100, Duration::from_millis(200)).await.unwrap() {
            seen.insert(delivery.content().unwrap().id);
            delivery.ack().await.unwrap();
        }
        if publishing.is_finished() && group.lag().await.unwrap().messages == 0 {
            break;
        }
    }
    publishing.await.unwrap();
    assert_eq!(seen.len(), PUBLISHERS * EACH, "messages were stepped over");
}

#[tokio::test]
async fn a_wrong_url_and_a_missing_table_are_told_apart() {
    let server = or_skip!(services::postgres().await);
    let database = server.database().await.unwrap();
    let connect = async |url: String| SqlBroker::connect(SqlConfig::new(url).publish_timeout(TIMEOUT)).await;
    let kind = async |url: String| connect(url).await.unwrap_err().kind();
    assert_eq!(
        kind(format!("{}_gone", database.url())).await,
        ErrorKind::UnknownDestination
    );
    assert_eq!(
        kind("postgres://127.0.0.1:1/x?user=x".to_owned()).await,
        ErrorKind::Unreachable
    );
    assert_eq!(
        kind("postgres://127.0.0.1:none/x".to_owned()).await,
        ErrorKind::Invalid
    );
    let broker = connect(database.url().to_owned()).await.unwrap();
    let error = broker.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownDestination);
    assert!(error.to_string().contains("migrate"), "{error}");
    database
        .client()
        .await
        .unwrap()
        .batch_execute(POSTGRES_DDL)
        .await
        .unwrap();
    broker.check().await.unwrap();
    database
        .client()
        .await
        .unwrap()
        .batch_execute("UPDATE outbox_queue_schema SET version = 7")
        .await
        .unwrap();
    let later = connect(database.url().to_owned()).await.unwrap();
    assert_eq!(later.check().await.unwrap_err().kind(), ErrorKind::Unsupported);
}
