//! A pool of PostgreSQL connections, each statement bounded in time.

use std::future::Future;
use std::time::Duration;

use diesel::QueryResult;
use diesel_async::pooled_connection::deadpool::{Object, Pool, PoolError};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use futures::FutureExt;

use crate::ErrorKind;
use crate::sql::store::Fault;

/// The pool and the time limit of one call.
#[derive(Clone)]
pub(super) struct Connections {
    pool: Pool<AsyncPgConnection>,
    timeout: Duration,
}

impl Connections {
    /// Connects once, so that a wrong address or password shows at once.
    pub(super) async fn open(url: &str, size: u16, timeout: Duration) -> Result<Self, Fault> {
        let mut config = ManagerConfig::default();
        config.custom_setup = Box::new(move |url| establish(url.to_owned(), timeout).boxed());
        // A closed connection is noticed without asking the server; one that hangs is thrown away after use.
        config.recycling_method = RecyclingMethod::Fast;
        let manager = AsyncDieselConnectionManager::new_with_config(url, config);
        let pool = Pool::builder(manager)
            .max_size(usize::from(size))
            .build()
            .map_err(|error| Fault::caused(ErrorKind::Invalid, "the pool cannot be built", error))?;
        let connections = Self { pool, timeout };
        drop(connections.take().await?);
        Ok(connections)
    }

    /// A connection that answers. One that was left in the middle of a transaction is thrown away here.
    pub(super) async fn take(&self) -> Result<Object<AsyncPgConnection>, Fault> {
        match tokio::time::timeout(self.timeout, self.pool.get()).await {
            Ok(connection) => connection.map_err(unreachable),
            Err(_) => Err(Fault::new(
                ErrorKind::Unreachable,
                "no connection within `publish_timeout_ms`; PostgreSQL does not answer, or `pool_size` is too small",
            )),
        }
    }

    /// Awaits `work` no longer than the limit.
    pub(super) async fn bounded<T>(
        &self,
        work: impl Future<Output = QueryResult<T>> + Send,
    ) -> Result<T, Fault> {
        match tokio::time::timeout(self.timeout, work).await {
            Ok(result) => Ok(result?),
            Err(_) => {
                let context = "the database did not answer within `publish_timeout_ms`";
                Err(Fault::new(ErrorKind::Unreachable, context))
            }
        }
    }
}

/// Returns the connection to the pool, or throws it away if it broke or did not answer.
pub(super) fn give_back<T>(
    connection: Object<AsyncPgConnection>,
    done: Result<T, Fault>,
) -> Result<T, Fault> {
    if done
        .as_ref()
        .is_err_and(|fault| fault.kind == ErrorKind::Unreachable)
    {
        drop(Object::take(connection));
    }
    done
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections")
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

async fn establish(url: String, timeout: Duration) -> diesel::ConnectionResult<AsyncPgConnection> {
    let mut connection = AsyncPgConnection::establish(&url).await?;
    // The server gives up what this program no longer waits for: a frozen program must not keep a topic
    // locked for the others.
    let limits = format!(
        "SET application_name = 'outbox-broker'; SET statement_timeout = {0}; \
         SET idle_in_transaction_session_timeout = {0}",
        timeout.as_millis().clamp(1, 1_000_000_000)
    );
    connection
        .batch_execute(&limits)
        .await
        .map_err(diesel::ConnectionError::CouldntSetupConfiguration)?;
    Ok(connection)
}

/// Why there is no connection. The texts are PostgreSQL's own.
fn unreachable(error: PoolError) -> Fault {
    let text = error.to_string();
    let is = |needles: &[&str]| needles.iter().any(|needle| text.contains(needle));
    let (kind, context) = if is(&["authentication", "password", "role \"", "pg_hba"]) {
        (
            ErrorKind::Unauthorized,
            "PostgreSQL refused the user; check user and password in `url`",
        )
    } else if text.contains("database \"") && text.contains("does not exist") {
        (
            ErrorKind::UnknownDestination,
            "the database that `url` names does not exist; create it",
        )
    } else if is(&[
        "invalid connection string",
        "invalid configuration",
        "invalid port",
    ]) {
        (
            ErrorKind::Invalid,
            "`url` cannot be read; write postgres://USER:PASSWORD@HOST:PORT/DATABASE",
        )
    } else if is(&["TLS"]) {
        (
            ErrorKind::Unsupported,
            "`url` asks for TLS, which this adapter does not offer; use sslmode=disable",
        )
    } else {
        (
            ErrorKind::Unreachable,
            "PostgreSQL cannot be reached; check that it runs, and `url`",
        )
    };
    Fault::caused(kind, context, error)
}
