//! Connections of the store: made on demand, thrown away when in doubt.

use std::time::Duration;

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult, Timeouts};
use tokio::time::error::Elapsed;
use tokio_postgres::{Client, NoTls};

use super::config::PostgresConfig;
use super::error::from_driver;
use crate::{Error, ErrorKind};

#[derive(Debug)]
pub(super) struct Manager {
    config: tokio_postgres::Config,
}

impl managed::Manager for Manager {
    type Type = Client;
    type Error = tokio_postgres::Error;

    async fn create(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.config.connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection of the outbox store ended");
            }
        });
        Ok(client)
    }

    async fn recycle(&self, client: &mut Client, _: &Metrics) -> RecycleResult<tokio_postgres::Error> {
        if client.is_closed() {
            return Err(RecycleError::message("closed"));
        }
        Ok(())
    }
}

#[derive(Clone)]
pub(super) struct Pool {
    pool: managed::Pool<Manager>,
    statement_timeout: Duration,
}

impl Pool {
    pub(super) fn new(config: &PostgresConfig) -> Result<Self, Error> {
        let manager = Manager {
            config: config.driver()?,
        };
        let pool = managed::Pool::builder(manager)
            .max_size(config.connections.max(1))
            .timeouts(Timeouts {
                wait: Some(config.statement_timeout),
                create: Some(config.connect_timeout),
                recycle: Some(config.connect_timeout),
            })
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Invalid, "connect", "the pool cannot be built").with_cause(error)
            })?;
        Ok(Self {
            pool,
            statement_timeout: config.statement_timeout,
        })
    }

    pub(super) async fn session(&self, operation: &'static str) -> Result<Session, Error> {
        match self.pool.get().await {
            Ok(object) => Ok(Session {
                object: Some(object),
                operation,
                statement_timeout: self.statement_timeout,
            }),
            Err(managed::PoolError::Backend(error)) => Err(from_driver(operation, error)),
            Err(error) => Err(Error::new(
                ErrorKind::Unreachable,
                operation,
                "no connection to the database in time",
            )
            .with_cause(error)),
        }
    }
}

/// A connection for one call. Dropped without [`Session::end`] (the call was cancelled) it is closed, since
/// nobody knows what it is doing.
pub(super) struct Session {
    object: Option<managed::Object<Manager>>,
    operation: &'static str,
    statement_timeout: Duration,
}

impl Session {
    pub(super) fn client(&self) -> &Client {
        match &self.object {
            Some(object) => object,
            None => unreachable!("the object leaves in `end` and `drop` only, which own the session"),
        }
    }

    /// Gives the connection back to the pool if the call came to an answer, and translates that answer.
    pub(super) fn end<T>(
        mut self,
        outcome: Result<Result<T, tokio_postgres::Error>, Elapsed>,
    ) -> Result<T, Error> {
        match outcome {
            Ok(answer) => {
                // An answer, even an error, comes after the transaction's end. The pool refuses closed ones.
                drop(self.object.take());
                answer.map_err(|error| from_driver(self.operation, error))
            }
            Err(elapsed) => Err(Error::new(
                ErrorKind::Unreachable,
                self.operation,
                format!(
                    "no answer within {:?}; the connection is closed",
                    self.statement_timeout
                ),
            )
            .with_cause(elapsed)),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(managed::Object::take(object));
        }
    }
}
