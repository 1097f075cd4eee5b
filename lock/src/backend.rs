//! The contract of a lock service: grant, renew, release, and a hint that something was released.

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub mod lease;
pub mod memory;
#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "quorum")]
pub mod quorum;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "sqlite")]
pub mod sqlite;

use std::any::Any;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::error::Error;
use crate::key::Key;
use crate::token::{FencingToken, Owner, RequestId};

/// What kind of hold is asked for. Different kinds of one key do not meet, except [`Shape::Read`] with
/// [`Shape::Write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// One holder.
    Exclusive,
    /// Any number of readers while no one writes.
    Read,
    /// One writer and no reader.
    Write,
    /// One of `limit` permits; every asker of the key states the same limit.
    Permit {
        /// How many holders there may be, at least 1.
        limit: u32,
    },
}

impl Shape {
    /// Which holds of a key meet.
    pub(crate) const fn class(self) -> Class {
        match self {
            Self::Exclusive => Class::Exclusive,
            Self::Read | Self::Write => Class::ReadWrite,
            Self::Permit { .. } => Class::Permit,
        }
    }

    /// The stable lower-case name used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Read => "read",
            Self::Write => "write",
            Self::Permit { .. } => "permit",
        }
    }
}

/// The shapes of one class share a key's holders and line; classes of one key do not meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    Exclusive,
    ReadWrite,
    Permit,
}

/// One question: may this owner hold this key for this long?
#[derive(Debug, Clone)]
pub struct Request {
    /// What is to be locked.
    pub key: Key,
    /// Who asks. The same owner asking again gets the same grant.
    pub owner: Owner,
    /// The kind of hold.
    pub shape: Shape,
    /// How long the grant lasts without renewal, at least 1 ms, by the backend's clock.
    pub ttl: Duration,
    /// Keep a place in the line, in order of arrival, for this long without being asked again: a waiter that
    /// died is passed over when its place expires. `None` asks without a place and may overtake nobody who
    /// has one.
    pub place: Option<Duration>,
}

/// What was granted, named again for renewal and release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// What is locked.
    pub key: Key,
    /// Who holds it.
    pub owner: Owner,
    /// The kind of hold.
    pub shape: Shape,
    /// The token minted at the grant.
    pub token: FencingToken,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquire {
    /// Held from now on for the ttl.
    Granted {
        /// Greater than every token granted for this key before, while the backend kept its memory.
        token: FencingToken,
    },
    /// Someone else holds it, or stands before the asker in the line.
    Held {
        /// When asking again may help if no one releases earlier: what remains of the shortest hold, or of
        /// the place in front, that stands in the way.
        retry_after: Duration,
    },
}

/// The answer to a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renew {
    /// The hold lasts the ttl from now; nothing was added to what remained.
    Renewed,
    /// Nobody holds it: it expired or was deleted.
    Expired,
    /// Someone else holds it.
    Stolen,
}

/// The answer to a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// This request, now or when it was made before, ended the hold.
    Released,
    /// There was nothing to release: it expired or is someone else's.
    NotHeld,
}

/// The answer to a request for a higher token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remint {
    /// Still held, with this token from now on; greater than the one asked to be above.
    Minted(FencingToken),
    /// Not held any more.
    Lost,
}

/// What a backend can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a table of what is offered, not a state"
)]
pub struct Capabilities {
    /// [`Shape::Read`] and [`Shape::Write`].
    pub read_write: bool,
    /// [`Shape::Permit`].
    pub permits: bool,
    /// [`Request::place`]: grants in order of arrival.
    pub fair: bool,
    /// [`Backend::listen`] wakes waiters.
    pub wakes: bool,
    /// A grant survives the crash of one node of the service.
    pub durable: bool,
}

/// A hint that a key may be free. It may come too often and may not come at all; waiters also ask again
/// after a bounded time.
pub struct Wake {
    count: watch::Receiver<u64>,
    _interest: Box<dyn Any + Send + Sync>,
}

impl Wake {
    /// A hint for every change of `count`; `interest` is dropped with it, and ends the listening.
    pub fn new(mut count: watch::Receiver<u64>, interest: impl Any + Send + Sync) -> Self {
        count.mark_unchanged();
        Self {
            count,
            _interest: Box::new(interest),
        }
    }

    /// Resolves at the next hint; never, once the backend cannot give any more.
    ///
    /// # Cancel safety
    /// A hint that came while no one waited is seen by the next call.
    pub async fn woken(&mut self) {
        if self.count.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wake").finish_non_exhaustive()
    }
}

/// A lock service.
///
/// Every method may be repeated after an error: `acquire` is idempotent per owner, `release` per request,
/// `renew` and `leave` by nature. An error leaves open whether the request was carried out, unless its kind
/// says otherwise. A dropped future may or may not have been carried out. Every call ends within the time
/// limit the backend was configured with, reachable or not.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// The stable lower-case name used in logs and metric labels, such as `"redis"`.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Looks at the service's settings once, when the lock service is built; returns what a person should
    /// know, a sentence each that says what to change.
    ///
    /// # Errors
    /// Settings with which no lock can work (a read-only replica, a wrong password, a missing table).
    async fn check(&self) -> Result<Vec<String>, Error>;

    /// Grants the key, or says for how long it is held.
    ///
    /// The same owner asking again while it holds the key gets the same token, and a full ttl.
    ///
    /// # Errors
    /// See the trait. `NotReplicated` means that nothing is held.
    async fn acquire(&self, request: &Request) -> Result<Acquire, Error>;

    /// Sets the ttl of many holds, in as few round trips as the service allows; one answer a hold, in order.
    async fn renew(&self, holds: &[(Hold, Duration)]) -> Vec<Result<Renew, Error>>;

    /// Ends a hold and wakes waiters. Nobody's hold but this owner's is touched.
    ///
    /// # Errors
    /// See the trait.
    async fn release(&self, hold: &Hold, request: RequestId) -> Result<Release, Error>;

    /// Gives up a place in the line, and a hold that this owner may have been granted without learning it:
    /// whoever stops waiting calls it, so that a cancelled acquisition leaves nothing behind.
    ///
    /// # Errors
    /// See the trait.
    async fn leave(&self, key: &Key, owner: Owner, shape: Shape) -> Result<(), Error>;

    /// Ends a hold and asks the next question, for a process that has the next waiter itself. Whoever stands
    /// in the line before that waiter still goes first. By default a release and then an acquisition;
    /// a backend overrides it to save a round trip.
    ///
    /// # Errors
    /// Either answer may fail alone.
    async fn hand_over(
        &self,
        hold: &Hold,
        request: RequestId,
        next: &Request,
    ) -> (Result<Release, Error>, Result<Acquire, Error>) {
        let released = self.release(hold, request).await;
        (released, self.acquire(next).await)
    }

    /// Listens for releases of `key`, on behalf of `owner` where the line says who is next. `None` where the
    /// service cannot tell. Listening again and again costs no connection each.
    ///
    /// # Errors
    /// See the trait; the caller goes on by asking again.
    async fn listen(&self, key: &Key, owner: Owner, shape: Shape) -> Result<Option<Wake>, Error>;

    /// Gives a hold a token above `above`, because the service lost its counter and the database has seen
    /// higher ones. Later grants of the key are higher still.
    ///
    /// # Errors
    /// See the trait.
    async fn remint(&self, hold: &Hold, above: FencingToken) -> Result<Remint, Error>;
}
