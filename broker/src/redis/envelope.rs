//! A message as the fields of a stream entry.
//!
//! Attributes are fields `ce_<name>`, the sender's own headers `header_<name>`, the payload is `data`. A dead
//! letter has `dead_reason` too.

use std::collections::BTreeMap;

use crate::{Bytes, Malformed, Message, envelope};

/// What an attribute's field begins with.
const ATTRIBUTE: &str = "ce_";

/// What the field of an own header begins with.
const HEADER: &str = "header_";

/// The field of the payload.
const DATA: &str = "data";

/// The fields of `message` apart from the payload: names and values in turn.
pub(super) fn fields(message: &Message) -> Vec<String> {
    let mut fields = Vec::with_capacity(2 * (envelope::ATTRIBUTES.len() + message.headers.len()));
    for (name, value) in envelope::attributes(message) {
        fields.extend([format!("{ATTRIBUTE}{name}"), value]);
    }
    for (name, value) in &message.headers {
        fields.extend([format!("{HEADER}{name}"), value.clone()]);
    }
    fields.push(DATA.to_owned()); // its value follows as bytes
    fields
}

/// Reads a message back from names and values in turn.
pub(super) fn message(fields: Vec<Vec<u8>>) -> Result<Message, Malformed> {
    let mut attributes = BTreeMap::new();
    let mut headers = BTreeMap::new();
    let mut body = Bytes::new();
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        let name = String::from_utf8_lossy(&name);
        if name == DATA {
            body = Bytes::from(value);
            continue;
        }
        let value = String::from_utf8_lossy(&value).into_owned();
        if let Some(attribute) = name.strip_prefix(ATTRIBUTE) {
            attributes.insert(attribute.to_owned(), value);
        } else if let Some(header) = name.strip_prefix(HEADER) {
            headers.insert(header.to_owned(), value);
        }
    }
    envelope::message(attributes, headers, body)
}

/// The partition, of `partitions`, that a message of this key goes to; one without a key goes by its id.
///
/// FNV-1a over the bytes with a start of our own: consumers that spread keys over lanes by another hash of the
/// same bytes find them spread within each partition too. It is part of the wire format.
pub(super) fn partition(message: &Message, partitions: u16) -> u16 {
    const START: u64 = 0xcbf2_9ce4_8422_2325 ^ 0x6f75_7462_6f78; // FNV's offset and the letters `outbox`
    const PRIME: u64 = 0x0100_0000_01b3;
    let id = message.id.as_uuid();
    let bytes = message.key.as_deref().map_or(&id.as_bytes()[..], str::as_bytes);
    let hash = bytes
        .iter()
        .fold(START, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
    // Short keys leave the upper bits alike: the finish of MurmurHash3 spreads them.
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    u16::try_from(((hash ^ (hash >> 33)) >> 32) % u64::from(partitions.max(1))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(key: &str) -> Message {
        let builder = Message::builder("orders", "order.placed")
            .source("/shop")
            .key(key);
        builder
            .header("ce_id", "own")
            .header("data", "own")
            .build()
            .unwrap()
    }

    #[test]
    fn message_reads_back() {
        let sent = sample("42");
        let mut read: Vec<Vec<u8>> = fields(&sent).into_iter().map(String::into_bytes).collect();
        read.push(sent.payload.to_vec());
        assert_eq!(message(read).unwrap(), sent);
    }

    #[test]
    fn keys_spread_over_the_partitions_and_stay() {
        let mut filled = [0; 8];
        for number in 0..800 {
            filled[usize::from(partition(&sample(&format!("k{number}")), 8))] += 1;
        }
        assert!(filled.iter().all(|count| (60..140).contains(count)), "{filled:?}");
        // On the wire for ever: a release that spread them otherwise would break the order of every key.
        let known = ["a", "b", "customer 42"].map(|key| partition(&sample(key), 8));
        assert_eq!(known, [0, 5, 7]);
    }
}
