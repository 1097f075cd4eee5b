//! A store that measures its claims.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use outbox::Error;
use outbox::record::{Backlog, Claim, ClaimRequest, Lease, Owner, Parked, ParkedSettlement, Settlement};
use outbox::store::postgres::PostgresStore;
use outbox::store::{LeaseState, Renewed, Settled, Store, StoreTraits};

/// Passes every call on and keeps the times of the claims that found rows.
pub(super) struct Timed {
    store: PostgresStore,
    times: Mutex<Vec<Duration>>,
}

impl Timed {
    pub(super) fn new(store: PostgresStore) -> Self {
        Self {
            store,
            times: Mutex::default(),
        }
    }

    /// Keeps the time of a claim made elsewhere.
    pub(super) fn note(&self, time: Duration) {
        self.times
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(time);
    }

    /// The middle of the times of the next `window`, in microseconds.
    pub(super) async fn median_over(&self, window: Duration) -> Result<f64> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).clear();
        tokio::time::sleep(window).await;
        super::median(&self.times.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Store for Timed {
    fn traits(&self) -> StoreTraits {
        self.store.traits()
    }

    async fn check(&self) -> Result<(), Error> {
        self.store.check().await
    }

    async fn acquire(&self, owner: Owner, want: usize, ttl: Duration) -> Result<Vec<Lease>, Error> {
        self.store.acquire(owner, want, ttl).await
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Renewed>, Error> {
        self.store.renew(leases, ttl).await
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), Error> {
        self.store.release(leases).await
    }

    async fn claim(&self, request: ClaimRequest<'_>) -> Result<Claim, Error> {
        let start = Instant::now();
        let claim = self.store.claim(request).await?;
        if !claim.records.is_empty() {
            self.note(start.elapsed());
        }
        Ok(claim)
    }

    async fn settle(&self, lease: &Lease, settlement: &Settlement) -> Result<Settled, Error> {
        self.store.settle(lease, settlement).await
    }

    async fn due(&self, lease: &Lease, limit: usize, skip_dead: bool) -> Result<Vec<Parked>, Error> {
        self.store.due(lease, limit, skip_dead).await
    }

    async fn begin_attempts(&self, lease: &Lease, sequences: &[i64]) -> Result<(), Error> {
        self.store.begin_attempts(lease, sequences).await
    }

    async fn settle_parked(&self, lease: &Lease, settlement: &ParkedSettlement) -> Result<Settled, Error> {
        self.store.settle_parked(lease, settlement).await
    }

    async fn blocked_keys(&self, lease: &Lease, skip_dead: bool) -> Result<Vec<(String, u64)>, Error> {
        self.store.blocked_keys(lease, skip_dead).await
    }

    async fn next_due(&self, lease: &Lease, skip_dead: bool) -> Result<Option<Duration>, Error> {
        self.store.next_due(lease, skip_dead).await
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        self.store.backlog().await
    }

    async fn leases(&self) -> Result<Vec<LeaseState>, Error> {
        self.store.leases().await
    }

    async fn wait(&self, at_most: Duration) -> Result<(), Error> {
        self.store.wait(at_most).await
    }

    async fn dead(&self, after: i64, limit: usize) -> Result<Vec<Parked>, Error> {
        self.store.dead(after, limit).await
    }

    async fn redrive(&self, sequences: &[i64]) -> Result<u64, Error> {
        self.store.redrive(sequences).await
    }

    async fn discard(&self, sequences: &[i64]) -> Result<u64, Error> {
        self.store.discard(sequences).await
    }
}
