//! A message as AMQP 0.9.1 properties and headers.
//!
//! Attributes are headers `cloudEvents_<name>`; the content type is the native property and not repeated.
//! The sender's own headers keep their names, except those that begin with `x-`, which belong to RabbitMQ
//! (it moves them to another section towards AMQP 1.0 clients): they travel as `outbox-header.x-…`.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::{Bytes, Malformed, Message, envelope};

/// What an attribute's name begins with; the underscore form is the one JMS selectors can name.
const PREFIX: &str = "cloudEvents_";

/// The other form in use, understood when reading.
const COLON_PREFIX: &str = "cloudEvents:";

/// What the name of an own header begins with when it cannot stand for itself.
const ESCAPE: &str = "outbox-header.";

/// Why a dead letter was given up; a header of dead letters only.
pub(super) const DEAD_REASON: &str = "outbox-dead-reason";

/// How often a quorum queue has delivered the message before.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// Delivery mode of messages that survive a restart.
const PERSISTENT: u8 = 2;

/// The properties of `message`; the error names a text that is too long for AMQP (255 bytes).
pub(super) fn properties(message: &Message) -> Result<BasicProperties, &'static str> {
    let mut headers = BTreeMap::new();
    for (name, value) in envelope::attributes(message) {
        if name != "datacontenttype" {
            headers.insert(
                short(format!("{PREFIX}{name}"), "an attribute name")?,
                text(value),
            );
        }
    }
    for (name, value) in &message.headers {
        let escaped = name.starts_with("x-") || name.starts_with(ESCAPE);
        let name = if escaped {
            format!("{ESCAPE}{name}")
        } else {
            name.clone()
        };
        headers.insert(short(name, "a header name")?, text(value.clone()));
    }
    let mut properties = BasicProperties::default()
        .with_message_id(short(message.id.to_string(), "the id")?)
        .with_content_type(short(message.content_type.clone(), "the content type")?)
        .with_type(short(message.kind.clone(), "the type")?)
        .with_delivery_mode(PERSISTENT)
        .with_headers(FieldTable::from(headers));
    if let Ok(seconds) = u64::try_from(message.time.timestamp()) {
        properties = properties.with_timestamp(seconds);
    }
    Ok(properties)
}

/// Reads a message back.
pub(super) fn message(properties: &BasicProperties, body: Bytes) -> Result<Message, Malformed> {
    let mut attributes = BTreeMap::new();
    let mut headers = BTreeMap::new();
    let table = properties.headers().as_ref().map(FieldTable::inner);
    for (name, value) in table.into_iter().flatten() {
        let (name, Some(value)) = (name.as_str(), printed(value)) else {
            continue;
        };
        if let Some(attribute) = name
            .strip_prefix(PREFIX)
            .or_else(|| name.strip_prefix(COLON_PREFIX))
        {
            attributes.insert(attribute.to_owned(), value);
        } else if let Some(escaped) = name.strip_prefix(ESCAPE) {
            headers.insert(escaped.to_owned(), value);
        } else if !name.starts_with("x-") {
            headers.insert(name.to_owned(), value);
        }
    }
    if let Some(content_type) = properties.content_type() {
        attributes.insert("datacontenttype".to_owned(), content_type.as_str().to_owned());
    }
    let mut message = envelope::message(attributes, headers, body);
    if let Err(malformed) = &mut message
        && malformed.id.is_none()
    {
        malformed.id = properties.message_id().as_ref().map(ToString::to_string);
    }
    message
}

/// The ordering key, if the message has one.
pub(super) fn key(properties: &BasicProperties) -> Option<String> {
    let table = properties.headers().as_ref().map(FieldTable::inner)?;
    let value = [PREFIX, COLON_PREFIX]
        .iter()
        .find_map(|prefix| table.get(format!("{prefix}partitionkey").as_str()));
    printed(value?)
}

