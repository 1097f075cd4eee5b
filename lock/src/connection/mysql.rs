//! The connections of MySQL and MariaDB.

use std::time::Duration;

use diesel::QueryResult;
use diesel::connection::LoadConnection;
use diesel::mysql::Mysql;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, RunQueryDsl, TransactionManager};

use super::{Database, Dialect, Driver, Number, connections, sealed};
use crate::fence::mysql as fence;
use crate::transaction::mysql as transaction;

impl sealed::Sealed for AsyncMysqlConnection {}

impl Driver for AsyncMysqlConnection {
    const DATABASE: Database = Database::Mysql;

    async fn raise(&mut self, resource: &str, token: i64) -> QueryResult<Option<i64>> {
        fence::raise(self, resource, token).await
    }

    async fn mint(&mut self, resource: &str, within: Duration) -> QueryResult<i64> {
        fence::mint(self, resource, within).await
    }

    async fn exclude(&mut self, name: &str, within: Option<Duration>) -> QueryResult<bool> {
        transaction::exclude(self, name, within).await
    }

    async fn begin(&mut self) -> QueryResult<()> {
        <Self as AsyncConnection>::TransactionManager::begin_transaction(self).await
    }

    /// Nothing: a statement that changes tables commits by itself, so every step can be repeated instead.
    async fn lock_schema(&mut self) -> QueryResult<()> {
        Ok(())
    }

    async fn schema_version(&mut self) -> QueryResult<i64> {
        let query = "SELECT CAST(COALESCE(MAX(version), 0) AS SIGNED) AS number FROM outbox_schema WHERE component = 'lock'";
        let version: Number = RunQueryDsl::get_result(diesel::sql_query(query), self).await?;
        Ok(version.number)
    }
}

connections!(AsyncMysqlConnection);

impl sealed::Sealed for Mysql {}

impl Dialect for Mysql {
    const DATABASE: Database = Database::Mysql;

    fn raise<C>(connection: &mut C, resource: &str, token: i64) -> QueryResult<Option<i64>>
    where
        C: LoadConnection<Backend = Self>,
    {
        fence::raise_sync(connection, resource, token)
    }
}
