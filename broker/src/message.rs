//! What travels: a message, its identity and its limits.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The identity of a message, a UUIDv7; with the source it is what consumers deduplicate by.
///
/// A redriven or replayed message keeps its id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageId(Uuid);

impl MessageId {
    /// A new id; ids made later by this process sort later.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id as a UUID.
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl Default for MessageId {
    fn default() -> Self {
        Self::new()
    }
}

impl From<Uuid> for MessageId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl FromStr for MessageId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Sizes that a message may not exceed. Checked when a message is enqueued or published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the topic. Default 255: AMQP 0.9.1 carries it as a short string.
    pub topic_bytes: usize,
    /// Bytes of the ordering key. Default 255: the narrowest of the brokers' key fields (AMQP short string).
    pub key_bytes: usize,
    /// Number of headers. Default 64: chosen, well above what tracing and routing need.
    pub headers: usize,
    /// Bytes of all header names and values together. Default 16 KiB: below the 32 KiB header limits of
    /// common HTTP and JMS gateways behind a broker.
    pub header_bytes: usize,
    /// Bytes of the payload. Default 900 KiB: Kafka and NATS take 1 MiB a message by default, envelope
    /// included. Raise it when every broker on the route takes more.
    pub payload_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            topic_bytes: 255,
            key_bytes: 255,
            headers: 64,
            header_bytes: 16 * 1024,
            payload_bytes: 900 * 1024,
        }
    }
}

/// Header names that carry an attribute of [`Message`] and cannot be set by hand.
pub const RESERVED_HEADERS: [&str; 5] = [
    "traceparent",
    "tracestate",
    "correlationid",
    "causationid",
    "dataschema",
];

/// Why a message is refused. The transaction it was meant for is untouched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMessage {
    /// A field that must be present is empty.
    #[error("{field} is empty; give the message a {field}")]
    Empty {
        /// The field's name.
        field: &'static str,
    },
    /// A field exceeds its limit.
    #[error("{field} has {actual} {unit}, the limit is {limit}; shorten it or raise Limits::{setting}")]
    TooLarge {
        /// The field's name.
        field: &'static str,
        /// Measured size.
        actual: usize,
        /// Allowed size.
        limit: usize,
        /// What is counted.
        unit: &'static str,
        /// The setting that raises the limit.
        setting: &'static str,
    },
    /// A field holds a character it may not hold.
    #[error("{field} holds {found:?} at byte {at}; {allowed}")]
    Character {
        /// The field's name.
        field: &'static str,
        /// The offending character.
        found: char,
        /// Its byte offset.
        at: usize,
        /// What is allowed there.
        allowed: &'static str,
    },
    /// A header uses a name that belongs to the envelope.
    #[error("header `{name}` is reserved; use the message attribute of that name")]
    ReservedHeader {
        /// The header's name.
        name: String,
    },
    /// The value could not be written as JSON.
    #[error("payload cannot be written as JSON: {reason}")]
    Json {
        /// What the serialiser said.
        reason: String,
    },
}

/// A message: identity, destination, order, content and context.
///
/// Build one with [`Message::builder`]. All fields are plain values; a message that came from a builder
/// with [`MessageBuilder::build`] has been checked against [`Limits`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Identity; stable over retries, redrives and replays.
    pub id: MessageId,
    /// Who made it, a URI reference such as `/orders`; `(source, id)` is the dedup identity.
    pub source: String,
    /// Where it goes, such as `orders`. Letters, digits, `.`, `_`, `-`.
    pub topic: String,
    /// What it says, such as `order.placed`.
    pub kind: String,
    /// Messages of one key are published in order; `None` promises no order.
    pub key: Option<String>,
    /// The sender's own headers: lower-case names, text values.
    pub headers: BTreeMap<String, String>,
    /// The content.
    pub payload: Bytes,
    /// Media type of the payload. Default `application/json`.
    pub content_type: String,
    /// URI of the payload's schema.
    pub schema: Option<String>,
    /// When the thing it tells of happened; microseconds.
    pub time: DateTime<Utc>,
    /// Not to be delivered before.
    pub available_at: Option<DateTime<Utc>>,
    /// Worthless after.
    pub expires_at: Option<DateTime<Utc>>,
    /// W3C trace context of the code that enqueued it; never rewritten on the way.
    pub traceparent: Option<String>,
    /// Vendor part of the trace context.
    pub tracestate: Option<String>,
    /// Id of the conversation it belongs to.
    pub correlation_id: Option<String>,
    /// Id of the message whose handling made it.
    pub causation_id: Option<String>,
}

