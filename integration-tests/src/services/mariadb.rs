//! MariaDB: a database per test.

use std::path::PathBuf;

use async_trait::async_trait;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts};
use nix::sys::signal::Signal;
use url::Url;

use super::local::{self, Account};
use super::server::{Local, Origin, Server};
use super::{Error, Service};

mod database;

pub use database::Database;

const NAME: &str = "mariadb";

/// A MariaDB server, or the MySQL server that `OUTBOX_TEST_MARIADB_URL` names. [`Mariadb::database`] gives a
/// test a database of its own.
#[derive(Debug)]
pub struct Mariadb {
    server: Server,
    /// Without a database, for administration.
    url: Url,
    found: String,
    /// What `report_host` of our own server says.
    nonce: Option<String>,
}

impl Mariadb {
    /// `HOST:PORT`, for a [`Proxy`](crate::proxy::Proxy).
    pub fn address(&self) -> String {
        format!(
            "{}:{}",
            self.url.host_str().unwrap_or("127.0.0.1"),
            self.url.port().unwrap_or(3306)
        )
    }

    /// Creates an empty database, dropped with the value.
    ///
    /// # Errors
    /// When the server does not answer, is not the one we started, or denies CREATE DATABASE.
    pub async fn database(&self) -> Result<Database, Error> {
        self.prove().await?;
        let name = format!("outbox_test_{}", local::nonce());
        administer(
            &self.url,
            &format!("CREATE DATABASE {name} CHARACTER SET utf8mb4"),
        )
        .await?;
        let mut url = self.url.clone();
        url.set_path(&name);
        Ok(Database::new(name, url, self.url.clone()))
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
    /// As [`Mariadb::kill`].
    pub async fn pause(&self) -> Result<(), Error> {
        self.server.pause().await
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// As [`Mariadb::kill`].
    pub async fn resume(&self) -> Result<(), Error> {
        self.server.resume().await
    }

    /// Stops the server in order; returns when it is gone.
    ///
    /// # Errors
    /// As [`Mariadb::kill`].
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
        let mut client = connect(&self.url).await?;
        let answer: Option<(Option<String>, String)> = client
            .query_first("SELECT @@report_host, @@datadir")
            .await
            .map_err(Error::failed(NAME, "ask who it is"))?;
        let _ = client.disconnect().await;
        let Some(nonce) = &self.nonce else { return Ok(()) };
        let (host, data) = answer.unwrap_or_default();
        if host.as_ref() != Some(nonce) {
            return Err(Error::refused(
                NAME,
                format!("another server answers at {}", self.address()),
            ));
        }
        let Some(directory) = self.server.directory() else {
            return Ok(());
        };
        if directory.join("data") != std::path::Path::new(data.trim_end_matches('/')) {
            return Err(Error::refused(
                NAME,
                format!("the server at {} runs in {data}", self.address()),
            ));
        }
        Ok(())
    }
}

async fn connect(url: &Url) -> Result<Conn, Error> {
    let options = Opts::from_url(url.as_str()).map_err(Error::failed(NAME, "read its URL"))?;
    Conn::new(options).await.map_err(Error::failed(NAME, "log in"))
}

async fn administer(url: &Url, statement: &str) -> Result<(), Error> {
    let mut client = connect(url).await?;
    client
        .query_drop(statement)
        .await
        .map_err(Error::failed(NAME, statement))?;
    let _ = client.disconnect().await;
    Ok(())
}

/// Refuses a URL whose database is not evidently meant for tests.
fn checked(text: &str) -> Result<Url, Error> {
    let url = Url::parse(text).map_err(Error::failed(NAME, "read OUTBOX_TEST_MARIADB_URL"))?;
    let database = url.path().trim_start_matches('/');
    if !database.contains("test") {
        let reason = format!("the database name `{database}` in OUTBOX_TEST_MARIADB_URL lacks `test`");
        return Err(Error::refused(NAME, reason));
    }
    Ok(url)
}

#[async_trait]
impl Service for Mariadb {
    const NAME: &'static str = NAME;
    const VARIABLE: &'static str = "OUTBOX_TEST_MARIADB_URL";

    async fn from_url(url: &str) -> Result<Self, Error> {
        let url = checked(url)?;
        let server = Server {
            service: NAME,
            origin: Origin::Url,
            shared: true,
        };
        let mariadb = Self {
            server,
            url,
            found: format!("from {}", Self::VARIABLE),
            nonce: None,
        };
        mariadb.prove().await?;
        Ok(mariadb)
    }

