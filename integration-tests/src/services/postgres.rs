//! PostgreSQL: a database per test.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use nix::sys::signal::Signal;
use tokio_postgres::NoTls;
use url::Url;

use super::local::{self, Account};
use super::server::{Local, Origin, Server};
use super::{Error, Service, keeps};

const NAME: &str = "postgres";

/// A PostgreSQL server. [`Postgres::database`] gives a test a database of its own.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    /// A database that exists, for administration.
    url: Url,
    found: String,
    /// What `cluster_name` of our own server says.
    nonce: Option<String>,
}

impl Postgres {
    /// `HOST:PORT`, for a [`Proxy`](crate::proxy::Proxy).
    pub fn address(&self) -> String {
        format!(
            "{}:{}",
            self.url.host_str().unwrap_or("127.0.0.1"),
            self.url.port().unwrap_or(5432)
        )
    }

    /// Creates an empty database, dropped with the value.
    ///
    /// # Errors
    /// When the server does not answer, is not the one we started, or denies CREATE DATABASE.
    pub async fn database(&self) -> Result<Database, Error> {
        self.prove().await?;
        let name = format!("outbox_test_{}", local::nonce());
        self.administer(&format!(
            "CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'"
        ))
        .await?;
        let mut url = self.url.clone();
        url.set_path(&name);
        Ok(Database {
            name,
            url,
            admin: self.url.clone(),
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

    /// Kills the server with SIGKILL, all its processes at once; returns when they are gone.
    ///
    /// # Errors
    /// When the server is shared with other tests or not ours.
    pub async fn kill(&self) -> Result<(), Error> {
        self.server.kill().await
    }

    /// Freezes the server: connections stay open, nothing answers.
    ///
    /// # Errors
    /// As [`Postgres::kill`].
    pub async fn pause(&self) -> Result<(), Error> {
        self.server.pause().await
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// As [`Postgres::kill`].
    pub async fn resume(&self) -> Result<(), Error> {
        self.server.resume().await
    }

    /// Stops the server in order (fast shutdown); returns when it is gone.
    ///
    /// # Errors
    /// As [`Postgres::kill`].
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

    /// Logs in and compares the server with the one we started.
    ///
    /// # Errors
    /// [`Error::Refused`] when another server answers at our address.
    pub async fn prove(&self) -> Result<(), Error> {
        let client = connect(&self.url).await?;
        let row = client
            .query_one(
                "SELECT current_setting('cluster_name'), current_setting('server_version')",
                &[],
            )
            .await
            .map_err(Error::failed(NAME, "ask who it is"))?;
        let cluster: String = row.get(0);
        let Some(nonce) = &self.nonce else { return Ok(()) };
        if cluster != *nonce {
            return Err(Error::refused(
                NAME,
                format!("another server answers at {}", self.address()),
            ));
        }
        let Some(directory) = self.server.directory() else {
            return Ok(());
        };
        let row = client
            .query_one("SELECT current_setting('data_directory')", &[])
            .await
            .map_err(Error::failed(NAME, "ask for its directory"))?;
        let data: String = row.get(0);
        if directory.join("data") != std::path::Path::new(&data) {
            return Err(Error::refused(
                NAME,
                format!("the server at {} runs in {data}", self.address()),
            ));
        }
        Ok(())
    }

    async fn administer(&self, statement: &str) -> Result<(), Error> {
        administer(&self.url, statement).await
    }
}

/// A database that belongs to one test.
///
/// Dropping the value drops the database, if need be under open connections. When the test panicked, or with
/// `OUTBOX_TEST_KEEP`, the database is left and its URL printed.
#[derive(Debug)]
pub struct Database {
    name: String,
    url: Url,
    admin: Url,
}

impl Database {
    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `postgres://…/NAME`.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// The same database through another `HOST:PORT`, such as a proxy's.
    ///
    /// # Errors
    /// When `address` is not `HOST:PORT`.
    pub fn url_via(&self, address: &str) -> Result<String, Error> {
        via(NAME, &self.url, address)
    }

    /// A pool of at most ten connections. It connects when first used.
    ///
    /// # Errors
    /// When called outside a Tokio runtime.
    pub fn pool(&self) -> Result<Pool<AsyncPgConnection>, Error> {
        let connections = AsyncDieselConnectionManager::<AsyncPgConnection>::new(self.url.as_str());
        Pool::builder(connections)
            .max_size(10)
            .build()
            .map_err(Error::failed(NAME, "build a pool"))
    }

    /// A connection for checks in plain SQL. Its driver task ends with it.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn client(&self) -> Result<tokio_postgres::Client, Error> {
        connect(&self.url).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if keeps() || std::thread::panicking() {
            crate::announce(&format!(
                "outbox-testing: postgres: kept database {} ({})",
                self.name, self.url
            ));
            return;
        }
        let (admin, statement) = (
            self.admin.clone(),
            format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name),
        );
        // A runtime of its own: drop is not asynchronous, and the test's runtime may be ending.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let done = tokio::time::timeout(Duration::from_secs(2), administer(&admin, &statement)).await;
                done.map_err(std::io::Error::from)?.map_err(std::io::Error::other)
            })
        });
        // Best effort: a server that the test killed takes the database along anyway.
        let _ = dropping.join();
    }
}

