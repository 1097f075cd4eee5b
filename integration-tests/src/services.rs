//! Real servers on demand, each proven to be ours before a test writes to it.
//!
//! A service is looked for in this order, and the way found is printed once per test process:
//!
//! 1. a URL in the environment: `OUTBOX_TEST_POSTGRES_URL`, `OUTBOX_TEST_MARIADB_URL`,
//!    `OUTBOX_TEST_RABBITMQ_URL`, `OUTBOX_TEST_REDIS_URL`;
//! 2. with the feature `docker`, a container, if a Docker engine answers;
//! 3. local binaries, started on a free port of 127.0.0.1 in a directory of their own (Linux);
//! 4. else the test skips itself loudly ([`or_skip!`](crate::or_skip)), or fails if `OUTBOX_TEST_REQUIRE`
//!    (a comma-separated list of services, or `all`) names the service.
//!
//! Nothing is ever downloaded for the private way. One server serves all tests of a process; each test gets a
//! database, virtual host or keyspace of its own. A test that stops, freezes or kills a server asks for one
//! that no other test uses (`own_postgres` and the like).
//!
//! A private server dies with the test process, even on SIGKILL, and its directory goes with it.
//! `OUTBOX_TEST_KEEP=1` leaves servers and databases running for inspection.

#[cfg(feature = "docker")]
mod docker;
mod error;
mod local;
pub mod mariadb;
pub mod pgbouncer;
pub mod postgres;
mod process;
pub mod rabbitmq;
pub mod redis;
mod server;
pub mod sqlite;
mod supervisor;

use async_trait::async_trait;
use tokio::sync::OnceCell;

pub use error::{Cause, Error};
pub use mariadb::Mariadb;
pub use pgbouncer::PgBouncer;
pub use postgres::Postgres;
pub use rabbitmq::RabbitMq;
pub use redis::Redis;
pub use sqlite::sqlite;

use crate::announce;
use server::Server;
pub(crate) use supervisor::quoted;

/// A program in PATH.
pub(crate) fn find_program(name: &str) -> Option<std::path::PathBuf> {
    local::find(name, &[], true)
}

/// Names the services that must be there: `postgres,rabbitmq`, or `all` of them. A Docker engine must be there
/// only where `docker` is named.
pub const REQUIRE_VARIABLE: &str = "OUTBOX_TEST_REQUIRE";

/// Set to leave servers and databases behind for inspection.
pub const KEEP_VARIABLE: &str = "OUTBOX_TEST_KEEP";

/// The PostgreSQL server that all tests of this process share.
///
/// # Errors
/// [`Error::Unavailable`] when there is no way to get one; any other when a way was open and failed.
pub async fn postgres() -> Result<&'static Postgres, Error> {
    static SHARED: OnceCell<Result<Postgres, Error>> = OnceCell::const_new();
    shared(&SHARED).await
}

/// A PostgreSQL server for one test, which may kill, freeze and restart it. It ends when the value is dropped.
///
/// # Errors
/// As [`postgres()`]; a URL in the environment does not help, since nobody may kill that server.
pub async fn own_postgres() -> Result<Postgres, Error> {
    own().await
}

/// As [`own_postgres()`], and a commit waits for the disk (`fsync = on`): for measurements. Always a private
/// process.
///
/// # Errors
/// As [`own_postgres()`].
pub async fn own_durable_postgres() -> Result<Postgres, Error> {
    let postgres = postgres::start(postgres::Fsync::On).await?;
    announce(&format!(
        "outbox-testing: postgres, durable: {}",
        postgres.describe()
    ));
    Ok(postgres)
}

/// The MariaDB server that all tests of this process share. A URL in the environment may name a MySQL server.
///
/// # Errors
/// As [`postgres()`].
pub async fn mariadb() -> Result<&'static Mariadb, Error> {
    static SHARED: OnceCell<Result<Mariadb, Error>> = OnceCell::const_new();
    shared(&SHARED).await
}

/// A MariaDB server for one test, as [`own_postgres`].
///
/// # Errors
/// As [`own_postgres()`].
pub async fn own_mariadb() -> Result<Mariadb, Error> {
    own().await
}

