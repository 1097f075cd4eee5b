//! Rows as the driver reads them, and values as the scripts carry them.
//!
//! Scripts are plain text: numbers, and bytes in hexadecimal, so that nothing needs quoting.

use std::fmt::Write as _;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use mysql_async::{Row, Value};
use outbox_broker::{Malformed, Message};
use uuid::Uuid;

use crate::record::{ParkState, Parked, Record};
use crate::store::decode::Columns;

/// Columns of a message, in the order of [`message`]; times in microseconds since 1970.
pub(super) const MESSAGE: &str = "msg_id, topic, `key`, type, source, content_type, headers, payload, \
     TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', expires_at)";

/// Columns before those of a parked row's message.
pub(super) const PARKED: &str = "sequence, state, attempts, last_error, \
     TIMESTAMPDIFF(MICROSECOND, '1970-01-01', available_at)";

/// Place of the payload in [`MESSAGE`].
pub(super) const PAYLOAD: usize = 7;

/// Bytes as a literal, of any value and length.
pub(super) fn bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2 + 3);
    text.push_str("X'");
    for byte in bytes {
        let _ = write!(text, "{byte:02X}"); // a String takes everything
    }
    text.push('\'');
    text
}

/// Text as a literal, whatever the character set of the session.
pub(super) fn text(text: &str) -> String {
    format!("CONVERT({} USING utf8mb4)", bytes(text.as_bytes()))
}

/// The list `1,2,3`.
pub(super) fn list(numbers: &[i64]) -> String {
    let mut text = String::with_capacity(numbers.len() * 8);
    for number in numbers {
        let _ = write!(text, "{}{number}", if text.is_empty() { "" } else { "," });
    }
    text
}

/// A value that is not what the statement asked for.
pub(super) fn unreadable(what: &str) -> mysql_async::Error {
    mysql_async::Error::Other(format!("the database gave no {what} where one was expected").into())
}

/// A number that may be null.
pub(super) fn number(row: &Row, index: usize) -> Option<i64> {
    match row.as_ref(index)? {
        Value::Int(number) => Some(*number),
        Value::UInt(number) => i64::try_from(*number).ok(),
        Value::Bytes(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// A number that must be there.
pub(super) fn required(row: &Row, index: usize) -> Result<i64, mysql_async::Error> {
    number(row, index).ok_or_else(|| unreadable("number"))
}

/// Bytes that may be null; leaves null behind.
pub(super) fn take(row: &mut Row, index: usize) -> Option<Vec<u8>> {
    match row.take::<Value, _>(index)? {
        Value::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

/// A `BINARY(16)` that may be null.
pub(super) fn uuid(row: &Row, index: usize) -> Option<Uuid> {
    match row.as_ref(index)? {
        Value::Bytes(bytes) => Uuid::from_slice(bytes).ok(),
        _ => None,
    }
}

/// The row of a claim: position, then the message.
pub(super) fn record(row: &mut Row) -> Result<Record, mysql_async::Error> {
    Ok(Record {
        position: required(row, 0)?,
        message: message(row, 1, None),
    })
}

/// A row of the parked table.
pub(super) fn parked(mut row: Row) -> Result<Parked, mysql_async::Error> {
    let state = required(&row, 1)?;
    let available_at = number(&row, 4).and_then(DateTime::from_timestamp_micros);
    Ok(Parked {
        sequence: required(&row, 0)?,
        // Another number can only come from foreign hands; it waits for a person.
        state: i16::try_from(state)
            .ok()
            .and_then(ParkState::from_code)
            .unwrap_or(ParkState::Dead),
        attempts: u32::try_from(required(&row, 2)?).unwrap_or(0),
        error: take(&mut row, 3).map(|error| String::from_utf8_lossy(&error).into_owned()),
        message: message(&mut row, 5, available_at),
    })
}

fn message(row: &mut Row, first: usize, available_at: Option<DateTime<Utc>>) -> Result<Message, Malformed> {
    let id = uuid(row, first);
    let payload = Bytes::from(take(row, first + PAYLOAD).unwrap_or_default());
    match columns(row, first, id, payload.clone(), available_at) {
        Ok(columns) => columns.message(),
        Err(column) => Err(Malformed {
            reason: format!("column {column} cannot be read: not UTF-8, or no value of its type"),
            id: id.map(|id| id.to_string()),
            body: payload,
        }),
    }
}

/// The columns, or the name of the one that cannot be read.
fn columns(
    row: &mut Row,
    first: usize,
    id: Option<Uuid>,
    payload: Bytes,
    available_at: Option<DateTime<Utc>>,
) -> Result<Columns, &'static str> {
    let mut text = |place: usize, name: &'static str| match take(row, first + place) {
        Some(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| name),
        None => Ok(None),
    };
    let topic = text(1, "topic")?.ok_or("topic")?;
    let key = text(2, "key")?;
    let kind = text(3, "type")?.ok_or("type")?;
    let source = text(4, "source")?.ok_or("source")?;
    let content_type = text(5, "content_type")?.ok_or("content_type")?;
    let headers = text(6, "headers")?;
    let time = |place: usize| number(row, first + place).map(DateTime::from_timestamp_micros);
    Ok(Columns {
        id: id.ok_or("msg_id")?,
        topic,
        key,
        kind,
        source,
        content_type,
        headers,
        payload,
        time: time(8).flatten().ok_or("created_at")?,
        available_at,
        expires_at: match time(9) {
            Some(time) => Some(time.ok_or("expires_at")?),
            None => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_lists_become_literals_that_need_no_quoting() {
        assert_eq!(bytes(b"it's\0"), "X'6974277300'");
        assert_eq!(bytes(b""), "X''");
        assert_eq!(list(&[1, -2, 3]), "1,-2,3");
        assert_eq!(text("\\'"), "CONVERT(X'5C27' USING utf8mb4)");
    }
}
