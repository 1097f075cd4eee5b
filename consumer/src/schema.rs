//! The inbox tables: created by [`migrate`], or by another tool from [`ddl`].

use outbox::Database;
use outbox::migration::{Migration, Migrations};

use crate::{Connection, Error, ErrorKind};

/// The steps of the component `consumer`, for the migration runner of `outbox`.
pub const MIGRATIONS: Migrations = Migrations {
    component: "consumer",
    postgres: &[Migration {
        version: 1,
        sql: include_str!("migrations/0001_postgres.sql"),
    }],
    mysql: &[Migration {
        version: 1,
        sql: include_str!("migrations/0001_mysql.sql"),
    }],
    sqlite: &[Migration {
        version: 1,
        sql: include_str!("migrations/0001_sqlite.sql"),
    }],
};

/// The DDL of the newest version as text, for other migration tools. It writes no version row.
pub const fn ddl(database: Database) -> &'static str {
    match database {
        Database::Sqlite => include_str!("migrations/0001_sqlite.sql"),
        Database::Mysql => include_str!("migrations/0001_mysql.sql"),
        _ => include_str!("migrations/0001_postgres.sql"),
    }
}

/// Creates the inbox tables or brings them up to date; does nothing if they are.
///
/// # Errors
/// [`ErrorKind::Schema`]: the tables are newer than this program, or the database refused the DDL. Nothing
/// is changed then.
pub async fn migrate<C: Connection>(connection: &mut C) -> Result<(), Error> {
    outbox::migration::run(connection, &MIGRATIONS)
        .await
        .map(|_| ())
        .map_err(|error| {
            Error::new(
                ErrorKind::Schema,
                "migrate",
                "the inbox tables could not be brought up to date",
            )
            .with_cause(error)
        })
}
