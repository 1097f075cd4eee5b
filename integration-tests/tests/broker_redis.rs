//! The Redis adapter keeps the contract, with owned partitions and with shared ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use deadpool_redis::redis::{AsyncCommands as _, cmd};
use outbox_broker::conformance::{Fixture, Need, Server};
use outbox_broker::redis::{Redis, RedisConfig};
use outbox_broker::{
    Bytes, Capability, Delivery, Message, Publisher, SubscribeOptions, Subscriber, Subscription,
};
use outbox_testing::services::redis::Database;
use outbox_testing::{or_skip, services};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

/// What is claimed with and without owners of partitions.
const CLAIMS: [Capability; 7] = [
    Capability::PrefixOrder,
    Capability::Deduplicates,
    Capability::NackDelay,
    Capability::Durable,
    Capability::Shared,
    Capability::CountsAttempts,
    Capability::DeadLetters,
];

struct Fix {
    broker: Redis,
    config: RedisConfig,
    database: Database,
    own: Option<Own>,
}

/// A server of its own, and the turn to have one: several at once starve a small machine.
struct Own {
    server: services::Redis,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::const_new(());

async fn fix(need: Need, ordered: bool) -> Result<Fix, String> {
    let unavailable = |error: services::Error| {
        assert!(error.is_unavailable(), "{error}");
        error.to_string()
    };
    let (database, own) = match need {
        Need::Shared => (
            services::redis().await.map_err(unavailable)?.database().await,
            None,
        ),
        Need::OwnServer => {
            let _turn = TURN.lock().await;
            let server = services::own_redis().await.map_err(unavailable)?;
            (server.database().await, Some(Own { server, _turn }))
        }
    };
    let database = database.map_err(unavailable)?;
    let config = RedisConfig {
        ordered,
        ..config(&database)
    };
    Ok(Fix {
        broker: Redis::new(config.clone()).unwrap(),
        config,
        database,
        own,
    })
}

fn config(database: &Database) -> RedisConfig {
    RedisConfig {
        prefix: format!("{}outbox", database.prefix()),
        ..RedisConfig::new(database.url())
    }
}

#[async_trait]
impl Fixture for Fix {
    async fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(self.broker.publisher())
    }

    async fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(self.broker.subscriber())
    }

    fn claims(&self) -> Vec<Capability> {
        let order = self.config.ordered.then_some(Capability::KeyOrder);
        order.into_iter().chain(CLAIMS).collect()
    }

    fn server(&self) -> Option<&dyn Server> {
        self.own.as_ref().map(|own| own as &dyn Server)
    }

    async fn inject(&self, topic: &str, body: Bytes) -> bool {
        let mut connection = self.database.connection().await.unwrap();
        let stream = self.config.stream_key(topic, 5);
        let added: String = connection
            .xadd(stream, "*", &[("data", &body[..])])
            .await
            .unwrap();
        !added.is_empty()
    }

    async fn dead_letters(&self, topic: &str, group: &str) -> Option<usize> {
        let mut connection = self.database.connection().await.unwrap();
        let mut count = 0;
        for partition in 0..self.config.partitions {
            let letters: usize = connection
                .xlen(self.config.dead_key(topic, partition, group))
                .await
                .unwrap();
            count += letters;
        }
        Some(count)
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

mod owned {
    use super::*;

    async fn setup(need: Need) -> Result<Fix, String> {
        fix(need, true).await
    }

    outbox_broker::conformance!(setup);
}

mod shared {
    use super::*;

    async fn setup(need: Need) -> Result<Fix, String> {
        fix(need, false).await
    }

    outbox_broker::conformance!(setup);
}

const TOPIC: &str = "orders";

fn message(key: &str, number: usize) -> Message {
    Message::builder(TOPIC, "order.placed")
        .source("/shop")
        .key(key)
        .payload(number.to_string(), "text/plain")
        .build()
        .unwrap()
}

fn messages(count: usize) -> Vec<Message> {
    (0..count)
        .map(|number| message(&format!("k{}", number % 20), number))
        .collect()
}

async fn publish(broker: &Redis, batch: &[Message]) {
    for outcome in broker.publisher().publish(batch).await {
        outcome.unwrap();
    }
}

async fn join(broker: &Redis, options: SubscribeOptions) -> Box<dyn Subscription> {
    broker.subscriber().subscribe(options).await.unwrap()
}

async fn receive(subscription: &mut dyn Subscription, count: usize) -> Vec<Delivery> {
    let until = Instant::now() + Duration::from_secs(20);
    let mut out = Vec::new();
    while out.len() < count {
        assert!(Instant::now() < until, "{} of {count} came", out.len());
        let wait = Duration::from_secs(1);
        out.extend(subscription.receive(count - out.len(), wait).await.unwrap());
    }
    out
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.content().unwrap().payload.to_vec()).unwrap()
}