/// As [`own_mariadb()`], and a commit waits for the disk: for measurements. Always a private process.
///
/// # Errors
/// As [`own_postgres()`].
pub async fn own_durable_mariadb() -> Result<Mariadb, Error> {
    let mariadb = mariadb::start(mariadb::Fsync::On).await?;
    announce(&format!(
        "outbox-testing: mariadb, durable: {}",
        mariadb.describe()
    ));
    Ok(mariadb)
}

/// A PgBouncer in transaction mode in front of `postgres`, for all its databases. Always a private process.
///
/// # Errors
/// As [`postgres()`].
pub async fn pgbouncer(postgres: &Postgres) -> Result<PgBouncer, Error> {
    match pgbouncer::start(postgres).await {
        Err(Error::Unavailable { service, reason }) if is_required(service) => {
            Err(Error::Required { service, reason })
        }
        other => other,
    }
}

/// The RabbitMQ server that all tests of this process share.
///
/// # Errors
/// As [`postgres()`].
pub async fn rabbitmq() -> Result<&'static RabbitMq, Error> {
    static SHARED: OnceCell<Result<RabbitMq, Error>> = OnceCell::const_new();
    shared(&SHARED).await
}

/// A RabbitMQ server for one test, as [`own_postgres`].
///
/// # Errors
/// As [`own_postgres()`].
pub async fn own_rabbitmq() -> Result<RabbitMq, Error> {
    own().await
}

/// The Redis server that all tests of this process share.
///
/// # Errors
/// As [`postgres()`].
pub async fn redis() -> Result<&'static Redis, Error> {
    static SHARED: OnceCell<Result<Redis, Error>> = OnceCell::const_new();
    shared(&SHARED).await
}

/// A Redis server for one test, as [`own_postgres`].
///
/// # Errors
/// As [`own_postgres()`].
pub async fn own_redis() -> Result<Redis, Error> {
    own().await
}

/// A private Redis that forgets everything when it ends, as many are run.
///
/// # Errors
/// As [`own_postgres()`].
pub async fn own_redis_without_persistence() -> Result<Redis, Error> {
    required(redis::private(redis::Kind::Forgetful).await)
}

/// A private Redis, without persistence, whose wall clock [`Redis::move_clock`] moves; needs a C
/// compiler, as Rust does.
///
/// # Errors
/// As [`own_postgres()`].
pub async fn own_redis_with_movable_clock() -> Result<Redis, Error> {
    required(redis::private(redis::Kind::MovableClock).await)
}

/// The nodes of a private Redis cluster, without replicas and without persistence.
///
/// # Errors
/// As [`own_postgres()`].
pub async fn own_redis_cluster(nodes: usize) -> Result<Vec<Redis>, Error> {
    required(redis::cluster(nodes).await)
}

/// A private Sentinel that watches `primary` as `main` and needs nobody's consent to fail over.
///
/// # Errors
/// As [`own_postgres()`].
pub async fn own_redis_sentinel(primary: &Redis) -> Result<Redis, Error> {
    required(redis::sentinel(primary).await)
}

/// A PostgreSQL container of image `postgres:15`, or what `OUTBOX_TEST_POSTGRES_IMAGE` names.
///
/// # Errors
/// [`Error::Unavailable`] when no engine answers; another when the image is not to be had or does not start.
#[cfg(feature = "docker")]
pub async fn postgres_in_container() -> Result<Postgres, Error> {
    in_container().await
}

/// A MariaDB container of image `mariadb:10.11`, or what `OUTBOX_TEST_MARIADB_IMAGE` names.
///
/// # Errors
/// As [`postgres_in_container`].
#[cfg(feature = "docker")]
pub async fn mariadb_in_container() -> Result<Mariadb, Error> {
    in_container().await
}

/// A RabbitMQ container of image `rabbitmq:3.13`, or what `OUTBOX_TEST_RABBITMQ_IMAGE` names.
///
/// # Errors
/// As [`postgres_in_container`].
#[cfg(feature = "docker")]
pub async fn rabbitmq_in_container() -> Result<RabbitMq, Error> {
    in_container().await
}

/// A Redis container of image `redis:7`, or what `OUTBOX_TEST_REDIS_IMAGE` names.
///
/// # Errors
/// As [`postgres_in_container`].
#[cfg(feature = "docker")]
pub async fn redis_in_container() -> Result<Redis, Error> {
    in_container().await
}

