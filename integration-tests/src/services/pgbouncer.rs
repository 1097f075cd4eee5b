//! PgBouncer: a transaction pooler between a test and its database.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio_postgres::NoTls;
use url::Url;

use super::local::{self, Account};
use super::server::{Local, Origin, Server};
use super::{Error, Postgres};

const NAME: &str = "pgbouncer";

/// Connections to the server per database. Chosen: fewer than a store has, so that they are shared.
const POOL_SIZE: u32 = 3;

/// A PgBouncer in transaction mode in front of one server. It ends when the value is dropped.
#[derive(Debug)]
pub struct PgBouncer {
    server: Server,
    port: u16,
}

impl PgBouncer {
    /// `HOST:PORT`, for [`Database::url_via`](super::postgres::Database::url_via).
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The directory of its configuration and log; it disappears with it.
    pub fn directory(&self) -> Option<PathBuf> {
        self.server.directory().map(Into::into)
    }

    /// Logs in at its own console, which no other server has.
    async fn prove(&self) -> Result<(), Error> {
        let url = Url::parse(&format!("postgres://postgres@{}/pgbouncer", self.address()))
            .map_err(Error::failed(NAME, "build a URL"))?;
        let connecting = tokio_postgres::connect(url.as_str(), NoTls);
        let (client, connection) = tokio::time::timeout(Duration::from_secs(2), connecting)
            .await
            .map_err(Error::failed(NAME, "log in"))?
            .map_err(Error::failed(NAME, "log in"))?;
        tokio::spawn(connection);
        client
            .simple_query("SHOW VERSION")
            .await
            .map_err(Error::failed(NAME, "ask who it is"))?;
        Ok(())
    }
}

/// Starts a PgBouncer in front of `postgres`, for all its databases.
///
/// # Errors
/// [`Error::Unavailable`] when it is not installed.
pub(super) async fn start(postgres: &Postgres) -> Result<PgBouncer, Error> {
    let Some(binary) = local::find("pgbouncer", &["/usr/sbin".into()], false) else {
        let reason = "no `pgbouncer` in PATH or /usr/sbin (Debian: pgbouncer)";
        return Err(Error::Unavailable {
            service: NAME,
            reason: reason.to_owned(),
        });
    };
    let port = local::free_port(NAME)?;
    let address = postgres.address();
    let (host, server_port) = address
        .rsplit_once(':')
        .ok_or_else(|| Error::failed(NAME, "read the server's address")(address.clone()))?;
    let (host, server_port) = (host.to_owned(), server_port.to_owned());
    let local = local::blocking(NAME, move || {
        // PgBouncer refuses to run as root.
        let account = Account::dropped_to(&["postgres", "nobody"]);
        let supervisor = local::supervise(NAME, account.as_ref())?;
        let (account, file) = (
            local::as_account(account.as_ref()),
            supervisor.directory().join("pgbouncer.ini"),
        );
        let settings = format!(
            "[databases]\n* = host={host} port={server_port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\nadmin_users = postgres\n\
             pool_mode = transaction\ndefault_pool_size = {POOL_SIZE}\nserver_reset_query =\n\
             ignore_startup_parameters = extra_float_digits\n"
        );
        std::fs::write(&file, settings).map_err(Error::failed(NAME, "write its configuration"))?;
        let command = format!("{account}{} -q {}", local::word(&binary), local::word(&file));
        Ok(Local::new(supervisor, command, Signal::SIGINT))
    })
    .await?;
    let server = Server {
        service: NAME,
        origin: Origin::Local(local),
        shared: false,
    };
    let pooler = PgBouncer { server, port };
    pooler.server.start().await?;
    pooler.server.ready(|| pooler.prove()).await?;
    Ok(pooler)
}
