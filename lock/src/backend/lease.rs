//! Locks in a table: the flow that the databases share.
//!
//! A row per key counts its tokens, and whoever asks for the key locks that row first; so the askers of one
//! key take turns, and those of different keys do not meet. Every call is one short transaction or one
//! statement, by the database's clock. Nothing is left in the session between calls.

pub(crate) mod decide;
mod renewal;
pub(crate) mod tables;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use diesel::QueryResult;
use diesel_async::{AsyncConnection, TransactionManager};

use self::decide::{Decision, Entry, Line};
use self::tables::{Bind, HOLDER, KEY, PLACE, Tables};
use super::{Acquire, Backend, Capabilities, Class, Hold, Release, Remint, Renew, Request, Shape, Wake};
use crate::connection::{Driver, Session, failed};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::migration::VERSION;
use crate::token::{FencingToken, Owner, RequestId};

/// How long a call may take. Chosen: far above a transaction of five statements, below a third of a usual ttl.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// How long a release is remembered, so that its repetition is recognised. Chosen: longer than any caller
/// goes on repeating one.
const LATCH: Duration = Duration::from_secs(60);

/// One grant in so many also removes what is over. Chosen: the rows in between cost less than the statement.
const SWEEP_EVERY: i64 = 32;

/// A lock service in a lease table; see [`PostgresBackend`](super::postgres::PostgresBackend),
/// [`MysqlBackend`](super::mysql::MysqlBackend) and [`SqliteBackend`](super::sqlite::SqliteBackend).
///
/// A row per key that was ever asked for stays in the table `lock_key`, because it counts the key's tokens.
pub struct LeaseBackend<D: Tables> {
    pool: D::Pool,
    call_limit: Duration,
}

impl<D: Tables> LeaseBackend<D> {
    pub(crate) const fn on(pool: D::Pool) -> Self {
        Self {
            pool,
            call_limit: CALL_LIMIT,
        }
    }

    /// How long a call may take, the wait for a connection included; then its connection is closed and the
    /// error is [`ErrorKind::Unavailable`]. Defaults to 5 s. Keep it below a third of the shortest ttl.
    #[must_use]
    pub const fn call_limit(mut self, limit: Duration) -> Self {
        self.call_limit = limit;
        self
    }

    /// Runs `work` on a connection. The connection goes back only if everything on it came to an end.
    async fn call<W: Work<D>>(&self, operation: &'static str, mut work: W) -> Result<W::Answer, Error> {
        let calling = async {
            let mut session = Session::<D>::open(&self.pool, operation).await?;
            // A statement ends before its caller gives up.
            let answer = work.run(session.connection(), self.call_limit * 4 / 5).await;
            let answer = answer.map_err(|error| failed(operation, error))?;
            session.end();
            Ok(answer)
        };
        tokio::time::timeout(self.call_limit, calling)
            .await
            .map_err(|_| {
                Error::new(
                    ErrorKind::Unavailable,
                    operation,
                    format!("the database did not answer within {:?}", self.call_limit),
                )
            })?
    }
}

/// What one call does on its connection.
trait Work<D: Tables>: Send {
    type Answer: Send;

    fn run(
        &mut self,
        connection: &mut D,
        limit: Duration,
    ) -> impl Future<Output = QueryResult<Self::Answer>> + Send;
}

/// The name of a class in the table.
const fn class(shape: Shape) -> &'static str {
    match shape.class() {
        Class::Exclusive => "exclusive",
        Class::ReadWrite => "shared",
        Class::Permit => "permit",
    }
}

/// Whether nobody else may be in the class at the same time.
const fn writes(shape: Shape) -> bool {
    matches!(shape, Shape::Exclusive | Shape::Write)
}

fn micros(duration: Duration) -> i64 {
    // Far beyond any ttl, and no overflow when the present time is added.
    i64::try_from(duration.as_micros())
        .unwrap_or(i64::MAX)
        .min(1 << 60)
}

async fn commit<D: Driver>(connection: &mut D) -> QueryResult<()> {
    <D as AsyncConnection>::TransactionManager::commit_transaction(connection).await
}

