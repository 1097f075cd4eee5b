//! The harness this repository is tested with, for services that use it too.
#![warn(missing_docs)]

pub mod services;
mod skip;

pub(crate) use skip::announce;
pub use skip::{Skipped, announce_skip};
