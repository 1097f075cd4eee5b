//! A test's own database.

use std::time::Duration;

use diesel_async::AsyncMysqlConnection;
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;
use url::Url;

use super::{NAME, connect};
use crate::services::{Error, keeps};

/// A database that belongs to one test.
///
/// Dropping the value drops the database, and ends the connections that still use it. When the test panicked,
/// or with `OUTBOX_TEST_KEEP`, the database is left and its URL printed.
#[derive(Debug)]
pub struct Database {
    name: String,
    url: Url,
    admin: Url,
}

impl Database {
    pub(super) fn new(name: String, url: Url, admin: Url) -> Self {
        Self { name, url, admin }
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `mysql://…/NAME`.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// The same database through another `HOST:PORT`, such as a proxy's.
    ///
    /// # Errors
    /// When `address` is not `HOST:PORT`.
    pub fn url_via(&self, address: &str) -> Result<String, Error> {
        crate::services::postgres::via(NAME, &self.url, address)
    }

    /// A pool of at most ten connections. It connects when first used.
    ///
    /// # Errors
    /// When called outside a Tokio runtime.
    pub fn pool(&self) -> Result<Pool<AsyncMysqlConnection>, Error> {
        let connections = AsyncDieselConnectionManager::<AsyncMysqlConnection>::new(self.url.as_str());
        Pool::builder(connections)
            .max_size(10)
            .build()
            .map_err(Error::failed(NAME, "build a pool"))
    }

    /// A connection for checks in plain SQL, in the server's time zone.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn client(&self) -> Result<Conn, Error> {
        connect(&self.url).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if keeps() || std::thread::panicking() {
            crate::announce(&format!(
                "outbox-testing: mariadb: kept database {} ({})",
                self.name, self.url
            ));
            return;
        }
        let (admin, name) = (self.admin.clone(), self.name.clone());
        // A runtime of its own: drop is not asynchronous, and the test's runtime may be ending.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let done = tokio::time::timeout(Duration::from_secs(2), remove(&admin, &name)).await;
                done.map_err(std::io::Error::from)?.map_err(std::io::Error::other)
            })
        });
        // Best effort: a server that the test killed takes the database along anyway.
        let _ = dropping.join();
    }
}

/// Ends what uses the database, since DROP DATABASE waits for open transactions; then drops it.
async fn remove(admin: &Url, name: &str) -> Result<(), Error> {
    let mut client = connect(admin).await?;
    let users: Vec<u64> = client
        .exec(
            "SELECT id FROM information_schema.processlist WHERE db = ?",
            (name,),
        )
        .await
        .map_err(Error::failed(NAME, "ask who uses the database"))?;
    for user in users {
        // It may have ended by itself meanwhile.
        let _ = client.query_drop(format!("KILL {user}")).await;
    }
    client
        .query_drop(format!("DROP DATABASE IF EXISTS {name}"))
        .await
        .map_err(Error::failed(NAME, "drop a database"))?;
    let _ = client.disconnect().await;
    Ok(())
}