async fn entries(config: &RedisConfig, database: &Database) -> usize {
    let mut connection = database.connection().await.unwrap();
    let mut count = 0;
    for partition in 0..config.partitions {
        let some: usize = connection
            .xlen(config.stream_key(TOPIC, partition))
            .await
            .unwrap();
        count += some;
    }
    count
}

#[tokio::test]
async fn trimming_stops_at_what_the_slowest_group_has_not_settled() {
    let database = or_skip!(services::redis().await).database().await.unwrap();
    let config = RedisConfig {
        retention: Duration::ZERO,
        partitions: 1,
        ..config(&database)
    };
    let broker = Redis::new(config.clone()).unwrap();
    let mut fast = join(&broker, SubscribeOptions::new(TOPIC, "fast")).await;
    let mut slow = join(&broker, SubscribeOptions::new(TOPIC, "slow")).await;
    publish(&broker, &messages(1_000)).await;
    for _ in 0..5 {
        for delivery in receive(&mut *fast, 200).await {
            delivery.ack().await.unwrap();
        }
    }
    assert_eq!(
        broker.trim(TOPIC).await.unwrap(),
        0,
        "the slow group has settled nothing"
    );
    let held = receive(&mut *slow, 250).await;
    assert_eq!(
        broker.trim(TOPIC).await.unwrap(),
        0,
        "what is handed out is not settled"
    );
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    let trimmed = broker.trim(TOPIC).await.unwrap();
    assert!(
        (100..=250).contains(&trimmed),
        "whole nodes below the mark: {trimmed}"
    );
    let rest = receive(&mut *slow, 250).await;
    assert_eq!(text(&rest[0]), "250", "nothing unread is trimmed");
}

#[tokio::test]
async fn a_group_moves_back_and_forth_to_a_time() {
    let database = or_skip!(services::redis().await).database().await.unwrap();
    let broker = Redis::new(config(&database)).unwrap();
    let mut group = join(&broker, SubscribeOptions::new(TOPIC, "group")).await;
    publish(&broker, &messages(30)).await;
    for delivery in receive(&mut *group, 20).await {
        delivery.ack().await.unwrap();
    }
    let held = receive(&mut *group, 10).await.remove(0);
    group.close().await.unwrap();
    broker
        .seek(TOPIC, "group", Utc::now() + chrono::TimeDelta::hours(1))
        .await
        .unwrap();
    let mut group = join(&broker, SubscribeOptions::new(TOPIC, "group")).await;
    assert_eq!(group.lag().await.unwrap().messages, 0);
    assert!(
        group
            .receive(10, Duration::from_millis(300))
            .await
            .unwrap()
            .is_empty()
    );
    drop(held);
    group.close().await.unwrap();
    broker
        .seek(TOPIC, "group", Utc::now() - chrono::TimeDelta::hours(1))
        .await
        .unwrap();
    let mut group = join(&broker, SubscribeOptions::new(TOPIC, "group")).await;
    let lag = group.lag().await.unwrap();
    assert_eq!(lag.messages, 30);
    assert!(
        lag.age.is_some_and(|age| age < Duration::from_secs(60)),
        "{lag:?}"
    );
    receive(&mut *group, 30).await;
}

