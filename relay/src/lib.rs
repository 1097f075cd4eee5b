//! The relay as a sidecar: configuration, commands, health and metrics around the engine of `outbox`.
//!
//! The binary `outbox-relay` is [`command::main`]. The library exists for its tests; it promises no stable
//! interface, the configuration and the commands do.

#[cfg(not(any(feature = "postgres", feature = "mysql", feature = "sqlite")))]
compile_error!("a relay reads a database: enable the feature `postgres`, `mysql` or `sqlite`");

mod assemble;
pub mod command;
pub mod config;
mod error;
mod log;
pub mod ops;
mod output;
#[cfg(feature = "sql")]
mod sql_sink;
mod stdout;

pub use error::{Error, ErrorKind};