/// Everybody who holds or wants the key, and the key's counter. The key is ours until the transaction ends.
async fn enter<D: Tables>(
    connection: &mut D,
    limit: Duration,
    key: &Key,
    shape: Shape,
) -> QueryResult<(i64, Line)> {
    connection.begin_short(limit).await?;
    let (name, class) = (Bind::Text(key.as_str()), Bind::Text(class(shape)));
    connection.execute(D::SQL.enter, &[name]).await?;
    let rows = connection.rows(D::SQL.look, &[name, class]).await?;
    let (mut counter, mut line, mut numbered) = (0, Line::default(), Vec::new());
    if let Some(row) = rows.iter().find(|row| row.kind == KEY) {
        (counter, line.now) = (row.token, row.until);
    }
    for row in rows.into_iter().filter(|row| row.until > line.now) {
        let entry = Entry {
            owner: row.owner,
            writes: row.writes,
            token: row.token,
            until: row.until,
        };
        match row.kind {
            HOLDER => line.holders.push(entry),
            PLACE => numbered.push(entry),
            _ => {}
        }
    }
    numbered.sort_by_key(|place| place.token);
    line.places = numbered;
    Ok((counter, line))
}

struct Asking<'a>(&'a Request);

impl<D: Tables> Work<D> for Asking<'_> {
    type Answer = Result<i64, Duration>;

    async fn run(&mut self, connection: &mut D, limit: Duration) -> QueryResult<Self::Answer> {
        let request = self.0;
        let (counter, line) = enter(connection, limit, &request.key, request.shape).await?;
        let owner = request.owner.to_string();
        let identity = [
            Bind::Text(request.key.as_str()),
            Bind::Text(class(request.shape)),
            Bind::Text(&owner),
        ];
        let entry = |number, lasts| {
            let [name, class, owner] = identity;
            [
                name,
                class,
                owner,
                Bind::Flag(writes(request.shape)),
                Bind::Number(number),
                Bind::Number(micros(lasts)),
            ]
        };
        let answer = match line.decide(&owner, request.shape) {
            Decision::Again(token) => {
                connection
                    .execute(D::SQL.hold, &entry(token, request.ttl))
                    .await?;
                Ok(token)
            }
            Decision::Grant { had_place } => {
                connection
                    .execute(D::SQL.hold, &entry(counter, request.ttl))
                    .await?;
                if had_place {
                    connection.execute(D::SQL.unqueue, &identity).await?;
                }
                if counter % SWEEP_EVERY == 0 {
                    for sweep in D::SQL.sweep {
                        connection.execute(sweep, &identity[..1]).await?;
                    }
                }
                Ok(counter)
            }
            Decision::Wait { retry_after } => {
                if let Some(place) = request.place {
                    connection.execute(D::SQL.queue, &entry(counter, place)).await?;
                }
                Err(retry_after)
            }
        };
        commit(connection).await?;
        Ok(answer)
    }
}

struct Releasing<'a>(&'a Hold, RequestId);

impl<D: Tables> Work<D> for Releasing<'_> {
    type Answer = Release;

    /// One statement: it commits by itself.
    async fn run(&mut self, connection: &mut D, limit: Duration) -> QueryResult<Release> {
        let Self(hold, request) = self;
        let (owner, request) = (hold.owner.to_string(), request.to_string());
        let (name, request) = (Bind::Text(hold.key.as_str()), Bind::Text(&request));
        let end = [
            name,
            Bind::Text(class(hold.shape)),
            Bind::Text(&owner),
            request,
            Bind::Number(micros(LATCH)),
        ];
        connection.bound(limit).await?;
        let released = connection.execute(D::SQL.end, &end).await? > 0
            || connection.number(D::SQL.ended, &[name, request]).await? > 0;
        Ok(if released {
            Release::Released
        } else {
            Release::NotHeld
        })
    }
}

struct Leaving<'a>(&'a Key, Owner, Shape);

impl<D: Tables> Work<D> for Leaving<'_> {
    type Answer = ();

    /// Enters first: a grant that is being committed elsewhere is waited for and then ended.
    async fn run(&mut self, connection: &mut D, limit: Duration) -> QueryResult<()> {
        let Self(key, owner, shape) = *self;
        let (owner, nobody) = (owner.to_string(), RequestId::new().to_string());
        let identity = [
            Bind::Text(key.as_str()),
            Bind::Text(class(shape)),
            Bind::Text(&owner),
        ];
        connection.begin_short(limit).await?;
        connection.execute(D::SQL.enter, &identity[..1]).await?;
        connection.execute(D::SQL.unqueue, &identity).await?;
        let [name, class, owner] = identity;
        let end = [name, class, owner, Bind::Text(&nobody), Bind::Number(0)];
        connection.execute(D::SQL.end, &end).await?;
        commit(connection).await
    }
}

struct Reminting<'a>(&'a Hold, FencingToken);

