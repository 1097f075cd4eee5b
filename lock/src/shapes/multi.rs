//! Several keys, all or none.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::backend::{Release, Shape};
use crate::error::{Error, ErrorKind};
use crate::guard::{Guard, LockLost, finish_first};
use crate::key::Key;
use crate::lease::State;
use crate::locks::{Lock, Locks, deadline_after};
use crate::token::FencingToken;

/// The most keys of one set. Chosen: they are taken one after the other, a round trip each, and whoever
/// needs more needs a coarser lock.
const KEYS_MAX: usize = 64;

impl Locks {
    /// The locks of these names, to be held together. Nothing is asked yet.
    ///
    /// They are the same locks as [`lock`](Self::lock) gives. They are always taken in the order of
    /// their names, whatever order they are given in, so that two sets never wait for each other in a
    /// circle. A name that is given twice counts once.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if a name is no [`Key`], or for no names or more than 64.
    pub fn all(&self, keys: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Result<LockSet, Error> {
        let mut keys: Vec<Key> = keys.into_iter().map(Key::new).collect::<Result<_, _>>()?;
        keys.sort();
        keys.dedup();
        let refused = |context: String| Err(Error::new(ErrorKind::Invalid, "all", context));
        if keys.is_empty() {
            return refused("a set of no locks protects nothing: name at least one key".to_owned());
        }
        if keys.len() > KEYS_MAX {
            return refused(format!(
                "a set of {} locks is taken in as many round trips, at most {KEYS_MAX} are allowed: lock \
                 something coarser",
                keys.len()
            ));
        }
        let locks = keys.into_iter().map(|key| self.shaped(key, Shape::Exclusive));
        Ok(LockSet {
            locks: locks.collect::<Result<_, _>>()?,
        })
    }
}

/// Several locks by name, not held; acquired together or not at all.
#[derive(Debug, Clone)]
#[must_use = "a lock is not held until it is acquired"]
pub struct LockSet {
    locks: Vec<Lock>,
}

impl LockSet {
    /// What it locks, in the order of acquisition.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.locks.iter().map(Lock::key)
    }

    /// See [`Lock::ttl`].
    ///
    /// # Errors
    /// See [`Lock::ttl`].
    pub fn ttl(self, ttl: Duration) -> Result<Self, Error> {
        let locks = self.locks.into_iter().map(|lock| lock.ttl(ttl));
        Ok(Self {
            locks: locks.collect::<Result<_, _>>()?,
        })
    }

    /// See [`Lock::max_hold`].
    ///
    /// # Errors
    /// See [`Lock::max_hold`].
    pub fn max_hold(self, max_hold: impl Into<Option<Duration>>) -> Result<Self, Error> {
        let max_hold = max_hold.into();
        let locks = self.locks.into_iter().map(|lock| lock.max_hold(max_hold));
        Ok(Self {
            locks: locks.collect::<Result<_, _>>()?,
        })
    }

