//! The lease table of PostgreSQL passes the suite.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

use std::sync::Arc;

use async_trait::async_trait;
use outbox_lock::conformance::Fixture;
use outbox_lock::{Backend, Capabilities, PostgresBackend};
use outbox_testing::services::{self, postgres::Database};

struct Postgres(Database);

#[async_trait]
impl Fixture for Postgres {
    async fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(PostgresBackend::new(self.0.pool().unwrap()))
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

async fn setup() -> Result<Postgres, String> {
    let server = services::postgres().await.map_err(|error| error.to_string())?;
    let database = server.database().await.map_err(|error| error.to_string())?;
    let mut connection = database.pool().unwrap().get().await.unwrap();
    outbox_lock::migrate(&mut connection).await.unwrap();
    Ok(Postgres(database))
}

outbox_lock::conformance!(setup);
