//! Why a command failed, and the exit code that says so to scripts.

use std::error::Error as StdError;
use std::fmt;

use crate::config::Invalid;

/// What a failure means to the caller; each kind has an exit code of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// It was tried and went wrong. Exit code 1.
    Failed,
    /// The command line is wrong. Exit code 64 (`EX_USAGE` of sysexits.h).
    Usage,
    /// A service that is needed cannot be reached. Exit code 69 (`EX_UNAVAILABLE`).
    Unavailable,
    /// The configuration, the schema or the privileges are wrong: trying again changes nothing.
    /// Exit code 78 (`EX_CONFIG`).
    Config,
}

impl ErrorKind {
    /// The exit code of the process.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::Config => 78,
        }
    }
}

/// A failed command: what happened, where, and what to do.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `message` says what happened, where, and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            cause: None,
        }
    }

    /// The same with its cause.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// What it means.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error and its causes on one line.
    pub fn line(&self) -> String {
        chain(self)
    }
}

/// An error and its causes on one line; a cause that its parent already printed is not repeated.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line.lines().collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause
            .as_deref()
            .map(|cause| cause as &(dyn StdError + 'static))
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::new(ErrorKind::Config, invalid.to_string())
    }
}
