//! Where the database is and how to use it.

use std::fmt;
use std::time::Duration;

use mysql_async::{Opts, OptsBuilder};

use crate::{Error, ErrorKind};

/// How long a statement waits for a row lock. Chosen: the relay locks only rows that nobody else writes, so
/// a wait means that the server looked further than asked; then the statement is asked in another way.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// A MySQL or MariaDB database and the store's limits. `Debug` does not show the URL.
#[derive(Clone)]
#[must_use]
pub struct MysqlConfig {
    /// `mysql://user:password@host:port/database`; `mariadb://` means the same. Without TLS: put the two on
    /// one private network, or a tunnel between them.
    pub url: String,
    /// Connections. Default 4: a claim, a settle, a lease renewal and a question from an operator at the
    /// same time.
    pub connections: usize,
    /// How long to wait for a connection. Default 5 s: a server that takes longer is as good as away.
    pub connect_timeout: Duration,
    /// How long any call waits for its answer. Default 10 s: a claim of 1,000 rows takes milliseconds; keep
    /// it below the lease's ttl.
    pub statement_timeout: Duration,
    /// Poll interval while rows come. Default 5 ms: an empty claim costs the server about 70 µs.
    pub poll_min: Duration,
    /// Poll interval after a while without rows. Default 250 ms; the worst latency of a message of another
    /// process, since there is no notification between processes.
    pub poll_max: Duration,
}

impl MysqlConfig {
    /// The database at `url`, all else default.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            connections: 4,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
            poll_min: Duration::from_millis(5),
            poll_max: Duration::from_millis(250),
        }
    }

    /// The driver's configuration. Every session reads committed rows only and takes no gap locks.
    pub(super) fn driver(&self) -> Result<Opts, Error> {
        let url = match self.url.strip_prefix("mariadb://") {
            Some(rest) => format!("mysql://{rest}"),
            None => self.url.clone(),
        };
        let options = Opts::from_url(&url).map_err(|error| {
            Error::new(
                ErrorKind::Invalid,
                "connect",
                "the database URL cannot be read; write mysql://user:password@host:port/database",
            )
            .with_cause(error)
        })?;
        // The driver would leave the address given for the server's socket, past any proxy between.
        let prefer_socket = url.contains("prefer_socket=true");
        let setup = format!(
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
             SET SESSION autocommit = 1, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
             innodb_lock_wait_timeout = {}",
            LOCK_WAIT.as_secs()
        );
        Ok(OptsBuilder::from_opts(options)
            .prefer_socket(prefer_socket)
            .client_found_rows(true)
            .setup(setup.split("; ").map(str::to_owned).collect::<Vec<_>>())
            .into())
    }
}

impl fmt::Debug for MysqlConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlConfig")
            .field("url", &"***")
            .field("connections", &self.connections)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("poll_min", &self.poll_min)
            .field("poll_max", &self.poll_max)
            .finish()
    }
}
