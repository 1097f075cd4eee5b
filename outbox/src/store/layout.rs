//! What `check` expects to find: the tables of version 1, their columns and indexes.

use crate::{Error, ErrorKind};

pub(crate) const TABLES: [(&str, &[&str]); 3] = [
    (
        "outbox",
        &[
            "id",
            "shard",
            "msg_id",
            "topic",
            "key",
            "type",
            "source",
            "content_type",
            "headers",
            "payload",
            "created_at",
            "expires_at",
        ],
    ),
    ("outbox_lease", &["shard", "owner", "epoch", "expires_at"]),
    (
        "outbox_parked",
        &[
            "sequence",
            "shard",
            "state",
            "attempts",
            "next_attempt_at",
            "last_error",
            "msg_id",
            "topic",
            "key",
            "type",
            "source",
            "content_type",
            "headers",
            "payload",
            "created_at",
            "available_at",
            "expires_at",
        ],
    ),
];

pub(crate) const INDEXES: [&str; 3] = ["outbox_parked_due", "outbox_parked_key", "outbox_parked_dead"];

/// What a database has, as its catalogue says.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The version of component `outbox`; `None`: the version table or its row is missing.
    pub(crate) version: Option<i32>,
    /// Tables with their columns.
    pub(crate) columns: Vec<(String, String)>,
    /// Names of indexes on them.
    pub(crate) indexes: Vec<String>,
    /// Leases there are, one a shard.
    pub(crate) shards: i64,
}

/// Compares what is there with what this library needs.
pub(crate) fn compare(found: &Found, know: i32) -> Result<(), Error> {
    match found.version {
        None => {
            return Err(schema(
                "the tables of the outbox are missing; run `outbox-relay migrate`",
            ));
        }
        Some(version) if version > know => {
            return Err(schema(format!(
                "the tables have version {version}, this program knows {know}; update the program"
            )));
        }
        Some(version) if version < know => {
            return Err(schema(format!(
                "the tables have version {version}, this program needs {know}; run `outbox-relay migrate`"
            )));
        }
        Some(_) => {}
    }
    for (table, columns) in TABLES {
        for column in columns {
            if !found.columns.iter().any(|(t, c)| t == table && c == column) {
                return Err(schema(format!(
                    "column {table}.{column} is missing; restore it as `outbox-relay migrate --print` shows"
                )));
            }
        }
    }
    for index in INDEXES {
        if !found.indexes.iter().any(|name| name == index) {
            return Err(schema(format!(
                "index {index} is missing; create it as `outbox-relay migrate --print` shows"
            )));
        }
    }
    if found.shards == 0 {
        return Err(schema(
            "table outbox_lease has no row, so no shard can be published; run INSERT INTO outbox_lease (shard) VALUES (0)",
        ));
    }
    Ok(())
}

pub(crate) fn schema(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Schema, "check", context)
}
