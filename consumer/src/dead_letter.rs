//! Messages that were given up: kept as rows, looked at, handed to the handler again, or deleted.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use diesel::sql_types::{BigInt, Binary, Nullable, Text};
use outbox_broker::{Malformed, Message, envelope};
use serde::{Deserialize, Serialize};

use crate::statement::{Sql, Value};
use crate::step::Burial;
use crate::{Connection, Error, ErrorKind, Inbox};

/// Most rows a call lists or changes. Chosen: a screenful of screens, and a short transaction.
pub const PAGE: u32 = 1_000;

/// A message that was given up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its number, ascending in the order of the verdicts.
    pub seq: i64,
    /// The consumer that gave it up.
    pub consumer: String,
    /// The identity that the consumer deduplicates by.
    pub dedup_key: String,
    /// The message id, where one could be read.
    pub message_id: Option<String>,
    /// The topic it came from.
    pub topic: String,
    /// The message type, where one could be read.
    pub kind: Option<String>,
    /// The ordering key.
    pub key: Option<String>,
    /// Whether later messages of its key wait behind it.
    pub blocks_key: bool,
    /// Why, in one word: malformed, expired, refused, exhausted, crashing, behind.
    pub reason: String,
    /// The last error with its causes.
    pub error: Option<String>,
    /// Attempts begun.
    pub attempts: u32,
    /// When the verdict was committed.
    pub dead_at: DateTime<Utc>,
    /// Whether a redrive was asked for and has not ended.
    pub redriving: bool,
    /// The message, or the bytes that are none.
    pub content: Result<Message, Malformed>,
}

/// A row of the table, as it is loaded.
#[derive(Debug, diesel::QueryableByName)]
pub struct Row {
    #[diesel(sql_type = BigInt)]
    pub(crate) seq: i64,
    #[diesel(sql_type = Text)]
    consumer: String,
    #[diesel(sql_type = Text)]
    dedup_key: String,
    #[diesel(sql_type = BigInt)]
    state: i64,
    #[diesel(sql_type = Nullable<Text>)]
    message_id: Option<String>,
    #[diesel(sql_type = Text)]
    topic: String,
    #[diesel(sql_type = Nullable<Text>)]
    r#type: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    ordering_key: Option<String>,
    #[diesel(sql_type = BigInt)]
    blocks_key: i64,
    #[diesel(sql_type = Text)]
    reason: String,
    #[diesel(sql_type = Nullable<Text>)]
    error: Option<String>,
    #[diesel(sql_type = BigInt)]
    attempts: i64,
    #[diesel(sql_type = Text)]
    attributes: String,
    #[diesel(sql_type = Binary)]
    payload: Vec<u8>,
    #[diesel(sql_type = BigInt)]
    dead_at_us: i64,
}

/// What a broker hands over around the body, kept so that the same message can be made again.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Attributes {
    attributes: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    /// What was wrong with the bytes, if they were no message.
    malformed: Option<String>,
}

impl From<Row> for DeadLetter {
    fn from(row: Row) -> Self {
        let body = Bytes::from(row.payload);
        let content = match serde_json::from_str::<Attributes>(&row.attributes) {
            Ok(Attributes {
                malformed: Some(reason),
                ..
            }) => Err(Malformed {
                reason,
                id: row.message_id.clone(),
                body,
            }),
            Ok(kept) => envelope::message(kept.attributes, kept.headers, body),
            Err(error) => Err(Malformed {
                reason: format!("the dead letter's attributes cannot be read: {error}"),
                id: row.message_id.clone(),
                body,
            }),
        };
        Self {
            seq: row.seq,
            consumer: row.consumer,
            dedup_key: row.dedup_key,
            message_id: row.message_id,
            topic: row.topic,
            kind: row.r#type,
            key: row.ordering_key,
            blocks_key: row.blocks_key != 0,
            reason: row.reason,
            error: row.error,
            attempts: u32::try_from(row.attempts).unwrap_or(u32::MAX),
            dead_at: DateTime::from_timestamp_micros(row.dead_at_us).unwrap_or_default(),
            redriving: row.state != 0,
            content,
        }
    }
}

