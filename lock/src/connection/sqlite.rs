//! SQLite's connections.

use std::time::Duration;

use diesel::QueryResult;
use diesel::connection::{AnsiTransactionManager, LoadConnection};
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel_async::RunQueryDsl;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;

use super::{Database, Dialect, Driver, Number, connections, sealed};
use crate::fence::sqlite as fence;
use crate::transaction::sqlite as transaction;

type AsyncSqlite = SyncConnectionWrapper<SqliteConnection>;

impl sealed::Sealed for AsyncSqlite {}

impl Driver for AsyncSqlite {
    const DATABASE: Database = Database::Sqlite;

    async fn raise(&mut self, resource: &str, token: i64) -> QueryResult<Option<i64>> {
        let resource = resource.to_owned();
        self.spawn_blocking(move |connection| fence::raise_sync(connection, &resource, token))
            .await
    }

    async fn mint(&mut self, resource: &str, within: Duration) -> QueryResult<i64> {
        fence::mint(self, resource, within).await
    }

    async fn exclude(&mut self, name: &str, within: Option<Duration>) -> QueryResult<bool> {
        transaction::exclude(self, name, within).await
    }

    /// `BEGIN IMMEDIATE`: a transaction that will write takes the lock first, instead of failing half-way.
    async fn begin(&mut self) -> QueryResult<()> {
        self.spawn_blocking(|connection| {
            AnsiTransactionManager::begin_transaction_sql(connection, "BEGIN IMMEDIATE")
        })
        .await
    }

    /// Nothing: the write lock of [`Driver::begin`] is enough.
    async fn lock_schema(&mut self) -> QueryResult<()> {
        Ok(())
    }

    async fn schema_version(&mut self) -> QueryResult<i64> {
        let query = "SELECT COALESCE(MAX(version), 0) AS number FROM outbox_schema WHERE component = 'lock'";
        let version: Number = RunQueryDsl::get_result(diesel::sql_query(query), self).await?;
        Ok(version.number)
    }
}

connections!(AsyncSqlite);

impl sealed::Sealed for Sqlite {}

impl Dialect for Sqlite {
    const DATABASE: Database = Database::Sqlite;

    fn raise<C>(connection: &mut C, resource: &str, token: i64) -> QueryResult<Option<i64>>
    where
        C: LoadConnection<Backend = Self>,
    {
        fence::raise_sync(connection, resource, token)
    }
}
