//! The front door: a lock service, and its locks by name.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::Instrument;

use crate::backend::{Backend, Request, Shape};
use crate::error::{Error, ErrorKind};
use crate::guard::Guard;
use crate::key::Key;
use crate::lease::Terms;
use crate::options::Options;
use crate::schedule::Schedule;
use crate::service::Service;
use crate::token::Owner;
use crate::token_source::TokenSource;
use crate::waiting;
use crate::watchdog::{Order, Watchdog};

/// How far ahead a wait that overflows the clock ends. Chosen: longer than any program runs.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The end of a wait that begins now.
pub(crate) fn deadline_after(within: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(within).unwrap_or(now + FAR)
}

/// A lock service: one backend, one watchdog. Clones share both.
#[derive(Debug, Clone)]
pub struct Locks {
    service: Arc<Service>,
    warnings: Arc<[String]>,
}

impl Locks {
    /// Begins with a backend. One program builds one `Locks` per backend and clones it.
    pub fn builder(backend: Arc<dyn Backend>) -> LocksBuilder {
        LocksBuilder {
            backend,
            tokens: None,
            options: Options::default(),
        }
    }

    /// What a person should know about the settings, a sentence each that says what to change.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.service.backend
    }

    /// The lock of this name, held by one at a time. Nothing is asked yet.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the name is no [`Key`].
    pub fn lock(&self, key: impl Into<Arc<str>>) -> Result<Lock, Error> {
        self.shaped(Key::new(key)?, Shape::Exclusive)
    }

    /// The lock of any kind.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the backend does not offer the kind.
    pub(crate) fn shaped(&self, key: Key, shape: Shape) -> Result<Lock, Error> {
        let offered = self.service.backend.capabilities();
        let missing = match shape {
            Shape::Read | Shape::Write if !offered.read_write => Some(("read-write locks", "read_write")),
            Shape::Permit { .. } if !offered.permits => Some(("semaphores", "permits")),
            _ => None,
        };
        if let Some((missing, capability)) = missing {
            let context = format!(
                "the backend {} offers no {missing} (capability `{capability}`): use one that does",
                self.service.name
            );
            return Err(Error::new(ErrorKind::Unsupported, "lock", context));
        }
        Ok(Lock {
            service: Arc::clone(&self.service),
            key,
            shape,
            options: self.service.options,
            terms: self.service.options.terms()?,
        })
    }

    /// Waits until the watchdog has given back every dropped guard and cleared up after every cancelled
    /// wait, or has given that up. Call it before the program ends, with a limit of your own.
    ///
    /// # Cancel safety
    /// Safe to drop.
    pub async fn drained(&self) {
        let (sender, drained) = oneshot::channel();
        self.service.order(Order::Drain(sender));
        // Without an answer the watchdog has ended, and nothing will be cleared up any more.
        let _ = drained.await;
    }
}

/// Collects the settings of [`Locks`]; [`build`](Self::build) checks them together.
#[derive(Debug, Clone)]
#[must_use = "nothing is checked or started before `build`"]
pub struct LocksBuilder {
    backend: Arc<dyn Backend>,
    tokens: Option<Arc<dyn TokenSource>>,
    options: Options,
}

impl LocksBuilder {
    /// Takes the fencing tokens from here instead of from the backend. A lock is granted first and minted
    /// for after; a failed minting gives it up. Default: the backend counts.
    pub fn tokens(mut self, source: Arc<dyn TokenSource>) -> Self {
        self.tokens = Some(source);
        self
    }

