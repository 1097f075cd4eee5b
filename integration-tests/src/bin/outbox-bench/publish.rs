//! How fast the relay publishes, confirmed, against a bare client with the same window.

mod bare;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use outbox::relay::RelayOptions;
use outbox::store::postgres::{PostgresConfig, PostgresStore};
use outbox_broker::rabbitmq::{RabbitMq, RabbitMqConfig};
use outbox_testing::services;
use tokio_postgres::Client;

use crate::report::{Report, rate};
use crate::{engine, rows};

/// What `publish` takes.
#[derive(Args)]
pub(crate) struct Options {
    /// The broker.
    #[arg(long, value_enum)]
    broker: Broker,
    /// Messages in the outbox before each case.
    #[arg(long, default_value_t = 100_000)]
    messages: u64,
    /// Messages sent and not yet confirmed, at most, over all channels.
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Channels the relay spreads the window over: its lanes.
    #[arg(long, default_value_t = 4)]
    lanes: usize,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 256)]
    payload: usize,
    /// Rounds; every case runs once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Broker {
    Rabbitmq,
}

const EXCHANGE: &str = "outbox";
const TOPIC: &str = "orders";
const QUEUE: &str = "orders.bench";

const ONE_CHANNEL: &str = "bare loop, publish only";
const CHANNELS: &str = "bare loop over as many channels as lanes, publish only";
const WHOLE: &str = "bare loop: read, publish, delete";
const RELAY: &str = "relay";

/// Runs the benchmark and reports.
pub(crate) async fn run(options: &Options) -> Result<()> {
    ensure!(
        options.messages > 0 && options.rounds > 0 && options.lanes > 0 && options.window >= options.lanes,
        "messages, rounds and lanes must be above 0, the window no smaller than the lanes"
    );
    match options.broker {
        Broker::Rabbitmq => rabbitmq(options).await,
    }
}

async fn rabbitmq(options: &Options) -> Result<()> {
    let (database_server, broker_server) = (
        services::own_durable_postgres().await?,
        services::own_rabbitmq().await?,
    );
    let (database, vhost) = (database_server.database().await?, broker_server.vhost().await?);
    let client = database.client().await?;
    client
        .batch_execute(outbox::ddl(outbox::Database::Postgres))
        .await?;
    let connection = vhost.connection().await?;
    let channel = connection.create_channel().await?;
    topology(&channel).await?;
    let mut report = Report::new("publish-rabbitmq", "throughput", "messages/s");
    println!(
        "{} messages of {} bytes, window {}, one quorum queue",
        options.messages, options.payload, options.window
    );
    for round in 1..=options.rounds {
        println!("round {round} of {}", options.rounds);
        let mut measured = |case: &str, time: Duration| {
            let value = rate(options.messages, time);
            report.add(case, value);
            value
        };

        load(&client, options).await?;
        let messages = bare::read(&client, i64::MAX).await?;
        let time = bare::publish(&connection, &messages, options.window, 1).await?;
        let one_channel = measured(ONE_CHANNEL, time);
        emptied(&channel, options.messages).await?;

        let time = bare::publish(&connection, &messages, options.window, options.lanes).await?;
        let channels = measured(CHANNELS, time);
        emptied(&channel, options.messages).await?;

        let time = bare::relay(&connection, &client, options.window).await?;
        let whole = measured(WHOLE, time);
        emptied(&channel, options.messages).await?;

        load(&client, options).await?;
        let time = relay(database.url(), vhost.url(), options).await?;
        let value = measured(RELAY, time);
        emptied(&channel, options.messages).await?;
        report.compare(RELAY, value, ONE_CHANNEL, one_channel);
        report.compare(RELAY, value, CHANNELS, channels);
        report.compare(RELAY, value, WHOLE, whole);
    }
    report.finish(&crate::target())
}

async fn relay(database: &str, broker: &str, options: &Options) -> Result<Duration> {
    let store = PostgresStore::connect(PostgresConfig::new(database)).await?;
    let mut config = RabbitMqConfig::new(broker);
    EXCHANGE.clone_into(&mut config.exchange);
    config.window = options.window / options.lanes;
    config.channels = options.lanes;
    let publisher = RabbitMq::new(config)?.publisher();
    publisher.connect().await?;
    let behaviour = RelayOptions {
        lanes: options.lanes,
        ..RelayOptions::default()
    };
    let publisher = Arc::new(publisher);
    let drained = engine::drain(Arc::new(store), publisher, options.messages, behaviour).await?;
    Ok(drained.whole)
}

/// One durable exchange and one quorum queue that takes the topic, as the adapter makes them.
async fn topology(channel: &Channel) -> Result<()> {
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    channel
        .exchange_declare(
            EXCHANGE.into(),
            ExchangeKind::Topic,
            durable,
            FieldTable::default(),
        )
        .await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel.queue_declare(QUEUE.into(), durable, arguments).await?;
    let plain = QueueBindOptions::default();
    channel
        .queue_bind(
            QUEUE.into(),
            EXCHANGE.into(),
            TOPIC.into(),
            plain,
            FieldTable::default(),
        )
        .await?;
    Ok(())
}

/// Fills the outbox anew.
async fn load(client: &Client, options: &Options) -> Result<()> {
    client.batch_execute("TRUNCATE outbox").await?;
    client
        .batch_execute(&rows::postgres("outbox", options.messages, options.payload))
        .await?;
    client.batch_execute("VACUUM ANALYZE outbox").await?;
    client.batch_execute("CHECKPOINT").await?;
    Ok(())
}

/// Empties the queue, which must hold every message.
async fn emptied(channel: &Channel, expected: u64) -> Result<()> {
    // A quorum queue counts what it has applied; the confirm may come a moment before.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut held = 0;
    while held < expected && Instant::now() < deadline {
        held += u64::from(
            channel
                .queue_purge(QUEUE.into(), QueuePurgeOptions::default())
                .await?,
        );
    }
    ensure!(held == expected, "the queue held {held} messages, not {expected}");
    Ok(())
}
