//! The lease table of SQLite passes the suite.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

use std::sync::Arc;

use async_trait::async_trait;
use diesel::sqlite::SqliteConnection;
use diesel_async::SimpleAsyncConnection;
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use outbox_lock::conformance::Fixture;
use outbox_lock::{Backend, Capabilities, SqliteBackend};
use outbox_testing::services::{self, sqlite::Database};

type Connections = Pool<SyncConnectionWrapper<SqliteConnection>>;

struct Sqlite(Database);

fn pool(database: &Database) -> Connections {
    let connections = AsyncDieselConnectionManager::new(database.url());
    Pool::builder(connections).max_size(4).build().unwrap()
}

#[async_trait]
impl Fixture for Sqlite {
    async fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(SqliteBackend::new(pool(&self.0)))
    }

    fn claims(&self) -> Capabilities {
        Capabilities {
            read_write: true,
            permits: true,
            fair: true,
            wakes: false,
            durable: true,
        }
    }
}

async fn setup() -> Result<Sqlite, String> {
    let database = services::sqlite().map_err(|error| error.to_string())?;
    let mut connection = pool(&database).get().await.unwrap();
    connection
        .batch_execute("PRAGMA journal_mode = WAL")
        .await
        .unwrap();
    outbox_lock::migrate(&mut connection).await.unwrap();
    Ok(Sqlite(database))
}

outbox_lock::conformance!(setup);
