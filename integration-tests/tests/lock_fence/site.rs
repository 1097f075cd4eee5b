//! An empty database with the tables of the lock.

use std::future::Future;
use std::sync::Arc;

use diesel::sqlite::SqliteConnection;
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{
    AsyncConnection, AsyncMysqlConnection, AsyncPgConnection, SimpleAsyncConnection, TransactionManager,
};
use outbox_lock::{Connection, DatabaseTokens, Driver, Error, FencingToken, Key, Pooled, TokenSource, fence};
use outbox_testing::services;

pub(crate) type AsyncSqlite = SyncConnectionWrapper<SqliteConnection>;

/// What a scenario does with a database.
pub(crate) trait Site: Sync {
    type Connection: Connection<Driver = Self::Connection> + Driver + Pooled;

    fn connect(&self) -> impl Future<Output = Self::Connection> + Send;

    /// A source whose mints may take a second.
    fn tokens(&self) -> Arc<dyn TokenSource>;
}

pub(crate) struct Server<D> {
    database: D,
    setup: String,
}

pub(crate) async fn postgres(
    isolation: &str,
) -> Result<Server<services::postgres::Database>, services::Error> {
    let site = Server {
        database: services::postgres().await?.database().await?,
        setup: format!("SET default_transaction_isolation = '{isolation}'; SET lock_timeout = '10s'"),
    };
    outbox_lock::migrate(&mut site.connect().await).await.unwrap();
    Ok(site)
}

pub(crate) async fn mysql(isolation: &str) -> Result<Server<services::mariadb::Database>, services::Error> {
    let site = Server {
        database: services::mariadb().await?.database().await?,
        setup: format!("SET SESSION TRANSACTION ISOLATION LEVEL {isolation}"),
    };
    outbox_lock::migrate(&mut site.connect().await).await.unwrap();
    Ok(site)
}

pub(crate) async fn sqlite() -> Result<Server<services::sqlite::Database>, services::Error> {
    let site = Server {
        database: services::sqlite()?,
        setup: "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL".to_owned(),
    };
    outbox_lock::migrate(&mut site.connect().await).await.unwrap();
    Ok(site)
}

impl Server<services::sqlite::Database> {
    pub(crate) fn path(&self) -> String {
        self.database.url()
    }
}

const WITHIN: std::time::Duration = std::time::Duration::from_millis(1_500);

impl Site for Server<services::postgres::Database> {
    type Connection = AsyncPgConnection;

    async fn connect(&self) -> AsyncPgConnection {
        let mut connection = AsyncPgConnection::establish(self.database.url()).await.unwrap();
        connection.batch_execute(&self.setup).await.unwrap();
        connection
    }

    fn tokens(&self) -> Arc<dyn TokenSource> {
        Arc::new(DatabaseTokens::postgres(self.database.pool().unwrap()).within(WITHIN))
    }
}

impl Site for Server<services::mariadb::Database> {
    type Connection = AsyncMysqlConnection;

    async fn connect(&self) -> AsyncMysqlConnection {
        let mut connection = AsyncMysqlConnection::establish(self.database.url())
            .await
            .unwrap();
        connection.batch_execute(&self.setup).await.unwrap();
        connection
    }

    fn tokens(&self) -> Arc<dyn TokenSource> {
        Arc::new(DatabaseTokens::mysql(self.database.pool().unwrap()).within(WITHIN))
    }
}

impl Site for Server<services::sqlite::Database> {
    type Connection = AsyncSqlite;

    async fn connect(&self) -> AsyncSqlite {
        let mut connection = AsyncSqlite::establish(&self.database.url()).await.unwrap();
        connection.batch_execute(&self.setup).await.unwrap();
        connection
    }

    /// Its connections do not wait for a lock: `busy_timeout` is 0.
    fn tokens(&self) -> Arc<dyn TokenSource> {
        let connections = AsyncDieselConnectionManager::<AsyncSqlite>::new(self.database.url());
        let pool = Pool::builder(connections).max_size(1).build().unwrap();
        Arc::new(DatabaseTokens::sqlite(pool).within(WITHIN))
    }
}

pub(crate) fn token(value: i64) -> FencingToken {
    FencingToken::new(value).unwrap()
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

pub(crate) async fn begin<D: Driver>(connection: &mut D) {
    D::TransactionManager::begin_transaction(connection)
        .await
        .unwrap();
}

pub(crate) async fn commit<D: Driver>(connection: &mut D) {
    D::TransactionManager::commit_transaction(connection)
        .await
        .unwrap();
}

pub(crate) async fn roll_back<D: Driver>(connection: &mut D) {
    D::TransactionManager::rollback_transaction(connection)
        .await
        .unwrap();
}

/// A whole transaction that shows its token and does nothing else.
pub(crate) async fn show<D>(connection: &mut D, resource: &Key, shown: i64) -> Result<(), Error>
where
    D: Connection<Driver = D> + Driver,
{
    begin(connection).await;
    let verdict = fence(connection, resource, token(shown)).await;
    if verdict.is_ok() {
        commit(connection).await;
    } else {
        roll_back(connection).await;
    }
    verdict
}

/// What the fence of `resource` has seen, as its refusal of token 1 tells. Panics if it has seen nothing.
pub(crate) async fn seen<D>(connection: &mut D, resource: &Key) -> i64
where
    D: Connection<Driver = D> + Driver,
{
    let refused = show(connection, resource, 1).await.unwrap_err();
    refused.fenced().unwrap().seen().get()
}
