//! Enqueue on PostgreSQL: one statement whatever the number of rows, its columns as arrays.
//!
//! The text of the statement never changes, so that diesel keeps it prepared on the connection. Positions
//! are assigned in array order.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{Array, Binary, Nullable, SmallInt, Text, Timestamptz};
use diesel::{OptionalExtension, QueryDsl, QueryResult};
use diesel_async::{
    AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection, TransactionManager,
};
use uuid::Uuid;

use super::batch::{Batch, Row, STATEMENT_BYTES, statements};
use super::schema::outbox_schema;
use super::{Backend, Database, Driver, connections, sealed};
use crate::Error;

mod commit;

/// Rows a statement. Chosen: the arrays set no limit; beyond this a statement gains nothing.
const STATEMENT_ROWS: usize = 10_000;

/// Serialises migrators; the constant is "outbox" in ASCII.
const SCHEMA_LOCK: &str = "SELECT pg_advisory_xact_lock(122546542313336)";

/// The columns both tables share, as arrays.
#[derive(Debug)]
struct Columns<'a> {
    shard: Vec<i16>,
    id: Vec<Uuid>,
    topic: Vec<&'a str>,
    key: Vec<Option<&'a str>>,
    kind: Vec<&'a str>,
    source: Vec<&'a str>,
    content_type: Vec<&'a str>,
    headers: Vec<Option<&'a str>>,
    payload: Vec<&'a [u8]>,
    time: Vec<DateTime<Utc>>,
    expires_at: Vec<Option<DateTime<Utc>>>,
}

impl<'a> Columns<'a> {
    fn new(rows: &'a [Row]) -> Self {
        let each = || rows.iter();
        Self {
            shard: each().map(|row| row.shard).collect(),
            id: each().map(|row| row.message.id.as_uuid()).collect(),
            topic: each().map(|row| row.message.topic.as_str()).collect(),
            key: each().map(|row| row.message.key.as_deref()).collect(),
            kind: each().map(|row| row.message.kind.as_str()).collect(),
            source: each().map(|row| row.message.source.as_str()).collect(),
            content_type: each().map(|row| row.message.content_type.as_str()).collect(),
            headers: each().map(|row| row.headers.as_deref()).collect(),
            payload: each().map(|row| row.message.payload.as_ref()).collect(),
            time: each().map(|row| row.message.time).collect(),
            expires_at: each().map(|row| row.message.expires_at).collect(),
        }
    }

    fn binds<'b>(&'b self, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_bind_param::<Array<SmallInt>, _>(&self.shard)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<diesel::sql_types::Uuid>, _>(&self.id)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.topic)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<Text>>, _>(&self.key)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.kind)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.source)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.content_type)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<Text>>, _>(&self.headers)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Binary>, _>(&self.payload)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Timestamptz>, _>(&self.time)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<Timestamptz>>, _>(&self.expires_at)
    }
}

/// `INSERT` into the hot table.
#[derive(Debug)]
struct InsertRows<'a>(Columns<'a>);

impl<'a> InsertRows<'a> {
    fn new(rows: &'a [Row]) -> Self {
        Self(Columns::new(rows))
    }
}

impl QueryId for InsertRows<'_> {
    type QueryId = InsertRows<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl QueryFragment<Pg> for InsertRows<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            "INSERT INTO outbox (shard, msg_id, topic, key, type, source, content_type, headers, payload, \
             created_at, expires_at) SELECT * FROM unnest(",
        );
        self.0.binds(&mut out)?;
        out.push_sql(")");
        Ok(())
    }
}

/// `INSERT` of one row into the hot table: what most transactions send. Plain values cost the server less
/// than arrays of one element.
#[derive(Debug)]
struct InsertRow<'a> {
    row: &'a Row,
    id: Uuid,
}

impl<'a> InsertRow<'a> {
    fn new(row: &'a Row) -> Self {
        Self {
            row,
            id: row.message.id.as_uuid(),
        }
    }
}

