//! PostgreSQL's connections.

use std::time::Duration;

use diesel::QueryResult;
use diesel::connection::LoadConnection;
use diesel::pg::Pg;
use diesel_async::{
    AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection, TransactionManager,
};

use super::{Database, Dialect, Driver, Number, connections, sealed};
use crate::fence::postgres as fence;
use crate::transaction::postgres as transaction;

/// Serialises migrators of every component; the constant is "outbox" in ASCII.
const SCHEMA_LOCK: &str = "SELECT pg_advisory_xact_lock(122546542313336)";

impl sealed::Sealed for AsyncPgConnection {}

impl Driver for AsyncPgConnection {
    const DATABASE: Database = Database::Postgres;

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

    async fn lock_schema(&mut self) -> QueryResult<()> {
        self.batch_execute(SCHEMA_LOCK).await
    }

    async fn schema_version(&mut self) -> QueryResult<i64> {
        let query =
            "SELECT COALESCE(MAX(version), 0)::bigint AS number FROM outbox_schema WHERE component = 'lock'";
        let version: Number = RunQueryDsl::get_result(diesel::sql_query(query), self).await?;
        Ok(version.number)
    }
}

connections!(AsyncPgConnection);

impl sealed::Sealed for Pg {}

impl Dialect for Pg {
    const DATABASE: Database = Database::Postgres;

    fn raise<C>(connection: &mut C, resource: &str, token: i64) -> QueryResult<Option<i64>>
    where
        C: LoadConnection<Backend = Self>,
    {
        fence::raise_sync(connection, resource, token)
    }
}
