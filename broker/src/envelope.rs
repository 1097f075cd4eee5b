//! The message on the wire: CloudEvents 1.0, binary mode.
//!
//! One table of attributes for every broker; an adapter chooses only the spelling of the names (a prefix
//! such as `cloudEvents_`) and sets the native fields its broker has (message id, content type, timestamp).
//! Attribute values are text; times are RFC 3339 in UTC.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};

use crate::subscriber::Malformed;
use crate::{Message, MessageId};

/// The CloudEvents version this mapping follows.
pub const SPEC_VERSION: &str = "1.0";

/// Attribute names, in the CloudEvents spelling, that [`attributes`] may write.
///
/// `topic` and `availabletime` are extensions of ours; the rest is the core specification or its
/// documented extensions (partitioning, distributed tracing, correlation, expiry time).
pub const ATTRIBUTES: [&str; 15] = [
    "specversion",
    "id",
    "source",
    "type",
    "time",
    "datacontenttype",
    "dataschema",
    "partitionkey",
    "topic",
    "availabletime",
    "expirytime",
    "traceparent",
    "tracestate",
    "correlationid",
    "causationid",
];

/// The attributes of `message`, each present one once, in the order of [`ATTRIBUTES`].
pub fn attributes(message: &Message) -> Vec<(&'static str, String)> {
    let mut out = Vec::with_capacity(ATTRIBUTES.len());
    let mut put = |name: &'static str, value: String| out.push((name, value));
    put("specversion", SPEC_VERSION.to_owned());
    put("id", message.id.to_string());
    put("source", message.source.clone());
    put("type", message.kind.clone());
    put("time", timestamp(message.time));
    put("datacontenttype", message.content_type.clone());
    for (name, value) in [("dataschema", &message.schema), ("partitionkey", &message.key)] {
        if let Some(value) = value {
            put(name, value.clone());
        }
    }
    put("topic", message.topic.clone());
    for (name, time) in [
        ("availabletime", message.available_at),
        ("expirytime", message.expires_at),
    ] {
        if let Some(time) = time {
            put(name, timestamp(time));
        }
    }
    for (name, value) in [
        ("traceparent", &message.traceparent),
        ("tracestate", &message.tracestate),
        ("correlationid", &message.correlation_id),
        ("causationid", &message.causation_id),
    ] {
        if let Some(value) = value {
            put(name, value.clone());
        }
    }
    out
}

/// Reads a message back from its attributes (CloudEvents names, prefix removed), its other headers and its
/// body.
///
/// # Errors
/// [`Malformed`], naming the attribute that is missing or unreadable; the body is kept.
pub fn message(
    mut attributes: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Bytes,
) -> Result<Message, Malformed> {
    let id_text = attributes.remove("id");
    let malformed = |reason: String| Malformed {
        reason,
        id: id_text.clone(),
        body: body.clone(),
    };
    let id: MessageId = id_text
        .as_deref()
        .ok_or_else(|| malformed("attribute `id` is missing".to_owned()))?
        .parse()
        .map_err(|error| malformed(format!("attribute `id` is no UUID: {error}")))?;
    let mut required = |name: &str| {
        attributes
            .remove(name)
            .ok_or_else(|| malformed(format!("attribute `{name}` is missing")))
    };
    let source = required("source")?;
    let kind = required("type")?;
    let topic = required("topic")?;
    let content_type = attributes
        .remove("datacontenttype")
        .unwrap_or_else(|| "application/json".to_owned());
    let mut time = |name: &str| match attributes.remove(name) {
        None => Ok(None),
        Some(text) => parse_timestamp(&text)
            .map(Some)
            .map_err(|error| malformed(format!("attribute `{name}` is no RFC 3339 time: {error}"))),
    };
    let occurred = time("time")?;
    let available_at = time("availabletime")?;
    let expires_at = time("expirytime")?;
    let time = occurred.ok_or_else(|| malformed("attribute `time` is missing".to_owned()))?;
    Ok(Message {
        id,
        source,
        topic,
        kind,
        key: attributes.remove("partitionkey"),
        headers,
        payload: body,
        content_type,
        schema: attributes.remove("dataschema"),
        time,
        available_at,
        expires_at,
        traceparent: attributes.remove("traceparent"),
        tracestate: attributes.remove("tracestate"),
        correlation_id: attributes.remove("correlationid"),
        causation_id: attributes.remove("causationid"),
    })
}

/// A time as it stands on the wire: RFC 3339, UTC, microseconds.
pub fn timestamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Reads a time written by [`timestamp`] or by another CloudEvents implementation.
///
/// # Errors
/// The text is no RFC 3339 time.
pub fn parse_timestamp(text: &str) -> Result<DateTime<Utc>, chrono::ParseError> {
    DateTime::parse_from_rfc3339(text).map(|time| time.with_timezone(&Utc).trunc_subsecs(6))
}
