//! Which hold the watchdog looks at next.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::held::{Due, Held, Renewing};

/// Renewals due within this part of the renewal interval go along with the one that is due, so that the
/// holds of a process fall into few large groups instead of many small ones.
const EARLY_PARTS: u32 = 4;

/// The holds of a process, ordered by when they must be looked at.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    inner: Mutex<Inner>,
    /// Told when a hold comes that is due before the watchdog would wake.
    sooner: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    queue: BTreeMap<(Instant, u64), Entry>,
    at: HashMap<u64, Instant>,
    /// When the watchdog wakes; `None` while it sleeps without an end.
    wakes_at: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    held: Arc<Held>,
    renewal: bool,
}

impl Inner {
    fn remove(&mut self, number: u64) {
        if let Some(at) = self.at.remove(&number) {
            self.queue.remove(&(at, number));
        }
    }

    fn put(&mut self, held: &Arc<Held>) -> Option<Instant> {
        let (at, renewal) = match held.due()? {
            Due::Renewal(at) => (at, true),
            Due::Deadline(at) => (at, false),
        };
        let held = Arc::clone(held);
        let number = held.number;
        self.at.insert(number, at);
        self.queue.insert((at, number), Entry { held, renewal });
        Some(at)
    }
}

impl Schedule {
    /// No holder of this mutex runs foreign code, so a poisoned one holds a sound state.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a hold where it belongs, new or changed.
    pub(crate) fn put(&self, held: &Arc<Held>) {
        let mut inner = self.inner();
        inner.remove(held.number);
        if let Some(at) = inner.put(held)
            && inner.wakes_at.is_none_or(|wakes_at| at < wakes_at)
        {
            inner.wakes_at = Some(at);
            drop(inner);
            self.sooner.notify_one();
        }
    }

    /// As [`put`](Self::put), unless it was removed in the meantime.
    pub(crate) fn put_back(&self, held: &Arc<Held>) {
        let known = self.inner().at.contains_key(&held.number);
        if known {
            self.put(held);
        }
    }

    pub(crate) fn remove(&self, number: u64) {
        self.inner().remove(number);
    }

    /// Resolves when a hold came that is due sooner than [`next`](Self::next) has said.
    pub(crate) async fn sooner(&self) {
        self.sooner.notified().await;
    }

    /// When to look again.
    pub(crate) fn next(&self) -> Option<Instant> {
        let mut inner = self.inner();
        inner.wakes_at = inner.queue.keys().next().map(|(at, _)| *at);
        inner.wakes_at
    }

    /// Takes the renewals that are due, and ends what is past its deadline.
    pub(crate) fn take(&self, now: Instant) -> Vec<Renewing> {
        let mut inner = self.inner();
        let mut upto = now;
        let mut due = Vec::new();
        for ((at, _), entry) in &inner.queue {
            if *at > upto {
                break;
            }
            if *at <= now {
                upto = upto.max(now + entry.held.renew_every() / EARLY_PARTS);
            }
            if *at <= now || entry.renewal {
                due.push(Arc::clone(&entry.held));
            }
        }
        let mut renewals = Vec::with_capacity(due.len());
        for held in due {
            inner.remove(held.number);
            let renews = held.observe().is_held()
                && match held.due() {
                    Some(Due::Renewal(at)) => at <= upto,
                    _ => false,
                };
            if renews && let Some(renewing) = Renewing::begin(Arc::clone(&held)) {
                renewals.push(renewing);
            }
            inner.put(&held);
        }
        renewals
    }
}