/// A verdict about to be written.
#[derive(Debug)]
pub(crate) struct Verdict<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) dedup_key: &'a str,
    pub(crate) topic: &'a str,
    pub(crate) content: Result<&'a Message, &'a Malformed>,
    pub(crate) burial: Burial,
    pub(crate) error: Option<String>,
    pub(crate) attempts: u32,
    pub(crate) blocks_key: bool,
}

// A redriven row that fails again keeps its number, so that its place in the key's order stays.
const BURY: &str = "\
INSERT INTO consumer_dead_letter (consumer, dedup_key, state, message_id, topic, type, ordering_key, blocks_key, \
reason, error, attempts, attributes, payload) \
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
ON CONFLICT (consumer, dedup_key) DO UPDATE SET state = excluded.state, reason = excluded.reason, error = excluded.error, \
attempts = consumer_dead_letter.attempts + excluded.attempts";

const MARK: &str = "UPDATE consumer_inbox SET state = 2 WHERE consumer = ? AND dedup_key = ?";
const UNMARK: &str = "DELETE FROM consumer_inbox WHERE consumer = ? AND dedup_key = ?";

impl Burial {
    /// The word in the `reason` column.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Exhausted => "exhausted",
            Self::Crashing => "crashing",
            Self::Behind => "behind",
        }
    }
}

/// Writes the verdict and its mark in the inbox, in the transaction that is open on `connection`.
pub(crate) async fn bury<C: Connection>(
    connection: &mut C,
    verdict: &Verdict<'_>,
) -> diesel::QueryResult<()> {
    let (kept, id, kind, key, payload) = match verdict.content {
        Ok(message) => (
            Attributes {
                attributes: envelope::attributes(message)
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
                headers: message.headers.clone(),
                malformed: None,
            },
            Some(message.id.to_string()),
            Some(message.kind.clone()),
            message.key.clone(),
            &message.payload,
        ),
        Err(malformed) => (
            Attributes {
                malformed: Some(malformed.reason.clone()),
                ..Attributes::default()
            },
            malformed.id.clone(),
            None,
            None,
            &malformed.body,
        ),
    };
    let attributes = serde_json::to_string(&kept)
        .map_err(|error| diesel::result::Error::SerializationError(Box::new(error)))?;
    let queued = verdict.burial == Burial::Behind
        && all_redriving(connection, verdict.consumer, key.as_deref()).await?;
    let mark = if queued { UNMARK } else { MARK };
    connection
        .change(Sql::new(mark).bind(verdict.consumer).bind(verdict.dedup_key))
        .await?;
    connection
        .change(
            Sql::new(BURY)
                .bind(verdict.consumer)
                .bind(verdict.dedup_key)
                .bind(i64::from(queued))
                .bind(id.map(printable))
                .bind(verdict.topic)
                .bind(kind)
                .bind(key)
                .bind(i64::from(verdict.blocks_key))
                .bind(verdict.burial.as_str())
                .bind(verdict.error.clone().map(printable))
                .bind(i64::from(verdict.attempts))
                .bind(printable(attributes))
                .bind(Value::Bytes(payload.to_vec())),
        )
        .await?;
    connection
        .change(
            Sql::new("DELETE FROM consumer_attempt WHERE consumer = ? AND dedup_key = ?")
                .bind(verdict.consumer)
                .bind(verdict.dedup_key),
        )
        .await?;
    Ok(())
}

/// Whether the dead letters of `key` are all on their way back to the handler: a message behind them then joins
/// them rather than waiting for a person.
async fn all_redriving<C: Connection>(
    connection: &mut C,
    consumer: &str,
    key: Option<&str>,
) -> diesel::QueryResult<bool> {
    let sql = Sql::new(
        "SELECT count(*) AS number FROM consumer_dead_letter \
         WHERE consumer = ? AND ordering_key = ? AND blocks_key = 1 AND state = 0",
    )
    .bind(consumer)
    .bind(key.unwrap_or_default());
    Ok(connection.numbers(sql).await?.first() == Some(&0))
}

