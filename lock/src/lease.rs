//! What a holder may believe about its lock: a state machine without I/O and without a clock.
//!
//! ```text
//!            renewed ┌────┐
//!                    ▼    │        renewal failed
//!   granted ──────► Held ─┴──────────────────────► Suspect ──┐
//!                    │ ▲                              │  │   │ renewal failed
//!                    │ └───────────── renewed ────────┘  └◄──┘
//!                    │                                │
//!                    ├── deadline · expired · stolen ─┴──► Lost (terminal)
//!                    └── released ───────────────────────► Released (terminal)
//! ```
//!
//! The deadline is the instant at which the request that was granted or renewed last was *sent*, plus the
//! ttl, less the margin. The service counts the ttl from a later instant, when the request reached it, so
//! the holder stops believing at least a margin before the service may grant the lock to someone else.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// A failed renewal is repeated after this part of the renewal interval, so that several attempts fit
/// between the first failure and the deadline.
const RETRY_PARTS: u32 = 10;

/// What a holder may believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Held, and the last renewal went well.
    Held,
    /// Held, but the last renewal failed; the deadline has not passed.
    Suspect,
    /// Not held any more, for good. Whatever was going to be written must not be.
    Lost(LossReason),
    /// Given back, or dropped and about to be given back.
    Released,
}

impl State {
    /// Whether the lock may still be believed in.
    pub const fn is_held(self) -> bool {
        matches!(self, Self::Held | Self::Suspect)
    }
}

/// Why a lock was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// The local deadline passed without a renewal that went well.
    Deadline,
    /// The service said that nobody holds it: it expired there or was deleted.
    Expired,
    /// The service said that someone else holds it.
    Stolen,
    /// It was held for longer than `max_hold`, so that it was not renewed any more.
    MaxHold,
}

impl LossReason {
    /// The stable lower-case name used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Expired => "expired",
            Self::Stolen => "stolen",
            Self::MaxHold => "max_hold",
        }
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deadline => "its deadline passed without a renewal",
            Self::Expired => "the lock service holds it no more",
            Self::Stolen => "someone else holds it",
            Self::MaxHold => "it was held longer than max_hold allows",
        })
    }
}

/// The times of one lock, checked: `margin < ttl`, `renew_every < ttl - margin`, `ttl <= max_hold`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) ttl: Duration,
    pub(crate) renew_every: Duration,
    pub(crate) margin: Duration,
    pub(crate) max_hold: Option<Duration>,
    pub(crate) lost_grace: Duration,
}

impl Terms {
    /// How long one grant may be believed in, from the instant of asking.
    pub(crate) const fn trust(&self) -> Duration {
        self.ttl.saturating_sub(self.margin)
    }

    /// How long the service keeps one grant: an expired lock stays closed for the grace as well.
    pub(crate) const fn kept(&self) -> Duration {
        self.ttl.saturating_add(self.lost_grace)
    }
}

/// One granted lock, as its holder sees it.
#[derive(Debug)]
pub(crate) struct Lease {
    terms: Terms,
    since: Instant,
    deadline: Instant,
    renew_at: Option<Instant>,
    state: State,
}

impl Lease {
    /// What was asked for at `sent` and granted by `now`; `None` when the grant came after its own deadline.
    pub(crate) fn granted(terms: Terms, sent: Instant, now: Instant) -> Option<Self> {
        let mut lease = Self {
            terms,
            since: sent,
            deadline: sent + terms.trust(),
            renew_at: None,
            state: State::Held,
        };
        lease.plan(sent + terms.renew_every);
        (now < lease.deadline).then_some(lease)
    }

    pub(crate) const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// When the lock was asked for.
    pub(crate) const fn since(&self) -> Instant {
        self.since
    }

    pub(crate) const fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(crate) const fn state(&self) -> State {
        self.state
    }

    /// When to renew next; `None` once `max_hold` ends the renewal, or the lock is lost or released.
    pub(crate) fn renew_at(&self) -> Option<Instant> {
        self.renew_at.filter(|_| self.state.is_held())
    }

    /// Time has passed.
    pub(crate) fn observe(&mut self, now: Instant) {
        if self.state.is_held() && now >= self.deadline {
            let reason = if self.renew_at.is_some() {
                LossReason::Deadline
            } else {
                LossReason::MaxHold
            };
            self.state = State::Lost(reason);
        }
    }

    /// A renewal sent at `sent` went well. An answer that comes after the deadline revives nothing.
    pub(crate) fn renewed(&mut self, sent: Instant, now: Instant) {
        self.observe(now);
        if self.state.is_held() {
            self.deadline = self.deadline.max(sent + self.terms.trust());
            self.state = State::Held;
            self.plan(sent + self.terms.renew_every);
            self.observe(now);
        }
    }

    /// A renewal failed, without a word about the lock.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.observe(now);
        if self.state.is_held() {
            self.state = State::Suspect;
            self.plan(now + self.terms.renew_every / RETRY_PARTS);
        }
    }

    /// The service said that the lock is gone.
    pub(crate) fn gone(&mut self, reason: LossReason, now: Instant) {
        self.observe(now);
        if self.state.is_held() {
            self.state = State::Lost(reason);
        }
    }

    /// The holder gives it back; whether it was still held.
    pub(crate) fn release(&mut self, now: Instant) -> bool {
        self.observe(now);
        let held = self.state.is_held();
        if held {
            self.state = State::Released;
        }
        held
    }

    fn plan(&mut self, at: Instant) {
        let last = self
            .terms
            .max_hold
            .and_then(|max_hold| self.since.checked_add(max_hold));
        self.renew_at = Some(at).filter(|at| last.is_none_or(|last| *at < last));
    }
}

#[cfg(test)]
mod tests;