/// How often the message was handed out, this time included; `redelivered` is the hint of a classic queue.
pub(super) fn attempt(properties: &BasicProperties, redelivered: bool) -> u32 {
    let table = properties.headers().as_ref().map(FieldTable::inner);
    let before = match table.and_then(|table| table.get(DELIVERY_COUNT)) {
        Some(AMQPValue::LongLongInt(count)) => u32::try_from(*count).ok(),
        Some(AMQPValue::LongInt(count)) => u32::try_from(*count).ok(),
        Some(AMQPValue::LongUInt(count)) => Some(*count),
        Some(AMQPValue::ShortInt(count)) => u32::try_from(*count).ok(),
        Some(AMQPValue::ShortUInt(count)) => Some(u32::from(*count)),
        Some(AMQPValue::ShortShortInt(count)) => u32::try_from(*count).ok(),
        Some(AMQPValue::ShortShortUInt(count)) => Some(u32::from(*count)),
        _ => None,
    };
    before.unwrap_or(u32::from(redelivered)).saturating_add(1)
}

/// The properties of the dead letter made from a delivery with `properties`.
pub(super) fn dead_letter(properties: &BasicProperties, reason: &str) -> BasicProperties {
    let mut headers = properties
        .headers()
        .as_ref()
        .map(|table| table.inner().clone())
        .unwrap_or_default();
    headers.retain(|name, _| !name.as_str().starts_with("x-"));
    headers.insert(ShortString::from(DEAD_REASON), text(reason.to_owned()));
    properties
        .clone()
        .with_headers(FieldTable::from(headers))
        .with_delivery_mode(PERSISTENT)
}

/// `value` as AMQP's short string; the error is `what`.
pub(super) fn short(value: String, what: &'static str) -> Result<ShortString, &'static str> {
    ShortString::try_new(value).map_err(|_| what)
}

fn text(value: String) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// The value as text, where it has one: other programs write numbers and flags as such.
fn printed(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::LongString(value) => String::from_utf8_lossy(value.as_bytes()).into_owned(),
        AMQPValue::ShortString(value) => value.as_str().to_owned(),
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Float(value) => value.to_string(),
        AMQPValue::Double(value) => value.to_string(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Message {
        let builder = Message::builder("orders", "order.placed")
            .source("/shop")
            .key("42");
        builder
            .header("own", "1")
            .header("x-own", "2")
            .header("outbox-header.x-own", "3")
            .build()
            .unwrap()
    }

    #[test]
    fn message_reads_back_and_no_header_begins_with_x() {
        let properties = properties(&sample()).unwrap();
        let names = properties.headers().as_ref().unwrap().inner().keys();
        assert!(
            names.clone().all(|name| !name.as_str().starts_with("x-")),
            "{names:?}"
        );
        assert_eq!(properties.delivery_mode(), &Some(2));
        let read = message(&properties, Bytes::new()).unwrap();
        assert_eq!(read, sample_with(&read));
    }

    fn sample_with(read: &Message) -> Message {
        Message {
            id: read.id,
            time: read.time,
            ..sample()
        }
    }

    #[test]
    fn headers_of_the_broker_are_not_the_senders() {
        let properties = properties(&sample()).unwrap();
        let mut table = properties.headers().as_ref().unwrap().inner().clone();
        table.insert("x-delivery-count".into(), AMQPValue::LongLongInt(2));
        let properties = properties.with_headers(table.into());
        assert_eq!(attempt(&properties, true), 3);
        let read = message(&properties, Bytes::new()).unwrap();
        assert!(!read.headers.contains_key("x-delivery-count"));
        let dead = dead_letter(&properties, "why");
        let dead = dead.headers().as_ref().unwrap().inner();
        assert!(dead.contains_key(DEAD_REASON) && !dead.contains_key("x-delivery-count"));
    }

    #[test]
    fn text_too_long_for_amqp_is_named() {
        let message = Message {
            kind: "k".repeat(256),
            ..sample()
        };
        assert_eq!(properties(&message).unwrap_err(), "the type");
    }
}