impl Message {
    /// Starts a message of type `kind` for `topic`, with a new id and the present time.
    pub fn builder(topic: impl Into<String>, kind: impl Into<String>) -> MessageBuilder {
        MessageBuilder {
            message: Self {
                id: MessageId::new(),
                source: String::new(),
                topic: topic.into(),
                kind: kind.into(),
                key: None,
                headers: BTreeMap::new(),
                payload: Bytes::new(),
                content_type: "application/json".to_owned(),
                schema: None,
                time: Utc::now().trunc_subsecs(6),
                available_at: None,
                expires_at: None,
                traceparent: None,
                tracestate: None,
                correlation_id: None,
                causation_id: None,
            },
            error: None,
        }
    }

    /// Bytes this message occupies in a buffer: payload, key, topic, headers and a fixed share.
    pub fn size(&self) -> usize {
        const FIXED: usize = 256; // chosen: the size of this struct and of its small strings
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        FIXED
            + self.payload.len()
            + self.topic.len()
            + self.key.as_ref().map_or(0, String::len)
            + self.traceparent.as_ref().map_or(0, String::len)
            + self.tracestate.as_ref().map_or(0, String::len)
            + headers
    }

    /// Checks every field against `limits`.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn validate(&self, limits: &Limits) -> Result<(), InvalidMessage> {
        name("topic", &self.topic, limits.topic_bytes, "topic_bytes")?;
        present("type", &self.kind, limits.topic_bytes, "topic_bytes")?;
        present("source", &self.source, limits.topic_bytes, "topic_bytes")?;
        present(
            "content type",
            &self.content_type,
            limits.topic_bytes,
            "topic_bytes",
        )?;
        if let Some(key) = &self.key {
            present("ordering key", key, limits.key_bytes, "key_bytes")?;
        }
        if self.headers.len() > limits.headers {
            return Err(too_large(
                "headers",
                self.headers.len(),
                limits.headers,
                "entries",
                "headers",
            ));
        }
        let mut bytes = 0;
        for (header, value) in &self.headers {
            header_name(header)?;
            no_control("header value", value)?;
            bytes += header.len() + value.len();
        }
        for (attribute, value) in [
            ("traceparent", &self.traceparent),
            ("tracestate", &self.tracestate),
            ("correlation id", &self.correlation_id),
            ("causation id", &self.causation_id),
            ("schema", &self.schema),
        ] {
            if let Some(value) = value {
                no_control(attribute, value)?;
                bytes += value.len();
            }
        }
        if bytes > limits.header_bytes {
            return Err(too_large(
                "headers",
                bytes,
                limits.header_bytes,
                "bytes",
                "header_bytes",
            ));
        }
        if self.payload.len() > limits.payload_bytes {
            return Err(too_large(
                "payload",
                self.payload.len(),
                limits.payload_bytes,
                "bytes",
                "payload_bytes",
            ));
        }
        Ok(())
    }
}

/// Collects the parts of a [`Message`].
#[derive(Debug, Clone)]
#[must_use]
pub struct MessageBuilder {
    message: Message,
    error: Option<InvalidMessage>,
}

impl MessageBuilder {
    /// Sets the identity; the default is a new UUIDv7.
    pub fn id(mut self, id: MessageId) -> Self {
        self.message.id = id;
        self
    }

