//! The shapes of the statements' results, the same for every database.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text};

use crate::sql::plan::{FreshRow, PendingRow};
use crate::sql::store::ClaimedRow;

#[derive(QueryableByName)]
pub(super) struct Version {
    #[diesel(sql_type = Integer)]
    pub(super) version: i32,
}

#[derive(QueryableByName)]
pub(super) struct Id {
    #[diesel(sql_type = BigInt)]
    pub(super) id: i64,
}

#[derive(QueryableByName)]
pub(super) struct Now {
    #[diesel(sql_type = BigInt)]
    pub(super) now: i64,
}

#[derive(QueryableByName)]
pub(super) struct LockedGroup {
    #[diesel(sql_type = BigInt)]
    pub(super) now: i64,
    #[diesel(sql_type = Text)]
    pub(super) topic: String,
    #[diesel(sql_type = BigInt)]
    pub(super) read_to_seq: i64,
}

#[derive(QueryableByName)]
pub(super) struct Cursor {
    #[diesel(sql_type = Text)]
    pub(super) topic: String,
    #[diesel(sql_type = BigInt)]
    pub(super) read_to_seq: i64,
}

#[derive(QueryableByName)]
pub(super) struct Ready {
    #[diesel(sql_type = BigInt)]
    pub(super) now: i64,
    #[diesel(sql_type = Bool)]
    pub(super) fresh: bool,
    #[diesel(sql_type = Bool)]
    pub(super) due: bool,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(super) next_due: Option<i64>,
}

#[derive(QueryableByName)]
pub(super) struct PendingScan {
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = Nullable<Text>)]
    key: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    owner: Option<i64>,
    #[diesel(sql_type = BigInt)]
    visible_at: i64,
}

impl From<PendingScan> for PendingRow {
    fn from(row: PendingScan) -> Self {
        Self {
            seq: row.seq,
            key: row.key,
            owner: row.owner,
            visible_at: row.visible_at,
        }
    }
}

#[derive(QueryableByName)]
pub(super) struct FreshScan {
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = Nullable<Text>)]
    key: Option<String>,
}

impl From<FreshScan> for FreshRow {
    fn from(row: FreshScan) -> Self {
        Self {
            seq: row.seq,
            key: row.key,
        }
    }
}

#[derive(QueryableByName)]
pub(super) struct ContentRow {
    #[diesel(sql_type = BigInt)]
    pub(super) seq: i64,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = Text)]
    topic: String,
    #[diesel(sql_type = Text)]
    source: String,
    #[diesel(sql_type = Text)]
    message_id: String,
    #[diesel(sql_type = Nullable<Text>)]
    key: Option<String>,
    #[diesel(sql_type = Text)]
    attributes: String,
    #[diesel(sql_type = Text)]
    headers: String,
    #[diesel(sql_type = Binary)]
    payload: Vec<u8>,
}

impl From<ContentRow> for ClaimedRow {
    fn from(row: ContentRow) -> Self {
        Self {
            seq: row.seq,
            attempt: row.attempts,
            topic: row.topic,
            source: row.source,
            id: row.message_id,
            key: row.key,
            attributes: row.attributes,
            headers: row.headers,
            payload: row.payload,
        }
    }
}

#[derive(QueryableByName)]
pub(super) struct LagRow {
    #[diesel(sql_type = BigInt)]
    pub(super) messages: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(super) age: Option<i64>,
}

#[derive(QueryableByName)]
pub(super) struct WindowRow {
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(super) last: Option<i64>,
    #[diesel(sql_type = BigInt)]
    pub(super) rows: i64,
    #[diesel(sql_type = Bool)]
    pub(super) young: bool,
}
