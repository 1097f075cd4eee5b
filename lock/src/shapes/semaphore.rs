//! At most so many holders at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Shape;
use crate::error::{Error, ErrorKind};
use crate::guard::Guard;
use crate::key::Key;
use crate::locks::{Lock, Locks};

impl Locks {
    /// The semaphore of this name, with `limit` permits. Nothing is asked yet.
    ///
    /// Every program that uses the name states the same limit. While a new limit is rolled out, each asker's
    /// own one decides about its permit.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the name is no [`Key`] or the limit is 0; [`ErrorKind::Unsupported`] if the
    /// backend lacks the capability [`permits`](crate::Capabilities::permits).
    pub fn semaphore(&self, key: impl Into<Arc<str>>, limit: u32) -> Result<Semaphore, Error> {
        if limit == 0 {
            let context = "a semaphore of no permits grants nothing: raise its limit to 1 or more";
            return Err(Error::new(ErrorKind::Invalid, "semaphore", context));
        }
        let permit = self.shaped(Key::new(key)?, Shape::Permit { limit })?;
        Ok(Semaphore { permit, limit })
    }
}

/// A semaphore by name; each acquisition takes one permit, and its [`Guard`] gives it back.
///
/// A permit expires with its ttl like any lock: that of a program that died is free again without anybody's
/// doing. Tokens grow with every grant of the key and tell permits apart. They do not fence: the holder of
/// an older permit is no old holder.
#[derive(Debug, Clone)]
#[must_use = "no permit is held until one is acquired"]
pub struct Semaphore {
    permit: Lock,
    limit: u32,
}

impl Semaphore {
    /// Its name.
    pub fn key(&self) -> &Key {
        self.permit.key()
    }

    /// How many may hold a permit at once.
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// See [`Lock::ttl`].
    ///
    /// # Errors
    /// See [`Lock::ttl`].
    pub fn ttl(mut self, ttl: Duration) -> Result<Self, Error> {
        self.permit = self.permit.ttl(ttl)?;
        Ok(self)
    }

    /// See [`Lock::max_hold`].
    ///
    /// # Errors
    /// See [`Lock::max_hold`].
    pub fn max_hold(mut self, max_hold: impl Into<Option<Duration>>) -> Result<Self, Error> {
        self.permit = self.permit.max_hold(max_hold)?;
        Ok(self)
    }

    /// Asks once. `None` if every permit is held, or someone waits for one in this process.
    ///
    /// # Errors
    /// See [`Lock::try_acquire`].
    ///
    /// # Cancel safety
    /// See [`Lock::try_acquire`].
    pub async fn try_acquire(&self) -> Result<Option<Guard>, Error> {
        self.permit.try_acquire().await
    }

    /// Waits for a permit, at most this long.
    ///
    /// # Errors
    /// See [`Lock::acquire`].
    ///
    /// # Cancel safety
    /// See [`Lock::acquire`].
    pub async fn acquire(&self, within: Duration) -> Result<Guard, Error> {
        self.permit.acquire(within).await
    }

    /// Waits for a permit until this instant.
    ///
    /// # Errors
    /// See [`Lock::acquire`].
    ///
    /// # Cancel safety
    /// See [`Lock::acquire`].
    pub async fn acquire_until(&self, deadline: Instant) -> Result<Guard, Error> {
        self.permit.acquire_until(deadline).await
    }
}