    /// Sets the source, a URI reference such as `/orders`.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.message.source = source.into();
        self
    }

    /// Sets the ordering key: messages of one key are published in order.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.message.key = Some(key.into());
        self
    }

    /// Adds a header; names are lower-cased.
    pub fn header(mut self, name: impl AsRef<str>, value: impl Into<String>) -> Self {
        self.message
            .headers
            .insert(name.as_ref().to_ascii_lowercase(), value.into());
        self
    }

    /// Sets the payload as bytes of `content_type`.
    pub fn payload(mut self, payload: impl Into<Bytes>, content_type: impl Into<String>) -> Self {
        self.message.payload = payload.into();
        self.message.content_type = content_type.into();
        self
    }

    /// Sets the payload to `value` written as JSON.
    pub fn json<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(bytes) => {
                self.message.payload = bytes.into();
                self.message.content_type = "application/json".to_owned();
            }
            Err(error) => {
                self.error = Some(InvalidMessage::Json {
                    reason: error.to_string(),
                });
            }
        }
        self
    }

    /// Names the payload's schema.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.message.schema = Some(schema.into());
        self
    }

    /// Sets when the thing happened; kept to the microsecond.
    pub fn time(mut self, time: DateTime<Utc>) -> Self {
        self.message.time = time.trunc_subsecs(6);
        self
    }

    /// Holds the message back until `time`.
    pub fn available_at(mut self, time: DateTime<Utc>) -> Self {
        self.message.available_at = Some(time.trunc_subsecs(6));
        self
    }

    /// Says from when the message is worthless.
    pub fn expires_at(mut self, time: DateTime<Utc>) -> Self {
        self.message.expires_at = Some(time.trunc_subsecs(6));
        self
    }

    /// Sets the W3C trace context.
    pub fn trace(mut self, traceparent: impl Into<String>, tracestate: Option<String>) -> Self {
        self.message.traceparent = Some(traceparent.into());
        self.message.tracestate = tracestate;
        self
    }

    /// Sets the id of the conversation.
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.message.correlation_id = Some(id.into());
        self
    }

    /// Sets the id of the message that caused this one.
    pub fn causation_id(mut self, id: impl Into<String>) -> Self {
        self.message.causation_id = Some(id.into());
        self
    }

    /// The message, checked against the default [`Limits`].
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn build(self) -> Result<Message, InvalidMessage> {
        self.build_within(&Limits::default())
    }

    /// The message, checked against `limits`.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn build_within(self, limits: &Limits) -> Result<Message, InvalidMessage> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.message.validate(limits)?;
        Ok(self.message)
    }
}

fn too_large(
    field: &'static str,
    actual: usize,
    limit: usize,
    unit: &'static str,
    setting: &'static str,
) -> InvalidMessage {
    InvalidMessage::TooLarge {
        field,
        actual,
        limit,
        unit,
        setting,
    }
}

fn present(
    field: &'static str,
    value: &str,
    limit: usize,
    setting: &'static str,
) -> Result<(), InvalidMessage> {
    if value.is_empty() {
        return Err(InvalidMessage::Empty { field });
    }
    if value.len() > limit {
        return Err(too_large(field, value.len(), limit, "bytes", setting));
    }
    no_control(field, value)
}

/// Every database and every broker's header field must carry the text: no control characters (PostgreSQL
/// refuses NUL, header encodings refuse line breaks).
fn no_control(field: &'static str, value: &str) -> Result<(), InvalidMessage> {
    match value.char_indices().find(|(_, c)| c.is_control()) {
        None => Ok(()),
        Some((at, found)) => Err(InvalidMessage::Character {
            field,
            found,
            at,
            allowed: "control characters are not allowed",
        }),
    }
}

fn name(field: &'static str, value: &str, limit: usize, setting: &'static str) -> Result<(), InvalidMessage> {
    present(field, value, limit, setting)?;
    match value
        .char_indices()
        .find(|(_, c)| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))
    {
        None => Ok(()),
        Some((at, found)) => Err(InvalidMessage::Character {
            field,
            found,
            at,
            allowed: "ASCII letters, digits, `.`, `_` and `-` are allowed",
        }),
    }
}

fn header_name(value: &str) -> Result<(), InvalidMessage> {
    if value.is_empty() {
        return Err(InvalidMessage::Empty { field: "header name" });
    }
    if RESERVED_HEADERS.contains(&value) {
        return Err(InvalidMessage::ReservedHeader {
            name: value.to_owned(),
        });
    }
    match value
        .char_indices()
        .find(|(_, c)| !(c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-')))
    {
        None => Ok(()),
        Some((at, found)) => Err(InvalidMessage::Character {
            field: "header name",
            found,
            at,
            allowed: "lower-case ASCII letters, digits, `.`, `_` and `-` are allowed",
        }),
    }
}