impl<D: Tables> Work<D> for Reminting<'_> {
    type Answer = Option<i64>;

    async fn run(&mut self, connection: &mut D, limit: Duration) -> QueryResult<Option<i64>> {
        let Self(hold, above) = self;
        let (counter, line) = enter(connection, limit, &hold.key, hold.shape).await?;
        let owner = hold.owner.to_string();
        let mut minted = None;
        if line.holder(&owner).is_some() {
            let token = counter.max(above.get().saturating_add(1));
            let (name, number) = (Bind::Text(hold.key.as_str()), Bind::Number(token));
            let identity = [name, Bind::Text(class(hold.shape)), Bind::Text(&owner), number];
            connection.execute(D::SQL.count, &[name, number]).await?;
            connection.execute(D::SQL.mint, &identity).await?;
            minted = Some(token);
        }
        commit(connection).await?;
        Ok(minted)
    }
}

struct Looking;

impl<D: Tables> Work<D> for Looking {
    /// The version of the tables, and the answers to the questions about settings.
    type Answer = (i64, Vec<bool>);

    async fn run(&mut self, connection: &mut D, _: Duration) -> QueryResult<Self::Answer> {
        let version = connection.schema_version().await?;
        let mut answers = Vec::new();
        for (question, _, _) in D::SQL.settings {
            answers.push(connection.number(question, &[]).await? > 0);
        }
        Ok((version, answers))
    }
}

impl<D: Tables> fmt::Debug for LeaseBackend<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseBackend")
            .field("database", &D::DATABASE)
            .field("call_limit", &self.call_limit)
            .finish_non_exhaustive()
    }
}

fn minted(operation: &'static str, token: i64) -> Result<FencingToken, Error> {
    FencingToken::new(token).ok_or_else(|| {
        let damaged = "a counter below 1: a row of lock_key was changed by hand";
        Error::new(ErrorKind::Invalid, operation, damaged)
    })
}

#[async_trait]
impl<D: Tables> Backend for LeaseBackend<D> {
    fn name(&self) -> &'static str {
        D::DATABASE.as_str()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_write: true,
            permits: true,
            fair: true,
            wakes: false,
            durable: true,
        }
    }

    async fn check(&self) -> Result<Vec<String>, Error> {
        let (version, answers) = self.call("check", Looking).await?;
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Misconfigured,
                "check",
                format!(
                    "the tables of the lock have version {version}, this program needs {VERSION}: \
                     run outbox_lock::migrate, or update the program"
                ),
            ));
        }
        let mut warnings = Vec::new();
        for ((_, sentence, refuses), _) in D::SQL.settings.iter().zip(answers).filter(|(_, yes)| *yes) {
            if *refuses {
                return Err(Error::new(ErrorKind::Misconfigured, "check", *sentence));
            }
            warnings.push((*sentence).to_owned());
        }
        Ok(warnings)
    }

    async fn acquire(&self, request: &Request) -> Result<Acquire, Error> {
        if request.ttl < Duration::from_millis(1) {
            let refused = "a lock was asked for with a ttl below 1 ms: lengthen the ttl";
            return Err(Error::new(ErrorKind::Invalid, "acquire", refused));
        }
        if request.shape == (Shape::Permit { limit: 0 }) {
            let refused = "a semaphore of no permits grants nothing: raise its limit";
            return Err(Error::new(ErrorKind::Invalid, "acquire", refused));
        }
        match self.call("acquire", Asking(request)).await? {
            Ok(token) => Ok(Acquire::Granted {
                token: minted("acquire", token)?,
            }),
            Err(retry_after) => Ok(Acquire::Held { retry_after }),
        }
    }

    async fn renew(&self, holds: &[(Hold, Duration)]) -> Vec<Result<Renew, Error>> {
        renewal::renew(self, holds).await
    }

    async fn release(&self, hold: &Hold, request: RequestId) -> Result<Release, Error> {
        self.call("release", Releasing(hold, request)).await
    }

    async fn leave(&self, key: &Key, owner: Owner, shape: Shape) -> Result<(), Error> {
        self.call("leave", Leaving(key, owner, shape)).await
    }

    /// None: waiters ask again.
    async fn listen(&self, _: &Key, _: Owner, _: Shape) -> Result<Option<Wake>, Error> {
        Ok(None)
    }

    async fn remint(&self, hold: &Hold, above: FencingToken) -> Result<Remint, Error> {
        if above.get() == i64::MAX {
            let refused = "no token is above the highest one: the fence row of this resource was damaged";
            return Err(Error::new(ErrorKind::Invalid, "remint", refused));
        }
        match self.call("remint", Reminting(hold, above)).await? {
            Some(token) => Ok(Remint::Minted(minted("remint", token)?)),
            None => Ok(Remint::Lost),
        }
    }
}
