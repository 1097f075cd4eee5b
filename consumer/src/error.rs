//! What went wrong in a consumer, and what to do about it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use outbox_broker::Cause;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting is not valid, or contradicts another.
    Invalid,
    /// The broker cannot do what a setting asks for; the cause names the capability.
    Unsupported,
    /// The database cannot be reached, or no connection became free in time.
    Unreachable,
    /// The inbox tables are missing or of another version; run the migration.
    Schema,
    /// The database refused a statement.
    Database,
    /// The broker refused or broke the subscription.
    Broker,
    /// There is no dead letter with that number.
    NotFound,
}

impl ErrorKind {
    /// The stable lower-case name used in logs and in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Unreachable => "unreachable",
            Self::Schema => "schema",
            Self::Database => "database",
            Self::Broker => "broker",
            Self::NotFound => "not_found",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error of this crate: kind, operation, context and cause. It never holds a payload.
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
            ErrorKind::Unreachable | ErrorKind::Database | ErrorKind::Broker
        )
    }

    pub(crate) fn database(operation: &'static str, cause: diesel::result::Error) -> Self {
        let text = cause.to_string();
        let missing = text.contains("no such table") || text.contains("does not exist");
        let (kind, context) = if missing {
            (
                ErrorKind::Schema,
                "an inbox table is missing; run outbox_consumer::migrate on this database",
            )
        } else {
            (
                ErrorKind::Database,
                "the database refused a statement of the inbox",
            )
        };
        Self::new(kind, operation, context).with_cause(cause)
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

/// The error and its causes on one line, for a log or a dead letter.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = cause.source();
    }
    text
}
