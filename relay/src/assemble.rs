//! Where configuration becomes an adapter: one arm a database, one arm a broker.

use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(feature = "sqlite")]
use diesel::SqliteConnection;
use diesel_async::AsyncConnection;
#[cfg(feature = "mysql")]
use diesel_async::AsyncMysqlConnection;
#[cfg(feature = "postgres")]
use diesel_async::AsyncPgConnection;
#[cfg(feature = "sqlite")]
use diesel_async::SimpleAsyncConnection;
#[cfg(feature = "sqlite")]
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use outbox::Database;
use outbox::migration;
use outbox::relay::{self, RelayOptions, RetryPolicy};
use outbox::store::Store;
#[cfg(feature = "mysql")]
use outbox::store::mysql::{MysqlConfig, MysqlStore};
#[cfg(feature = "postgres")]
use outbox::store::postgres::{PostgresConfig, PostgresStore};
#[cfg(feature = "sqlite")]
use outbox::store::sqlite::{SqliteConfig, SqliteStore};
use outbox_broker::Publisher;
use outbox_broker::memory::MemoryBroker;
#[cfg(feature = "rabbitmq")]
use outbox_broker::rabbitmq::{RabbitMq, RabbitMqConfig};
#[cfg(feature = "redis")]
use outbox_broker::redis::{Redis, RedisConfig};
#[cfg(feature = "sql")]
use outbox_broker::sql::{SqlBroker, SqlConfig};

use crate::config::sink::Sink;
use crate::config::source::{OnExhausted, Source};
use crate::config::{Config, Secret, scheme_problem};
use crate::ops::report::Names;
use crate::stdout::StdoutPublisher;
use crate::{Error, ErrorKind};

/// The names of a source and of its sink.
pub(crate) fn names(config: &Config, name: &str, source: &Source) -> Names {
    let sink = config.sink_of(name).unwrap_or_default();
    Names {
        source: name.to_owned(),
        database: source.kind(),
        sink: sink.to_owned(),
        broker: config.sink.get(sink).map_or("", Sink::kind),
    }
}

/// A database, found but not connected.
pub(crate) enum Place {
    /// PostgreSQL.
    #[cfg(feature = "postgres")]
    Postgres(PostgresConfig),
    /// MariaDB or MySQL.
    #[cfg(feature = "mysql")]
    Mysql(MysqlConfig),
    /// SQLite.
    #[cfg(feature = "sqlite")]
    Sqlite(String),
}

/// Where a source's database is; follows the reference to its URL.
pub(crate) fn place(source: &Source) -> Result<Place, Error> {
    let url = revealed(&source.database().url, source.schemes())?;
    Ok(match source {
        #[cfg(feature = "postgres")]
        Source::Postgres(database) => {
            let mut config = PostgresConfig::new(url);
            config.poll_max = database.poll_interval;
            config.poll_min = config.poll_min.min(config.poll_max);
            Place::Postgres(config)
        }
        #[cfg(feature = "mysql")]
        Source::Mysql(database) => {
            let mut config = MysqlConfig::new(url);
            config.poll_max = database.poll_interval;
            config.poll_min = config.poll_min.min(config.poll_max);
            Place::Mysql(config)
        }
        #[cfg(feature = "sqlite")]
        Source::Sqlite(_) => Place::Sqlite(sqlite_path(&url).to_owned()),
    })
}

