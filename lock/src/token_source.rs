//! Where fencing tokens come from, if not from the lock service.

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod database;

use std::fmt;

use async_trait::async_trait;

use crate::error::Error;
use crate::key::Key;
use crate::token::FencingToken;

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use database::DatabaseTokens;

/// Mints fencing tokens elsewhere than at the lock service, usually in the database that checks them.
///
/// A lock service may lose its counter (a flush, a failover to a replica that lagged). A source that shares
/// its rows with the fence cannot fall behind it. The price is one more round trip an acquisition.
///
/// A holder is granted first and minted for after, so that of two grants of one key the later has the
/// higher token.
#[async_trait]
pub trait TokenSource: fmt::Debug + Send + Sync + 'static {
    /// The stable lower-case name used in logs and metric labels, such as `"postgres"`.
    fn name(&self) -> &'static str;

    /// A token above every one minted for `key` before, and above every one that a fence of the resource
    /// of this name has seen. From now on the fence refuses those.
    ///
    /// Waits for a protected transaction of an older holder to end, within the source's time limit.
    ///
    /// # Errors
    /// The source cannot be reached or did not answer in time. A token may have been minted and lost:
    /// minting again gives a higher one.
    ///
    /// # Cancel safety
    /// A dropped future may or may not have minted; a token that nobody uses does no harm.
    async fn mint(&self, key: &Key) -> Result<FencingToken, Error>;
}
