//! One granted lock, shared by its guard and the watchdog.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::backend::{Hold, Request};
use crate::lease::{Lease, State};
use crate::telemetry;
use crate::token::FencingToken;

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) number: u64,
    request: Request,
    backend: &'static str,
    inner: Mutex<Inner>,
    state: watch::Sender<State>,
    /// Told when a renewal has ended.
    quiet: Notify,
}

#[derive(Debug)]
struct Inner {
    token: FencingToken,
    lease: Lease,
    renewal: Renewal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Renewal {
    None,
    Queued,
    Sent,
}

/// When the watchdog must look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Renewal(Instant),
    Deadline(Instant),
}

impl Held {
    pub(crate) fn new(
        number: u64,
        backend: &'static str,
        request: Request,
        token: FencingToken,
        lease: Lease,
    ) -> Self {
        Self {
            number,
            request,
            backend,
            state: watch::Sender::new(lease.state()),
            inner: Mutex::new(Inner {
                token,
                lease,
                renewal: Renewal::None,
            }),
            quiet: Notify::new(),
        }
    }

    /// No holder of this mutex runs foreign code, so a poisoned one holds a sound state.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn request(&self) -> &Request {
        &self.request
    }

    pub(crate) fn hold(&self) -> Hold {
        Hold {
            key: self.request.key.clone(),
            owner: self.request.owner,
            shape: self.request.shape,
            token: self.inner().token,
        }
    }

    pub(crate) fn token(&self) -> FencingToken {
        self.inner().token
    }

    pub(crate) fn reminted(&self, token: FencingToken) {
        let mut inner = self.inner();
        inner.token = inner.token.max(token);
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.inner().lease.deadline()
    }

    /// How long the service keeps the hold after a renewal.
    pub(crate) fn kept(&self) -> Duration {
        self.inner().lease.terms().kept()
    }

    pub(crate) fn renew_every(&self) -> Duration {
        self.inner().lease.terms().renew_every
    }

    pub(crate) fn since(&self) -> Instant {
        self.inner().lease.since()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// The state now: a deadline that has passed is seen even if nobody else has looked.
    pub(crate) fn observe(&self) -> State {
        self.update(|lease, now| lease.observe(now));
        self.inner().lease.state()
    }

    /// Changes the lease, and tells whoever watches when its state has changed.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Lease, Instant) -> T) -> T {
        let mut inner = self.inner();
        let before = inner.lease.state();
        let out = change(&mut inner.lease, Instant::now());
        let (after, token) = (inner.lease.state(), inner.token);
        if after != before {
            self.state.send_replace(after);
        }
        drop(inner);
        if let State::Lost(reason) = after
            && before.is_held()
        {
            let Request { key, shape, .. } = &self.request;
            tracing::warn!(%key, %token, shape = shape.as_str(), reason = reason.as_str(), "lock lost: {reason}");
            telemetry::lost(self.backend, *shape, reason);
        }
        out
    }

    /// When to look at it next; `None` once it is lost or released.
    pub(crate) fn due(&self) -> Option<Due> {
        let inner = self.inner();
        if !inner.lease.state().is_held() {
            return None;
        }
        let deadline = inner.lease.deadline();
        let renewal = inner
            .lease
            .renew_at()
            .filter(|at| inner.renewal == Renewal::None && *at < deadline);
        Some(renewal.map_or(Due::Deadline(deadline), Due::Renewal))
    }

    /// Waits until no renewal is on its way, so that a release is the last word.
    pub(crate) async fn quiet(&self) {
        loop {
            let told = self.quiet.notified();
            if self.inner().renewal != Renewal::Sent {
                return;
            }
            told.await;
        }
    }
}

/// A renewal that waits to be sent or is on its way. However it ends, whoever waits for it goes on.
#[derive(Debug)]
pub(crate) struct Renewing(Arc<Held>);

impl Renewing {
    /// `None` if the lock is lost or released, or a renewal is on its way.
    pub(crate) fn begin(held: Arc<Held>) -> Option<Self> {
        let mut inner = held.inner();
        if inner.renewal != Renewal::None || !inner.lease.state().is_held() {
            return None;
        }
        inner.renewal = Renewal::Queued;
        drop(inner);
        Some(Self(held))
    }

    /// The request leaves now; `false` if the lock was lost or released while this stood in the queue.
    pub(crate) fn sent(&self) -> bool {
        let mut inner = self.0.inner();
        let sent = inner.lease.state().is_held();
        if sent {
            inner.renewal = Renewal::Sent;
        }
        sent
    }

    pub(crate) fn held(&self) -> &Arc<Held> {
        &self.0
    }
}

impl Drop for Renewing {
    fn drop(&mut self) {
        self.0.inner().renewal = Renewal::None;
        self.0.quiet.notify_waiters();
    }
}
