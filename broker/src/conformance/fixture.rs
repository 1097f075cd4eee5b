//! What an adapter's test file provides.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::{Bytes, Capability, Publisher, Subscriber};

/// Which server a scenario wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Any server, shared with other scenarios: topics and groups are unique.
    Shared,
    /// A server of its own that may be killed; without one, leave [`Fixture::server`] at `None`.
    OwnServer,
}

/// How to reach one adapter, and what it claims.
#[async_trait]
pub trait Fixture: Send + Sync + 'static {
    /// A new publisher with a connection of its own.
    async fn publisher(&self) -> Arc<dyn Publisher>;

    /// A new subscriber with a connection of its own.
    async fn subscriber(&self) -> Arc<dyn Subscriber>;

    /// What the adapter must declare, no more and no less.
    fn claims(&self) -> Vec<Capability>;

    /// A publish ends within this time whatever happens. Default 10 s.
    fn publish_timeout(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// Power over the server, if the scenario has one of its own. Default none.
    fn server(&self) -> Option<&dyn Server> {
        None
    }

    /// Puts bytes that are no message where subscribers of `topic` find them. Default: cannot (false).
    async fn inject(&self, topic: &str, body: Bytes) -> bool {
        let _ = (topic, body);
        false
    }

    /// Number of dead letters of `group` on `topic`. Default: cannot say.
    async fn dead_letters(&self, topic: &str, group: &str) -> Option<usize> {
        let _ = (topic, group);
        None
    }
}

/// Power over a broker's server. Every step is complete when it returns.
#[async_trait]
pub trait Server: Send + Sync {
    /// Ends it as `kill -9` does.
    async fn kill(&self);

    /// Ends it as an operator does.
    async fn stop(&self);

    /// Starts it again, same address and data, and waits until it answers.
    async fn start(&self);

    /// Freezes it, as SIGSTOP does: connections stay open and nothing answers.
    async fn pause(&self);

    /// Undoes [`Server::pause`].
    async fn resume(&self);
}