impl QueryId for InsertRow<'_> {
    type QueryId = InsertRow<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl QueryFragment<Pg> for InsertRow<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let message = &self.row.message;
        out.push_sql(
            "INSERT INTO outbox (shard, msg_id, topic, key, type, source, content_type, headers, payload, \
             created_at, expires_at) VALUES (",
        );
        out.push_bind_param::<SmallInt, _>(&self.row.shard)?;
        out.push_sql(", ");
        out.push_bind_param::<diesel::sql_types::Uuid, _>(&self.id)?;
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
        out.push_bind_param::<Timestamptz, _>(&message.time)?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<Timestamptz>, _>(&message.expires_at)?;
        out.push_sql(")");
        Ok(())
    }
}

/// `INSERT` into the parked table, as scheduled.
#[derive(Debug)]
struct InsertScheduled<'a> {
    columns: Columns<'a>,
    available_at: Vec<Option<DateTime<Utc>>>,
}

impl<'a> InsertScheduled<'a> {
    fn new(rows: &'a [Row]) -> Self {
        Self {
            columns: Columns::new(rows),
            available_at: rows.iter().map(|row| row.message.available_at).collect(),
        }
    }
}

impl QueryId for InsertScheduled<'_> {
    type QueryId = InsertScheduled<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl QueryFragment<Pg> for InsertScheduled<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            "INSERT INTO outbox_parked (shard, msg_id, topic, key, type, source, content_type, headers, \
             payload, created_at, expires_at, available_at, next_attempt_at) \
             SELECT r.*, r.available_at FROM unnest(",
        );
        self.columns.binds(&mut out)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<Timestamptz>>, _>(&self.available_at)?;
        out.push_sql(
            ") AS r (shard, msg_id, topic, key, type, source, content_type, headers, payload, created_at, \
             expires_at, available_at)",
        );
        Ok(())
    }
}

fn is_one_statement(batch: &Batch) -> bool {
    statements(&batch.rows, STATEMENT_ROWS, STATEMENT_BYTES).count()
        + statements(&batch.scheduled, STATEMENT_ROWS, STATEMENT_BYTES).count()
        <= 1
}

async fn insert_statements(mut connection: &AsyncPgConnection, batch: &Batch) -> QueryResult<()> {
    for rows in statements(&batch.rows, STATEMENT_ROWS, STATEMENT_BYTES) {
        match rows {
            [row] => RunQueryDsl::execute(InsertRow::new(row), &mut connection).await?,
            rows => RunQueryDsl::execute(InsertRows::new(rows), &mut connection).await?,
        };
    }
    for rows in statements(&batch.scheduled, STATEMENT_ROWS, STATEMENT_BYTES) {
        RunQueryDsl::execute(InsertScheduled::new(rows), &mut connection).await?;
    }
    Ok(())
}

impl sealed::Sealed for AsyncPgConnection {}

impl Driver for AsyncPgConnection {
    const DATABASE: Database = Database::Postgres;

    async fn insert(&mut self, batch: Batch) -> QueryResult<()> {
        if is_one_statement(&batch) {
            return insert_statements(self, &batch).await;
        }
        self.transaction(async |connection| insert_statements(&*connection, &batch).await)
            .await
    }

    async fn insert_and_commit(&mut self, batch: Batch) -> Result<(), Error> {
        commit::insert_and_commit(self, batch).await
    }

    async fn begin(&mut self) -> QueryResult<()> {
        <Self as AsyncConnection>::TransactionManager::begin_transaction(self).await
    }

    async fn lock_schema(&mut self) -> QueryResult<()> {
        self.batch_execute(SCHEMA_LOCK).await
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

connections!(AsyncPgConnection);

impl sealed::Sealed for Pg {}

impl Backend for Pg {
    fn insert<C>(connection: &mut C, batch: &Batch) -> QueryResult<()>
    where
        C: diesel::Connection<Backend = Self>,
    {
        let write = |connection: &mut C| {
            for rows in statements(&batch.rows, STATEMENT_ROWS, STATEMENT_BYTES) {
                match rows {
                    [row] => connection.execute_returning_count(&InsertRow::new(row))?,
                    rows => connection.execute_returning_count(&InsertRows::new(rows))?,
                };
            }
            for rows in statements(&batch.scheduled, STATEMENT_ROWS, STATEMENT_BYTES) {
                connection.execute_returning_count(&InsertScheduled::new(rows))?;
            }
            Ok(())
        };
        if is_one_statement(batch) {
            write(connection)
        } else {
            connection.transaction(write)
        }
    }
}
