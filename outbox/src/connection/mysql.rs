//! Enqueue on MySQL and MariaDB: multi-row `INSERT`s.

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Datetime, Nullable, SmallInt, Text};
use diesel::{OptionalExtension, QueryDsl, QueryResult, QueryableByName};
use diesel_async::{AsyncConnection, AsyncMysqlConnection, RunQueryDsl, TransactionManager};

use super::batch::{Batch, Row, statements};
use super::schema::outbox_schema;
use super::{Backend, Database, Driver, connections, sealed};

/// Rows a statement. Chosen: 13 parameters a row stay far below the 65,535 of a prepared statement, the
/// text below 30 kB.
const STATEMENT_ROWS: usize = 500;

/// Bytes of rows a statement. Chosen: a quarter of MariaDB's `max_allowed_packet` of 16 MiB.
const STATEMENT_BYTES: usize = 4 * 1024 * 1024;

/// How long a migrator waits for another. Chosen: longer than making the tables takes on a busy server.
const SCHEMA_LOCK_SECONDS: u32 = 60;

/// A named lock holds for the whole server, so its name holds the database's.
const SCHEMA_LOCK_NAME: &str = "CONCAT('outbox_schema:', MD5(DATABASE()))";

/// The values of a row that are not stored as they are in the message.
#[derive(Debug)]
struct Values<'a> {
    row: &'a Row,
    time: NaiveDateTime,
    expires_at: Option<NaiveDateTime>,
    available_at: Option<NaiveDateTime>,
    id: [u8; 16],
}

impl<'a> Values<'a> {
    fn new(row: &'a Row) -> Self {
        let message = &row.message;
        Self {
            row,
            time: message.time.naive_utc(),
            expires_at: message.expires_at.map(|time| time.naive_utc()),
            available_at: message.available_at.map(|time| time.naive_utc()),
            id: message.id.as_uuid().into_bytes(),
        }
    }

    fn binds<'b>(&'b self, out: &mut AstPass<'_, 'b, Mysql>) -> QueryResult<()> {
        let message = &self.row.message;
        out.push_bind_param::<SmallInt, _>(&self.row.shard)?;
        out.push_sql(", ");
        out.push_bind_param::<Binary, [u8]>(&self.id)?;
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
        out.push_bind_param::<Datetime, _>(&self.time)?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<Datetime>, _>(&self.expires_at)
    }
}

/// `INSERT` of several rows into one of the two tables. Positions are assigned in the order of the rows.
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

impl QueryFragment<Mysql> for Insert<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Mysql>) -> QueryResult<()> {
        if !matches!(self.values.len(), 1 | STATEMENT_ROWS) {
            out.unsafe_to_cache_prepared(); // one statement per number of rows would fill the cache
        }
        out.push_sql(if self.scheduled {
            "INSERT INTO outbox_parked (shard, msg_id, topic, `key`, type, source, content_type, headers, \
             payload, created_at, expires_at, available_at, next_attempt_at) VALUES "
        } else {
            "INSERT INTO outbox (shard, msg_id, topic, `key`, type, source, content_type, headers, payload, \
             created_at, expires_at) VALUES "
        });
        for (index, values) in self.values.iter().enumerate() {
            out.push_sql(if index == 0 { "(" } else { ", (" });
            values.binds(&mut out)?;
            if self.scheduled {
                for _ in ["available_at", "next_attempt_at"] {
                    out.push_sql(", ");
                    out.push_bind_param::<Nullable<Datetime>, _>(&values.available_at)?;
                }
            }
            out.push_sql(")");
        }
        Ok(())
    }
}

/// The statements of a batch: rows, and whether they are for the parked table.
fn parts(batch: &Batch) -> impl Iterator<Item = (&[Row], bool)> {
    let of = |rows, scheduled| {
        statements(rows, STATEMENT_ROWS, STATEMENT_BYTES).map(move |part| (part, scheduled))
    };
    of(&batch.rows, false).chain(of(&batch.scheduled, true))
}

async fn insert_statements(connection: &mut AsyncMysqlConnection, batch: &Batch) -> QueryResult<()> {
    for (rows, scheduled) in parts(batch) {
        RunQueryDsl::execute(Insert::new(rows, scheduled), connection).await?;
    }
    Ok(())
}

impl sealed::Sealed for AsyncMysqlConnection {}

impl Driver for AsyncMysqlConnection {
    const DATABASE: Database = Database::Mysql;

    async fn insert(&mut self, batch: Batch) -> QueryResult<()> {
        if parts(&batch).count() <= 1 {
            return insert_statements(self, &batch).await;
        }
        self.transaction(async |connection| insert_statements(connection, &batch).await)
            .await
    }

    async fn begin(&mut self) -> QueryResult<()> {
        <Self as AsyncConnection>::TransactionManager::begin_transaction(self).await
    }

    /// A named lock of the session, since DDL ends transactions.
    async fn lock_schema(&mut self) -> QueryResult<()> {
        #[derive(QueryableByName)]
        struct Locked {
            #[diesel(sql_type = Nullable<BigInt>)]
            locked: Option<i64>,
        }
        let statement =
            format!("SELECT CAST(GET_LOCK({SCHEMA_LOCK_NAME}, {SCHEMA_LOCK_SECONDS}) AS SIGNED) AS locked");
        let row: Locked = diesel::sql_query(statement).get_result(self).await?;
        match row.locked {
            Some(1) => Ok(()),
            _ => Err(diesel::result::Error::QueryBuilderError(
                "another migration holds the lock of the schema for longer than a minute".into(),
            )),
        }
    }

    async fn unlock_schema(&mut self) -> QueryResult<()> {
        diesel::sql_query(format!("DO RELEASE_LOCK({SCHEMA_LOCK_NAME})"))
            .execute(self)
            .await
            .map(|_| ())
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

connections!(AsyncMysqlConnection);

impl sealed::Sealed for Mysql {}

impl Backend for Mysql {
    fn insert<C>(connection: &mut C, batch: &Batch) -> QueryResult<()>
    where
        C: diesel::Connection<Backend = Self>,
    {
        let write = |connection: &mut C| {
            for (rows, scheduled) in parts(batch) {
                connection.execute_returning_count(&Insert::new(rows, scheduled))?;
            }
            Ok(())
        };
        if parts(batch).count() <= 1 {
            write(connection)
        } else {
            connection.transaction(write)
        }
    }
}
