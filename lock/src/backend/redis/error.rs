//! What the client's errors mean here.

use deadpool_redis::redis::{ErrorKind as Client, RedisError, ServerErrorKind as Server};

use crate::{Error, ErrorKind};

/// The error of `operation`.
pub(super) fn failed(operation: &'static str, cause: RedisError) -> Error {
    let (kind, context) = meaning(&cause);
    Error::new(kind, operation, context).with_cause(cause)
}

/// Nothing was heard in time.
pub(super) fn silent(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        operation,
        "Redis could not be reached in time",
    )
}

/// An answer that no script of ours gives.
pub(super) fn unexpected(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Backend,
        operation,
        "Redis answered something no script of this crate answers; is another program using the key prefix?",
    )
}

fn meaning(cause: &RedisError) -> (ErrorKind, &'static str) {
    match cause.kind() {
        Client::AuthenticationFailed => PASSWORD,
        Client::Server(Server::NoPerm) => (
            ErrorKind::Unauthorized,
            "the Redis user may not do this; allow its ACL +evalsha +eval +script +publish +subscribe and the \
             commands get set del exists incr pexpire pttl time, with the key prefix",
        ),
        Client::Server(Server::ReadOnly) => (
            ErrorKind::Unavailable,
            "this Redis is a read-only replica now; its primary is looked for at the next call",
        ),
        Client::Server(Server::BusyLoading | Server::MasterDown | Server::ClusterDown | Server::TryAgain) => {
            (
                ErrorKind::Unavailable,
                "Redis is loading its data set or changing over",
            )
        }
        Client::Server(Server::Moved | Server::Ask | Server::CrossSlot) => (
            ErrorKind::Misconfigured,
            "this Redis is a node of a cluster: use RedisConfig::cluster",
        ),
        Client::InvalidClientConfig => (
            ErrorKind::Invalid,
            "the address is not usable; write redis://user:password@host:6379/0 (rediss:// needs a TLS feature \
             of the redis crate)",
        ),
        Client::MasterNameNotFoundBySentinel => (
            ErrorKind::Misconfigured,
            "no Sentinel knows a primary of this name",
        ),
        Client::Io | Client::ClusterConnectionNotFound => (
            ErrorKind::Unavailable,
            "Redis cannot be reached or did not answer",
        ),
        _ => match cause.code() {
            Some("WRONGPASS" | "NOAUTH") => PASSWORD,
            Some("OOM") => (
                ErrorKind::Unavailable,
                "Redis is out of memory (maxmemory): locks need room to be written",
            ),
            Some("MISCONF" | "NOREPLICAS") => (ErrorKind::Unavailable, "Redis refuses writes at the moment"),
            _ => (ErrorKind::Backend, "Redis refused the command"),
        },
    }
}

const PASSWORD: (ErrorKind, &str) = (
    ErrorKind::Unauthorized,
    "Redis refuses the user or password: correct them in the URL, redis://user:password@host:6379/0",
);
