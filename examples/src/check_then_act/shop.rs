//! Payments and their charges, in one database.

use anyhow::Context as _;
use async_trait::async_trait;
use diesel::sqlite::SqliteConnection;
use diesel::{ExpressionMethods, QueryDsl};
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use outbox_lock::{Error, FencingToken, Key, fence};

diesel::table! {
    check_then_act_payments (id) {
        id -> BigInt,
        status -> Text,
    }
}

diesel::table! {
    check_then_act_charges (payment, worker) {
        payment -> BigInt,
        worker -> Text,
    }
}

use check_then_act_charges as charges;
use check_then_act_payments as payments;

const SCHEMA: &str = "
    DROP TABLE IF EXISTS check_then_act_payments;
    DROP TABLE IF EXISTS check_then_act_charges;
    CREATE TABLE check_then_act_payments (id bigint NOT NULL PRIMARY KEY, status text NOT NULL);
    CREATE TABLE check_then_act_charges (payment bigint NOT NULL, worker text NOT NULL);";

/// What a worker does with the database.
#[async_trait]
pub(crate) trait Shop: Send {
    /// Makes the tables anew, with those of the fence.
    async fn create(&mut self) -> anyhow::Result<()>;

    /// A payment that nobody has charged.
    async fn place(&mut self, payment: i64) -> anyhow::Result<()>;

    /// The check.
    async fn is_open(&mut self, payment: i64) -> anyhow::Result<bool>;

    /// The act, in one transaction. With a token, the transaction shows it to the database first.
    async fn charge(
        &mut self,
        payment: i64,
        worker: &str,
        shown: Option<(&Key, FencingToken)>,
    ) -> Result<(), Error>;

    /// The payment of every charge.
    async fn charges(&mut self) -> anyhow::Result<Vec<i64>>;
}

/// The same statements for each kind of connection.
macro_rules! shop {
    ($name:ident, $connection:ty) => {
        #[async_trait]
        impl Shop for $name {
            async fn create(&mut self) -> anyhow::Result<()> {
                self.0.batch_execute(SCHEMA).await?;
                outbox_lock::migrate(&mut self.0).await?;
                Ok(())
            }

            async fn place(&mut self, payment: i64) -> anyhow::Result<()> {
                diesel::insert_into(payments::table)
                    .values((payments::id.eq(payment), payments::status.eq("open")))
                    .execute(&mut self.0)
                    .await?;
                Ok(())
            }

            async fn is_open(&mut self, payment: i64) -> anyhow::Result<bool> {
                let status: String = payments::table
                    .find(payment)
                    .select(payments::status)
                    .first(&mut self.0)
                    .await?;
                Ok(status == "open")
            }

            async fn charge(
                &mut self,
                payment: i64,
                worker: &str,
                shown: Option<(&Key, FencingToken)>,
            ) -> Result<(), Error> {
                let (worker, shown) = (
                    worker.to_owned(),
                    shown.map(|(key, token)| (key.clone(), token)),
                );
                self.0
                    .transaction::<_, Error, _>(async move |tx: &mut $connection| {
                        if let Some((key, token)) = shown {
                            fence(tx, &key, token).await?;
                        }
                        diesel::insert_into(charges::table)
                            .values((charges::payment.eq(payment), charges::worker.eq(worker)))
                            .execute(tx)
                            .await?;
                        diesel::update(payments::table.find(payment))
                            .set(payments::status.eq("paid"))
                            .execute(tx)
                            .await?;
                        Ok(())
                    })
                    .await
            }

            async fn charges(&mut self) -> anyhow::Result<Vec<i64>> {
                Ok(charges::table
                    .select(charges::payment)
                    .load(&mut self.0)
                    .await?)
            }
        }
    };
}

type AsyncSqlite = SyncConnectionWrapper<SqliteConnection>;

/// Payments in a file.
pub(crate) struct Sqlite(AsyncSqlite);

impl Sqlite {
    pub(crate) async fn open(file: &str) -> anyhow::Result<Self> {
        let mut connection = AsyncSqlite::establish(file)
            .await
            .with_context(|| format!("cannot open {file}"))?;
        connection
            .batch_execute("PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL;")
            .await?;
        Ok(Self(connection))
    }
}

shop!(Sqlite, AsyncSqlite);

/// Payments on a server.
#[cfg(feature = "servers")]
pub(crate) struct Postgres(diesel_async::AsyncPgConnection);

#[cfg(feature = "servers")]
impl Postgres {
    pub(crate) async fn open(url: &str) -> anyhow::Result<Self> {
        let connection = diesel_async::AsyncPgConnection::establish(url).await;
        Ok(Self(connection.context("cannot connect to PostgreSQL")?))
    }
}

#[cfg(feature = "servers")]
shop!(Postgres, diesel_async::AsyncPgConnection);