#[cfg(feature = "docker")]
async fn in_container<S: Service>() -> Result<S, Error> {
    match docker::engine().await {
        Ok(()) => {}
        Err(reason) if is_required("docker") => {
            return Err(Error::Required {
                service: "docker",
                reason,
            });
        }
        Err(reason) => {
            return Err(Error::Unavailable {
                service: "docker",
                reason,
            });
        }
    }
    let service = S::from_container().await?;
    announce(&format!("outbox-testing: {}: {}", S::NAME, service.describe()));
    Ok(service)
}

/// What the resolution needs to know of one kind of server.
#[async_trait]
trait Service: Sized + Send + Sync + 'static {
    /// The name in `OUTBOX_TEST_REQUIRE` and in what is printed.
    const NAME: &'static str;
    /// The environment variable that may hold a URL.
    const VARIABLE: &'static str;

    /// Attaches to a server that someone else runs.
    async fn from_url(url: &str) -> Result<Self, Error>;

    /// Starts a container.
    #[cfg(feature = "docker")]
    async fn from_container() -> Result<Self, Error>;

    /// Starts a private process; [`Error::Unavailable`] when its binaries are missing.
    async fn from_binaries() -> Result<Self, Error>;

    fn server_mut(&mut self) -> &mut Server;

    /// One line for people: where it came from, where it listens.
    fn describe(&self) -> String;
}

async fn shared<S: Service>(cell: &'static OnceCell<Result<S, Error>>) -> Result<&'static S, Error> {
    let found = cell
        .get_or_init(|| async {
            let mut service = resolve::<S>(std::env::var(S::VARIABLE).ok()).await?;
            service.server_mut().shared = true;
            Ok(service)
        })
        .await;
    found.as_ref().map_err(Clone::clone)
}

async fn own<S: Service>() -> Result<S, Error> {
    resolve::<S>(None).await
}

async fn resolve<S: Service>(url: Option<String>) -> Result<S, Error> {
    match ways::<S>(url).await {
        Ok(service) => {
            announce(&format!("outbox-testing: {}: {}", S::NAME, service.describe()));
            Ok(service)
        }
        Err(error) => required(Err(error)),
    }
}

/// What cannot be had here and must be is an error of its own.
fn required<T>(service: Result<T, Error>) -> Result<T, Error> {
    match service {
        Err(Error::Unavailable { service, reason }) if is_required(service) => {
            Err(Error::Required { service, reason })
        }
        service => service,
    }
}

async fn ways<S: Service>(url: Option<String>) -> Result<S, Error> {
    if let Some(url) = url.filter(|url| !url.is_empty()) {
        return S::from_url(&url).await;
    }
    #[cfg(feature = "docker")]
    let no_container = match docker::engine().await {
        Ok(()) => match S::from_container().await {
            Ok(service) => return Ok(service),
            // An engine without the image and without a way to pull it: the binaries may still do.
            Err(error) => {
                announce(&format!("outbox-testing: {}: no container: {error}", S::NAME));
                error.to_string()
            }
        },
        Err(reason) => reason,
    };
    #[cfg(not(feature = "docker"))]
    let no_container = "the feature `docker` is off";
    match S::from_binaries().await {
        Err(Error::Unavailable { service, reason }) => Err(Error::Unavailable {
            service,
            reason: format!(
                "{} is not set; Docker: {no_container}; local binaries: {reason}",
                S::VARIABLE
            ),
        }),
        other => other,
    }
}

fn is_required(service: &str) -> bool {
    std::env::var(REQUIRE_VARIABLE).is_ok_and(|list| names(&list, service))
}

/// Whether the comma-separated `list` names the service.
fn names(list: &str, service: &str) -> bool {
    list.split(',')
        .map(str::trim)
        .any(|name| name == service || (name == "all" && service != "docker"))
}

/// Whether the user wants to look at what a test left.
fn keeps() -> bool {
    std::env::var_os(KEEP_VARIABLE).is_some_and(|value| !value.is_empty() && value != "0")
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn a_required_service_is_named_or_meant_by_all() {
        assert!(names("postgres", "postgres"));
        assert!(names("redis, postgres", "postgres"));
        assert!(names("all", "postgres"));
        assert!(!names("all", "docker"));
        assert!(names("all,docker", "docker"));
        assert!(!names("", "postgres"));
        assert!(!names("postgresql,redis", "postgres"));
    }
}
