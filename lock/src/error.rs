//! What went wrong at the lock service, and what to do about it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// A boxed cause, kept whole so that a log can print the chain.
pub type Cause = Box<dyn StdError + Send + Sync + 'static>;

/// What happened, independent of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The lock service cannot be reached, did not answer in time, or its answer was lost: the request may
    /// or may not have been carried out.
    Unavailable,
    /// Credentials or permissions are wrong.
    Unauthorized,
    /// The key, option or stored value is not valid.
    Invalid,
    /// The backend does not offer what was asked for; the context names it.
    Unsupported,
    /// The deadline of the wait passed while someone else held the lock.
    Timeout,
    /// The lock was held, and is not any more.
    Lost,
    /// The database has seen a higher token: the holder is an old one.
    Fenced,
    /// Not enough replicas or nodes confirmed; what was granted has been taken back.
    NotReplicated,
    /// The lock service was built, but its settings make it unsafe; the context says what to change.
    Misconfigured,
    /// Anything else the backend said.
    Backend,
}

impl ErrorKind {
    /// The stable lower-case name used in logs and in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Unauthorized => "unauthorized",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Timeout => "timeout",
            Self::Lost => "lost",
            Self::Fenced => "fenced",
            Self::NotReplicated => "not_replicated",
            Self::Misconfigured => "misconfigured",
            Self::Backend => "backend",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error of a lock: kind, operation, context and cause.
///
/// The text never holds a credential or a connection string.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    operation: &'static str,
    context: Cow<'static, str>,
    cause: Option<Cause>,
}

impl Error {
    /// An error of `kind` during `operation` (a verb such as `"acquire"`); `context` says what to do.
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
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::NotReplicated | ErrorKind::Backend
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.operation, self.kind, self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}
