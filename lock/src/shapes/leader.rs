//! A role that one program at a time fills.
//!
//! ```text
//!               granted: a term begins, its number is the fencing token
//!   Candidate ──────────────────────────────────────────────────────────► Leader
//!       ▲                                                                   │
//!       ├── lost: the work is dropped where it stands ──────────────────────┤
//!       └── the work ended: the role is given up, and stood for again ──────┤
//!                                                                           ▼
//!               shutdown: the work is told, ends in its own time, and the role is handed over
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backend::Shape;
use crate::error::{Error, ErrorKind};
use crate::guard::{Guard, finish_first};
use crate::key::Key;
use crate::lease::LossReason;
use crate::locks::{Lock, Locks};
use crate::token::FencingToken;

/// How long one wait for the role lasts before the next begins. Chosen: a wait has an end, and a log line
/// of the last error once a minute is enough.
const WAIT: Duration = Duration::from_secs(60);

impl Locks {
    /// The role of this name, filled by whoever holds the plain [`lock`](Self::lock) of this name. Nothing
    /// is asked yet.
    ///
    /// A term has no longest hold: it lasts until the role is lost or given up.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the name is no [`Key`].
    pub fn leader(&self, role: impl Into<Arc<str>>) -> Result<Leader, Error> {
        let lock = self.shaped(Key::new(role)?, Shape::Exclusive)?.max_hold(None)?;
        Ok(Leader {
            lock,
            rest: Duration::from_secs(1),
            on_gain: None,
            on_loss: None,
        })
    }
}

/// Why a term ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TermEnd {
    /// The lock was lost; the work was dropped.
    Lost(LossReason),
    /// The work ended by itself; the role was given up.
    Resigned,
    /// The program shuts down; the role was handed over.
    Shutdown,
}

type OnGain = Arc<dyn Fn(FencingToken) + Send + Sync>;
type OnLoss = Arc<dyn Fn(FencingToken, TermEnd) + Send + Sync>;

/// A role by name; [`run`](Self::run) stands for it, fills it, and stands again when it is lost.
///
/// Two programs may both believe they lead for as long as one of them is paused: what a leader writes is
/// fenced with the number of its term, like any lock.
#[derive(Clone)]
#[must_use = "nobody stands for the role before `run`"]
pub struct Leader {
    lock: Lock,
    rest: Duration,
    on_gain: Option<OnGain>,
    on_loss: Option<OnLoss>,
}

impl fmt::Debug for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leader")
            .field("role", self.role())
            .field("rest", &self.rest)
            .finish_non_exhaustive()
    }
}

/// One term of office, given to the work that is done in it.
#[derive(Debug, Clone)]
pub struct Term {
    role: Key,
    number: FencingToken,
    shutdown: CancellationToken,
}

impl Term {
    /// The role.
    pub const fn role(&self) -> &Key {
        &self.role
    }

    /// The number of the term, to fence with; greater than that of every earlier one.
    pub const fn number(&self) -> FencingToken {
        self.number
    }

    /// Resolves when the program shuts down: finish what was begun and return, the role is still held.
    ///
    /// # Cancel safety
    /// Safe to drop and call again.
    pub async fn closing(&self) {
        self.shutdown.cancelled().await;
    }
}

impl Leader {
    /// The role's name.
    pub fn role(&self) -> &Key {
        self.lock.key()
    }

    /// See [`Lock::ttl`]. A successor is found within the ttl after a leader died, and at once after one
    /// that shut down.
    ///
    /// # Errors
    /// See [`Lock::ttl`].
    pub fn ttl(mut self, ttl: Duration) -> Result<Self, Error> {
        self.lock = self.lock.ttl(ttl)?;
        Ok(self)
    }

    /// How long a program that gave the role up waits before it stands again, so that another one gets it.
    /// Default 1 s.
    pub const fn rest(mut self, rest: Duration) -> Self {
        self.rest = rest;
        self
    }

    /// Called when a term begins, before its work.
    pub fn on_gain(mut self, gained: impl Fn(FencingToken) + Send + Sync + 'static) -> Self {
        self.on_gain = Some(Arc::new(gained));
        self
    }

    /// Called when a term has ended, after its work was dropped or done and before the role is given back:
    /// no successor of a term that was not lost has begun yet.
    pub fn on_loss(mut self, lost: impl Fn(FencingToken, TermEnd) + Send + Sync + 'static) -> Self {
        self.on_loss = Some(Arc::new(lost));
        self
    }

    /// Stands for the role until `shutdown`, and does `lead` in each term that is won.
    ///
    /// When the role is lost, the work is dropped where it stands, and the role is stood for again. Work
    /// that returns gives the role up. At `shutdown` the work is told by [`Term::closing`] and waited for,
    /// still holding the role; then the role is handed over and this returns. An outage of the lock service
    /// is waited out.
    ///
    /// # Errors
    /// What no repetition mends (a wrong password, say). The role is not held then.
    ///
    /// # Cancel safety
    /// Dropping it drops the work, and the watchdog gives the role back.
    pub async fn run<L, W>(&self, shutdown: CancellationToken, mut lead: L) -> Result<(), Error>
    where
        L: FnMut(Term) -> W,
        W: Future<Output = ()>,
    {
        while let Some(guard) = self.elected(&shutdown).await? {
            let term = Term {
                role: self.role().clone(),
                number: guard.token(),
                shutdown: shutdown.clone(),
            };
            let number = term.number;
            tracing::info!(role = %self.role(), term = %number, "leading");
            if let Some(gained) = &self.on_gain {
                gained(number);
            }
            let end = match finish_first(lead(term), guard.lost()).await {
                Err(reason) => TermEnd::Lost(reason),
                Ok(()) if shutdown.is_cancelled() => TermEnd::Shutdown,
                Ok(()) => TermEnd::Resigned,
            };
            self.ended(guard, number, end).await;
            if end == TermEnd::Resigned {
                tokio::select! {
                    () = sleep(self.rest) => {}
                    () = shutdown.cancelled() => {}
                }
            }
        }
        Ok(())
    }

    async fn ended(&self, guard: Guard, number: FencingToken, end: TermEnd) {
        tracing::info!(role = %self.role(), term = %number, ?end, "leading no more");
        if let Some(lost) = &self.on_loss {
            lost(number, end);
        }
        if let Err(error) = guard.release().await {
            tracing::warn!(role = %self.role(), %error, "the role was not given back at once");
        }
    }

    /// `None` when the program shuts down first.
    async fn elected(&self, shutdown: &CancellationToken) -> Result<Option<Guard>, Error> {
        loop {
            let acquired = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(None),
                acquired = self.lock.acquire(WAIT) => acquired,
            };
            match acquired {
                Ok(guard) => return Ok(Some(guard)),
                Err(error) if error.kind() == ErrorKind::Timeout => {
                    if let Some(cause) = std::error::Error::source(&error) {
                        tracing::warn!(role = %self.role(), %error, cause, "nobody can be elected");
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}