#[tokio::test]
async fn a_member_that_fell_silent_loses_its_deliveries_and_its_say() {
    let database = or_skip!(services::redis().await).database().await.unwrap();
    let broker = Redis::new(config(&database)).unwrap();
    let options = SubscribeOptions::new(TOPIC, "group").visibility(Duration::from_secs(1));
    let mut silent = join(&broker, options.clone()).await;
    publish(&broker, &messages(20)).await;
    let held = receive(&mut *silent, 20).await;
    let mut other = join(&broker, options).await;
    let again = receive(&mut *other, 20).await;
    assert!(again.iter().all(|delivery| delivery.attempt() == 2));
    for delivery in held {
        assert_eq!(delivery.ack().await.unwrap(), outbox_broker::Settled::Stale);
    }
    for delivery in again {
        assert_eq!(delivery.ack().await.unwrap(), outbox_broker::Settled::Done);
    }
}

#[tokio::test]
async fn an_extended_delivery_stays_with_its_member() {
    let database = or_skip!(services::redis().await).database().await.unwrap();
    for ordered in [true, false] {
        let topic_config = RedisConfig {
            ordered,
            prefix: format!("{}{ordered}", database.prefix()),
            ..config(&database)
        };
        let broker = Redis::new(topic_config).unwrap();
        let options = SubscribeOptions::new(TOPIC, "group").visibility(Duration::from_secs(1));
        let mut first = join(&broker, options.clone()).await;
        publish(&broker, &messages(1)).await;
        let (_, held) = receive(&mut *first, 1).await.remove(0).split();
        let mut second = join(&broker, options).await;
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            assert_eq!(held.extend().await.unwrap(), outbox_broker::Settled::Done);
            let came = second.receive(1, Duration::from_millis(300)).await.unwrap();
            assert!(came.is_empty(), "ordered {ordered}: {came:?}");
        }
        let settled = held.settle(outbox_broker::Verdict::Ack).await.unwrap();
        assert_eq!(settled, outbox_broker::Settled::Done);
    }
}

#[tokio::test]
async fn members_that_come_and_go_share_the_partitions_and_keep_the_order() {
    let database = or_skip!(services::redis().await).database().await.unwrap();
    let broker = Redis::new(config(&database)).unwrap();
    let options = SubscribeOptions::new(TOPIC, "group").prefetch(20);
    let mut first = join(&broker, options.clone()).await;
    publish(&broker, &messages(200)).await;
    let mut seen: Vec<String> = Vec::new();
    let mut order: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    let mut note = |delivery: &Delivery| {
        let message = delivery.content().unwrap();
        let number: usize = text(delivery).parse().unwrap();
        if let Some(before) = order.insert(message.key.clone().unwrap(), number) {
            assert!(before < number, "{number} came after {before}");
        }
        seen.push(text(delivery));
        seen.len()
    };
    for _ in 0..5 {
        for delivery in receive(&mut *first, 10).await {
            note(&delivery);
            delivery.ack().await.unwrap();
        }
    }
    let mut second = join(&broker, options).await;
    let mut by_second = 0;
    let until = Instant::now() + Duration::from_secs(30);
    let mut done = 50;
    while done < 200 {
        assert!(
            Instant::now() < until,
            "{done} came, {by_second} to the second member"
        );
        for (is_second, member) in [(false, &mut first), (true, &mut second)] {
            for delivery in member.receive(3, Duration::from_millis(100)).await.unwrap() {
                done = note(&delivery);
                by_second += usize::from(is_second);
                delivery.ack().await.unwrap();
            }
        }
    }
    assert!(by_second > 0, "the second member got its share");
}

