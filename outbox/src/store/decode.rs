//! Rows as messages. What foreign hands wrote and is no message becomes [`Malformed`], never an error.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use outbox_broker::{Malformed, Message};
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
        let mut headers = match parse_headers(self.headers.as_deref()) {
            Ok(headers) => headers,
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
            schema: headers.remove("dataschema"),
            traceparent: headers.remove("traceparent"),
            tracestate: headers.remove("tracestate"),
            correlation_id: headers.remove("correlationid"),
            causation_id: headers.remove("causationid"),
            headers,
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

fn parse_headers(text: Option<&str>) -> Result<BTreeMap<String, String>, serde_json::Error> {
    match text {
        None | Some("") => Ok(BTreeMap::new()),
        Some(text) => serde_json::from_str(text),
    }
}

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