    /// How long a grant lasts without renewal, 1 ms to 24 h. Default 30 s. A crashed holder closes the lock
    /// for that long; a shorter ttl is lost to shorter pauses.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.options.ttl = ttl;
        self
    }

    /// How often held locks are renewed. Default half of `ttl - margin`: a third of the ttl.
    pub const fn renew_every(mut self, every: Duration) -> Self {
        self.options.renew_every = Some(every);
        self
    }

    /// How long before the service the holder stops believing. Default a third of the ttl. A smaller one
    /// holds longer through an outage and allows two believers after a smaller pause or drift of clocks.
    pub const fn margin(mut self, margin: Duration) -> Self {
        self.options.margin = Some(margin);
        self
    }

    /// After how long a lock is not renewed any more, so that a forgotten guard ends. Default 10 min;
    /// `None` for roles that are held for the life of a program.
    pub fn max_hold(mut self, max_hold: impl Into<Option<Duration>>) -> Self {
        self.options.max_hold = max_hold.into();
        self
    }

    /// For how much longer than its ttl a lock stays closed that was lost and not released, so that its old
    /// holder can stop. Default 0.
    pub const fn lost_grace(mut self, grace: Duration) -> Self {
        self.options.lost_grace = grace;
        self
    }

    /// How often a waiter asks at least, wakes or no wakes. Default 1 s, jittered down by up to a quarter.
    pub const fn poll_floor(mut self, floor: Duration) -> Self {
        self.options.poll_floor = floor;
        self
    }

    /// Grants in order of arrival among all processes. Default false; costs each waiting process a question
    /// every third of [`place`](Self::place).
    pub const fn fair(mut self, fair: bool) -> Self {
        self.options.fair = fair;
        self
    }

    /// How long a dead waiter's place in a fair line holds up the others. Default 500 ms, at least 30 ms.
    pub const fn place(mut self, place: Duration) -> Self {
        self.options.place = place;
        self
    }

    /// How many holds one call renews. Default 500: about 30 kB to Redis, done in a few milliseconds.
    pub const fn renew_chunk(mut self, holds: usize) -> Self {
        self.options.renew_chunk = holds;
        self
    }

    /// Checks the settings and the service, and starts the watchdog on the current runtime. A lock held
    /// past the end of that runtime is not renewed any more.
    ///
    /// # Errors
    /// Settings that do not fit together ([`ErrorKind::Invalid`], [`ErrorKind::Unsupported`]), a service
    /// with which no lock can work, or no runtime; each says what to change.
    pub async fn build(self) -> Result<Locks, Error> {
        let options = self.options.checked(self.backend.capabilities())?;
        let runtime = Handle::try_current().map_err(|cause| {
            let context = "there is no tokio runtime to renew locks on: build within one";
            Error::new(ErrorKind::Invalid, "build", context).with_cause(cause)
        })?;
        let mut warnings = options.warnings();
        warnings.extend(self.backend.check().await?);
        for warning in &warnings {
            tracing::warn!(backend = self.backend.name(), "{warning}");
        }
        let (sender, orders) = mpsc::unbounded_channel();
        let schedule = Arc::new(Schedule::default());
        let backend = Arc::clone(&self.backend);
        let watchdog = Watchdog::new(backend, Arc::clone(&schedule), orders, options.renew_chunk);
        runtime.spawn(watchdog.run());
        Ok(Locks {
            service: Arc::new(Service::new(self.backend, options, self.tokens, schedule, sender)),
            warnings: warnings.into(),
        })
    }
}

/// A lock by name, not held. Acquiring it gives a [`Guard`]; it can be acquired again and again.
#[derive(Clone)]
#[must_use = "a lock is not held until it is acquired"]
pub struct Lock {
    service: Arc<Service>,
    key: Key,
    shape: Shape,
    options: Options,
    terms: Terms,
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
            .field("key", &self.key)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

impl Lock {
    /// What it locks.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Another ttl than the service's; margin and renewal follow it unless they were set.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if it does not fit the other times.
    pub fn ttl(mut self, ttl: Duration) -> Result<Self, Error> {
        self.options.ttl = ttl;
        self.terms = self.options.terms()?;
        Ok(self)
    }

    /// Another longest hold than the service's; `None` renews for as long as there is a guard.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if it is shorter than the ttl.
    pub fn max_hold(mut self, max_hold: impl Into<Option<Duration>>) -> Result<Self, Error> {
        self.options.max_hold = max_hold.into();
        self.terms = self.options.terms()?;
        Ok(self)
    }

    /// Asks once. `None` if someone else holds the lock, or waits for it in this process or in a fair line.
    ///
    /// # Errors
    /// What the backend said. Nothing is held then; a grant that was not learned is given up.
    ///
    /// # Cancel safety
    /// Dropped half-way, it leaves nothing held: the watchdog gives up what was granted.
    pub async fn try_acquire(&self) -> Result<Option<Guard>, Error> {
        let request = self.request(None);
        waiting::try_once(&self.service, &request, self.terms)
            .instrument(self.span())
            .await
    }

    /// Waits for the lock, at most this long.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] when the time is over, with the last error of the backend as its cause if
    /// there was one; at once what no repetition mends.
    ///
    /// # Cancel safety
    /// As [`try_acquire`](Self::try_acquire); its place in the line is lost.
    pub async fn acquire(&self, within: Duration) -> Result<Guard, Error> {
        self.acquire_until(deadline_after(within)).await
    }

    /// Waits for the lock until this instant.
    ///
    /// # Errors
    /// See [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// See [`acquire`](Self::acquire).
    pub async fn acquire_until(&self, deadline: Instant) -> Result<Guard, Error> {
        let fair = self.options.fair || matches!(self.shape, Shape::Read | Shape::Write);
        let offered = self.service.backend.capabilities().fair;
        let place = (fair && offered).then_some(self.options.place);
        waiting::until(&self.service, self.request(place), self.terms, deadline)
            .instrument(self.span())
            .await
    }

    fn request(&self, place: Option<Duration>) -> Request {
        Request {
            key: self.key.clone(),
            owner: Owner::new(),
            shape: self.shape,
            ttl: self.terms.kept(),
            place,
        }
    }

    fn span(&self) -> tracing::Span {
        tracing::debug_span!(
            "acquire",
            key = %self.key,
            shape = self.shape.as_str(),
            attempt = tracing::field::Empty,
            token = tracing::field::Empty,
        )
    }
}
