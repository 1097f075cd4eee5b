#![doc = include_str!("docs/front.md")]

pub mod backend;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub mod connection;
mod error;
#[doc = include_str!("docs/faults.md")]
pub mod faults {}
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub mod fence;
mod guard;
mod held;
mod key;
mod lease;
mod line;
mod locks;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod migration;
mod options;
mod schedule;
mod service;
mod shapes;
mod telemetry;
mod token;
mod token_source;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub mod transaction;
mod waiting;
mod watchdog;

pub use backend::memory::MemoryBackend;
#[cfg(feature = "mysql")]
pub use backend::mysql::MysqlBackend;
#[cfg(feature = "postgres")]
pub use backend::postgres::PostgresBackend;
#[cfg(feature = "quorum")]
pub use backend::quorum::QuorumBackend;
#[cfg(feature = "redis")]
pub use backend::redis::{RedisBackend, RedisConfig, RedisUrl, Replicas, Topology};
#[cfg(feature = "sqlite")]
pub use backend::sqlite::SqliteBackend;
pub use backend::{Acquire, Backend, Capabilities, Hold, Release, Remint, Renew, Request, Shape, Wake};
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use connection::{Connection, Database, Dialect, Driver, Pooled};
pub use error::{Cause, Error, ErrorKind};
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use fence::{Fenced, fence, fence_sync};
pub use guard::{Guard, LockLost};
pub use key::Key;
pub use lease::{LossReason, State};
pub use locks::{Lock, Locks, LocksBuilder};
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use migration::{ddl, migrate};
pub use shapes::leader::{Leader, Term, TermEnd};
pub use shapes::multi::{GuardSet, LockSet};
pub use shapes::read_write::ReadWrite;
pub use shapes::semaphore::Semaphore;
pub use token::{FencingToken, Owner, RequestId};
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use token_source::DatabaseTokens;
pub use token_source::TokenSource;