#[tokio::test]
async fn an_id_is_suppressed_within_the_window_and_after_a_kill() {
    let server = or_skip!(services::own_redis().await);
    let database = server.database().await.unwrap();
    let config = RedisConfig {
        dedup_window: Duration::from_secs(3),
        ..config(&database)
    };
    let broker = Redis::new(config.clone()).unwrap();
    let batch = messages(50);
    publish(&broker, &batch).await;
    let published = Instant::now();
    server.kill().await.unwrap();
    server.restart().await.unwrap();
    let again = broker.publisher().publish(&batch).await;
    if published.elapsed() < Duration::from_secs(2) {
        assert!(
            again.iter().all(|outcome| outcome.as_ref().unwrap().duplicate),
            "{again:?}"
        );
        assert_eq!(entries(&config, &database).await, 50);
    }
    // Past the window the id is forgotten: what the setting says, and no more.
    let until = Instant::now() + Duration::from_secs(10);
    while !broker.publisher().publish(&batch[..1]).await[0]
        .as_ref()
        .is_ok_and(|receipt| !receipt.duplicate)
    {
        assert!(Instant::now() < until, "the id is still known");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_server_that_may_lose_messages_is_warned_of() {
    let server = or_skip!(services::own_redis().await);
    let database = server.database().await.unwrap();
    let broker = Redis::new(config(&database)).unwrap();
    assert_eq!(broker.check().await.unwrap(), []);
    let mut connection = database.connection().await.unwrap();
    for (setting, value) in [("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")] {
        let set: String = cmd("CONFIG")
            .arg("SET")
            .arg(setting)
            .arg(value)
            .query_async(&mut connection)
            .await
            .unwrap();
        assert_eq!(set, "OK");
    }
    let found = broker.check().await.unwrap();
    let settings: Vec<_> = found.iter().map(|warning| warning.setting.as_str()).collect();
    assert_eq!(settings, ["appendonly", "maxmemory-policy"]);
}

#[tokio::test]
async fn a_server_without_memory_refuses_and_keeps_the_prefix() {
    let server = or_skip!(services::own_redis().await);
    let database = server.database().await.unwrap();
    let broker = Redis::new(config(&database)).unwrap();
    publish(&broker, &messages(1)).await;
    let mut connection = database.connection().await.unwrap();
    let limit = async |connection: &mut _, bytes: &str| {
        let set: String = cmd("CONFIG")
            .arg("SET")
            .arg("maxmemory")
            .arg(bytes)
            .query_async(connection)
            .await
            .unwrap();
        assert_eq!(set, "OK");
    };
    limit(&mut connection, "1").await;
    for outcome in broker.publisher().publish(&messages(20)).await {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), outbox_broker::ErrorKind::Rejected, "{error:?}");
        assert!(error.is_transient() && !error.is_outcome_unknown());
    }
    limit(&mut connection, "0").await;
    publish(&broker, &messages(20)).await;
}

#[tokio::test]
async fn a_topic_keeps_its_number_of_partitions() {
    let database = or_skip!(services::redis().await).database().await.unwrap();
    let of = |partitions| {
        Redis::new(RedisConfig {
            partitions,
            ..config(&database)
        })
        .unwrap()
    };
    let mut group = join(&of(3), SubscribeOptions::new(TOPIC, "group")).await;
    publish(&of(8), &messages(40)).await;
    receive(&mut *group, 40).await;
}

#[tokio::test]
async fn a_wrong_password_is_told_at_once() {
    let server = or_skip!(services::own_redis().await);
    let database = server.database().await.unwrap();
    let mut connection = database.connection().await.unwrap();
    let set: String = cmd("CONFIG")
        .arg("SET")
        .arg("requirepass")
        .arg("right")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(set, "OK");
    for url in [
        database.url().to_owned(),
        database.url().replace("redis://", "redis://:wrong@"),
    ] {
        let broker = Redis::new(RedisConfig::new(url)).unwrap();
        let began = Instant::now();
        let outcome = broker.publisher().publish(&messages(1)).await.remove(0);
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), outbox_broker::ErrorKind::Unauthorized, "{error:?}");
        assert!(error.needs_operator());
        assert!(
            began.elapsed() < Duration::from_secs(4),
            "it tried again and again"
        );
        assert!(!format!("{error:?}").contains("wrong@"));
    }
}