impl Place {
    /// Connects.
    pub(crate) async fn open(&self) -> Result<Arc<dyn Store>, outbox::Error> {
        Ok(match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(config) => Arc::new(PostgresStore::connect(config.clone()).await?),
            #[cfg(feature = "mysql")]
            Self::Mysql(config) => Arc::new(MysqlStore::connect(config.clone()).await?),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(path) => Arc::new(SqliteStore::connect(SqliteConfig::new(path)).await?),
        })
    }

    /// Brings the tables up to date and returns the number of steps that were missing.
    pub(crate) async fn migrate(&self) -> Result<usize, outbox::Error> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(config) => {
                // The store tells a wrong password from a server that is away; the migration only needs a
                // connection.
                PostgresStore::connect(config.clone()).await?;
                let mut connection = AsyncPgConnection::establish(&config.url)
                    .await
                    .map_err(|error| unreachable_database("the connection broke; try again", error))?;
                migration::run(&mut connection, &migration::OUTBOX).await
            }
            #[cfg(feature = "mysql")]
            Self::Mysql(config) => {
                MysqlStore::connect(config.clone()).await?;
                let url = config.url.replacen("mariadb://", "mysql://", 1);
                let mut connection = AsyncMysqlConnection::establish(&url)
                    .await
                    .map_err(|error| unreachable_database("the connection broke; try again", error))?;
                migration::run(&mut connection, &migration::OUTBOX).await
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite(path) => {
                let mut connection = SyncConnectionWrapper::<SqliteConnection>::establish(path)
                    .await
                    .map_err(|error| {
                        unreachable_database("the file cannot be opened; correct the path", error)
                    })?;
                // The application may be writing: wait for it, as its own statements do.
                connection.batch_execute("PRAGMA busy_timeout = 10000").await?;
                migration::run(&mut connection, &migration::OUTBOX).await
            }
        }
    }
}

fn unreachable_database(what: &'static str, error: diesel::ConnectionError) -> outbox::Error {
    outbox::Error::new(outbox::ErrorKind::Unreachable, "connect", what).with_cause(error)
}

/// The DDL of a source's tables.
pub(crate) fn ddl(source: &Source) -> &'static str {
    outbox::ddl(match source {
        #[cfg(feature = "postgres")]
        Source::Postgres(_) => Database::Postgres,
        #[cfg(feature = "mysql")]
        Source::Mysql(_) => Database::Mysql,
        #[cfg(feature = "sqlite")]
        Source::Sqlite(_) => Database::Sqlite,
    })
}

/// A publisher for every sink. None of them connects yet: a broker that is down does not stop the start.
pub(crate) fn publishers(config: &Config) -> Result<BTreeMap<String, Arc<dyn Publisher>>, Error> {
    let build = |(name, sink): (&String, &Sink)| Ok((name.clone(), publisher(name, sink)?));
    config.sink.iter().map(build).collect()
}

#[cfg_attr(
    not(any(feature = "rabbitmq", feature = "redis")),
    expect(unused_variables, reason = "names the sink in its errors")
)]
fn publisher(name: &str, sink: &Sink) -> Result<Arc<dyn Publisher>, Error> {
    let url = match sink.url() {
        Some((url, schemes)) => revealed(url, schemes)?,
        None => String::new(),
    };
    Ok(match sink {
        #[cfg(feature = "rabbitmq")]
        Sink::RabbitMq(settings) => {
            let config = RabbitMqConfig {
                exchange: settings.exchange.clone(),
                declare: settings.declare,
                window: settings.max_in_flight,
                publish_timeout: settings.timeout,
                ..RabbitMqConfig::new(url)
            };
            let broker = RabbitMq::new(config).map_err(|error| refused(name, &error))?;
            Arc::new(broker.publisher())
        }
        #[cfg(feature = "redis")]
        Sink::Redis(settings) => {
            let config = RedisConfig {
                prefix: settings.prefix.clone(),
                partitions: u16::try_from(settings.partitions).unwrap_or(u16::MAX),
                dedup_window: settings.dedup_window,
                replicas: settings.replicas,
                publish_timeout: settings.timeout,
                ..RedisConfig::new(url)
            };
            let broker = Redis::new(config).map_err(|error| refused(name, &error))?;
            Arc::new(broker.publisher())
        }
        #[cfg(feature = "sql")]
        Sink::Sql(settings) => {
            let config = SqlConfig::new(url).publish_timeout(settings.timeout);
            Arc::new(crate::sql_sink::SqlSink::new(config))
        }
        Sink::Memory(_) => Arc::new(MemoryBroker::new().publisher()),
        Sink::Stdout(_) => Arc::new(StdoutPublisher::default()),
    })
}

/// The settings of a sink do not fit its broker.
#[cfg(any(feature = "rabbitmq", feature = "redis"))]
fn refused(name: &str, error: &outbox_broker::Error) -> Error {
    let cause = crate::error::chain(error);
    Error::new(
        ErrorKind::Config,
        format!("sink {name}: {cause}; correct the section [sink.{name}]"),
    )
}

