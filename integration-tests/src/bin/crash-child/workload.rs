//! The rows both sides write, once per kind of connection.

use std::time::Duration;

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use outbox::Outbox;
use outbox::store::Store;
use outbox_consumer::{Handler, HandlerError};
use serde::{Deserialize, Serialize};

use crate::{Arguments, Role};

/// The SQLite connection of the consumer and the producer.
pub(crate) type Sqlite =
    diesel_async::sync_connection_wrapper::SyncConnectionWrapper<diesel::SqliteConnection>;

/// A life that has not finished by then says why and fails.
const DEADLINE: Duration = Duration::from_secs(90);

/// One step of one key.
#[derive(Debug, Serialize, Deserialize)]
struct Step {
    key: String,
    sequence: i64,
}

/// Writes each step to `effects`.
pub(crate) struct Apply;

#[derive(diesel::QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// The same code for two connection types: diesel's bounds over both at once are longer than the code.
macro_rules! workload {
    ($module:ident, $connection:ty, $schema:expr, $produce:expr, $apply:expr, $last:expr) => {
        pub(crate) mod $module {
            use super::*;

            #[async_trait]
            impl Handler<$connection> for Apply {
                async fn handle(
                    &self,
                    tx: &mut $connection,
                    context: &outbox_consumer::Context<'_>,
                ) -> Result<(), HandlerError> {
                    let step: Step = context.json()?;
                    diesel::sql_query($apply)
                        .bind::<Text, _>(step.key)
                        .bind::<BigInt, _>(step.sequence)
                        .execute(tx)
                        .await?;
                    Ok(())
                }
            }

            /// Creates every table a life needs. Processes that only relay leave the workload's own to the
            /// one that works: `IF NOT EXISTS` does not keep two of them apart, as a migration does.
            pub(crate) async fn prepare(
                connection: &mut $connection,
                arguments: &Arguments,
            ) -> anyhow::Result<()> {
                if arguments.role != Role::Relay {
                    connection.batch_execute($schema).await.context("cannot create the workload's tables")?;
                }
                outbox::migrate(connection).await?;
                outbox_consumer::migrate(connection).await?;
                Ok(())
            }

            /// Produces what earlier lives have not, a transaction each, keys in turn.
            pub(crate) async fn produce(
                connection: &mut $connection,
                outbox: &Outbox,
                arguments: &Arguments,
            ) -> anyhow::Result<()> {
                let mut next = Vec::new();
                for key in 0..arguments.keys {
                    let key = format!("key-{key}");
                    let last: Count =
                        diesel::sql_query($last).bind::<Text, _>(&key).get_result(connection).await?;
                    next.push((key, last.count));
                }
                for sequence in 1..=arguments.per_key {
                    for (key, last) in &next {
                        if sequence <= *last {
                            continue;
                        }
                        let step = Step { key: key.clone(), sequence };
                        let message =
                            outbox.message(&arguments.topic, "step").key(key).json(&step).build()?;
                        outbox
                            .transaction(connection, async |tx| {
                                diesel::sql_query($produce)
                                    .bind::<Text, _>(key)
                                    .bind::<BigInt, _>(sequence)
                                    .execute(tx.connection())
                                    .await?;
                                tx.enqueue(message)?;
                                anyhow::Ok(())
                            })
                            .await?;
                    }
                }
                Ok(())
            }

            /// Returns once every produced step has an effect and the outbox is empty.
            pub(crate) async fn settle(
                connection: &mut $connection,
                store: &dyn Store,
                arguments: &Arguments,
            ) -> anyhow::Result<()> {
                let wanted = i64::from(arguments.keys) * arguments.per_key;
                let begun = tokio::time::Instant::now();
                loop {
                    let distinct: Count = diesel::sql_query(
                        "SELECT count(*) AS count FROM (SELECT DISTINCT step_key, step FROM effects) AS seen",
                    )
                    .get_result(connection)
                    .await?;
                    let backlog = store.backlog().await?;
                    if distinct.count >= wanted && backlog.is_drained() {
                        return Ok(());
                    }
                    if begun.elapsed() > DEADLINE {
                        bail!(
                            "not settled after {DEADLINE:?}: {} of {wanted} steps have an effect, {backlog:?}",
                            distinct.count
                        );
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    };
}

workload!(
    sqlite,
    Sqlite,
    "CREATE TABLE IF NOT EXISTS produced (step_key TEXT NOT NULL, step INTEGER NOT NULL, PRIMARY KEY (step_key, step));
     CREATE TABLE IF NOT EXISTS effects (number INTEGER PRIMARY KEY AUTOINCREMENT, step_key TEXT NOT NULL, step INTEGER NOT NULL);",
    "INSERT INTO produced (step_key, step) VALUES (?, ?)",
    "INSERT INTO effects (step_key, step) VALUES (?, ?)",
    "SELECT coalesce(max(step), 0) AS count FROM produced WHERE step_key = ?"
);

workload!(
    postgres,
    AsyncPgConnection,
    "CREATE TABLE IF NOT EXISTS produced (step_key text NOT NULL, step bigint NOT NULL, PRIMARY KEY (step_key, step));
     CREATE TABLE IF NOT EXISTS effects (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, step_key text NOT NULL, step bigint NOT NULL);",
    "INSERT INTO produced (step_key, step) VALUES ($1, $2)",
    "INSERT INTO effects (step_key, step) VALUES ($1, $2)",
    "SELECT coalesce(max(step), 0) AS count FROM produced WHERE step_key = $1"
);
