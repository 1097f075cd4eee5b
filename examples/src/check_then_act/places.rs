//! Where the payments and the locks are.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use outbox_lock::{Backend, MemoryBackend};

use crate::arguments::Arguments;
use crate::shop::{Shop, Sqlite};

/// One database and one lock service, for workers on threads of their own.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    database: Database,
    locks: Service,
}

#[derive(Debug, Clone)]
enum Database {
    Sqlite(String),
    #[cfg(feature = "servers")]
    Postgres(String),
}

#[derive(Debug, Clone)]
enum Service {
    Memory(MemoryBackend),
    #[cfg(feature = "servers")]
    Redis(String),
}

impl Places {
    #[cfg_attr(
        not(feature = "servers"),
        expect(unused_variables, reason = "nothing to choose without servers")
    )]
    pub(crate) fn new(arguments: &Arguments, scratch: &Path) -> anyhow::Result<Self> {
        let file = scratch.join("payments.sqlite");
        let file = file.to_str().context("the directory's name is not UTF-8")?;
        let places = Self {
            database: Database::Sqlite(file.to_owned()),
            locks: Service::Memory(MemoryBackend::new()),
        };
        #[cfg(feature = "servers")]
        let places = Self {
            database: arguments
                .postgres
                .clone()
                .map_or(places.database, Database::Postgres),
            locks: arguments.redis.clone().map_or(places.locks, Service::Redis),
        };
        Ok(places)
    }

    /// What they are, for people.
    pub(crate) fn describe(&self) -> String {
        let database = match self.database {
            Database::Sqlite(_) => "SQLite",
            #[cfg(feature = "servers")]
            Database::Postgres(_) => "PostgreSQL",
        };
        let locks = match self.locks {
            Service::Memory(_) => "this process",
            #[cfg(feature = "servers")]
            Service::Redis(_) => "Redis",
        };
        format!("payments in {database}, locks in {locks}")
    }

    /// A connection to the payments.
    pub(crate) async fn shop(&self) -> anyhow::Result<Box<dyn Shop>> {
        Ok(match &self.database {
            Database::Sqlite(file) => Box::new(Sqlite::open(file).await?),
            #[cfg(feature = "servers")]
            Database::Postgres(url) => Box::new(crate::shop::Postgres::open(url).await?),
        })
    }

    /// A connection to the lock service, on the runtime it is called on.
    pub(crate) fn backend(&self) -> anyhow::Result<Arc<dyn Backend>> {
        Ok(match &self.locks {
            Service::Memory(service) => Arc::new(service.clone()),
            #[cfg(feature = "servers")]
            Service::Redis(url) => {
                use outbox_lock::{RedisBackend, RedisConfig};
                Arc::new(RedisBackend::new(RedisConfig::node(url.clone()))?)
            }
        })
    }
}
