//! What an error of the driver means for the caller.

use tokio_postgres::error::SqlState;

use super::rows::is_of_another_type;
use crate::{Error, ErrorKind};

pub(super) fn from_driver(operation: &'static str, error: tokio_postgres::Error) -> Error {
    let (kind, context) = match error.code() {
        None if is_of_another_type(&error) => (
            ErrorKind::Schema,
            "a column of the outbox has another type; restore it as `outbox-relay migrate --print` shows",
        ),
        None => (
            ErrorKind::Unreachable,
            "the server cannot be reached or closed the connection; check address and server",
        ),
        Some(code) => of_state(code),
    };
    Error::new(kind, operation, context).with_cause(error)
}

fn of_state(code: &SqlState) -> (ErrorKind, &'static str) {
    match *code {
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => (
            ErrorKind::Unauthorized,
            "the server refused the login; check user and password",
        ),
        SqlState::INSUFFICIENT_PRIVILEGE => (
            ErrorKind::Unauthorized,
            "the user lacks a privilege; grant SELECT, INSERT, UPDATE, DELETE on the outbox tables",
        ),
        SqlState::INVALID_CATALOG_NAME => (
            ErrorKind::Schema,
            "the database does not exist; create it, then run `outbox-relay migrate`",
        ),
        SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_COLUMN => (
            ErrorKind::Schema,
            "a table or column of the outbox is missing; run `outbox-relay migrate`",
        ),
        SqlState::READ_ONLY_SQL_TRANSACTION => (
            ErrorKind::Unreachable,
            "the server is a read-only replica now; waiting for the primary",
        ),
        SqlState::ADMIN_SHUTDOWN
        | SqlState::CRASH_SHUTDOWN
        | SqlState::CANNOT_CONNECT_NOW
        | SqlState::TOO_MANY_CONNECTIONS => (
            ErrorKind::Unreachable,
            "the server is stopping, starting or out of connections; trying again helps",
        ),
        ref code if code.code().starts_with("08") => (
            ErrorKind::Unreachable,
            "the connection failed; trying again helps",
        ),
        _ => (ErrorKind::Database, "the database refused the statement"),
    }
}
