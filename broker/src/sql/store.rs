//! What the adapter asks of a database: a handful of short transactions.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use diesel::result::DatabaseErrorKind;

use crate::envelope;
use crate::{Error, ErrorKind, Malformed, Message, Start};

/// The version of the tables that this library writes and reads.
pub(super) const SCHEMA_VERSION: i32 = 1;

/// Pending rows of a group at most, so that one claim stays a matter of milliseconds. Chosen: above
/// members × prefetch of a large group; reached only when one key waits with thousands of rows behind it,
/// and then the cursor waits too.
pub(super) const PENDING_LIMIT: usize = 4_096;

/// Rows of the log that a claim looks at, at least. Chosen: enough to step over a key that another member
/// holds, even for a member that asks for one row.
pub(super) const SCAN_ROWS: usize = 64;

/// Rows of one publish transaction at most. Chosen: some 5 ms of SQLite's writer lock.
pub(super) const PUBLISH_ROWS: usize = 500;

/// Bytes of one publish transaction at most, unless one message is larger. Chosen: as above.
pub(super) const PUBLISH_BYTES: usize = 4 * 1024 * 1024;

/// Rows that a step of the purge looks at. Chosen: under 3 ms of SQLite's writer lock.
pub(super) const PURGE_ROWS: i64 = 500;

/// Unread rows counted for a lag; a larger backlog reads as this. Chosen: some 20 ms of an index scan.
pub(super) const LAG_LIMIT: i64 = 1_000_000;

/// One database.
#[async_trait]
pub(super) trait Store: fmt::Debug + Send + Sync + 'static {
    /// Creates what is missing.
    async fn migrate(&self) -> Result<(), Fault>;
    /// The version of the tables that are there.
    async fn version(&self) -> Result<i32, Fault>;
    /// Appends `rows` in one transaction; one position or duplicate per row.
    async fn publish(&self, rows: Vec<Row>) -> Result<Vec<Appended>, Fault>;
    /// Registers the group; returns its id.
    async fn join(&self, topic: &str, group: &str, start: Start) -> Result<i64, Fault>;
    /// Takes rows for a member. See the module `plan`.
    async fn claim(&self, claim: Claim) -> Result<Claimed, Fault>;
    /// Carries out `orders` in one transaction; says of each whether its lease still stood.
    async fn settle(&self, orders: Arc<[Order]>) -> Result<Vec<bool>, Fault>;
    /// Makes everything that `member` holds visible.
    async fn release(&self, group: i64, member: i64) -> Result<(), Fault>;
    /// Rows not settled (at most [`LAG_LIMIT`] of the unread ones), and the age of the oldest.
    async fn lag(&self, group: i64) -> Result<(i64, Option<Duration>), Fault>;
    /// Deletes the group with all it has not settled; whether it was there.
    async fn remove_group(&self, topic: &str, group: &str) -> Result<bool, Fault>;
    /// Looks at [`PURGE_ROWS`] rows above `after` and deletes those that are past `retention` and that no
    /// group waits for. Returns where to go on, or `None` at the end.
    async fn purge(&self, after: i64, retention: Duration) -> Result<Option<i64>, Fault>;
}

/// A message as it is stored.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) topic: String,
    pub(super) source: String,
    pub(super) id: uuid::Uuid,
    pub(super) key: Option<String>,
    pub(super) attributes: String,
    pub(super) headers: String,
    pub(super) payload: Bytes,
}

/// Attributes that have a column of their own.
const COLUMNS: [&str; 5] = ["specversion", "id", "source", "topic", "partitionkey"];

impl Row {
    pub(super) fn new(message: &Message) -> Self {
        let attributes: serde_json::Map<String, serde_json::Value> = envelope::attributes(message)
            .into_iter()
            .filter(|(name, _)| !COLUMNS.contains(name))
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        Self {
            topic: message.topic.clone(),
            source: message.source.clone(),
            id: message.id.as_uuid(),
            key: message.key.clone(),
            attributes: serde_json::Value::Object(attributes).to_string(),
            headers: serde_json::Value::from_iter(
                message
                    .headers
                    .iter()
                    .map(|(name, value)| (name.clone(), value.clone())),
            )
            .to_string(),
            payload: message.payload.clone(),
        }
    }
}

/// What became of one row of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Appended {
    At(i64),
    Duplicate,
}

/// A member's request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) group: i64,
    pub(super) member: i64,
    pub(super) max: usize,
    pub(super) prefetch: usize,
    pub(super) visibility: Duration,
}

/// What a member got.
#[derive(Debug, Default)]
pub(super) struct Claimed {
    pub(super) rows: Vec<ClaimedRow>,
    /// Rows were parked: another claim may get further at once.
    pub(super) advanced: bool,
    /// When a lease or a delay ends that this claim had to respect.
    pub(super) next_due: Option<Duration>,
}

/// A row handed out, before it is read.
#[derive(Debug)]
pub(super) struct ClaimedRow {
    pub(super) seq: i64,
    pub(super) attempt: i32,
    pub(super) topic: String,
    pub(super) source: String,
    pub(super) id: String,
    pub(super) key: Option<String>,
    pub(super) attributes: String,
    pub(super) headers: String,
    pub(super) payload: Vec<u8>,
}

