//! Redis: a numbered database and a key prefix per test.

mod setup;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use deadpool_redis::redis::{self as client, aio::MultiplexedConnection};
use url::Url;

use super::local;
use super::server::{Origin, Server};
use super::{Error, Service};
pub(super) use setup::{Kind, cluster, private, sentinel};

const NAME: &str = "redis";

/// Numbered databases of a private server: more than any test process has tests.
const DATABASES: u32 = 10_000;

/// A Redis server. [`Redis::database`] gives a test a keyspace of its own.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    url: Url,
    found: String,
    next: AtomicU32,
}

impl Redis {
    /// `HOST:PORT`, for a [`Proxy`](crate::proxy::Proxy).
    pub fn address(&self) -> String {
        format!(
            "{}:{}",
            self.url.host_str().unwrap_or("127.0.0.1"),
            self.url.port().unwrap_or(6379)
        )
    }

    /// `redis://HOST:PORT/`, the database numbered 0.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// A keyspace for one test: an unused database number on a private server, and a unique key prefix, which
    /// is all that separates tests on a server given by URL. Nothing is ever flushed.
    ///
    /// # Errors
    /// When the server does not answer or is not the one we started.
    pub async fn database(&self) -> Result<Database, Error> {
        self.prove().await?;
        let mut url = self.url.clone();
        if !matches!(self.server.origin, Origin::Url) {
            let limit = if matches!(self.server.origin, Origin::Local(_)) {
                DATABASES
            } else {
                16
            };
            url.set_path(&(self.next.fetch_add(1, Ordering::Relaxed) % limit).to_string());
        }
        Ok(Database {
            url,
            prefix: format!("test:{}:", local::nonce()),
        })
    }

    /// The id of the server's main process, if it is a private one.
    pub fn pid(&self) -> Option<i32> {
        self.server.pid()
    }

    /// The directory of a private server; it disappears with the server.
    pub fn directory(&self) -> Option<PathBuf> {
        self.server.directory().map(Into::into)
    }

    /// Kills the server with SIGKILL; returns when it is gone.
    ///
    /// # Errors
    /// When the server is shared with other tests or not ours.
    pub async fn kill(&self) -> Result<(), Error> {
        self.server.kill().await
    }

    /// Freezes the server: connections stay open, nothing answers.
    ///
    /// # Errors
    /// As [`Redis::kill`].
    pub async fn pause(&self) -> Result<(), Error> {
        self.server.pause().await
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// As [`Redis::kill`].
    pub async fn resume(&self) -> Result<(), Error> {
        self.server.resume().await
    }

    /// Stops the server in order; returns when it is gone.
    ///
    /// # Errors
    /// As [`Redis::kill`].
    pub async fn stop(&self) -> Result<(), Error> {
        self.server.stop().await
    }

    /// Starts a stopped or killed server on the same port and data; returns when it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&self) -> Result<(), Error> {
        self.server.start().await?;
        self.server.ready(|| self.prove()).await
    }

    /// Logs in and compares the server's directory with the one we started it in.
    ///
    /// # Errors
    /// [`Error::Refused`] when another server answers at our address.
    pub async fn prove(&self) -> Result<(), Error> {
        let mut connection = connect(self.url.as_str()).await?;
        let _: String = client::cmd("PING")
            .query_async(&mut connection)
            .await
            .map_err(Error::failed(NAME, "ping"))?;
        let Some(directory) = self.server.directory() else {
            return Ok(());
        };
        let found = setup::directory_of(&mut connection)
            .await
            .map_err(Error::failed(NAME, "ask for its directory"))?;
        if found.as_deref() != Some(directory) {
            return Err(Error::refused(
                NAME,
                format!("another server answers at {}", self.address()),
            ));
        }
        Ok(())
    }
}

/// A keyspace that belongs to one test.
#[derive(Debug)]
pub struct Database {
    url: Url,
    prefix: String,
}

impl Database {
    /// `redis://…/NUMBER`.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// The same database through another `HOST:PORT`, such as a proxy's.
    ///
    /// # Errors
    /// When `address` is not `HOST:PORT`.
    pub fn url_via(&self, address: &str) -> Result<String, Error> {
        super::postgres::via(NAME, &self.url, address)
    }

    /// What every key of the test starts with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A connection for checks.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn connection(&self) -> Result<MultiplexedConnection, Error> {
        connect(self.url.as_str()).await
    }
}

async fn connect(url: &str) -> Result<MultiplexedConnection, Error> {
    let client = client::Client::open(url).map_err(Error::failed(NAME, "read its URL"))?;
    client
        .get_multiplexed_async_connection()
        .await
        .map_err(Error::failed(NAME, "log in"))
}

#[async_trait]
impl Service for Redis {
    const NAME: &'static str = NAME;
    const VARIABLE: &'static str = "OUTBOX_TEST_REDIS_URL";

    async fn from_url(url: &str) -> Result<Self, Error> {
        let url = Url::parse(url).map_err(Error::failed(NAME, "read OUTBOX_TEST_REDIS_URL"))?;
        let server = Server {
            service: NAME,
            origin: Origin::Url,
            shared: true,
        };
        let redis = Self {
            server,
            url,
            found: format!("from {}", Self::VARIABLE),
            next: AtomicU32::new(0),
        };
        redis.prove().await?;
        Ok(redis)
    }

    #[cfg(feature = "docker")]
    async fn from_container() -> Result<Self, Error> {
        let container = super::docker::redis().await?;
        let url = format!("redis://127.0.0.1:{}/", container.port());
        let url = Url::parse(&url).map_err(Error::failed(NAME, "build a URL"))?;
        let found = container.to_string();
        let server = Server {
            service: NAME,
            origin: Origin::Container(container),
            shared: false,
        };
        let redis = Self {
            server,
            url,
            found,
            next: AtomicU32::new(0),
        };
        redis.server.ready(|| redis.prove()).await?;
        Ok(redis)
    }

    async fn from_binaries() -> Result<Self, Error> {
        private(Kind::Persistent).await
    }

    fn server_mut(&mut self) -> &mut Server {
        &mut self.server
    }

    fn describe(&self) -> String {
        format!("{}, {}", self.found, self.address())
    }
}
