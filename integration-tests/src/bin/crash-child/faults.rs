//! A store whose renewals fail and a publisher that is slower than the lease: together they bring a relay
//! to the point where its lease ends while it publishes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use outbox::record::{Backlog, Claim, ClaimRequest, Lease, Owner, Parked, ParkedSettlement, Settlement};
use outbox::store::{LeaseState, Renewed, Settled, Store, StoreTraits};
use outbox::{Error, ErrorKind};
use outbox_broker::{Capabilities, Message, Outcome, Publisher};

/// Passes everything on but renewals.
pub(crate) struct NoRenewals(pub(crate) Arc<dyn Store>);

#[async_trait]
impl Store for NoRenewals {
    fn traits(&self) -> StoreTraits {
        self.0.traits()
    }
    async fn check(&self) -> Result<(), Error> {
        self.0.check().await
    }
    async fn acquire(&self, owner: Owner, want: usize, ttl: Duration) -> Result<Vec<Lease>, Error> {
        self.0.acquire(owner, want, ttl).await
    }
    async fn renew(&self, _: &[Lease], _: Duration) -> Result<Vec<Renewed>, Error> {
        Err(Error::new(
            ErrorKind::Unreachable,
            "renew",
            "renewals are switched off for this test",
        ))
    }
    async fn release(&self, leases: &[Lease]) -> Result<(), Error> {
        self.0.release(leases).await
    }
    async fn claim(&self, request: ClaimRequest<'_>) -> Result<Claim, Error> {
        self.0.claim(request).await
    }
    async fn settle(&self, lease: &Lease, settlement: &Settlement) -> Result<Settled, Error> {
        self.0.settle(lease, settlement).await
    }
    async fn due(&self, lease: &Lease, limit: usize, skip_dead: bool) -> Result<Vec<Parked>, Error> {
        self.0.due(lease, limit, skip_dead).await
    }
    async fn begin_attempts(&self, lease: &Lease, sequences: &[i64]) -> Result<(), Error> {
        self.0.begin_attempts(lease, sequences).await
    }
    async fn settle_parked(&self, lease: &Lease, settlement: &ParkedSettlement) -> Result<Settled, Error> {
        self.0.settle_parked(lease, settlement).await
    }
    async fn blocked_keys(&self, lease: &Lease, skip_dead: bool) -> Result<Vec<(String, u64)>, Error> {
        self.0.blocked_keys(lease, skip_dead).await
    }
    async fn next_due(&self, lease: &Lease, skip_dead: bool) -> Result<Option<Duration>, Error> {
        self.0.next_due(lease, skip_dead).await
    }
    async fn backlog(&self) -> Result<Backlog, Error> {
        self.0.backlog().await
    }
    async fn leases(&self) -> Result<Vec<LeaseState>, Error> {
        self.0.leases().await
    }
    async fn wait(&self, at_most: Duration) -> Result<(), Error> {
        self.0.wait(at_most).await
    }
    async fn dead(&self, after: i64, limit: usize) -> Result<Vec<Parked>, Error> {
        self.0.dead(after, limit).await
    }
    async fn redrive(&self, sequences: &[i64]) -> Result<u64, Error> {
        self.0.redrive(sequences).await
    }
    async fn discard(&self, sequences: &[i64]) -> Result<u64, Error> {
        self.0.discard(sequences).await
    }
}

/// A publisher with a distance to its broker: a crash elsewhere in the process finds publishes that were
/// begun and have not arrived.
pub(crate) struct Slow {
    pub(crate) inner: Arc<dyn Publisher>,
    /// Before each publish is handed on.
    pub(crate) before: Duration,
    /// After the first one was: the messages are at the broker, the answer is late.
    pub(crate) first_answer: Duration,
    pub(crate) answered: AtomicBool,
}

#[async_trait]
impl Publisher for Slow {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        tokio::time::sleep(self.before).await;
        let outcomes = self.inner.publish(batch).await;
        if !self.answered.swap(true, Ordering::Relaxed) {
            tokio::time::sleep(self.first_answer).await;
        }
        outcomes
    }
    async fn close(&self) -> Result<(), outbox_broker::Error> {
        self.inner.close().await
    }
}
