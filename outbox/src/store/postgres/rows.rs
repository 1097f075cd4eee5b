//! Rows as the driver reads them.

use std::error::Error as StdError;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use outbox_broker::{Malformed, Message};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type, WrongType};
use uuid::Uuid;

use crate::record::{ParkState, Parked, Record};
use crate::store::decode::Columns;

/// Columns of a message, in the order of [`message`].
pub(super) const MESSAGE: &str =
    "msg_id, topic, key, type, source, content_type, headers, payload, created_at, expires_at";

/// Columns before those of a parked row's message.
pub(super) const PARKED: &str = "sequence, state, attempts, last_error, available_at";

/// A `uuid`.
struct Id(Uuid);

impl<'a> FromSql<'a> for Id {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Self(Uuid::from_slice(raw)?))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::UUID
    }
}

/// A `timestamptz`: microseconds since 2000-01-01, big-endian. `infinity` is no time at all.
struct Time(Option<DateTime<Utc>>);

impl<'a> FromSql<'a> for Time {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        const EPOCH_SECONDS: i64 = 946_684_800; // 2000-01-01 in seconds since 1970
        let micros = i64::from_be_bytes(raw.try_into()?);
        if micros == i64::MAX {
            return Ok(Self(None));
        }
        let epoch = DateTime::from_timestamp(EPOCH_SECONDS, 0).ok_or("epoch")?;
        epoch
            .checked_add_signed(TimeDelta::microseconds(micros))
            .map(|time| Self(Some(time)))
            .ok_or_else(|| "the time is out of range".into())
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

/// A `uuid` that may be null.
pub(super) fn uuid(row: &Row, index: usize) -> Result<Option<Uuid>, tokio_postgres::Error> {
    Ok(row.try_get::<_, Option<Id>>(index)?.map(|id| id.0))
}

/// The row of a claim: position, then the message.
pub(super) fn record(row: &Row) -> Result<Record, tokio_postgres::Error> {
    Ok(Record {
        position: row.try_get(0)?,
        message: message(row, 1, None)?,
    })
}

/// A row of the parked table.
pub(super) fn parked(row: &Row) -> Result<Parked, tokio_postgres::Error> {
    let attempts: i32 = row.try_get(2)?;
    let available_at = row.try_get::<_, Option<Time>>(4).ok().flatten();
    Ok(Parked {
        sequence: row.try_get(0)?,
        // Another number can only come from foreign hands; it waits for a person.
        state: ParkState::from_code(row.try_get(1)?).unwrap_or(ParkState::Dead),
        attempts: u32::try_from(attempts).unwrap_or(0),
        error: row.try_get(3)?,
        message: message(row, 5, available_at.and_then(|time| time.0))?,
    })
}

fn message(
    row: &Row,
    first: usize,
    available_at: Option<DateTime<Utc>>,
) -> Result<Result<Message, Malformed>, tokio_postgres::Error> {
    let reason = match columns(row, first, available_at) {
        Ok(Some(columns)) => return Ok(columns.message()),
        Ok(None) => "column created_at is infinite".to_owned(),
        // The table's fault, not the row's: it waits until a person mends the column.
        Err(error) if is_of_another_type(&error) => return Err(error),
        Err(error) => {
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            format!("{error}: {cause}")
        }
    };
    Ok(Err(Malformed {
        reason,
        id: row.try_get::<_, Id>(first).ok().map(|id| id.0.to_string()),
        body: row
            .try_get::<_, Vec<u8>>(first + 7)
            .map(Bytes::from)
            .unwrap_or_default(),
    }))
}

/// Whether a column has a type that we do not read.
pub(super) fn is_of_another_type(error: &tokio_postgres::Error) -> bool {
    error.source().is_some_and(|cause| cause.is::<WrongType>())
}

fn columns(
    row: &Row,
    first: usize,
    available_at: Option<DateTime<Utc>>,
) -> Result<Option<Columns>, tokio_postgres::Error> {
    let Some(time) = row.try_get::<_, Time>(first + 8)?.0 else {
        return Ok(None);
    };
    Ok(Some(Columns {
        id: row.try_get::<_, Id>(first)?.0,
        topic: row.try_get(first + 1)?,
        key: row.try_get(first + 2)?,
        kind: row.try_get(first + 3)?,
        source: row.try_get(first + 4)?,
        content_type: row.try_get(first + 5)?,
        headers: row.try_get(first + 6)?,
        payload: row.try_get::<_, Vec<u8>>(first + 7)?.into(),
        time,
        available_at,
        expires_at: row.try_get::<_, Option<Time>>(first + 9)?.and_then(|time| time.0),
    }))
}