/// The DDL of a sink that keeps messages in tables.
pub(crate) fn sink_ddl(sink: &Sink) -> Result<Option<&'static str>, Error> {
    Ok(match sink {
        #[cfg(feature = "sql")]
        Sink::Sql(settings) => {
            let schemes = sink.url().map_or(&[][..], |(_, schemes)| schemes);
            let is_sqlite = revealed(&settings.url, schemes)?.starts_with("sqlite:");
            Some(if is_sqlite {
                outbox_broker::sql::SQLITE_DDL
            } else {
                outbox_broker::sql::POSTGRES_DDL
            })
        }
        _ => None,
    })
}

/// Creates the tables of a sink that keeps messages in tables; false: it has none.
#[cfg_attr(
    not(feature = "sql"),
    expect(unused_variables, reason = "names the sink in its errors")
)]
pub(crate) async fn migrate_sink(name: &str, sink: &Sink) -> Result<bool, Error> {
    match sink {
        #[cfg(feature = "sql")]
        Sink::Sql(settings) => {
            let migrate = async || {
                let url = revealed(&settings.url, sink.url().map_or(&[][..], |(_, schemes)| schemes))?;
                let broker = SqlBroker::connect(SqlConfig::new(url))
                    .await
                    .map_err(|error| sink_error(name, &error))?;
                broker.migrate().await.map_err(|error| sink_error(name, &error))
            };
            migrate().await.map(|()| true)
        }
        _ => Ok(false),
    }
}

/// An error of a sink's database, with the exit code that fits.
#[cfg(feature = "sql")]
fn sink_error(name: &str, error: &outbox_broker::Error) -> Error {
    use outbox_broker::ErrorKind as Broker;
    let (kind, remedy) = match error.kind() {
        Broker::Unreachable | Broker::OutcomeUnknown => {
            (ErrorKind::Unavailable, "start the database or correct the url")
        }
        Broker::Unauthorized | Broker::Invalid | Broker::Unsupported | Broker::UnknownDestination => {
            (ErrorKind::Config, "correct the url, user or grants")
        }
        _ => (ErrorKind::Failed, "see the cause"),
    };
    let cause = crate::error::chain(error);
    Error::new(kind, format!("sink {name}: {cause}; {remedy}"))
}

/// The value of a URL, wherever it is kept, with a beginning that fits its kind.
fn revealed(url: &Secret, schemes: &[&str]) -> Result<String, Error> {
    let value = url.reveal()?;
    match scheme_problem(&value, schemes) {
        None => Ok(value),
        Some(problem) => Err(Error::new(ErrorKind::Config, format!("{}: {problem}", url.at()))),
    }
}

/// The path in `sqlite:PATH` or `sqlite://PATH`.
#[cfg(feature = "sqlite")]
fn sqlite_path(url: &str) -> &str {
    let path = url.strip_prefix("sqlite:").unwrap_or(url);
    path.strip_prefix("//").unwrap_or(path)
}

/// How the relay of a source behaves.
pub(crate) fn options(config: &Config, name: &str, source: &Source) -> RelayOptions {
    let database = source.database();
    let retry = &database.retry;
    RelayOptions {
        source: name.to_owned(),
        batch_size: database.batch_size,
        max_in_flight: database.max_in_flight,
        max_bytes: database.max_bytes,
        lanes: database.lanes.unwrap_or(RelayOptions::default().lanes),
        poll_interval: database.poll_interval,
        lease_ttl: database.lease.ttl,
        retry: RetryPolicy {
            initial: retry.backoff.initial,
            max: retry.backoff.max,
            jitter: retry.backoff.jitter,
            max_attempts: retry.max_attempts,
        },
        on_exhausted: match retry.on_exhausted {
            OnExhausted::Block => relay::OnExhausted::Wait,
            OnExhausted::Skip => relay::OnExhausted::SkipAhead,
        },
        drain_timeout: config.shutdown.timeout,
        ..RelayOptions::default()
    }
}