/// Replaces host and port of `url`.
pub(crate) fn via(service: &'static str, url: &Url, address: &str) -> Result<String, Error> {
    let wrong = || Error::refused(service, format!("`{address}` is not HOST:PORT"));
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let mut url = url.clone();
    url.set_host(Some(host)).map_err(|_| wrong())?;
    url.set_port(Some(port.parse().map_err(|_| wrong())?))
        .map_err(|()| wrong())?;
    Ok(url.into())
}

async fn connect(url: &Url) -> Result<tokio_postgres::Client, Error> {
    let (client, connection) = tokio_postgres::connect(url.as_str(), NoTls)
        .await
        .map_err(Error::failed(NAME, "log in"))?;
    // Ends when the client is dropped.
    tokio::spawn(connection);
    Ok(client)
}

async fn administer(url: &Url, statement: &str) -> Result<(), Error> {
    let client = connect(url).await?;
    client
        .batch_execute(statement)
        .await
        .map_err(Error::failed(NAME, statement))
}

/// Refuses a URL whose database is not evidently meant for tests.
fn checked(text: &str) -> Result<Url, Error> {
    let url = Url::parse(text).map_err(Error::failed(NAME, "read OUTBOX_TEST_POSTGRES_URL"))?;
    let database = url.path().trim_start_matches('/');
    if !database.contains("test") {
        let reason = format!("the database name `{database}` in OUTBOX_TEST_POSTGRES_URL lacks `test`");
        return Err(Error::refused(NAME, reason));
    }
    Ok(url)
}

#[async_trait]
impl Service for Postgres {
    const NAME: &'static str = NAME;
    const VARIABLE: &'static str = "OUTBOX_TEST_POSTGRES_URL";

    async fn from_url(url: &str) -> Result<Self, Error> {
        let url = checked(url)?;
        let server = Server {
            service: NAME,
            origin: Origin::Url,
            shared: true,
        };
        let postgres = Self {
            server,
            url,
            found: format!("from {}", Self::VARIABLE),
            nonce: None,
        };
        postgres.prove().await?;
        Ok(postgres)
    }

    #[cfg(feature = "docker")]
    async fn from_container() -> Result<Self, Error> {
        let nonce = local::nonce();
        let container = super::docker::postgres(&nonce).await?;
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", container.port());
        let url = Url::parse(&url).map_err(Error::failed(NAME, "build a URL"))?;
        let found = container.to_string();
        let server = Server {
            service: NAME,
            origin: Origin::Container(container),
            shared: false,
        };
        let postgres = Self {
            server,
            url,
            found,
            nonce: Some(nonce),
        };
        postgres.server.ready(|| postgres.prove()).await?;
        Ok(postgres)
    }

