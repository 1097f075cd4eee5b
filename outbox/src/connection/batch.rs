//! Messages as rows, on their way into the database.
#![cfg_attr(
    not(any(feature = "postgres", feature = "mysql", feature = "sqlite")),
    expect(dead_code, reason = "without a database rows are made and go nowhere")
)]

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use outbox_broker::{Limits, Message, MessageId};

use crate::Error;
use crate::shard::shard_of;

/// Bytes of rows sent in one statement where the database sets no lower limit. Chosen: far below the 1 GiB
/// message limit of PostgreSQL, and small enough that neither side holds a second copy of note.
#[cfg(any(feature = "postgres", feature = "sqlite", test))]
pub(crate) const STATEMENT_BYTES: usize = 16 * 1024 * 1024;

/// One message with what is computed for its row.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) shard: i16,
    /// The message's headers and context as one JSON object; `None` when there are none.
    pub(crate) headers: Option<String>,
    pub(crate) message: Message,
}

/// Rows of one enqueue, checked and divided by table.
#[derive(Debug, Default)]
pub struct Batch {
    /// For the hot table, in the order of the call.
    pub(crate) rows: Vec<Row>,
    /// For the parked table: not before their time.
    pub(crate) scheduled: Vec<Row>,
}

impl Batch {
    /// Checks every message before any is sent.
    pub(crate) fn new(
        messages: impl IntoIterator<Item = Message>,
        limits: &Limits,
        shards: i16,
        now: DateTime<Utc>,
    ) -> Result<Self, Error> {
        let mut batch = Self::default();
        for message in messages {
            message.validate(limits)?;
            let row = Row {
                shard: shard_of(&message, shards),
                headers: headers_text(&message)?,
                message,
            };
            match row.message.available_at {
                Some(time) if time > now => batch.scheduled.push(row),
                _ => batch.rows.push(row),
            }
        }
        Ok(batch)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.scheduled.is_empty()
    }

    pub(crate) fn ids(&self) -> Vec<MessageId> {
        self.rows
            .iter()
            .chain(&self.scheduled)
            .map(|row| row.message.id)
            .collect()
    }
}

/// Divides `rows` so that no part exceeds `max_rows` or, unless it is one row, `max_bytes`.
pub(crate) fn statements(rows: &[Row], max_rows: usize, max_bytes: usize) -> impl Iterator<Item = &[Row]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut bytes = 0;
        let fit = rest
            .iter()
            .take(max_rows)
            .take_while(|row| {
                bytes += row.message.size();
                bytes <= max_bytes
            })
            .count()
            .max(1);
        let (part, remaining) = rest.split_at(fit);
        rest = remaining;
        Some(part)
    })
}

/// The headers column: the sender's headers and, under their reserved names, the parts of the envelope that
/// have no column.
pub(crate) fn headers_text(message: &Message) -> Result<Option<String>, Error> {
    let mut all: BTreeMap<&str, &str> = message
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    for (name, value) in [
        ("traceparent", &message.traceparent),
        ("tracestate", &message.tracestate),
        ("correlationid", &message.correlation_id),
        ("causationid", &message.causation_id),
        ("dataschema", &message.schema),
    ] {
        if let Some(value) = value {
            all.insert(name, value);
        }
    }
    if all.is_empty() {
        return Ok(None);
    }
    serde_json::to_string(&all).map(Some).map_err(|error| {
        Error::new(
            crate::ErrorKind::InvalidMessage,
            "enqueue",
            "the headers cannot be written as JSON",
        )
        .with_cause(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: usize) -> Message {
        Message::builder("orders", "order.placed")
            .source("/orders")
            .payload(vec![7; payload], "application/octet-stream")
            .build()
            .unwrap()
    }

    #[test]
    fn no_statement_exceeds_its_rows_or_bytes() {
        let limits = Limits::default();
        let batch = Batch::new((0..70).map(|_| message(800 * 1024)), &limits, 1, Utc::now()).unwrap();
        let sizes: Vec<usize> = statements(&batch.rows, 1_000, STATEMENT_BYTES)
            .map(<[Row]>::len)
            .collect();
        assert_eq!(sizes.iter().sum::<usize>(), 70);
        assert!(sizes.iter().all(|rows| *rows <= 20), "{sizes:?}");
        let sizes: Vec<usize> = statements(&batch.rows, 3, STATEMENT_BYTES)
            .map(<[Row]>::len)
            .collect();
        assert_eq!(sizes[..23], [3; 23]);
    }

    #[test]
    fn one_bad_message_refuses_the_whole_batch() {
        let mut bad = message(1);
        bad.topic = "no spaces".to_owned();
        let error = Batch::new([message(1), bad], &Limits::default(), 1, Utc::now()).unwrap_err();
        assert!(error.transaction_is_usable());
    }

    #[test]
    fn a_message_for_later_is_scheduled() {
        let now = Utc::now();
        let mut later = message(1);
        later.available_at = Some(now + chrono::TimeDelta::seconds(1));
        let mut due = message(1);
        due.available_at = Some(now);
        let batch = Batch::new([later, due], &Limits::default(), 1, now).unwrap();
        assert_eq!((batch.rows.len(), batch.scheduled.len()), (1, 1));
    }
}
