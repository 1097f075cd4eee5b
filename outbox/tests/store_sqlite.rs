//! The SQLite store against the suite of stores.
#![cfg(all(feature = "sqlite", feature = "conformance"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use outbox::Database;
use outbox::conformance::{Business, Fixture, Need, OpenTransaction};
use outbox::store::Store;
use outbox::store::sqlite::{SqliteConfig, SqliteStore};

struct Sqlite {
    directory: tempfile::TempDir,
}

impl Sqlite {
    fn path(&self) -> PathBuf {
        self.directory.path().join("suite.db")
    }

    fn connect(&self) -> SqliteConnection {
        let mut connection = SqliteConnection::establish(&self.path().display().to_string()).unwrap();
        connection.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
        connection
    }
}

#[async_trait]
impl Fixture for Sqlite {
    fn database(&self) -> Database {
        Database::Sqlite
    }

    async fn store(&self) -> Arc<dyn Store> {
        Arc::new(
            SqliteStore::connect(SqliteConfig::new(self.path()))
                .await
                .unwrap(),
        )
    }

    async fn begin(&self) -> Box<dyn Business> {
        Box::new(OpenTransaction::begin(SyncConnectionWrapper::new(self.connect())).await)
    }

    async fn execute(&self, sql: &str) {
        self.connect().batch_execute(sql).unwrap();
    }

    async fn parked_sequences(&self) -> Vec<i64> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            sequence: i64,
        }
        diesel::sql_query("SELECT sequence FROM outbox_parked ORDER BY sequence")
            .load::<Row>(&mut self.connect())
            .unwrap()
            .into_iter()
            .map(|row| row.sequence)
            .collect()
    }

    async fn migrate(&self) -> Result<(), outbox::Error> {
        let mut connection: SyncConnectionWrapper<SqliteConnection> =
            SyncConnectionWrapper::new(self.connect());
        outbox::migrate(&mut connection).await
    }
}

async fn setup(_: Need) -> Result<Sqlite, String> {
    let sqlite = Sqlite {
        directory: tempfile::tempdir().unwrap(),
    };
    sqlite.migrate().await.unwrap();
    Ok(sqlite)
}

outbox::conformance!(setup);

#[tokio::test]
async fn a_missing_file_is_unreachable_and_is_not_created() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nowhere.db");
    let error = SqliteStore::connect(SqliteConfig::new(&path)).await.unwrap_err();
    assert_eq!(error.kind(), outbox::ErrorKind::Unreachable);
    assert!(error.to_string().contains("migrate"), "{error}");
    assert!(!path.exists());
}
