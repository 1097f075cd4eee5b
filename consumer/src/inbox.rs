//! The database the inbox lives in, and connections lent from its pool.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::{Object, Pool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::{Connection, Error, ErrorKind};

/// How long a lane waits for a connection. Chosen: longer than a burst, shorter than a redelivery.
const CHECKOUT: Duration = Duration::from_secs(10);

/// A pool of connections to the database that holds both the inbox and the handler's tables.
pub struct Inbox<C: Connection> {
    pool: Pool<C::Manager>,
    writer: Option<Arc<Semaphore>>,
}

impl<C: Connection> Clone for Inbox<C> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            writer: self.writer.clone(),
        }
    }
}

impl<C: Connection> fmt::Debug for Inbox<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("connections", &self.pool.status().max_size)
            .finish_non_exhaustive()
    }
}

impl<C: Connection> Inbox<C> {
    fn over(pool: Pool<C::Manager>) -> Self {
        Self {
            pool,
            writer: C::ONE_WRITER.then(|| Arc::new(Semaphore::new(1))),
        }
    }

    /// The pool behind the inbox.
    pub const fn pool(&self) -> &Pool<C::Manager> {
        &self.pool
    }

    /// Creates the inbox tables or brings them up to date.
    ///
    /// # Errors
    /// As [`migrate`](crate::migrate); or no connection was to be had.
    pub async fn migrate(&self) -> Result<(), Error> {
        let mut lent = self.lend().await?;
        let outcome = crate::migrate(&mut *lent).await;
        if outcome.is_ok() {
            lent.give_back();
        }
        outcome
    }

    /// Lends a connection; it returns to the pool only through [`Lent::give_back`].
    pub(crate) async fn lend(&self) -> Result<Lent<C>, Error> {
        let writer = match &self.writer {
            None => None,
            Some(writer) => Some(writer.clone().acquire_owned().await.map_err(|error| {
                Error::new(ErrorKind::Unreachable, "connect", "the inbox is closed").with_cause(error)
            })?),
        };
        let object = match timeout(CHECKOUT, self.pool.get()).await {
            Ok(Ok(object)) => object,
            Ok(Err(error)) => {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    "connect",
                    "the database gave no connection; check that it runs and that its address is right",
                )
                .with_cause(error));
            }
            Err(late) => {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    "connect",
                    "no connection became free in time; give the pool more, or the consumer fewer lanes",
                )
                .with_cause(late));
            }
        };
        Ok(Lent {
            object: Some(object),
            _writer: writer,
        })
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use diesel_async::AsyncPgConnection;
    use diesel_async::pooled_connection::deadpool::Pool;
    use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};

    use super::{Error, ErrorKind, Inbox};

    impl From<Pool<AsyncPgConnection>> for Inbox<AsyncPgConnection> {
        fn from(pool: Pool<AsyncPgConnection>) -> Self {
            Self::over(pool)
        }
    }

    impl Inbox<AsyncPgConnection> {
        /// An inbox in the PostgreSQL database at `url`, with at most `connections` connections.
        ///
        /// One connection a lane or worker is enough. Connections are made when needed; they are not tested
        /// with a query before each use, a dead one is noticed and replaced when a transaction begins.
        ///
        /// # Errors
        /// [`ErrorKind::Invalid`]: the pool cannot be built.
        pub fn postgres(url: impl Into<String>, connections: usize) -> Result<Self, Error> {
            let mut config = ManagerConfig::default();
            config.recycling_method = RecyclingMethod::Fast;
            let manager = AsyncDieselConnectionManager::new_with_config(url, config);
            Pool::builder(manager)
                .max_size(connections.max(1))
                .build()
                .map(Self::over)
                .map_err(|error| {
                    Error::new(ErrorKind::Invalid, "build", "the pool cannot be built").with_cause(error)
                })
        }
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::path::Path;

    use diesel::sqlite::SqliteConnection;
    use diesel_async::pooled_connection::deadpool::Pool;
    use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
    use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
    use diesel_async::{AsyncConnection, SimpleAsyncConnection};
    use futures::FutureExt;

    use super::{Error, ErrorKind, Inbox};

    type Wrapped = SyncConnectionWrapper<SqliteConnection>;

    /// Readers beside the writer; synchronous=FULL so that a commit is on the disk before its ack;
    /// busy_timeout 5 s because the file has other writers: producers, the relay, the sql broker.
    const PRAGMAS: &str = "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                           PRAGMA foreign_keys = ON;";

    impl From<Pool<Wrapped>> for Inbox<Wrapped> {
        fn from(pool: Pool<Wrapped>) -> Self {
            Self::over(pool)
        }
    }

    impl Inbox<Wrapped> {
        /// An inbox in the SQLite file at `path`: WAL, synchronous=FULL, busy_timeout 5 s.
        ///
        /// The handler's transactions queue for the one writer inside this process; two connections let a
        /// cut one close while the next begins.
        ///
        /// # Errors
        /// [`ErrorKind::Invalid`]: the path is no text, or the pool cannot be built.
        pub fn sqlite(path: impl AsRef<Path>) -> Result<Self, Error> {
            let path = path.as_ref().to_str().ok_or_else(|| {
                Error::new(
                    ErrorKind::Invalid,
                    "build",
                    "the path of the database is not UTF-8",
                )
            })?;
            let mut config = ManagerConfig::default();
            config.recycling_method = RecyclingMethod::Fast;
            config.custom_setup = Box::new(|path| {
                async move {
                    let mut connection = Wrapped::establish(path).await?;
                    connection
                        .batch_execute(PRAGMAS)
                        .await
                        .map_err(diesel::ConnectionError::CouldntSetupConfiguration)?;
                    Ok(connection)
                }
                .boxed()
            });
            let manager = AsyncDieselConnectionManager::new_with_config(path, config);
            Pool::builder(manager)
                .max_size(2)
                .build()
                .map(Self::over)
                .map_err(|error| {
                    Error::new(ErrorKind::Invalid, "build", "the pool cannot be built").with_cause(error)
                })
        }
    }
}

/// A connection out of the pool. Dropped, it is closed: whatever transaction was cut off ends with it.
pub(crate) struct Lent<C: Connection> {
    object: Option<Object<C::Manager>>,
    _writer: Option<OwnedSemaphorePermit>,
}

impl<C: Connection> Lent<C> {
    /// Returns the connection to the pool; nothing may be open on it.
    pub(crate) fn give_back(mut self) {
        drop(self.object.take());
    }
}

impl<C: Connection> Drop for Lent<C> {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
        }
    }
}

#[expect(
    clippy::expect_used,
    reason = "the object is taken only by give_back and drop, which consume the loan"
)]
impl<C: Connection> Deref for Lent<C> {
    type Target = C;

    fn deref(&self) -> &C {
        self.object.as_ref().expect("the connection is lent")
    }
}

#[expect(
    clippy::expect_used,
    reason = "the object is taken only by give_back and drop, which consume the loan"
)]
impl<C: Connection> DerefMut for Lent<C> {
    fn deref_mut(&mut self) -> &mut C {
        self.object.as_mut().expect("the connection is lent")
    }
}