impl ClaimedRow {
    /// The message, or why it is none.
    pub(super) fn read(self) -> Result<Message, Malformed> {
        let body = Bytes::from(self.payload);
        let parse = |column: &str, text: &str| {
            serde_json::from_str::<BTreeMap<String, String>>(text).map_err(|error| Malformed {
                reason: format!("column `{column}` is no JSON object of texts: {error}"),
                id: Some(self.id.clone()),
                body: body.clone(),
            })
        };
        let mut attributes = parse("attributes", &self.attributes)?;
        let headers = parse("headers", &self.headers)?;
        attributes.insert("id".to_owned(), self.id.clone());
        attributes.insert("source".to_owned(), self.source);
        attributes.insert("topic".to_owned(), self.topic);
        if let Some(key) = self.key {
            attributes.insert("partitionkey".to_owned(), key);
        }
        envelope::message(attributes, headers, body)
    }
}

/// One verdict on its way to the database. A delivery is named by its row, member and attempt: the attempt
/// rises with every claim, so it tells this lease from an older or a later one.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) group: i64,
    pub(super) seq: i64,
    pub(super) member: i64,
    pub(super) attempt: i32,
    pub(super) action: Action,
}

/// What to do with a pending row.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Ack,
    Nack(Duration),
    Dead(String),
    Extend(Duration),
}

/// Microseconds as the database counts them; saturates.
pub(super) fn micros(duration: Duration) -> i64 {
    // Bound: a century, so that no sum with the present time overflows.
    const MAX: i64 = 100 * 365 * 24 * 60 * 60 * 1_000_000;
    i64::try_from(duration.as_micros()).unwrap_or(MAX).min(MAX)
}

/// A count as the database takes it; saturates.
pub(super) fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// The time until `due`, both in µs since 1970.
pub(super) fn until(due: i64, now: i64) -> Duration {
    Duration::from_micros(u64::try_from(due - now).unwrap_or(0))
}

/// A failure of the database; it may belong to many messages, so it can be cloned.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) kind: ErrorKind,
    pub(super) context: Cow<'static, str>,
    pub(super) cause: Option<SharedCause>,
}

impl Fault {
    pub(super) fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            context: context.into(),
            cause: None,
        }
    }

    pub(super) fn caused(
        kind: ErrorKind,
        context: impl Into<Cow<'static, str>>,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self {
            kind,
            context: context.into(),
            cause: Some(SharedCause(Arc::new(cause))),
        }
    }

    pub(super) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the broker's connection was closed")
    }

    /// The fault of a database error whose text and, where there is one, SQLSTATE are known.
    pub(super) fn of(error: diesel::result::Error) -> Self {
        if matches!(error, diesel::result::Error::NotFound) {
            let context =
                "the queue's group or schema row is gone; run `SqlBroker::migrate` or subscribe again";
            return Self::caused(ErrorKind::UnknownDestination, context, error);
        }
        if let diesel::result::Error::DatabaseError(kind, _) = &error
            && matches!(
                kind,
                DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection
            )
        {
            return Self::caused(ErrorKind::Unreachable, BROKEN, error);
        }
        let text = error.to_string();
        let is = |needles: &[&str]| needles.iter().any(|needle| text.contains(needle));
        let (kind, context) = if is(&["no such table", "no such column"])
            || (text.contains("relation") || text.contains("column")) && text.contains("does not exist")
        {
            (ErrorKind::UnknownDestination, MISSING_TABLE)
        } else if is(&["database is locked", "database table is locked"]) {
            (
                ErrorKind::Rejected,
                "other writers held the SQLite file longer than the time limit; try again",
            )
        } else if is(&[
            "deadlock detected",
            "lock timeout",
            "statement timeout",
            "could not serialize",
        ]) {
            (
                ErrorKind::Rejected,
                "the database gave the transaction up; try again",
            )
        } else if is(&["disk is full", "No space left", "could not extend file"]) {
            (ErrorKind::Rejected, "the database's disk is full; make room")
        } else if is(&["permission denied", "readonly database", "read-only"]) {
            (
                ErrorKind::Unauthorized,
                "the database may not be written; check permissions",
            )
        } else if is(&["file is not a database", "malformed"]) {
            (
                ErrorKind::Invalid,
                "the file is no SQLite database, or it is damaged; check `url`",
            )
        } else if is(&["unable to open database"]) {
            (ErrorKind::Unreachable, CANNOT_OPEN)
        } else if is(&["terminating connection", "shutting down"]) {
            (ErrorKind::Unreachable, BROKEN)
        } else {
            (
                ErrorKind::Broker,
                "the database refused the statement; its answer is the cause",
            )
        };
        Self::caused(kind, context, error)
    }

    pub(super) fn into_error(self, operation: &'static str) -> Error {
        let error = Error::new(self.kind, operation, self.context);
        match self.cause {
            Some(cause) => error.with_cause(cause),
            None => error,
        }
    }
}

impl From<diesel::result::Error> for Fault {
    fn from(error: diesel::result::Error) -> Self {
        Self::of(error)
    }
}

pub(super) const MISSING_TABLE: &str =
    "the queue's tables are missing or incomplete; run `SqlBroker::migrate`, or `outbox-relay migrate`";

const BROKEN: &str = "the connection to the database broke; a later call makes a new one";

pub(super) const CANNOT_OPEN: &str =
    "the SQLite file cannot be opened; check the path in `url` and the permissions of its directory";

/// A cause that several errors share.
#[derive(Debug, Clone)]
pub(super) struct SharedCause(Arc<dyn std::error::Error + Send + Sync>);

impl fmt::Display for SharedCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SharedCause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
