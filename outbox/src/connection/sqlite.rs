//! Enqueue on SQLite: multi-row `INSERT`s.

use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Nullable, SmallInt, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel::{OptionalExtension, QueryDsl, QueryResult};
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::batch::{Batch, Row, STATEMENT_BYTES, statements};
use super::schema::outbox_schema;
use super::{Backend, Database, Driver, connections, sealed};

/// Rows a statement. Chosen: 13 parameters a row stay far below SQLite's 32,766, the text below 20 kB.
const STATEMENT_ROWS: usize = 500;

/// The values of a row that are not stored as they are in the message.
#[derive(Debug)]
struct Values<'a> {
    row: &'a Row,
    id: String,
    time: i64,
    expires_at: Option<i64>,
    available_at: Option<i64>,
}

impl<'a> Values<'a> {
    fn new(row: &'a Row) -> Self {
        let message = &row.message;
        Self {
            row,
            id: message.id.to_string(),
            time: message.time.timestamp_micros(),
            expires_at: message.expires_at.map(|time| time.timestamp_micros()),
            available_at: message.available_at.map(|time| time.timestamp_micros()),
        }
    }

    fn binds<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        let message = &self.row.message;
        out.push_bind_param::<SmallInt, _>(&self.row.shard)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, _>(&self.id)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, _>(&message.topic)?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<Text>, _>(&message.key)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, _>(&message.kind)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, _>(&message.source)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, _>(&message.content_type)?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<Text>, _>(&self.row.headers)?;
        out.push_sql(", ");
        out.push_bind_param::<Binary, [u8]>(&message.payload)?;
        out.push_sql(", ");
        out.push_bind_param::<BigInt, _>(&self.time)?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<BigInt>, _>(&self.expires_at)
    }
}

/// `INSERT` of several rows into one of the two tables.
#[derive(Debug)]
struct Insert<'a> {
    values: Vec<Values<'a>>,
    scheduled: bool,
}

impl<'a> Insert<'a> {
    fn new(rows: &'a [Row], scheduled: bool) -> Self {
        Self {
            values: rows.iter().map(Values::new).collect(),
            scheduled,
        }
    }
}

impl QueryId for Insert<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl QueryFragment<Sqlite> for Insert<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        if !matches!(self.values.len(), 1 | STATEMENT_ROWS) {
            out.unsafe_to_cache_prepared(); // one statement per number of rows would fill the cache
        }
        out.push_sql(if self.scheduled {
            "INSERT INTO outbox_parked (shard, msg_id, topic, key, type, source, content_type, headers, \
             payload, created_at, expires_at, available_at, next_attempt_at) VALUES "
        } else {
            "INSERT INTO outbox (shard, msg_id, topic, key, type, source, content_type, headers, payload, \
             created_at, expires_at) VALUES "
        });
        for (index, values) in self.values.iter().enumerate() {
            out.push_sql(if index == 0 { "(" } else { ", (" });
            values.binds(&mut out)?;
            if self.scheduled {
                for _ in ["available_at", "next_attempt_at"] {
                    out.push_sql(", ");
                    out.push_bind_param::<Nullable<BigInt>, _>(&values.available_at)?;
                }
            }
            out.push_sql(")");
        }
        Ok(())
    }
}

impl sealed::Sealed for Sqlite {}

impl Backend for Sqlite {
    fn insert<C>(connection: &mut C, batch: &Batch) -> QueryResult<()>
    where
        C: diesel::Connection<Backend = Self>,
    {
        let write = |connection: &mut C| {
            for (rows, scheduled) in [(&batch.rows, false), (&batch.scheduled, true)] {
                for part in statements(rows, STATEMENT_ROWS, STATEMENT_BYTES) {
                    connection.execute_returning_count(&Insert::new(part, scheduled))?;
                }
            }
            Ok(())
        };
        if statements(&batch.rows, STATEMENT_ROWS, STATEMENT_BYTES).count()
            + statements(&batch.scheduled, STATEMENT_ROWS, STATEMENT_BYTES).count()
            <= 1
        {
            write(connection)
        } else {
            connection.transaction(write)
        }
    }
}

type AsyncSqlite = SyncConnectionWrapper<SqliteConnection>;

impl sealed::Sealed for AsyncSqlite {}

impl Driver for AsyncSqlite {
    const DATABASE: Database = Database::Sqlite;

    async fn insert(&mut self, batch: Batch) -> QueryResult<()> {
        self.spawn_blocking(move |connection| Sqlite::insert(connection, &batch))
            .await
    }

    /// `BEGIN IMMEDIATE`: a transaction that will write takes the lock first, instead of failing half-way.
    async fn begin(&mut self) -> QueryResult<()> {
        self.spawn_blocking(|connection| {
            diesel::connection::AnsiTransactionManager::begin_transaction_sql(connection, "BEGIN IMMEDIATE")
        })
        .await
    }

    /// The write lock of [`Driver::begin`] is enough.
    async fn lock_schema(&mut self) -> QueryResult<()> {
        self.batch_execute("").await
    }

    async fn schema_version(&mut self, component: &str) -> QueryResult<i32> {
        let version = outbox_schema::table
            .find(component.to_owned())
            .select(outbox_schema::version)
            .first(self)
            .await
            .optional()?;
        Ok(version.unwrap_or(0))
    }
}

connections!(AsyncSqlite);
