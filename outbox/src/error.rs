//! What went wrong between a service, its database and the relay.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use outbox_broker::{Cause, InvalidMessage};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The message breaks a limit; nothing was sent to the database, the transaction is usable.
    InvalidMessage,
    /// The database cannot be reached or the connection broke; the transaction is gone.
    Unreachable,
    /// User, password or privileges are wrong.
    Unauthorized,
    /// The outbox tables are missing, incomplete, or of another version; the context says which command mends it.
    Schema,
    /// The database refused a statement; on PostgreSQL the caller's transaction must be rolled back.
    Database,
    /// The lease of a shard ended or moved to another relay: nothing was changed.
    LeaseLost,
    /// A setting is not valid.
    Invalid,
    /// The broker side failed when the relay was built or closed.
    Broker,
}

impl ErrorKind {
    /// The stable lower-case name used in logs and in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidMessage => "invalid_message",
            Self::Unreachable => "unreachable",
            Self::Unauthorized => "unauthorized",
            Self::Schema => "schema",
            Self::Database => "database",
            Self::LeaseLost => "lease_lost",
            Self::Invalid => "invalid",
            Self::Broker => "broker",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error of this crate: kind, operation, context and cause.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    operation: &'static str,
    context: Cow<'static, str>,
    cause: Option<Cause>,
}

impl Error {
    /// An error of `kind` during `operation`; `context` says what to do.
    pub fn new(kind: ErrorKind, operation: &'static str, context: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            operation,
            context: context.into(),
            cause: None,
        }
    }

    /// The same error with its cause attached.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<Cause>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// What happened.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What was being done, as a verb.
    pub const fn operation(&self) -> &'static str {
        self.operation
    }

    /// Whether the same call may succeed later with nothing changed by a person.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unreachable | ErrorKind::Database | ErrorKind::LeaseLost
        )
    }

    /// Whether the caller's transaction can still be committed after this error of an enqueue.
    ///
    /// True only if the message was refused before anything was sent to the database.
    pub const fn transaction_is_usable(&self) -> bool {
        matches!(self.kind, ErrorKind::InvalidMessage | ErrorKind::Invalid)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed ({}): {}", self.operation, self.kind, self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause
            .as_deref()
            .map(|cause| cause as &(dyn StdError + 'static))
    }
}

impl From<InvalidMessage> for Error {
    fn from(invalid: InvalidMessage) -> Self {
        Self::new(
            ErrorKind::InvalidMessage,
            "enqueue",
            "the message is refused; nothing was sent to the database and the transaction is still usable",
        )
        .with_cause(invalid)
    }
}

impl Error {
    /// The error of a statement that diesel sent.
    pub(crate) fn database(operation: &'static str, error: diesel::result::Error) -> Self {
        use diesel::result::DatabaseErrorKind::{ClosedConnection, UnableToSendCommand};
        use diesel::result::Error as Diesel;

        let text = error.to_string();
        let (kind, context) = match &error {
            Diesel::DatabaseError(ClosedConnection | UnableToSendCommand, _) => (
                ErrorKind::Unreachable,
                "the connection broke; the transaction is gone, discard the connection",
            ),
            Diesel::DatabaseError(..) if is_broken(&text) => (
                ErrorKind::Unreachable,
                "the connection broke; the transaction is gone, discard the connection",
            ),
            _ if is_missing_table(&text) => (
                ErrorKind::Schema,
                "a table of the outbox is missing; run `outbox-relay migrate` or outbox::migrate",
            ),
            Diesel::DatabaseError(..) => (
                ErrorKind::Database,
                "the database refused the statement; roll the transaction back",
            ),
            _ => (
                ErrorKind::Database,
                "diesel refused the statement; roll the transaction back",
            ),
        };
        Self::new(kind, operation, context).with_cause(error)
    }
}

/// diesel-async keeps no kind for the failures of the MySQL driver; the words are the driver's.
fn is_broken(text: &str) -> bool {
    text.starts_with("Input/output error: ") || text.starts_with("Driver error: ")
}

/// diesel keeps no SQLSTATE; the words are those of PostgreSQL and MySQL in their default language and of SQLite.
fn is_missing_table(text: &str) -> bool {
    text.contains("no such table: outbox")
        || (text.contains("relation \"outbox") && text.contains("does not exist"))
        || (text.contains(".outbox") && text.contains("doesn't exist"))
}

/// So that `?` works on diesel calls inside [`Outbox::transaction`](crate::Outbox::transaction).
impl From<diesel::result::Error> for Error {
    fn from(error: diesel::result::Error) -> Self {
        Self::database("query", error)
    }
}