    async fn from_binaries() -> Result<Self, Error> {
        let mut attempt = 1;
        loop {
            match start(Fsync::Off).await {
                Err(error @ Error::Failed { .. }) if attempt < local::START_ATTEMPTS => {
                    crate::announce(&format!("outbox-testing: {error}; starting again"));
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    fn server_mut(&mut self) -> &mut Server {
        &mut self.server
    }

    fn describe(&self) -> String {
        format!("{}, {}", self.found, self.address())
    }
}

/// Where the server programs are: Debian keeps them off the PATH.
fn binaries() -> Option<PathBuf> {
    let mut directories = Vec::new();
    if let Some(pg_config) = local::find("pg_config", &[], true) {
        directories.extend(local::ask(&pg_config, "--bindir").map(PathBuf::from));
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut versions: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin")).collect();
    versions.sort();
    directories.extend(versions.into_iter().rev());
    let postgres = local::find("postgres", &directories, false)?
        .canonicalize()
        .ok()?;
    let directory = postgres.parent()?;
    directory.join("initdb").is_file().then(|| directory.to_owned())
}

/// Whether the server waits for the disk.
#[derive(Clone, Copy)]
pub(super) enum Fsync {
    /// A commit is on the disk: for measurements.
    On,
    /// Guards against a crash of the machine only; SIGKILL leaves the kernel's cache intact.
    Off,
}

pub(super) async fn start(fsync: Fsync) -> Result<Postgres, Error> {
    let Some(binaries) = binaries() else {
        let reason = "no `postgres` with `initdb` in PATH, pg_config --bindir or /usr/lib/postgresql/*/bin (Debian: postgresql-15)";
        return Err(Error::Unavailable {
            service: NAME,
            reason: reason.to_owned(),
        });
    };
    let port = local::free_port(NAME)?;
    let nonce = local::nonce();
    let version = local::ask(&binaries.join("postgres"), "--version").unwrap_or_default();
    let found = format!("private process, {version}, {}", binaries.display());
    let cluster_name = nonce.clone();
    let local = local::blocking(NAME, move || {
        // PostgreSQL refuses to run as root.
        let account = Account::dropped_to(&["postgres", "nobody"]);
        let supervisor = local::supervise(NAME, account.as_ref())?;
        let (account, data) = (
            local::as_account(account.as_ref()),
            supervisor.directory().join("data"),
        );
        let initdb = local::word(&binaries.join("initdb"));
        let prepare = format!(
            "{account}{initdb} -D {} -U postgres -A trust --no-sync -E UTF8 --locale=C",
            local::word(&data)
        );
        local::prepare(NAME, &supervisor, &prepare)?;
        // A killed PostgreSQL leaves its shared memory segment behind; one that quits at once does not.
        let farewell = "farewell() { \
            pidfile=\"$dir/data/postmaster.pid\"; [ -e \"$pidfile\" ] || return 0; \
            kill -CONT $server; kill -QUIT $server; n=0; \
            while [ -e \"$pidfile\" ] && [ $n -lt 50 ]; do sleep 0.02; n=$((n+1)); done; \
            [ -e \"$pidfile\" ] || return 0; \
            set -- $(sed -n 7p \"$pidfile\"); [ -z \"$2\" ] || ipcrm -m \"$2\"; } 2>/dev/null";
        supervisor
            .define(farewell)
            .map_err(Error::failed(NAME, "prepare"))?;
        let fsync = if matches!(fsync, Fsync::On) { "on" } else { "off" };
        let command = format!(
            "{account}{} -D {} -p {port} -k {} -c listen_addresses=127.0.0.1 -c cluster_name={cluster_name} \
             -c wal_level=logical -c max_connections=200 -c max_prepared_transactions=50 -c fsync={fsync} \
             -c dynamic_shared_memory_type=mmap",
            local::word(&binaries.join("postgres")),
            local::word(&data),
            local::word(supervisor.directory()),
        );
        Ok(Local::new(supervisor, command, Signal::SIGINT))
    })
    .await?;
    let url = Url::parse(&format!("postgres://postgres@127.0.0.1:{port}/postgres"))
        .map_err(Error::failed(NAME, "build a URL"))?;
    let server = Server {
        service: NAME,
        origin: Origin::Local(local),
        shared: false,
    };
    let postgres = Postgres {
        server,
        url,
        found,
        nonce: Some(nonce),
    };
    postgres.server.start().await?;
    postgres.server.ready(|| postgres.prove()).await?;
    Ok(postgres)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_test_in_the_database_name_is_refused() {
        for url in [
            "postgres://localhost/orders",
            "postgres://test:test@testhost/",
            "postgres://localhost",
        ] {
            assert!(matches!(checked(url), Err(Error::Refused { .. })), "{url}");
        }
        assert!(checked("postgres://localhost:5433/orders_test").is_ok());
    }

    #[test]
    fn a_proxied_url_keeps_everything_but_the_address() {
        let url = Url::parse("postgres://user:secret@127.0.0.1:5432/shop_test?a=b").unwrap();
        assert_eq!(
            via(NAME, &url, "127.0.0.1:7000").unwrap(),
            "postgres://user:secret@127.0.0.1:7000/shop_test?a=b"
        );
        assert!(via(NAME, &url, "nowhere").is_err());
    }
}
