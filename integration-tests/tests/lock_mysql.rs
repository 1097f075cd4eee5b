//! The lease table of MariaDB passes the suite.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

use std::sync::Arc;

use async_trait::async_trait;
use outbox_lock::conformance::Fixture;
use outbox_lock::{Backend, Capabilities, MysqlBackend};
use outbox_testing::services::{self, mariadb::Database};

struct Mysql(Database);

#[async_trait]
impl Fixture for Mysql {
    async fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(MysqlBackend::new(self.0.pool().unwrap()))
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

async fn setup() -> Result<Mysql, String> {
    let server = services::mariadb().await.map_err(|error| error.to_string())?;
    let database = server.database().await.map_err(|error| error.to_string())?;
    let mut connection = database.pool().unwrap().get().await.unwrap();
    outbox_lock::migrate(&mut connection).await.unwrap();
    Ok(Mysql(database))
}

outbox_lock::conformance!(setup);
