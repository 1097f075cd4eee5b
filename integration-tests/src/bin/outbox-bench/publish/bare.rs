//! What the relay is compared with: loops over a bare client, as one would write them by hand.

use std::collections::VecDeque;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use futures::poll;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio_postgres::{Client, Row};

use super::{EXCHANGE, TOPIC};

/// Rows that one read of the loop takes.
const BATCH: i64 = 1_000;

/// A message read by hand.
pub(super) struct Message {
    id: i64,
    message_id: String,
    key: Option<String>,
    kind: String,
    source: String,
    headers: Option<String>,
    payload: Vec<u8>,
    time: DateTime<Utc>,
}

/// Reads at most `limit` rows of the outbox.
pub(super) async fn read(client: &Client, limit: i64) -> Result<Vec<Message>> {
    let rows = client.query(READ, &[&limit]).await?;
    Ok(rows.iter().map(message).collect())
}

const READ: &str =
    "SELECT id, msg_id::text, key, type, source, headers, payload, extract(epoch FROM created_at)::float8
                    FROM outbox ORDER BY shard, id LIMIT $1";

fn message(row: &Row) -> Message {
    Message {
        id: row.get(0),
        message_id: row.get(1),
        key: row.get(2),
        kind: row.get(3),
        source: row.get(4),
        headers: row.get(5),
        payload: row.get(6),
        time: DateTime::from_timestamp_millis(millis(row.get(7))).unwrap_or_default(),
    }
}

fn millis(seconds: f64) -> i64 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a time of this century in milliseconds"
    )]
    let millis = (seconds * 1000.0) as i64;
    millis
}

/// Publishes `messages` over `channels` channels at once and waits for every confirm; never more than
/// `window` are unconfirmed, all channels together.
pub(super) async fn publish(
    connection: &Connection,
    messages: &[Message],
    window: usize,
    channels: usize,
) -> Result<Duration> {
    let mut ready = Vec::new();
    for _ in 0..channels {
        ready.push(confirming(connection).await?);
    }
    let share = messages.len().div_ceil(channels).max(1);
    let start = Instant::now();
    let parts = ready
        .iter()
        .zip(messages.chunks(share))
        .map(|(channel, part)| send(channel, part, window / channels));
    try_join_all(parts).await?;
    Ok(start.elapsed())
}

/// Reads a batch, publishes it, deletes it, until nothing is left.
pub(super) async fn relay(connection: &Connection, client: &Client, window: usize) -> Result<Duration> {
    let channel = confirming(connection).await?;
    let read = client.prepare(READ).await?;
    let delete = client
        .prepare("DELETE FROM outbox WHERE shard = 0 AND id = ANY($1)")
        .await?;
    let start = Instant::now();
    loop {
        let rows = client.query(&read, &[&BATCH]).await?;
        if rows.is_empty() {
            return Ok(start.elapsed());
        }
        let messages: Vec<_> = rows.iter().map(message).collect();
        send(&channel, &messages, window).await?;
        let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
        client.execute(&delete, &[&ids]).await?;
    }
}

async fn confirming(connection: &Connection) -> Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

async fn send(channel: &Channel, messages: &[Message], window: usize) -> Result<()> {
    let mut unconfirmed = VecDeque::with_capacity(window);
    for message in messages {
        if unconfirmed.len() >= window
            && let Some(confirm) = unconfirmed.pop_front()
        {
            confirm.await?;
        }
        // Polled once: the frames are on their way, and nobody waits until they are written.
        let mut confirm = Box::pin(confirmed(channel, message));
        if let Poll::Ready(result) = poll!(&mut confirm) {
            result?;
        } else {
            unconfirmed.push_back(confirm);
        }
    }
    try_join_all(unconfirmed).await?;
    Ok(())
}

async fn confirmed(channel: &Channel, message: &Message) -> Result<()> {
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let (exchange, topic) = (EXCHANGE.into(), TOPIC.into());
    let sent = channel.basic_publish(exchange, topic, options, &message.payload, properties(message));
    // An ack that carries a return is a message that no queue took.
    ensure!(
        sent.await?.await? == Confirmation::Ack(None),
        "the broker refused a message"
    );
    Ok(())
}

/// The same envelope as the adapter writes, so that the same bytes travel.
fn properties(message: &Message) -> BasicProperties {
    let mut headers = FieldTable::default();
    let mut set = |name: &str, value: &str| {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    };
    set("cloudEvents_specversion", "1.0");
    set("cloudEvents_id", &message.message_id);
    set("cloudEvents_source", &message.source);
    set("cloudEvents_type", &message.kind);
    set("cloudEvents_time", &message.time.to_rfc3339());
    if let Some(key) = &message.key {
        set("cloudEvents_partitionkey", key);
    }
    if let Some(headers) = &message.headers {
        set("cloudEvents_traceparent", headers.get(16..71).unwrap_or(headers));
    }
    BasicProperties::default()
        .with_message_id(message.message_id.as_str().into())
        .with_type(message.kind.as_str().into())
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_timestamp(message.time.timestamp().unsigned_abs())
        .with_headers(headers)
}
