//! The relay: publishes what transactions left in the outbox, at least once and in order per key.
//!
//! ```text
//!  lease ──► claim ──► lanes ──► publish ──► plan ──► settle
//!    │      (reads     (FIFO     (confirmed   (pure)   (deletes what was confirmed,
//!    │      new rows)  per key)  by broker)            parks what was not)
//!    └─ renewed at a third; no publish starts in its last part
//! ```
//!
//! - A row is deleted only after the broker confirmed its message. A crash anywhere publishes again, never
//!   less: consumers deduplicate by the message's id.
//! - Messages of one key are published in the order of their positions. A message that fails holds back the
//!   later ones of its key, and no others ([`OnExhausted`]).
//! - A broker that does not answer holds back everything, and nothing counts as an attempt: the relay tries
//!   one message with growing pauses, for ever.
//! - One relay at a time owns a shard. The lease stops a slow owner from settling; it cannot take back a
//!   publish that is under way, so an owner that was paused past its lease may cause duplicates.
//! - A message that kills its relay is found: after a death the rows that were in flight are tried with
//!   their attempts counted, in ever smaller groups, until the one that kills is a dead letter.
//!
//! Files: `plan` decides over outcomes, `retry` over parked rows, `gaps` over missing positions, `keys` and
//! `lanes` keep order, `circuit` watches the broker, `shard` carries it all out, `lease` owns the shards.

mod circuit;
mod gaps;
mod keys;
mod lanes;
mod lease;
mod meters;
mod options;
mod plan;
mod retry;
mod shard;
mod status;

use std::sync::Arc;

use outbox_broker::{Capability, Publisher};
use tokio_util::sync::CancellationToken;

pub use options::{OnExhausted, OnExpired, RelayOptions, RetryPolicy};
pub use status::{CircuitState, LastError, RelaySnapshot, RelayState, RelayStatus, ShardSnapshot, Totals};

use crate::record::Owner;
use crate::store::Store;
use crate::{Error, ErrorKind, Wakeup};
use meters::Meters;
use shard::Context;

/// Publishes the records of one outbox to one broker.
pub struct Relay {
    ctx: Arc<Context>,
    owner: Owner,
    wakeup: Option<Wakeup>,
}

impl Relay {
    /// Starts a relay from the database of an outbox to a broker.
    pub fn builder(store: Arc<dyn Store>, publisher: Arc<dyn Publisher>) -> RelayBuilder {
        RelayBuilder {
            store,
            publisher,
            options: RelayOptions::default(),
            wakeup: None,
            requires: Vec::new(),
        }
    }

    /// A view on this relay that outlives it.
    pub fn status(&self) -> RelayStatus {
        self.ctx.status.clone()
    }

    /// Its name in the lease table.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Runs until `shutdown`, then drains: claims nothing, waits for the publishes under way, settles them
    /// and gives its leases back, within [`RelayOptions::drain_timeout`].
    ///
    /// Databases and brokers that go away are waited for; only what a person must mend ends it.
    ///
    /// # Errors
    /// At the start, from [`Store::check`]: the schema is missing or of another version, the credentials are
    /// wrong, or the settings break the guarantees. Nothing was written.
    ///
    /// # Cancel safety
    /// Dropping the future is a crash: publishes under way are cut off, leases end by themselves, and the
    /// next owner publishes again what was not settled.
    pub async fn run(self, shutdown: CancellationToken) -> Result<Summary, Error> {
        lease::run(self.ctx, self.owner, self.wakeup, shutdown).await
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay")
            .field("owner", &self.owner)
            .field("options", &self.ctx.options)
            .finish_non_exhaustive()
    }
}

/// What a relay did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Counts over its life.
    pub totals: Totals,
    /// Leases given back: other relays can take them at once.
    pub released: usize,
    /// Leases left to end by themselves, because publishes were still under way at the end of the drain.
    pub abandoned: usize,
}

/// Collects the parts of a [`Relay`].
#[must_use]
pub struct RelayBuilder {
    store: Arc<dyn Store>,
    publisher: Arc<dyn Publisher>,
    options: RelayOptions,
    wakeup: Option<Wakeup>,
    requires: Vec<Capability>,
}

impl RelayBuilder {
    /// Sets how it behaves.
    pub fn options(mut self, options: RelayOptions) -> Self {
        self.options = options;
        self
    }

    /// Wakes it after the commits of this process. Without it, it polls and asks the database.
    pub fn wakeup(mut self, wakeup: Wakeup) -> Self {
        self.wakeup = Some(wakeup);
        self
    }

    /// Demands that the broker's adapter promises `capability`.
    pub fn require(mut self, capability: Capability) -> Self {
        self.requires.push(capability);
        self
    }

    /// The relay, not running yet. No I/O.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`]: an option is out of range, or the adapter lacks a demanded capability.
    pub fn build(self) -> Result<Relay, Error> {
        self.options.validate()?;
        let capabilities = self.publisher.capabilities();
        for capability in self.requires {
            capabilities.require("configured", capability).map_err(|error| {
                Error::new(
                    ErrorKind::Invalid,
                    "build relay",
                    "the broker's adapter lacks a demanded capability",
                )
                .with_cause(error)
            })?;
        }
        let owner = Owner::new();
        let ctx = Context {
            status: RelayStatus::new(owner.to_string(), self.store.clone()),
            meters: Meters::new(&self.options.source),
            store: self.store,
            publisher: self.publisher,
            options: self.options,
        };
        Ok(Relay {
            ctx: Arc::new(ctx),
            owner,
            wakeup: self.wakeup,
        })
    }
}

#[cfg(test)]
mod tests;
