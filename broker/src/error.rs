//! What went wrong at a broker, and what to do about it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// A boxed cause, kept whole so that a log can print the chain.
pub type Cause = Box<dyn StdError + Send + Sync + 'static>;

/// What happened, independent of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The broker cannot be reached, or the connection broke before anything was handed over.
    Unreachable,
    /// Handed over, and then no answer: the broker may or may not have the message.
    OutcomeUnknown,
    /// The broker answered that it does not take the message now (nack, overload, resource alarm).
    Rejected,
    /// Credentials or permissions are wrong.
    Unauthorized,
    /// The exchange, topic or queue does not exist.
    UnknownDestination,
    /// The destination exists, but nothing is bound to it that would keep the message.
    Unroutable,
    /// The message exceeds a limit of the broker or of this library.
    TooLarge,
    /// The message, option or stored bytes are not valid.
    Invalid,
    /// The adapter does not offer what was asked for; the context names the capability.
    Unsupported,
    /// The publisher or subscription was closed.
    Closed,
    /// Anything else the broker said.
    Broker,
}

impl ErrorKind {
    /// The stable lower-case name used in logs and in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Rejected => "rejected",
            Self::Unauthorized => "unauthorized",
            Self::UnknownDestination => "unknown_destination",
            Self::Unroutable => "unroutable",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Closed => "closed",
            Self::Broker => "broker",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error of a publisher or a subscriber: kind, operation, context and cause.
///
/// The text never holds a payload, a credential or a connection string.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    operation: &'static str,
    context: Cow<'static, str>,
    cause: Option<Cause>,
}

impl Error {
    /// An error of `kind` during `operation` (a verb such as `"publish"`); `context` says what to do.
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
    ///
    /// `UnknownDestination` and `Unroutable` count as transient: the queue or binding may be declared
    /// later, and no message may be given up because a consumer was deployed after its producer.
    /// `Unauthorized` counts as transient for the same reason (a rotated password), though
    /// [`Error::needs_operator`] says that someone should look.
    pub const fn is_transient(&self) -> bool {
        !matches!(
            self.kind,
            ErrorKind::TooLarge | ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::Closed
        )
    }

    /// Whether waiting alone will hardly help: configuration, permissions or topology are wrong.
    pub const fn needs_operator(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unauthorized | ErrorKind::UnknownDestination | ErrorKind::Unroutable
        ) || !self.is_transient()
    }

    /// Whether the cause lies in the message itself: another message to the same place may pass.
    pub const fn is_message_fault(&self) -> bool {
        matches!(self.kind, ErrorKind::TooLarge | ErrorKind::Invalid)
    }

    /// Whether the broker may hold the message although this is an error.
    pub const fn is_outcome_unknown(&self) -> bool {
        matches!(self.kind, ErrorKind::OutcomeUnknown)
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