    #[cfg(feature = "docker")]
    async fn from_container() -> Result<Self, Error> {
        let nonce = local::nonce();
        let container = super::docker::mariadb(&nonce).await?;
        let url = format!("mysql://root@127.0.0.1:{}/?prefer_socket=false", container.port());
        let url = Url::parse(&url).map_err(Error::failed(NAME, "build a URL"))?;
        let found = container.to_string();
        let server = Server {
            service: NAME,
            origin: Origin::Container(container),
            shared: false,
        };
        let mariadb = Self {
            server,
            url,
            found,
            nonce: Some(nonce),
        };
        mariadb.server.ready(|| mariadb.prove()).await?;
        Ok(mariadb)
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

/// Whether the server waits for the disk.
#[derive(Clone, Copy)]
pub(super) enum Fsync {
    /// A commit is on the disk: for measurements.
    On,
    /// Guards against a crash of the machine only; SIGKILL leaves the kernel's cache intact.
    Off,
}

/// The server and the script that makes its data directory. Debian keeps the server off a user's PATH.
fn binaries() -> Option<(PathBuf, PathBuf)> {
    let directories = ["/usr/sbin", "/usr/libexec", "/usr/local/sbin"].map(PathBuf::from);
    let server = local::find("mariadbd", &directories, false)?;
    let install = local::find("mariadb-install-db", &["/usr/bin".into()], true)?;
    Some((server, install))
}

pub(super) async fn start(fsync: Fsync) -> Result<Mariadb, Error> {
    let Some((binary, install)) = binaries() else {
        let reason = "no `mariadbd` with `mariadb-install-db` in PATH or /usr/sbin (Debian: mariadb-server)";
        return Err(Error::Unavailable {
            service: NAME,
            reason: reason.to_owned(),
        });
    };
    let port = local::free_port(NAME)?;
    let nonce = local::nonce();
    let version = local::ask(&binary, "--version").unwrap_or_default();
    let found = format!("private process, {}", version.trim());
    let report_host = nonce.clone();
    let local = local::blocking(NAME, move || {
        // MariaDB refuses to run as root.
        let account = Account::dropped_to(&["mysql", "nobody"]);
        let supervisor = local::supervise(NAME, account.as_ref())?;
        let account = local::as_account(account.as_ref());
        let directory = supervisor.directory();
        let data = local::word(&directory.join("data"));
        let prepare = format!(
            "{account}{} --no-defaults --datadir={data} --auth-root-authentication-method=normal \
             --skip-test-db --skip-log-bin",
            local::word(&install)
        );
        local::prepare(NAME, &supervisor, &prepare)?;
        // A commit is written at once in either case, so SIGKILL of the server loses nothing.
        let flush = match fsync {
            Fsync::On => "O_DIRECT",
            Fsync::Off => "nosync",
        };
        let command = format!(
            "{account}{} --no-defaults --datadir={data} --port={port} --bind-address=127.0.0.1 --socket={} \
             --pid-file={} --report-host={report_host} --max-connections=200 --skip-log-bin \
             --innodb-flush-method={flush}",
            local::word(&binary),
            local::word(&directory.join("socket")),
            local::word(&directory.join("pid")),
        );
        Ok(Local::new(supervisor, command, Signal::SIGTERM))
    })
    .await?;
    // Else the driver leaves the port for the server's socket, and a proxy or an impostor is passed by.
    let url = Url::parse(&format!("mysql://root@127.0.0.1:{port}/?prefer_socket=false"))
        .map_err(Error::failed(NAME, "build a URL"))?;
    let server = Server {
        service: NAME,
        origin: Origin::Local(local),
        shared: false,
    };
    let mariadb = Mariadb {
        server,
        url,
        found,
        nonce: Some(nonce),
    };
    mariadb.server.start().await?;
    mariadb.server.ready(|| mariadb.prove()).await?;
    Ok(mariadb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_test_in_the_database_name_is_refused() {
        for url in ["mysql://localhost/orders", "mysql://test:test@testhost/"] {
            assert!(matches!(checked(url), Err(Error::Refused { .. })), "{url}");
        }
        assert!(checked("mysql://localhost:3307/orders_test").is_ok());
    }
}
