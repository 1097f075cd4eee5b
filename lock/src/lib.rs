//! Distributed locks with renewal, a loss signal that fires locally, and a fencing token that the database
//! checks.

pub mod backend;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod guard;
mod held;
mod key;
mod lease;
mod line;
mod locks;
mod options;
mod schedule;
mod service;
mod telemetry;
mod token;
mod token_source;
mod waiting;
mod watchdog;

pub use backend::memory::MemoryBackend;
#[cfg(feature = "quorum")]
pub use backend::quorum;
#[cfg(feature = "redis")]
pub use backend::redis;
pub use backend::{Acquire, Backend, Capabilities, Hold, Release, Remint, Renew, Request, Shape, Wake};
pub use error::{Cause, Error, ErrorKind};
pub use guard::{Guard, LockLost};
pub use key::Key;
pub use lease::{LossReason, State};
pub use locks::{Lock, Locks, LocksBuilder};
pub use token::{FencingToken, Owner, RequestId};
pub use token_source::TokenSource;
