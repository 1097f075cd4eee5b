//! Connections of the store: made on demand, thrown away when in doubt.

use std::time::Duration;

use deadpool::managed::{self, Metrics, RecycleResult, Timeouts};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts, Row};
use tokio::time::timeout;

use super::config::MysqlConfig;
use super::error::{from_driver, is_deadlock};
use crate::{Error, ErrorKind};

/// A connection that rested for longer is asked whether it lives. Chosen: a relay at work never asks.
const RESTED: Duration = Duration::from_secs(1);

/// How often a script is repeated after a deadlock. Chosen: the relay's transactions last a millisecond and
/// lock rows in one order, so a second deadlock is a coincidence and a fourth a mistake.
const DEADLOCK_RETRIES: u32 = 3;

#[derive(Debug)]
pub(super) struct Manager {
    options: Opts,
}

impl managed::Manager for Manager {
    type Type = Conn;
    type Error = mysql_async::Error;

    async fn create(&self) -> Result<Conn, mysql_async::Error> {
        Conn::new(self.options.clone()).await
    }

    async fn recycle(&self, connection: &mut Conn, metrics: &Metrics) -> RecycleResult<mysql_async::Error> {
        if metrics.last_used() > RESTED {
            connection.ping().await?;
        }
        Ok(())
    }
}

#[derive(Clone)]
pub(super) struct Pool {
    pool: managed::Pool<Manager>,
    statement_timeout: Duration,
}

/// What one statement of a script gave.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) rows: Vec<Row>,
    pub(super) affected: u64,
}

impl Pool {
    pub(super) fn new(config: &MysqlConfig) -> Result<Self, Error> {
        let manager = Manager {
            options: config.driver()?,
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

    /// Runs a script on a connection, and gives that back if the script came to an answer.
    pub(super) async fn run(&self, operation: &'static str, script: &str) -> Result<Vec<Answer>, Error> {
        let mut session = self.session(operation).await?;
        let answers = session.run(script).await?;
        session.end(answers)
    }
}

/// A connection for one call. Dropped without [`Session::end`] (the call was cancelled, or has no answer) it
/// is closed, since nobody knows what it is doing; the server then rolls back what was open.
pub(super) struct Session {
    object: Option<managed::Object<Manager>>,
    operation: &'static str,
    statement_timeout: Duration,
}

impl Session {
    pub(super) fn connection(&mut self) -> &mut Conn {
        match &mut self.object {
            Some(object) => object,
            None => unreachable!("the object leaves in `end` and `drop` only, which own the session"),
        }
    }

    /// Runs `work` within the time a statement may take. The outer error leaves the session unusable.
    pub(super) async fn within<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Conn) -> Result<T, mysql_async::Error>,
    ) -> Result<Result<T, mysql_async::Error>, Error> {
        let limit = self.statement_timeout;
        let operation = self.operation;
        match timeout(limit, work(self.connection())).await {
            Ok(Err(error)) if error.is_fatal() => Err(from_driver(operation, error)),
            Ok(answer) => Ok(answer),
            Err(elapsed) => Err(Error::new(
                ErrorKind::Unreachable,
                operation,
                format!("no answer within {limit:?}; the connection is closed"),
            )
            .with_cause(elapsed)),
        }
    }

    /// Sends statements separated by semicolons in one flush; again after a deadlock. The first that fails
    /// ends the script, and what it began is rolled back.
    pub(super) async fn run(
        &mut self,
        script: &str,
    ) -> Result<Result<Vec<Answer>, mysql_async::Error>, Error> {
        let mut tried = 0;
        loop {
            let answers = self
                .within(async |connection| read(connection, script).await)
                .await?;
            let Err(error) = answers else {
                return Ok(answers);
            };
            if let Err(rollback) = self
                .within(async |connection| connection.query_drop("ROLLBACK").await)
                .await?
            {
                return Err(from_driver(self.operation, rollback));
            }
            if !is_deadlock(&error) || tried == DEADLOCK_RETRIES {
                return Ok(Err(error));
            }
            tried += 1;
            tracing::debug!(operation = self.operation, tried, "a deadlock; once more");
        }
    }

    /// Gives the connection back to the pool, and translates the answer of the server.
    pub(super) fn end<T>(mut self, answer: Result<T, mysql_async::Error>) -> Result<T, Error> {
        drop(self.object.take());
        answer.map_err(|error| from_driver(self.operation, error))
    }
}

async fn read(connection: &mut Conn, script: &str) -> Result<Vec<Answer>, mysql_async::Error> {
    let mut result = connection.query_iter(script).await?;
    let mut answers = Vec::new();
    loop {
        let affected = result.affected_rows();
        let rows = result.collect::<Row>().await?;
        answers.push(Answer { rows, affected });
        if result.is_empty() {
            return Ok(answers);
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
