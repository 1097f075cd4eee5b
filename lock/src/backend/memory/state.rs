//! Everything the service remembers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::line::Line;
use crate::backend::{Acquire, Class, Hold, Release, Remint, Renew, Request, Shape};
use crate::key::Key;
use crate::token::{FencingToken, Owner, RequestId};

/// How long a release is remembered, so that its repetition is recognised. Chosen: longer than any caller
/// goes on repeating one.
const LATCH: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct State {
    lines: HashMap<(Key, Class), Line>,
    /// The last token. One counter for all keys grows for each of them, and takes no memory for a key that
    /// nobody locks any more.
    minted: i64,
    released: HashSet<RequestId>,
    latches: VecDeque<(Instant, RequestId)>,
    listeners: u64,
}

impl State {
    pub(super) fn acquire(&mut self, request: &Request, now: Instant) -> Acquire {
        let name = (request.key.clone(), request.shape.class());
        let line = self.lines.entry(name).or_default();
        line.purge(now);
        let until = now + request.ttl;
        if let Some(holder) = line.holder(request.owner) {
            holder.until = until;
            return Acquire::Granted { token: holder.token };
        }
        if line.admits(request.owner, request.shape) {
            self.minted += 1;
            let token = minted(self.minted);
            line.admit(request.owner, request.shape, token, until);
            return Acquire::Granted { token };
        }
        if let Some(place) = request.place {
            line.queue(request.owner, request.shape, now + place);
        }
        let retry_after = line.retry_after(request.owner, request.shape, now);
        Acquire::Held { retry_after }
    }

    pub(super) fn renew(&mut self, hold: &Hold, ttl: Duration, now: Instant) -> Renew {
        let Some(line) = self.line(hold, now) else {
            return Renew::Expired;
        };
        if let Some(holder) = line.holder(hold.owner) {
            holder.until = now + ttl;
            return Renew::Renewed;
        }
        if line.is_taken(hold.shape) {
            Renew::Stolen
        } else {
            Renew::Expired
        }
    }

    pub(super) fn release(&mut self, hold: &Hold, request: RequestId, now: Instant) -> Release {
        let released = self.end(hold, request, now);
        if let Some(line) = self.line(hold, now) {
            line.wake();
        }
        self.forget(&hold.key, hold.shape);
        released
    }

    /// Nobody is woken for a key that goes to the next at once.
    pub(super) fn hand_over(
        &mut self,
        hold: &Hold,
        request: RequestId,
        next: &Request,
        now: Instant,
    ) -> (Release, Acquire) {
        let released = self.end(hold, request, now);
        let answer = self.acquire(next, now);
        if let Acquire::Held { .. } = answer
            && let Some(line) = self.line(hold, now)
        {
            line.wake();
        }
        (released, answer)
    }

    fn end(&mut self, hold: &Hold, request: RequestId, now: Instant) -> Release {
        while self.latches.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, request)) = self.latches.pop_front() {
                self.released.remove(&request);
            }
        }
        if self.released.contains(&request) {
            return Release::Released;
        }
        let Some(line) = self.line(hold, now) else {
            return Release::NotHeld;
        };
        if !line.end(hold.owner) {
            return Release::NotHeld;
        }
        self.released.insert(request);
        self.latches.push_back((now + LATCH, request));
        Release::Released
    }

    pub(super) fn leave(&mut self, key: &Key, owner: Owner, shape: Shape, now: Instant) {
        if let Some(line) = self.lines.get_mut(&(key.clone(), shape.class())) {
            line.purge(now);
            let held = line.end(owner);
            if line.unqueue(owner) || held {
                line.wake();
            }
        }
        self.forget(key, shape);
    }

    pub(super) fn listen(&mut self, key: &Key, owner: Owner, shape: Shape) -> (u64, watch::Receiver<u64>) {
        self.listeners += 1;
        let line = self.lines.entry((key.clone(), shape.class())).or_default();
        (self.listeners, line.listen(self.listeners, owner))
    }

    pub(super) fn unlisten(&mut self, key: &Key, shape: Shape, number: u64) {
        if let Some(line) = self.lines.get_mut(&(key.clone(), shape.class())) {
            line.unlisten(number);
        }
        self.forget(key, shape);
    }

    pub(super) fn remint(&mut self, hold: &Hold, above: FencingToken, now: Instant) -> Remint {
        let higher = self.minted.max(above.get()) + 1;
        let Some(holder) = self.line(hold, now).and_then(|line| line.holder(hold.owner)) else {
            return Remint::Lost;
        };
        let token = minted(higher);
        holder.token = token;
        self.minted = higher;
        Remint::Minted(token)
    }

    fn line(&mut self, hold: &Hold, now: Instant) -> Option<&mut Line> {
        let line = self.lines.get_mut(&(hold.key.clone(), hold.shape.class()))?;
        line.purge(now);
        Some(line)
    }

    /// A key that nobody holds, waits for or listens to takes no memory.
    fn forget(&mut self, key: &Key, shape: Shape) {
        let name = (key.clone(), shape.class());
        if self.lines.get(&name).is_some_and(Line::is_empty) {
            self.lines.remove(&name);
        }
    }
}

#[expect(
    clippy::expect_used,
    reason = "the counter starts at 0 and is raised before it is read"
)]
fn minted(value: i64) -> FencingToken {
    FencingToken::new(value).expect("a counter above 0")
}
