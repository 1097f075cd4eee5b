//! The tables of the lock, created and brought up to date.
//!
//! The table `outbox_schema`, which other components share, holds their version.

use diesel_async::{AsyncConnection, TransactionManager};

use crate::connection::{Connection, Database, Driver, failed};
use crate::error::{Error, ErrorKind};

/// The name in `outbox_schema`.
const COMPONENT: &str = "lock";

/// The version that this program knows.
pub(crate) const VERSION: i64 = 1;

/// Steps from version 1 without gaps. On MySQL and MariaDB, where a statement that changes tables commits by
/// itself, each statement can be repeated.
const fn steps(database: Database) -> &'static [&'static str] {
    match database {
        Database::Postgres => &[include_str!("migrations/postgres/0001_lock.sql")],
        Database::Mysql => &[include_str!("migrations/mysql/0001_lock.sql")],
        Database::Sqlite => &[include_str!("migrations/sqlite/0001_lock.sql")],
    }
}

const fn schema_table(database: Database) -> &'static str {
    match database {
        Database::Postgres => include_str!("migrations/postgres/schema.sql"),
        Database::Mysql => include_str!("migrations/mysql/schema.sql"),
        Database::Sqlite => include_str!("migrations/sqlite/schema.sql"),
    }
}

/// Writes down the version; a migrator that was overtaken does not lower it.
const fn record(database: Database) -> &'static str {
    match database {
        Database::Postgres | Database::Sqlite => {
            "INSERT INTO outbox_schema (component, version) VALUES ('lock', 1) \
             ON CONFLICT (component) DO UPDATE SET version = excluded.version, applied_at = excluded.applied_at"
        }
        Database::Mysql => {
            "INSERT INTO outbox_schema (component, version) VALUES ('lock', 1) \
             ON DUPLICATE KEY UPDATE version = GREATEST(version, VALUES(version)), \
             applied_at = VALUES(applied_at)"
        }
    }
}

/// The DDL of the newest version as text, for other migration tools, version row included.
pub const fn ddl(database: Database) -> &'static str {
    match database {
        Database::Postgres => concat!(
            include_str!("migrations/postgres/schema.sql"),
            include_str!("migrations/postgres/0001_lock.sql"),
            "INSERT INTO outbox_schema (component, version) VALUES ('lock', 1);\n",
        ),
        Database::Mysql => concat!(
            include_str!("migrations/mysql/schema.sql"),
            include_str!("migrations/mysql/0001_lock.sql"),
            "INSERT INTO outbox_schema (component, version) VALUES ('lock', 1);\n",
        ),
        Database::Sqlite => concat!(
            include_str!("migrations/sqlite/schema.sql"),
            include_str!("migrations/sqlite/0001_lock.sql"),
            "INSERT INTO outbox_schema (component, version) VALUES ('lock', 1);\n",
        ),
    }
}

/// Creates the tables of the lock or brings them up to date; does nothing if they are.
///
/// Two migrators may run at once.
///
/// # Errors
/// [`ErrorKind::Misconfigured`]: the database has a newer version than this program. On any error nothing is
/// changed, except on MySQL and MariaDB, where the next run continues. On SQLite set `PRAGMA busy_timeout`,
/// or a second migrator fails instead of waiting.
pub async fn migrate<C: Connection>(connection: &mut C) -> Result<(), Error> {
    let driver = connection.driver();
    let refused = |error| failed("migrate", error);
    driver.begin().await.map_err(refused)?;
    let applied = apply(driver).await;
    if let Err(error) = applied {
        if let Err(rollback) =
            <C::Driver as AsyncConnection>::TransactionManager::rollback_transaction(driver).await
        {
            tracing::warn!(error = %rollback, "rollback of a migration failed; the connection is unusable");
        }
        return Err(error);
    }
    <C::Driver as AsyncConnection>::TransactionManager::commit_transaction(driver)
        .await
        .map_err(refused)
}

async fn apply<D: Driver>(connection: &mut D) -> Result<(), Error> {
    let refused = |error| failed("migrate", error);
    connection.lock_schema().await.map_err(refused)?;
    connection
        .batch_execute(schema_table(D::DATABASE))
        .await
        .map_err(refused)?;
    let have = connection.schema_version().await.map_err(refused)?;
    if have > VERSION {
        return Err(Error::new(
            ErrorKind::Misconfigured,
            "migrate",
            format!(
                "the tables of `{COMPONENT}` have version {have}, this program knows {VERSION}; update the program"
            ),
        ));
    }
    let done = usize::try_from(have).unwrap_or(0);
    let missing = steps(D::DATABASE).get(done..).unwrap_or_default();
    if missing.is_empty() {
        return Ok(());
    }
    for step in missing {
        connection.batch_execute(step).await.map_err(refused)?;
    }
    connection
        .batch_execute(record(D::DATABASE))
        .await
        .map_err(refused)?;
    tracing::info!(component = COMPONENT, version = VERSION, "tables migrated");
    Ok(())
}
