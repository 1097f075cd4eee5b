//! Rows as messages. What foreign hands wrote and is no message becomes [`Malformed`], never an error.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use outbox_broker::{Malformed, Message};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

/// Source of a row that was inserted without one: CloudEvents does not allow it to be empty.
const UNNAMED_SOURCE: &str = "/";

/// Bytes of a key at most. Chosen: longer ones do not fit an entry of PostgreSQL's index on parked rows.
const KEY_BYTES: usize = 2_000;

/// The columns of a row that make a message.
#[derive(Debug)]
pub(crate) struct Columns {
    pub(crate) id: Uuid,
    pub(crate) topic: String,
    pub(crate) key: Option<String>,
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) content_type: String,
    pub(crate) headers: Option<String>,
    pub(crate) payload: Bytes,
    pub(crate) time: DateTime<Utc>,
    pub(crate) available_at: Option<DateTime<Utc>>,
    pub(crate) expires_at: Option<DateTime<Utc>>,
}

impl Columns {
    /// The message, or what is wrong with the row.
    pub(crate) fn message(self) -> Result<Message, Malformed> {
        let envelope = match parse_headers(self.headers.as_deref()) {
            Ok(envelope) => envelope,
            Err(error) => {
                return Err(self.malformed(format!("column headers is no JSON object of strings: {error}")));
            }
        };
        for (column, value) in [("topic", &self.topic), ("type", &self.kind)] {
            if value.is_empty() {
                return Err(self.malformed(format!("column {column} is empty")));
            }
        }
        if let Some(bytes) = self.key.as_ref().map(String::len)
            && bytes > KEY_BYTES
        {
            return Err(self.malformed(format!("column key has {bytes} bytes, more than {KEY_BYTES}")));
        }
        Ok(Message {
            id: self.id.into(),
            source: if self.source.is_empty() {
                UNNAMED_SOURCE.to_owned()
            } else {
                self.source
            },
            topic: self.topic,
            kind: self.kind,
            // An empty key orders nothing; no broker takes it.
            key: self.key.filter(|key| !key.is_empty()),
            schema: envelope.schema,
            traceparent: envelope.traceparent,
            tracestate: envelope.tracestate,
            correlation_id: envelope.correlation_id,
            causation_id: envelope.causation_id,
            headers: envelope.headers,
            payload: self.payload,
            content_type: self.content_type,
            time: self.time,
            available_at: self.available_at,
            expires_at: self.expires_at,
        })
    }

    fn malformed(&self, reason: String) -> Malformed {
        Malformed {
            reason,
            id: Some(self.id.to_string()),
            body: self.payload.clone(),
        }
    }
}

fn parse_headers(text: Option<&str>) -> Result<Envelope, serde_json::Error> {
    match text {
        None | Some("" | "{}") => Ok(Envelope::default()),
        Some(text) => serde_json::from_str(text),
    }
}

/// The headers column, its reserved names apart. Read in one pass: most rows hold a trace context alone, and
/// a map for it would cost more than the rest of the row.
#[derive(Default)]
struct Envelope {
    headers: BTreeMap<String, String>,
    schema: Option<String>,
    traceparent: Option<String>,
    tracestate: Option<String>,
    correlation_id: Option<String>,
    causation_id: Option<String>,
}

impl<'de> Deserialize<'de> for Envelope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

struct EnvelopeVisitor;

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Envelope;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Envelope, A::Error> {
        let mut envelope = Envelope::default();
        while let Some(Name(name)) = map.next_key()? {
            let value: String = map.next_value()?;
            let slot = match &*name {
                "traceparent" => &mut envelope.traceparent,
                "tracestate" => &mut envelope.tracestate,
                "correlationid" => &mut envelope.correlation_id,
                "causationid" => &mut envelope.causation_id,
                "dataschema" => &mut envelope.schema,
                _ => {
                    envelope.headers.insert(name.into_owned(), value);
                    continue;
                }
            };
            *slot = Some(value);
        }
        Ok(envelope)
    }
}

/// A name, borrowed from the text unless it holds escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Consecutive positions as inclusive ranges, in order. `positions` is sorted here.
pub(crate) fn ranges(positions: impl IntoIterator<Item = i64>) -> Vec<(i64, i64)> {
    let mut sorted: Vec<i64> = positions.into_iter().collect();
    sorted.sort_unstable();
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for position in sorted {
        match ranges.last_mut() {
            Some((_, last)) if position <= last.saturating_add(1) => *last = position,
            _ => ranges.push((position, position)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Columns {
        Columns {
            id: Uuid::now_v7(),
            topic: "orders".to_owned(),
            key: Some(String::new()),
            kind: "order.placed".to_owned(),
            source: String::new(),
            content_type: "application/json".to_owned(),
            headers: Some(r#"{"tenant":"acme","correlationid":"c-1"}"#.to_owned()),
            payload: Bytes::from_static(b"{}"),
            time: Utc::now(),
            available_at: None,
            expires_at: None,
        }
    }

    #[test]
    fn envelope_attributes_leave_the_headers() {
        let message = columns().message().unwrap();
        assert_eq!(message.correlation_id.as_deref(), Some("c-1"));
        assert_eq!(message.headers.len(), 1);
        assert_eq!(message.source, "/");
        assert_eq!(message.key, None);
    }

    #[test]
    fn escaped_names_and_repeated_ones_are_read() {
        let mut columns = columns();
        columns.headers = Some(r#"{"tr\u0061ceparent":"t","a":"1","a":"2","tracestate":"s"}"#.to_owned());
        let message = columns.message().unwrap();
        assert_eq!(message.traceparent.as_deref(), Some("t"));
        assert_eq!(message.tracestate.as_deref(), Some("s"));
        assert_eq!(
            message.headers,
            BTreeMap::from([("a".to_owned(), "2".to_owned())])
        );
    }

    #[test]
    fn headers_that_are_no_object_of_strings_are_malformed() {
        for text in ["[1]", "{\"a\":1}", "nonsense"] {
            let mut columns = columns();
            columns.headers = Some(text.to_owned());
            let malformed = columns.message().unwrap_err();
            assert!(malformed.reason.contains("headers"), "{malformed:?}");
            assert_eq!(malformed.body, Bytes::from_static(b"{}"));
        }
    }

    #[test]
    fn ranges_join_neighbours_only() {
        assert_eq!(ranges([]), []);
        assert_eq!(ranges([5, 3, 4, 9, 7, 8, 1]), [(1, 1), (3, 5), (7, 9)]);
        assert_eq!(ranges([2, 2, 3]), [(2, 3)]);
    }
}