/// PostgreSQL's text holds no NUL; foreign bytes may.
pub(crate) fn printable(text: String) -> String {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}")
    } else {
        text
    }
}

const LIST: &str = "SELECT * FROM consumer_dead_letter WHERE consumer = ? AND seq > ? ORDER BY seq LIMIT ?";
const SHOW: &str = "SELECT * FROM consumer_dead_letter WHERE consumer = ? AND seq = ?";
pub(crate) const REDRIVING: &str = "SELECT * FROM consumer_dead_letter d WHERE consumer = ? AND state = 1 AND NOT EXISTS (\
SELECT 1 FROM consumer_dead_letter h WHERE h.consumer = d.consumer AND h.ordering_key = d.ordering_key \
AND h.blocks_key = 1 AND h.state = 0 AND h.seq < d.seq) ORDER BY seq LIMIT ?";
pub(crate) const SETTLE: &str = "DELETE FROM consumer_dead_letter WHERE consumer = ? AND seq = ?";

/// The dead letters of one consumer.
#[derive(Debug, Clone)]
pub struct DeadLetters<C: Connection> {
    inbox: Inbox<C>,
    consumer: String,
}

/// Which dead letters a call is about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Select {
    /// The one with this number.
    Seq(i64),
    /// All of an ordering key, in their order.
    Key(String),
    /// All.
    All,
}

impl<C: Connection> DeadLetters<C> {
    /// The dead letters of `consumer` in `inbox`.
    pub fn new(inbox: Inbox<C>, consumer: impl Into<String>) -> Self {
        Self {
            inbox,
            consumer: consumer.into(),
        }
    }

    /// At most `limit` (and [`PAGE`]) dead letters with numbers above `after`, oldest first; begin with 0.
    ///
    /// # Errors
    /// The database refused or cannot be reached.
    pub async fn list(&self, after: i64, limit: u32) -> Result<Vec<DeadLetter>, Error> {
        let sql = Sql::new(LIST)
            .bind(self.consumer.as_str())
            .bind(after)
            .bind(i64::from(limit.min(PAGE)));
        self.load(sql).await
    }

