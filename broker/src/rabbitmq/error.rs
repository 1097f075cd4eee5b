//! What lapin's errors mean here.

use lapin::ErrorKind as Lapin;
use lapin::protocol::AMQPErrorKind;

use crate::{Error, ErrorKind};

/// AMQP reply code: the server does not let us in or do this.
const ACCESS_REFUSED: u16 = 403;
/// AMQP reply code: no such exchange, queue or virtual host.
const NOT_FOUND: u16 = 404;
/// AMQP reply code: exists with other properties, or the message is too large.
const PRECONDITION_FAILED: u16 = 406;
/// AMQP reply code: the virtual host is not for this user, or does not exist.
const NOT_ALLOWED: u16 = 530;

/// Why something failed; one failure may concern many messages.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    context: &'static str,
    cause: Option<lapin::Error>,
}

impl Failure {
    pub(super) const fn new(kind: ErrorKind, context: &'static str) -> Self {
        Self {
            kind,
            context,
            cause: None,
        }
    }

    /// The broker did not answer in time.
    pub(super) const fn silent() -> Self {
        Self::new(ErrorKind::Unreachable, "RabbitMQ did not answer in time")
    }

    pub(super) const fn closed() -> Self {
        Self::new(ErrorKind::Closed, "it was closed; open a new one")
    }

    /// The fate of a message that was being sent or waited for.
    pub(super) fn in_flight(cause: lapin::Error) -> Self {
        let (kind, context) = match (reply_code(&cause), cause.kind()) {
            // The client knew the channel to be gone before it wrote anything.
            (None, Lapin::InvalidChannelState(..) | Lapin::InvalidConnectionState(_)) => (
                ErrorKind::Unreachable,
                "the connection was lost before the message was sent",
            ),
            (Some(NOT_FOUND | ACCESS_REFUSED), _) => meaning(&cause),
            _ => (
                ErrorKind::OutcomeUnknown,
                "the connection was lost before the confirmation",
            ),
        };
        Self {
            kind,
            context,
            cause: Some(cause),
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
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.kind, ErrorKind::Unauthorized | ErrorKind::Closed)
            || self.cause.as_ref().is_some_and(is_precondition)
    }
}

impl From<lapin::Error> for Failure {
    fn from(cause: lapin::Error) -> Self {
        let (kind, context) = meaning(&cause);
        Self {
            kind,
            context,
            cause: Some(cause),
        }
    }
}

fn meaning(cause: &lapin::Error) -> (ErrorKind, &'static str) {
    match reply_code(cause) {
        Some(ACCESS_REFUSED) => (
            ErrorKind::Unauthorized,
            "RabbitMQ refuses the account; check user, password and permissions",
        ),
        Some(NOT_ALLOWED) => (
            ErrorKind::Unauthorized,
            "RabbitMQ refuses the virtual host; check its name and permissions",
        ),
        Some(NOT_FOUND) => (
            ErrorKind::UnknownDestination,
            "exchange or queue does not exist; declare it or set `declare`",
        ),
        Some(PRECONDITION_FAILED) => (
            ErrorKind::Broker,
            "RabbitMQ refuses it: exchange or queue exists with other properties, or the message is too large",
        ),
        Some(_) => (ErrorKind::Broker, "RabbitMQ closed the channel or the connection"),
        None => match cause.kind() {
            Lapin::IOError(_)
            | Lapin::RuntimeShutdownError(_)
            | Lapin::MissingHeartbeatError
            | Lapin::InvalidChannel(_)
            | Lapin::InvalidChannelState(..)
            | Lapin::InvalidConnectionState(_) => (ErrorKind::Unreachable, "no connection to RabbitMQ"),
            Lapin::AuthProviderError(_) => (ErrorKind::Unauthorized, "no credentials for RabbitMQ"),
            _ => (ErrorKind::Broker, "the AMQP client failed"),
        },
    }
}

/// Whether the server closed the channel because of a property of what was sent.
pub(super) fn is_precondition(cause: &lapin::Error) -> bool {
    reply_code(cause) == Some(PRECONDITION_FAILED)
}

fn reply_code(cause: &lapin::Error) -> Option<u16> {
    let Lapin::ProtocolError(error) = cause.kind() else {
        return None;
    };
    Some(match error.kind() {
        AMQPErrorKind::Soft(soft) => soft.get_id(),
        AMQPErrorKind::Hard(hard) => hard.get_id(),
    })
}
