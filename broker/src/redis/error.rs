//! What the Redis client's errors mean here.

use deadpool_redis::redis::{ErrorKind as Client, RedisError};

use crate::{Error, ErrorKind};

/// Why something failed; one failure may concern many messages.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    context: &'static str,
    cause: Option<RedisError>,
}

impl Failure {
    pub(super) const fn new(kind: ErrorKind, context: &'static str) -> Self {
        Self {
            kind,
            context,
            cause: None,
        }
    }

    /// The server did not answer in time.
    pub(super) const fn silent() -> Self {
        Self::new(ErrorKind::Unreachable, "Redis did not answer in time")
    }

    pub(super) const fn closed() -> Self {
        Self::new(ErrorKind::Closed, "it was closed; open a new one")
    }

    /// The answer is not what the script gives.
    pub(super) const fn garbled() -> Self {
        Self::new(ErrorKind::Broker, "Redis answered something unexpected")
    }

    /// The fate of messages that were being sent or waited for.
    pub(super) fn in_flight(cause: RedisError) -> Self {
        let failure = Self::from(cause);
        match failure.kind {
            ErrorKind::Unreachable => Self {
                kind: ErrorKind::OutcomeUnknown,
                context: "the connection was lost before the answer",
                ..failure
            },
            _ => failure,
        }
    }

    /// The failure as an error of `operation`.
    pub(super) fn during(&self, operation: &'static str) -> Error {
        let error = Error::new(self.kind, operation, self.context);
        match &self.cause {
            Some(cause) => error.with_cause(cause.clone()),
            None => error,
        }
    }

    /// Whether trying again at once is of no use.
    pub(super) const fn is_refusal(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unauthorized | ErrorKind::Closed | ErrorKind::Unsupported
        )
    }
}

impl From<RedisError> for Failure {
    fn from(cause: RedisError) -> Self {
        let (kind, context) = meaning(&cause);
        Self {
            kind,
            context,
            cause: Some(cause),
        }
    }
}

fn meaning(cause: &RedisError) -> (ErrorKind, &'static str) {
    // The error of a pipeline holds those of its commands; the first tells what is the matter.
    let errors = cause.clone().into_server_errors();
    let first = errors.as_deref().and_then(<[_]>::first);
    if let Some(known) = first.and_then(|(_, error)| said(error.code())) {
        return known;
    }
    match cause.kind() {
        Client::AuthenticationFailed => UNAUTHORIZED,
        Client::InvalidClientConfig => (
            ErrorKind::Unsupported,
            "the url is no Redis URL this build can use",
        ),
        _ if cause.is_io_error() || cause.is_connection_dropped() || cause.is_timeout() => {
            (ErrorKind::Unreachable, "no connection to Redis")
        }
        _ => (ErrorKind::Broker, "Redis refused the command"),
    }
}

const UNAUTHORIZED: (ErrorKind, &str) = (
    ErrorKind::Unauthorized,
    "Redis does not let this account in; correct user, password or ACL",
);

/// The meaning of an error by the word Redis begins it with.
fn said(code: &str) -> Option<(ErrorKind, &'static str)> {
    Some(match code {
        "NOAUTH" | "WRONGPASS" | "NOPERM" => UNAUTHORIZED,
        "NOGROUP" => (
            ErrorKind::UnknownDestination,
            "the group is gone from Redis; subscribe again",
        ),
        "OOM" => (
            ErrorKind::Rejected,
            "Redis is out of memory; raise maxmemory, or let the groups catch up",
        ),
        "READONLY" => (ErrorKind::Unreachable, "Redis is a replica now"),
        "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => {
            (ErrorKind::Unreachable, "Redis is not ready yet")
        }
        "MISCONF" | "NOREPLICAS" => (
            ErrorKind::Rejected,
            "Redis takes no writes: its disk or its replicas fail",
        ),
        // Forgotten scripts are loaded again with the next connection.
        "NOSCRIPT" => (ErrorKind::Rejected, "Redis forgot the scripts"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_from_interruptions() {
        let kind = |code| said(code).map(|(kind, _)| kind);
        assert_eq!(kind("WRONGPASS"), Some(ErrorKind::Unauthorized));
        assert_eq!(kind("OOM"), Some(ErrorKind::Rejected));
        assert_eq!(kind("LOADING"), Some(ErrorKind::Unreachable));
        assert_eq!(kind("ERR"), None);
    }

    #[test]
    fn a_lost_connection_leaves_the_outcome_unknown() {
        let lost = || RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(Failure::from(lost()).kind, ErrorKind::Unreachable);
        assert_eq!(Failure::in_flight(lost()).kind, ErrorKind::OutcomeUnknown);
    }
}
