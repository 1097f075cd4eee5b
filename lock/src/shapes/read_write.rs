//! Many readers or one writer.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::Shape;
use crate::error::Error;
use crate::key::Key;
use crate::locks::{Lock, Locks};

impl Locks {
    /// The read-write lock of this name: any number of readers, or one writer. Nothing is asked yet.
    ///
    /// It does not meet the plain [`lock`](Self::lock) of the same name.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if the name is no [`Key`];
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the backend lacks the capability
    /// [`read_write`](crate::Capabilities::read_write).
    pub fn read_write(&self, key: impl Into<Arc<str>>) -> Result<ReadWrite, Error> {
        let key = Key::new(key)?;
        Ok(ReadWrite {
            read: self.shaped(key.clone(), Shape::Read)?,
            write: self.shaped(key, Shape::Write)?,
        })
    }
}

/// A read-write lock by name, not held.
///
/// Whoever waits stands in one line, where the backend keeps one: readers who come and go do not starve a
/// writer. There is no way from reader to writer within one hold: two readers that both tried would wait
/// for each other. Release, acquire [`write`](Self::write), and read again.
///
/// Every grant has a token of its own. The writer's is the one to fence with; a later reader's is higher, so
/// a reader that fenced would shut a writer out that came before it.
#[derive(Debug, Clone)]
#[must_use = "a lock is not held until it is acquired"]
pub struct ReadWrite {
    read: Lock,
    write: Lock,
}

impl ReadWrite {
    /// What it locks.
    pub fn key(&self) -> &Key {
        self.read.key()
    }

    /// The reader's side: held by any number while no one writes.
    pub const fn read(&self) -> &Lock {
        &self.read
    }

    /// The writer's side: held by one while no one reads.
    pub const fn write(&self) -> &Lock {
        &self.write
    }

    /// See [`Lock::ttl`].
    ///
    /// # Errors
    /// See [`Lock::ttl`].
    pub fn ttl(self, ttl: Duration) -> Result<Self, Error> {
        Ok(Self {
            read: self.read.ttl(ttl)?,
            write: self.write.ttl(ttl)?,
        })
    }

    /// See [`Lock::max_hold`].
    ///
    /// # Errors
    /// See [`Lock::max_hold`].
    pub fn max_hold(self, max_hold: impl Into<Option<Duration>>) -> Result<Self, Error> {
        let max_hold = max_hold.into();
        Ok(Self {
            read: self.read.max_hold(max_hold)?,
            write: self.write.max_hold(max_hold)?,
        })
    }
}