    /// Asks for each once. `None` if one of them is not to be had; the others are given back by then.
    ///
    /// # Errors
    /// See [`Lock::try_acquire`]. What was taken by then is given back by the watchdog.
    ///
    /// # Cancel safety
    /// Dropped half-way, it leaves nothing held: the watchdog gives back what was taken.
    pub async fn try_acquire(&self) -> Result<Option<GuardSet>, Error> {
        let mut taken = Taken::default();
        for lock in &self.locks {
            match lock.try_acquire().await {
                Ok(Some(guard)) => taken.0.push(guard),
                Ok(None) => {
                    taken.give_back().await;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        if taken.lost().is_some() {
            taken.give_back().await;
            return Ok(None);
        }
        Ok(Some(taken.complete()))
    }

    /// Waits for all of them, at most this long altogether.
    ///
    /// # Errors
    /// See [`Lock::acquire`]. What was taken by then is given back by the watchdog.
    ///
    /// # Cancel safety
    /// See [`try_acquire`](Self::try_acquire).
    pub async fn acquire(&self, within: Duration) -> Result<GuardSet, Error> {
        self.acquire_until(deadline_after(within)).await
    }

    /// Waits for all of them until this instant. When one is lost while the others are waited for, all are
    /// given back and the set begins anew.
    ///
    /// # Errors
    /// See [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// See [`try_acquire`](Self::try_acquire).
    pub async fn acquire_until(&self, deadline: Instant) -> Result<GuardSet, Error> {
        loop {
            let mut taken = Taken::default();
            for lock in &self.locks {
                let guard = tokio::select! {
                    guard = lock.acquire_until(deadline) => guard?,
                    _ = any_lost(&taken.0) => break,
                };
                taken.0.push(guard);
            }
            if taken.0.len() == self.locks.len() && taken.lost().is_none() {
                return Ok(taken.complete());
            }
            if let Some(lost) = taken.lost() {
                tracing::warn!(key = %lost.key(), reason = lost.reason().as_str(), "lost while the rest of a set was waited for");
            }
            taken.give_back().await;
            if Instant::now() >= deadline {
                let context = "a lock of the set was lost again and again until the deadline";
                return Err(Error::new(ErrorKind::Timeout, "acquire", context));
            }
        }
    }
}

/// A part of a set. Dropped, it is given back, and not counted as a guard that someone forgot to release.
#[derive(Default)]
struct Taken(Vec<Guard>);

impl Taken {
    fn complete(mut self) -> GuardSet {
        GuardSet {
            guards: std::mem::take(&mut self.0),
        }
    }

    fn lost(&self) -> Option<LockLost> {
        lost_now(&self.0)
    }

    async fn give_back(mut self) {
        release_all(std::mem::take(&mut self.0)).await.ok();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        for guard in self.0.drain(..) {
            guard.give_up();
        }
    }
}

/// Several held locks; each is renewed, and lost, by itself, and the set is lost with the first of them.
///
/// Fence each key with its own [`token`](Self::token), in the order of [`tokens`](Self::tokens).
#[derive(Debug)]
#[must_use = "a set of guards that is dropped gives the locks back"]
pub struct GuardSet {
    guards: Vec<Guard>,
}

impl GuardSet {
    /// Each key with its token, in the order of the keys.
    pub fn tokens(&self) -> impl Iterator<Item = (&Key, FencingToken)> {
        self.guards.iter().map(|guard| (guard.key(), guard.token()))
    }

    /// The token of this key; `None` if it is none of the set.
    pub fn token(&self, key: &str) -> Option<FencingToken> {
        let guard = self.guards.iter().find(|guard| guard.key().as_str() == key)?;
        Some(guard.token())
    }

    /// The guards, in the order of the keys.
    pub fn guards(&self) -> &[Guard] {
        &self.guards
    }

    /// Until when all of them may be believed in: the earliest [`Guard::deadline`].
    pub fn deadline(&self) -> Instant {
        let deadlines = self.guards.iter().map(Guard::deadline);
        deadlines.min().unwrap_or_else(Instant::now)
    }

    /// The worst state of them: lost, if one is lost.
    pub fn state(&self) -> State {
        let worse = |one: State, other: State| match (one, other) {
            (State::Lost(reason), _) | (_, State::Lost(reason)) => State::Lost(reason),
            (State::Suspect, _) | (_, State::Suspect) => State::Suspect,
            _ => one,
        };
        self.guards.iter().map(Guard::state).fold(State::Held, worse)
    }

    /// Resolves when one of them is lost, and says which and why. See [`Guard::lost`].
    ///
    /// # Cancel safety
    /// Safe to drop and call again.
    pub async fn lost(&self) -> LockLost {
        any_lost(&self.guards).await
    }

    /// Does `work` while all are held, and releases them. See [`Guard::run`].
    ///
    /// # Errors
    /// One of them was lost before the work ended.
    ///
    /// # Cancel safety
    /// Dropping it drops the work and then the guards.
    pub async fn run<F: Future>(self, work: F) -> Result<F::Output, LockLost> {
        let outcome = finish_first(work, self.lost()).await;
        if let Err(error) = self.release().await {
            tracing::warn!(%error, "a set of locks was not released at once");
        }
        outcome
    }

    /// Gives all of them back, beside each other. `NotHeld` means that one was lost before.
    ///
    /// # Errors
    /// See [`Guard::release`]; the first error of the locks.
    ///
    /// # Cancel safety
    /// Once polled, every release is carried out.
    pub async fn release(self) -> Result<Release, Error> {
        release_all(self.guards).await
    }
}

fn lost_now(guards: &[Guard]) -> Option<LockLost> {
    guards.iter().find_map(|guard| match guard.state() {
        State::Lost(reason) => Some(LockLost::new(guard.key().clone(), reason)),
        _ => None,
    })
}

/// Never resolves without guards.
async fn any_lost(guards: &[Guard]) -> LockLost {
    async fn one(guard: &Guard) -> LockLost {
        let reason = guard.lost().await;
        LockLost::new(guard.key().clone(), reason)
    }
    let mut losses: FuturesUnordered<_> = guards.iter().map(one).collect();
    match losses.next().await {
        Some(lost) => lost,
        None => std::future::pending().await,
    }
}

async fn release_all(guards: Vec<Guard>) -> Result<Release, Error> {
    let mut all = Release::Released;
    for released in join_all(guards.into_iter().map(Guard::release)).await {
        if released? == Release::NotHeld {
            all = Release::NotHeld;
        }
    }
    Ok(all)
}
