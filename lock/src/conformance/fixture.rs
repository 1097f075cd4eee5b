//! What a backend's test file provides.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{Backend, Capabilities};

/// What a scenario needs beyond an exclusive lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// [`Capabilities::read_write`].
    ReadWrite,
    /// [`Capabilities::permits`].
    Permits,
    /// [`Capabilities::fair`].
    Fair,
    /// [`Capabilities::wakes`].
    Wakes,
}

impl Need {
    pub(super) const fn is_met(self, by: Capabilities) -> bool {
        match self {
            Self::ReadWrite => by.read_write,
            Self::Permits => by.permits,
            Self::Fair => by.fair,
            Self::Wakes => by.wakes,
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadWrite => "read and write locks",
            Self::Permits => "permits",
            Self::Fair => "places in a line",
            Self::Wakes => "wakes",
        })
    }
}

/// How to reach one backend, and what it claims.
#[async_trait]
pub trait Fixture: Send + Sync + 'static {
    /// A new backend with connections of its own to the same service.
    async fn backend(&self) -> Arc<dyn Backend>;

    /// What the backend must declare, no more and no less.
    fn claims(&self) -> Capabilities;
}
