//! The tables as diesel sees them, and their rows.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, SmallInt, Text};
use outbox_broker::{Malformed, Message};
use uuid::Uuid;

use crate::record::{ParkState, Parked, Record};
use crate::store::decode::Columns;

/// The present, in microseconds since 1970, by the clock of this machine. Milliseconds fine.
pub(super) const NOW: &str = "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)";

diesel::table! {
    outbox (id) {
        id -> BigInt,
        shard -> SmallInt,
        msg_id -> Text,
        topic -> Text,
        key -> Nullable<Text>,
        #[sql_name = "type"]
        kind -> Text,
        source -> Text,
        content_type -> Text,
        headers -> Nullable<Text>,
        payload -> Binary,
        created_at -> BigInt,
        expires_at -> Nullable<BigInt>,
    }
}

/// A row of the hot table.
#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = outbox)]
pub(super) struct HotRow {
    pub(super) id: i64,
    msg_id: String,
    topic: String,
    key: Option<String>,
    kind: String,
    source: String,
    content_type: String,
    headers: Option<String>,
    pub(super) payload: Vec<u8>,
    created_at: i64,
    expires_at: Option<i64>,
}

impl HotRow {
    pub(super) fn record(self) -> Record {
        Record {
            position: self.id,
            message: with_id(&self.msg_id, self.payload, |id, payload| Columns {
                id,
                topic: self.topic,
                key: self.key,
                kind: self.kind,
                source: self.source,
                content_type: self.content_type,
                headers: self.headers,
                payload,
                time: time(self.created_at),
                available_at: None,
                expires_at: self.expires_at.map(time),
            }),
        }
    }
}

/// A row of the parked table.
#[derive(Debug, QueryableByName)]
pub(super) struct ParkedRow {
    #[diesel(sql_type = BigInt)]
    sequence: i64,
    #[diesel(sql_type = SmallInt)]
    state: i16,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = Nullable<Text>)]
    last_error: Option<String>,
    #[diesel(sql_type = Text)]
    msg_id: String,
    #[diesel(sql_type = Text)]
    topic: String,
    #[diesel(sql_type = Nullable<Text>)]
    key: Option<String>,
    #[diesel(sql_type = Text, column_name = "type")]
    kind: String,
    #[diesel(sql_type = Text)]
    source: String,
    #[diesel(sql_type = Text)]
    content_type: String,
    #[diesel(sql_type = Nullable<Text>)]
    headers: Option<String>,
    #[diesel(sql_type = Binary)]
    payload: Vec<u8>,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    available_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    expires_at: Option<i64>,
}

impl ParkedRow {
    pub(super) fn parked(self) -> Parked {
        Parked {
            sequence: self.sequence,
            // Another number can only come from foreign hands; it waits for a person.
            state: ParkState::from_code(self.state).unwrap_or(ParkState::Dead),
            attempts: u32::try_from(self.attempts).unwrap_or(0),
            error: self.last_error,
            message: with_id(&self.msg_id, self.payload, |id, payload| Columns {
                id,
                topic: self.topic,
                key: self.key,
                kind: self.kind,
                source: self.source,
                content_type: self.content_type,
                headers: self.headers,
                payload,
                time: time(self.created_at),
                available_at: self.available_at.map(time),
                expires_at: self.expires_at.map(time),
            }),
        }
    }
}

fn with_id(
    text: &str,
    payload: Vec<u8>,
    columns: impl FnOnce(Uuid, Bytes) -> Columns,
) -> Result<Message, Malformed> {
    let payload = Bytes::from(payload);
    match Uuid::parse_str(text) {
        Ok(id) => columns(id, payload).message(),
        Err(error) => Err(Malformed {
            reason: format!("column msg_id is no UUID: {error}"),
            id: Some(text.to_owned()),
            body: payload,
        }),
    }
}

/// Out of range (only by foreign hands) becomes 1970, so that the row still travels.
fn time(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}
