//! A held lock.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::backend::{Release, Remint, Shape};
use crate::error::{Error, ErrorKind};
use crate::held::Held;
use crate::key::Key;
use crate::lease::{LossReason, State};
use crate::service::Service;
use crate::telemetry;
use crate::token::{FencingToken, Owner};

/// A held lock: renewed in the background until it is released, dropped, lost, or `max_hold` is over.
///
/// Give it back with [`release`](Self::release). Dropping works anywhere, also on a thread without a
/// runtime or while one shuts down: the watchdog gives the lock back when it comes to it, or the ttl does.
/// It is counted, because the next holder waits for it longer than for a release.
///
/// A guard is advice: a pause of the machine can outlive it unnoticed. What must not be written twice is
/// protected by [`token`](Self::token), checked by the database in the transaction that writes.
#[must_use = "a guard that is dropped gives the lock back"]
pub struct Guard {
    service: Arc<Service>,
    held: Arc<Held>,
    live: bool,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("key", self.key())
            .field("token", &self.token())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Guard {
    pub(crate) fn new(service: Arc<Service>, held: Arc<Held>) -> Self {
        Self {
            service,
            held,
            live: true,
        }
    }

    /// What is locked.
    pub fn key(&self) -> &Key {
        &self.held.request().key
    }

    /// The kind of hold.
    pub fn shape(&self) -> Shape {
        self.held.request().shape
    }

    /// The nonce of this acquisition.
    pub fn owner(&self) -> Owner {
        self.held.request().owner
    }

    /// The number that the database checks; greater than that of every earlier holder.
    pub fn token(&self) -> FencingToken {
        self.held.token()
    }

    /// Until when the lock may be believed in, by the local monotonic clock: the instant at which the last
    /// grant or renewal was asked for, plus the ttl, less the margin. Renewals move it.
    pub fn deadline(&self) -> Instant {
        self.held.deadline()
    }

    /// What may be believed now. Looks at the clock: past the deadline it is lost, whoever else noticed.
    pub fn state(&self) -> State {
        self.held.observe()
    }

    /// Follows the state, also past the end of this guard.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.held.watch()
    }

    /// Resolves when the lock is lost, at the local deadline even if the lock service never answers.
    ///
    /// # Cancel safety
    /// Safe to drop and call again.
    pub async fn lost(&self) -> LossReason {
        let mut states = self.watch();
        loop {
            if let State::Lost(reason) = self.state() {
                return reason;
            }
            tokio::select! {
                // The sender lives in this guard.
                _ = states.changed() => {}
                () = sleep_until(self.deadline()) => {}
            }
        }
    }

    /// Does `work` while the lock is held, and releases the lock. When the lock is lost the work is dropped
    /// where it stands. Work that ends with the lock is `Ok` even if the release fails: the watchdog
    /// repeats it.
    ///
    /// # Errors
    /// The lock was lost before the work ended. What it has written is protected by the fence alone.
    ///
    /// # Cancel safety
    /// Dropping it drops the work and then the guard.
    pub async fn run<F: Future>(self, work: F) -> Result<F::Output, LockLost> {
        let outcome = finish_first(work, self.lost()).await;
        let key = self.key().clone();
        if let Err(error) = self.release().await {
            tracing::warn!(%key, %error, "the lock was not released at once");
        }
        outcome.map_err(|reason| LockLost { key, reason })
    }

    /// Gives the lock back. `NotHeld` means that it was lost before.
    ///
    /// # Errors
    /// The lock service did not confirm the release. The watchdog repeats it until the ttl has ended the
    /// hold; nothing is left to do.
    ///
    /// # Cancel safety
    /// Once polled, the release is carried out by the watchdog if this future is dropped.
    pub async fn release(mut self) -> Result<Release, Error> {
        self.live = false;
        let (service, held) = (Arc::clone(&self.service), Arc::clone(&self.held));
        let lost = !held.update(|lease, now| lease.release(now));
        let call = Arc::clone(&service).release(held);
        if lost {
            service.chore(async move { drop(call.await) });
            return Ok(Release::NotHeld);
        }
        service.carried(call, |_| None).await
    }

    /// Replaces the token by one above `above`, because the lock service lost its counter and the database
    /// has seen higher tokens. The caller knows that it is the newest holder: it acquired just now. With a
    /// token source, the source mints it.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] if the lock is not held any more; what the backend said otherwise.
    ///
    /// # Cancel safety
    /// Dropped half-way, the guard keeps its token, which the database may refuse.
    pub async fn remint(&self, above: FencingToken) -> Result<FencingToken, Error> {
        let lost = |reason: LossReason| {
            Error::from(LockLost {
                key: self.key().clone(),
                reason,
            })
        };
        if let State::Lost(reason) = self.state() {
            return Err(lost(reason));
        }
        let minted = if let Some(source) = &self.service.tokens {
            source.mint(self.key()).await.map(Remint::Minted)
        } else {
            self.service.backend.remint(&self.held.hold(), above).await
        };
        match minted {
            Ok(Remint::Minted(token)) => {
                self.held.reminted(token);
                tracing::info!(key = %self.key(), %token, "the token was raised above what the database has seen");
                Ok(token)
            }
            Ok(Remint::Lost) => {
                self.held
                    .update(|lease, now| lease.gone(LossReason::Expired, now));
                Err(lost(LossReason::Expired))
            }
            Err(error) => {
                telemetry::failed(self.service.name, "remint", &error);
                Err(error)
            }
        }
    }

    /// As dropping it, for what nobody ever held: a part of a set that did not come together.
    pub(crate) fn give_up(mut self) {
        self.live = false;
        self.leave_behind();
    }

    fn leave_behind(&self) {
        self.held.update(|lease, now| lease.release(now));
        let (service, held) = (Arc::clone(&self.service), Arc::clone(&self.held));
        self.service
            .chore(async move { drop(service.release(held).await) });
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.live {
            telemetry::dropped(self.service.name, self.shape());
            self.leave_behind();
        }
    }
}

/// What `work` gives, unless it is still not done when `lost` resolves; then it is dropped where it stands.
pub(crate) async fn finish_first<W: Future, L: Future>(work: W, lost: L) -> Result<W::Output, L::Output> {
    let (mut work, mut lost) = (pin!(work), pin!(lost));
    tokio::select! {
        biased;
        reason = &mut lost => Err(reason),
        output = &mut work => Ok(output),
    }
}

/// The lock was lost while work was being done under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockLost {
    key: Key,
    reason: LossReason,
}

impl LockLost {
    pub(crate) const fn new(key: Key, reason: LossReason) -> Self {
        Self { key, reason }
    }

    /// What was locked.
    pub const fn key(&self) -> &Key {
        &self.key
    }

    /// Why.
    pub const fn reason(&self) -> LossReason {
        self.reason
    }
}

impl fmt::Display for LockLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the lock {} was lost: {}", self.key, self.reason)
    }
}

impl std::error::Error for LockLost {}

impl From<LockLost> for Error {
    fn from(lost: LockLost) -> Self {
        Self::new(ErrorKind::Lost, "hold", lost.to_string())
    }
}
