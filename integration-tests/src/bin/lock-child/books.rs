//! What a holder writes: the protected rows, and what it believed when.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use diesel::sql_types::{BigInt, Text};
use diesel::{QueryableByName, sql_query};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _};
use outbox_lock::{ErrorKind, FencingToken, Key, fence};
use tokio::time::Instant;

use crate::Arguments;

/// What came of the protected transaction.
pub(crate) enum Committed {
    Wrote,
    Fenced,
}

pub(crate) struct Books {
    connection: AsyncPgConnection,
    resource: String,
    name: String,
    token: i64,
}

#[derive(QueryableByName)]
struct Status {
    #[diesel(sql_type = Text)]
    status: String,
}

impl Books {
    pub(crate) async fn open(arguments: &Arguments) -> anyhow::Result<Self> {
        let connection = AsyncPgConnection::establish(&arguments.database)
            .await
            .context("no connection to the database")?;
        Ok(Self {
            connection,
            resource: arguments.key.clone(),
            name: arguments.name.clone(),
            token: 0,
        })
    }

    /// It holds the lock, as it believes, from now on.
    pub(crate) async fn granted(&mut self, token: FencingToken) -> anyhow::Result<()> {
        self.token = token.get();
        self.note("granted", now_us()).await
    }

    /// It stopped believing at that instant.
    pub(crate) async fn ended(&mut self, believed_until: Instant) -> anyhow::Result<()> {
        let late = Instant::now().saturating_duration_since(believed_until);
        let late_us = i64::try_from(late.as_micros()).unwrap_or(i64::MAX);
        self.note("ended", now_us().saturating_sub(late_us)).await
    }

    async fn note(&mut self, what: &str, at_us: i64) -> anyhow::Result<()> {
        sql_query("INSERT INTO history (resource, who, token, what, at_us) VALUES ($1, $2, $3, $4, $5)")
            .bind::<Text, _>(&self.resource)
            .bind::<Text, _>(&self.name)
            .bind::<BigInt, _>(self.token)
            .bind::<Text, _>(what)
            .bind::<BigInt, _>(at_us)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// The protected transaction: the fence first, then look and act.
    pub(crate) async fn commit(
        &mut self,
        key: &Key,
        token: Option<FencingToken>,
    ) -> anyhow::Result<Committed> {
        let (resource, name) = (self.resource.clone(), self.name.clone());
        let committed = self
            .connection
            .transaction::<_, outbox_lock::Error, _>(async |connection| {
                if let Some(token) = token {
                    fence(connection, key, token).await?;
                }
                sql_query("INSERT INTO writes (resource, who, token) VALUES ($1, $2, $3)")
                    .bind::<Text, _>(&resource)
                    .bind::<Text, _>(&name)
                    .bind::<BigInt, _>(token.map_or(0, FencingToken::get))
                    .execute(connection)
                    .await?;
                if status(connection, &resource).await? == "open" {
                    act(connection, &resource, &name).await?;
                }
                Ok(())
            })
            .await;
        match committed {
            Ok(()) => Ok(Committed::Wrote),
            Err(error) if error.kind() == ErrorKind::Fenced => Ok(Committed::Fenced),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether nobody acted yet.
    pub(crate) async fn is_open(&mut self) -> anyhow::Result<bool> {
        Ok(status(&mut self.connection, &self.resource).await? == "open")
    }

    /// Acts on what was seen before.
    pub(crate) async fn act(&mut self, name: &str) -> anyhow::Result<()> {
        act(&mut self.connection, &self.resource, name).await?;
        Ok(())
    }
}

async fn status(connection: &mut AsyncPgConnection, resource: &str) -> Result<String, diesel::result::Error> {
    let row: Status = sql_query("SELECT status FROM orders WHERE resource = $1")
        .bind::<Text, _>(resource)
        .get_result(connection)
        .await?;
    Ok(row.status)
}

async fn act(
    connection: &mut AsyncPgConnection,
    resource: &str,
    name: &str,
) -> Result<(), diesel::result::Error> {
    sql_query("INSERT INTO effects (resource, who) VALUES ($1, $2)")
        .bind::<Text, _>(resource)
        .bind::<Text, _>(name)
        .execute(connection)
        .await?;
    sql_query("UPDATE orders SET status = 'done' WHERE resource = $1")
        .bind::<Text, _>(resource)
        .execute(connection)
        .await?;
    Ok(())
}

fn now_us() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
