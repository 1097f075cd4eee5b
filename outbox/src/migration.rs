//! Tables of the outbox and of its companions, created and brought up to date.
//!
//! Every component numbers its own migrations from 1; the table `outbox_schema` holds the version of each.

use diesel_async::TransactionManager;

use crate::connection::{Connection, Database, Driver};
use crate::{Error, ErrorKind};

/// One step: a file of SQL statements.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// From 1, without gaps.
    pub version: i32,
    /// Statements separated by semicolons; they run in one transaction with the version's row.
    pub sql: &'static str,
}

/// The steps of a component, the same versions for every database.
#[derive(Debug, Clone, Copy)]
pub struct Migrations {
    /// The name in `outbox_schema`, such as `outbox`.
    pub component: &'static str,
    /// Steps for PostgreSQL.
    pub postgres: &'static [Migration],
    /// Steps for MySQL and MariaDB. DDL commits by itself there, so each statement must bear repetition.
    pub mysql: &'static [Migration],
    /// Steps for SQLite.
    pub sqlite: &'static [Migration],
}

impl Migrations {
    /// The steps for `database`.
    pub const fn steps(&self, database: Database) -> &'static [Migration] {
        match database {
            Database::Postgres => self.postgres,
            Database::Mysql => self.mysql,
            Database::Sqlite => self.sqlite,
        }
    }

    /// The version that this program knows.
    pub fn version(&self, database: Database) -> i32 {
        self.steps(database).last().map_or(0, |step| step.version)
    }
}

/// The tables of the outbox itself.
pub const OUTBOX: Migrations = Migrations {
    component: "outbox",
    postgres: &[Migration {
        version: 1,
        sql: include_str!("migrations/postgres/0001_outbox.sql"),
    }],
    mysql: &[Migration {
        version: 1,
        sql: include_str!("migrations/mysql/0001_outbox.sql"),
    }],
    sqlite: &[Migration {
        version: 1,
        sql: include_str!("migrations/sqlite/0001_outbox.sql"),
    }],
};

const fn schema_table(database: Database) -> &'static str {
    match database {
        Database::Postgres => include_str!("migrations/postgres/schema.sql"),
        Database::Mysql => include_str!("migrations/mysql/schema.sql"),
        Database::Sqlite => include_str!("migrations/sqlite/schema.sql"),
    }
}

/// The DDL of the newest version as text, for other migration tools, version row included.
pub const fn ddl(database: Database) -> &'static str {
    match database {
        Database::Postgres => concat!(
            include_str!("migrations/postgres/schema.sql"),
            include_str!("migrations/postgres/0001_outbox.sql"),
            "INSERT INTO outbox_schema (component, version) VALUES ('outbox', 1);\n",
        ),
        Database::Mysql => concat!(
            include_str!("migrations/mysql/schema.sql"),
            include_str!("migrations/mysql/0001_outbox.sql"),
            "INSERT INTO outbox_schema (component, version) VALUES ('outbox', 1);\n",
        ),
        Database::Sqlite => concat!(
            include_str!("migrations/sqlite/schema.sql"),
            include_str!("migrations/sqlite/0001_outbox.sql"),
            "INSERT INTO outbox_schema (component, version) VALUES ('outbox', 1);\n",
        ),
    }
}

/// Statements that divide an empty outbox of PostgreSQL into `shards`, each with a sequence of its own, so that
/// the positions of a shard are dense and a missing one means an open transaction or a rolled-back one.
///
/// Run them where nobody enqueues: a key may change its shard, so they refuse an outbox that is not empty. All
/// producers then say [`OutboxBuilder::shards`](crate::OutboxBuilder::shards) with the same number; a row of a
/// shard that is not there is refused.
///
/// # Errors
/// [`ErrorKind::Invalid`]: `shards` is not 1 to 256.
pub fn shards_ddl(shards: i16) -> Result<String, Error> {
    if !(1..=crate::shard::MAX_SHARDS).contains(&shards) {
        return Err(Error::new(
            ErrorKind::Invalid,
            "divide",
            format!("shards is {shards}; choose 1 to {}", crate::shard::MAX_SHARDS),
        ));
    }
    Ok(include_str!("migrations/postgres/shards.sql").replace("{shards}", &shards.to_string()))
}

/// Creates the tables of the outbox or brings them up to date; does nothing if they are.
///
/// # Errors
/// As [`run`].
pub async fn migrate<C: Connection>(connection: &mut C) -> Result<(), Error> {
    run(connection, &OUTBOX).await.map(|_| ())
}

/// Applies the steps of `migrations` that are missing, in one transaction, and returns how many there were.
/// MySQL commits DDL by itself: there a migration that was cut off is completed by the next.
///
/// Two migrators may run at once: the second waits for the first and finds nothing to do.
///
/// # Errors
/// [`ErrorKind::Schema`]: the database has a newer version than this program. On any error nothing is
/// changed. On SQLite set `PRAGMA busy_timeout`, or the second migrator fails instead of waiting.
pub async fn run<C: Connection>(connection: &mut C, migrations: &Migrations) -> Result<usize, Error> {
    let driver = connection.driver();
    driver.begin().await.map_err(failed)?;
    let applied = apply(driver, migrations).await;
    let ended = end(driver, applied).await;
    if let Err(error) = driver.unlock_schema().await {
        tracing::warn!(%error, "the lock of the schema is kept until the connection ends");
    }
    ended
}

async fn end<D: Driver>(driver: &mut D, applied: Result<usize, Error>) -> Result<usize, Error> {
    match applied {
        Ok(count) => {
            D::TransactionManager::commit_transaction(driver)
                .await
                .map_err(failed)?;
            Ok(count)
        }
        Err(error) => {
            if let Err(rollback) = D::TransactionManager::rollback_transaction(driver).await {
                tracing::warn!(error = %rollback, "rollback of a migration failed; the connection is unusable");
            }
            Err(error)
        }
    }
}

async fn apply<D: Driver>(connection: &mut D, migrations: &Migrations) -> Result<usize, Error> {
    connection.lock_schema().await.map_err(failed)?;
    connection
        .batch_execute(schema_table(D::DATABASE))
        .await
        .map_err(failed)?;
    let have = connection
        .schema_version(migrations.component)
        .await
        .map_err(failed)?;
    let know = migrations.version(D::DATABASE);
    if have > know {
        return Err(too_new(migrations.component, have, know));
    }
    let mut count = 0;
    for step in migrations
        .steps(D::DATABASE)
        .iter()
        .filter(|step| step.version > have)
    {
        connection.batch_execute(step.sql).await.map_err(failed)?;
        count += 1;
    }
    if count > 0 {
        connection
            .batch_execute(&format!(
                "DELETE FROM outbox_schema WHERE component = '{component}'; \
                 INSERT INTO outbox_schema (component, version) VALUES ('{component}', {know})",
                component = migrations.component.replace('\'', "''"),
            ))
            .await
            .map_err(failed)?;
        tracing::info!(
            component = migrations.component,
            version = know,
            "tables migrated"
        );
    }
    Ok(count)
}

pub(crate) fn too_new(component: &str, have: i32, know: i32) -> Error {
    Error::new(
        ErrorKind::Schema,
        "migrate",
        format!(
            "the tables of `{component}` have version {have}, this program knows {know}; update the program"
        ),
    )
}

fn failed(error: diesel::result::Error) -> Error {
    Error::database("migrate", error)
}