    /// The dead letter with the number `seq`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; otherwise as [`DeadLetters::list`].
    pub async fn show(&self, seq: i64) -> Result<DeadLetter, Error> {
        let sql = Sql::new(SHOW).bind(self.consumer.as_str()).bind(seq);
        self.load(sql).await?.pop().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "show",
                format!("there is no dead letter {seq} of consumer `{}`", self.consumer),
            )
        })
    }

    /// Hands dead letters to the handler again, with their ids and in the order of their numbers, and
    /// returns how many. The running consumer picks them up within seconds; what fails again is a dead letter
    /// again under the same number.
    ///
    /// Bytes that are no message cannot be handled and stay.
    ///
    /// # Errors
    /// As [`DeadLetters::list`]; nothing is changed.
    pub async fn redrive(&self, select: &Select) -> Result<usize, Error> {
        // The inbox mark goes with the verdict: from here the message counts as never handled.
        let (marks, rows) = match select {
            Select::Seq(_) => (
                "DELETE FROM consumer_inbox WHERE consumer = ? AND state = 2 AND dedup_key IN (SELECT dedup_key \
                 FROM consumer_dead_letter WHERE consumer = ? AND state = 0 AND reason <> 'malformed' AND seq = ?)",
                "UPDATE consumer_dead_letter SET state = 1 WHERE consumer = ? AND state = 0 \
                 AND reason <> 'malformed' AND seq = ?",
            ),
            Select::Key(_) => (
                "DELETE FROM consumer_inbox WHERE consumer = ? AND state = 2 AND dedup_key IN (SELECT dedup_key \
                 FROM consumer_dead_letter WHERE consumer = ? AND state = 0 AND reason <> 'malformed' \
                 AND ordering_key = ?)",
                "UPDATE consumer_dead_letter SET state = 1 WHERE consumer = ? AND state = 0 \
                 AND reason <> 'malformed' AND ordering_key = ?",
            ),
            Select::All => (
                "DELETE FROM consumer_inbox WHERE consumer = ? AND state = 2 AND dedup_key IN (SELECT dedup_key \
                 FROM consumer_dead_letter WHERE consumer = ? AND state = 0 AND reason <> 'malformed')",
                "UPDATE consumer_dead_letter SET state = 1 WHERE consumer = ? AND state = 0 \
                 AND reason <> 'malformed'",
            ),
        };
        let marks = Sql::new(marks)
            .bind(self.consumer.as_str())
            .bind(self.consumer.as_str());
        let rows = Sql::new(rows).bind(self.consumer.as_str());
        let (marks, rows) = match select {
            Select::Seq(seq) => (marks.bind(*seq), rows.bind(*seq)),
            Select::Key(key) => (marks.bind(key.as_str()), rows.bind(key.as_str())),
            Select::All => (marks, rows),
        };
        self.both("redrive", marks, rows).await
    }

    /// Deletes dead letters for good and returns how many. Their messages stay marked as given up in the
    /// inbox; a key they blocked is free again.
    ///
    /// # Errors
    /// As [`DeadLetters::list`].
    pub async fn purge(&self, select: &Select) -> Result<usize, Error> {
        let sql = match select {
            Select::Seq(seq) => {
                Sql::new("DELETE FROM consumer_dead_letter WHERE consumer = ? AND state = 0 AND seq = ?")
                    .bind(self.consumer.as_str())
                    .bind(*seq)
            }
            Select::Key(key) => Sql::new(
                "DELETE FROM consumer_dead_letter WHERE consumer = ? AND state = 0 AND ordering_key = ?",
            )
            .bind(self.consumer.as_str())
            .bind(key.as_str()),
            Select::All => Sql::new("DELETE FROM consumer_dead_letter WHERE consumer = ? AND state = 0")
                .bind(self.consumer.as_str()),
        };
        let mut lent = self.inbox.lend().await?;
        let count = lent
            .change(sql)
            .await
            .map_err(|error| Error::database("purge", error))?;
        lent.give_back();
        Ok(count)
    }

    /// Counts the dead letters.
    ///
    /// # Errors
    /// As [`DeadLetters::list`].
    pub async fn count(&self) -> Result<u64, Error> {
        let sql = Sql::new("SELECT count(*) AS number FROM consumer_dead_letter WHERE consumer = ?")
            .bind(self.consumer.as_str());
        let mut lent = self.inbox.lend().await?;
        let numbers = lent
            .numbers(sql)
            .await
            .map_err(|error| Error::database("count", error))?;
        lent.give_back();
        Ok(numbers
            .first()
            .and_then(|number| u64::try_from(*number).ok())
            .unwrap_or(0))
    }

    async fn load(&self, sql: Sql) -> Result<Vec<DeadLetter>, Error> {
        let mut lent = self.inbox.lend().await?;
        let rows = lent
            .letters(sql)
            .await
            .map_err(|error| Error::database("list", error))?;
        lent.give_back();
        Ok(rows.into_iter().map(DeadLetter::from).collect())
    }

    async fn both(&self, operation: &'static str, marks: Sql, rows: Sql) -> Result<usize, Error> {
        let failed = |error| Error::database(operation, error);
        let mut lent = self.inbox.lend().await?;
        lent.begin().await.map_err(failed)?;
        // An error drops the loan, which closes the connection and with it the transaction.
        lent.change(marks).await.map_err(failed)?;
        let count = lent.change(rows).await.map_err(failed)?;
        lent.commit().await.map_err(failed)?;
        lent.give_back();
        Ok(count)
    }
}
