//! What an error of the driver means for the caller.

use mysql_async::Error as Driver;

use crate::{Error, ErrorKind};

/// `ER_LOCK_DEADLOCK`: the transaction was rolled back for another one; it may be repeated at once.
const DEADLOCK: u16 = 1213;

/// `ER_LOCK_WAIT_TIMEOUT`: the statement was undone, the transaction is still open.
const LOCK_WAIT_TIMEOUT: u16 = 1205;

pub(super) fn is_deadlock(error: &Driver) -> bool {
    matches!(error, Driver::Server(error) if error.code == DEADLOCK)
}

pub(super) fn is_lock_wait(error: &Driver) -> bool {
    matches!(error, Driver::Server(error) if error.code == LOCK_WAIT_TIMEOUT)
}

pub(super) fn from_driver(operation: &'static str, error: Driver) -> Error {
    let (kind, context) = match &error {
        Driver::Server(error) => of_code(error.code),
        Driver::Io(_) | Driver::Driver(_) => (
            ErrorKind::Unreachable,
            "the server cannot be reached or closed the connection; check address and server",
        ),
        Driver::Url(_) => (
            ErrorKind::Invalid,
            "the database URL cannot be used; write mysql://user:password@host:port/database",
        ),
        Driver::Other(_) => (ErrorKind::Database, "the answer of the database cannot be read"),
    };
    Error::new(kind, operation, context).with_cause(error)
}

/// Numbers of the MySQL error reference; MariaDB has the same.
fn of_code(code: u16) -> (ErrorKind, &'static str) {
    match code {
        1045 | 1698 => (
            ErrorKind::Unauthorized,
            "the server refused the login; check user and password",
        ),
        1044 | 1142 | 1143 | 1227 | 1370 => (
            ErrorKind::Unauthorized,
            "the user lacks a privilege; grant SELECT, INSERT, UPDATE, DELETE on the outbox tables",
        ),
        1046 | 1049 => (
            ErrorKind::Schema,
            "the database does not exist; create it, then run `outbox-relay migrate`",
        ),
        1054 | 1146 => (
            ErrorKind::Schema,
            "a table or column of the outbox is missing; run `outbox-relay migrate`",
        ),
        1290 | 1792 | 1836 => (
            ErrorKind::Unreachable,
            "the server is a read-only replica now; waiting for the primary",
        ),
        1040 | 1053 | 1079 | 1129 | 1152 | 1203 | 1226 | 1927 | 3169 => (
            ErrorKind::Unreachable,
            "the server is stopping, starting or out of connections; trying again helps",
        ),
        1665 => (
            ErrorKind::Invalid,
            "binlog_format is STATEMENT, which forbids READ COMMITTED; set it to ROW or MIXED",
        ),
        DEADLOCK | LOCK_WAIT_TIMEOUT => (
            ErrorKind::Database,
            "another transaction held a lock for too long; trying again helps",
        ),
        _ => (ErrorKind::Database, "the database refused the statement"),
    }
}
