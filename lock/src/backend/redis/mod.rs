//! Redis: one server, Sentinels or a cluster.
//!
//! ```no_run
//! use outbox_lock::{RedisBackend, RedisConfig};
//!
//! # fn main() -> Result<(), outbox_lock::Error> {
//! let backend = RedisBackend::new(RedisConfig::node("redis://127.0.0.1:6379"))?;
//! # Ok(())
//! # }
//! ```
//!
//! Redis 6 or later; a cluster needs Redis 7.
//!
//! # What is kept
//!
//! All keys of a lock share a hash tag, so that a cluster keeps them together. For the lock `order:42`:
//!
//! | Redis key | holds | lives |
//! |---|---|---|
//! | `lock:{order:42}:x` | `owner:token` of the one holder | the ttl |
//! | `lock:{order:42}:fence` | the last token, for every kind of hold | [`RedisConfig::counter_retention`] |
//! | `lock:{order:42}:x:line`, `:until` | the places of fair waiters, and when each expires | the longest place |
//! | `lock:{order:42}:x:REQUEST` | that this release was carried out, for whoever repeats it | [`latch`](#repeated-calls) |
//! | `lock:{order:42}:rw`, `:p` | readers and writers, permits: each holder with the end of its hold | the longest hold |
//! | `lock:{order:42}:rw:tokens`, … | kind and token of each of them | the same |
//!
//! Every verb is one script, sent by hash (`EVALSHA`), and with its text when the server does not know it: a
//! restarted or promoted server never does.
//!
//! # Whose clock
//!
//! Redis' own, for ttls, places and holds. It is a wall clock: moved forward it ends every hold
//! early, moved back it makes them last. The holder notices neither by itself; the fencing token keeps
//! what it writes from doing harm.
//!
//! # Tokens
//!
//! A token is the server's clock in microseconds, or one more than the key's last token where that is
//! greater. The counter alone (`INCR`) would begin again at 1, or at numbers already given out, after a
//! restart without persistence, a failover to a replica that lagged, an eviction or `FLUSHALL`: a paused
//! old holder and its successor would have the same token, and the database could not tell them apart. The
//! clock alone would go back when it is set back. Only both at once can make tokens go back.
//!
//! So the database row stays the authority: it refuses what is smaller than it has seen, also from a
//! rightful holder, who then asks for a token above it (`remint`); the counter goes on from there. To be rid
//! of the last case, let tokens come from the database ([`TokenSource`](crate::TokenSource)). The counter may
//! expire, so that keys that nobody locks any more leave nothing behind.
//!
//! # Repeated calls
//!
//! The owner who asks again for what it holds gets the token it was given and a full ttl. A release leaves a
//! latch behind for five seconds or three response timeouts, whichever is longer, by which the same request
//! knows itself. So a call whose connection closed under it is repeated once here, on a new
//! connection.
//!
//! # Connections
//!
//! All tasks share one multiplexed connection: commands of many tasks travel together, and nobody waits for
//! a checkout. One more subscribes, once for all keys, when someone first waits. `WAIT` holds up
//! whatever is behind it on its connection, so with [`RedisConfig::replicas`] grants go over four
//! connections of their own. A pool would serve none of the three better.

mod answers;
mod calls;
mod check;
mod config;
mod error;
mod link;
mod listen;
mod names;
mod scripts;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::{Cmd, RedisResult, Value, cmd, from_redis_value};
use tokio::sync::watch;

pub use config::{RedisConfig, RedisUrl, Replicas, Topology};

use crate::backend::{Acquire, Backend, Capabilities, Hold, Release, Remint, Renew, Request, Shape, Wake};
use crate::{Error, ErrorKind, FencingToken, Key, Owner, RequestId};
use answers::{grant, is_unknown_script, released, renewed, token, valid};
use calls::{Call, Calls};
use error::{failed, unexpected};
use link::{Dialer, Link};
use listen::Feed;

/// How long a release is remembered at least. Chosen: longer than a repetition after a lost answer takes,
/// and at 10,000 releases a second 5 MB of Redis' memory.
const LATCH_AT_LEAST: Duration = Duration::from_secs(5);

/// Connections for grants that wait for replicas. Chosen: a `WAIT` beside a healthy replica takes about a
/// millisecond, so four serve some thousand grants a second.
const WAITING_LINKS: usize = 4;

/// The longest prefix of Redis keys, in bytes.
const PREFIX_BYTES: usize = 64;

/// Locks kept by Redis.
///
/// Cheap to clone; clones share the connections. They are made at the first call that needs them.
#[derive(Debug, Clone)]
pub struct RedisBackend {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: RedisConfig,
    dialer: Dialer,
    calls: Calls,
    link: Link,
    /// For grants that wait for replicas; empty when none do.
    waiting: Vec<Link>,
    turn: AtomicUsize,
    feed: Feed,
}

impl RedisBackend {
    /// Checks the settings; does no I/O.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`]: an address that is none, a time of zero, a prefix with braces.
    pub fn new(config: RedisConfig) -> Result<Self, Error> {
        check::settings(&config)?;
        let dialer = Dialer::new(&config).map_err(|cause| failed("configure", cause))?;
        let waiting = config.replicas.map_or(Vec::new(), |replicas| {
            (0..WAITING_LINKS)
                .map(|_| Link::new(dialer.clone().patient(replicas.within)))
                .collect()
        });
        let calls = Calls {
            prefix: config.prefix.clone(),
            publish: if dialer.is_cluster() {
                "SPUBLISH"
            } else {
                "PUBLISH"
            },
            latch: LATCH_AT_LEAST.max(3 * config.response_timeout),
            counter_retention: config.counter_retention,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                calls,
                link: Link::new(dialer.clone()),
                waiting,
                turn: AtomicUsize::new(0),
                feed: Feed::new(dialer.clone()),
                dialer,
                config,
            }),
        })
    }

    /// Counts `count` up at every wake of the key that concerns `owner`.
    pub(crate) fn interest(
        &self,
        key: &Key,
        owner: Owner,
        shape: Shape,
        count: Arc<watch::Sender<u64>>,
    ) -> impl Send + Sync + 'static {
        let channel = self.shared.calls.channel(key, shape);
        self.shared.feed.listen(channel, owner, count)
    }

    /// Gives the hold the token that another server minted, and lets later ones be greater, also when the
    /// hold is gone.
    #[cfg(feature = "quorum")]
    pub(crate) async fn adopt(&self, hold: &Hold) -> Result<(), Error> {
        let call = self.shared.calls.remint(hold, hold.token, true);
        self.run("acquire", &call).await.map(drop)
    }

    async fn run(&self, operation: &'static str, call: &Call) -> Result<Value, Error> {
        self.send(call).await.map_err(|cause| failed(operation, cause))
    }

    async fn send(&self, call: &Call) -> RedisResult<Value> {
        let link = &self.shared.link;
        match link.query(&call.by_hash()).await {
            Err(error) if is_unknown_script(&error) => link.query(&call.by_text()).await,
            answer => answer,
        }
    }

    /// Grants only what replicas confirm; takes the grant back otherwise.
    async fn acquire_replicated(&self, request: &Request) -> Result<Acquire, Error> {
        let shared = &self.shared;
        let Some(replicas) = shared.config.replicas else {
            return grant(self.run("acquire", &shared.calls.acquire(request)).await?);
        };
        let turn = shared.turn.fetch_add(1, Ordering::Relaxed);
        let Some(link) = shared.waiting.get(turn % shared.waiting.len().max(1)) else {
            return Err(unexpected("acquire"));
        };
        let call = shared.calls.acquire(request);
        let both = |first: Cmd| {
            let mut wait = cmd("WAIT");
            wait.arg(replicas.acks)
                .arg(u64::try_from(replicas.within.as_millis()).unwrap_or(u64::MAX));
            link.query_both(call.any_key(), first, wait)
        };
        let answers = match both(call.by_hash()).await {
            Err(error) if is_unknown_script(&error) => both(call.by_text()).await,
            answers => answers,
        };
        let (granted, confirmed) = answers.map_err(|cause| failed("acquire", cause))?;
        let granted = grant(granted)?;
        let confirmed: u32 = from_redis_value(confirmed).map_err(|cause| failed("acquire", cause.into()))?;
        if matches!(granted, Acquire::Held { .. }) || confirmed >= replicas.acks {
            return Ok(granted);
        }
        // Nothing may remain of it: the next asker would find a holder that never was.
        self.leave(&request.key, request.owner, request.shape).await?;
        Err(Error::new(
            ErrorKind::NotReplicated,
            "acquire",
            format!(
                "{confirmed} of {} replicas confirmed the grant in time; it was taken back",
                replicas.acks
            ),
        ))
    }
}

#[async_trait]
impl Backend for RedisBackend {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_write: true,
            permits: true,
            fair: true,
            wakes: true,
            durable: false,
        }
    }

    async fn check(&self) -> Result<Vec<String>, Error> {
        check::check(self, &self.shared).await
    }

    async fn acquire(&self, request: &Request) -> Result<Acquire, Error> {
        if self.shared.waiting.is_empty() {
            grant(self.run("acquire", &self.shared.calls.acquire(request)).await?)
        } else {
            self.acquire_replicated(request).await
        }
    }

    async fn renew(&self, holds: &[(Hold, Duration)]) -> Vec<Result<Renew, Error>> {
        let calls: Vec<Call> = holds
            .iter()
            .map(|(hold, ttl)| self.shared.calls.renew(hold, *ttl))
            .collect();
        let mut answers = self.send_all(&calls, Call::by_hash).await;
        let unknown: Vec<usize> = (0..answers.len())
            .filter(|at| matches!(&answers[*at], Err(error) if is_unknown_script(error)))
            .collect();
        if !unknown.is_empty() {
            let again: Vec<&Call> = unknown.iter().filter_map(|at| calls.get(*at)).collect();
            let answered = self.send_all(&again, |call| call.by_text()).await;
            for (at, answer) in unknown.into_iter().zip(answered) {
                answers[at] = answer;
            }
        }
        answers.into_iter().map(renewed).collect()
    }

    async fn release(&self, hold: &Hold, request: RequestId) -> Result<Release, Error> {
        released(
            &self
                .run("release", &self.shared.calls.release(hold, request))
                .await?,
        )
    }

    async fn hand_over(
        &self,
        hold: &Hold,
        request: RequestId,
        next: &Request,
    ) -> (Result<Release, Error>, Result<Acquire, Error>) {
        let in_one = hold.shape == Shape::Exclusive
            && next.shape == Shape::Exclusive
            && hold.key == next.key
            && self.shared.waiting.is_empty();
        if !in_one {
            let released = self.release(hold, request).await;
            return (released, self.acquire(next).await);
        }
        if let Err(error) = valid(next) {
            return (self.release(hold, request).await, Err(error));
        }
        let call = self.shared.calls.hand_over(hold, request, next);
        let answers = match self.send(&call).await {
            Ok(Value::Array(answers)) => <[Value; 2]>::try_from(answers).ok(),
            Ok(_) => None,
            Err(cause) => {
                let released = Err(failed("release", cause.clone()));
                return (released, Err(failed("acquire", cause)));
            }
        };
        let Some([released_answer, acquired]) = answers else {
            return (Err(unexpected("release")), Err(unexpected("acquire")));
        };
        (released(&released_answer), grant(acquired))
    }

    async fn leave(&self, key: &Key, owner: Owner, shape: Shape) -> Result<(), Error> {
        self.run("leave", &self.shared.calls.leave(key, owner, shape))
            .await
            .map(drop)
    }

    async fn listen(&self, key: &Key, owner: Owner, shape: Shape) -> Result<Option<Wake>, Error> {
        let count = Arc::new(watch::Sender::new(0));
        let receiver = count.subscribe();
        let interest = self.interest(key, owner, shape, count);
        Ok(Some(Wake::new(receiver, interest)))
    }

    async fn remint(&self, hold: &Hold, above: FencingToken) -> Result<Remint, Error> {
        if above.get() == i64::MAX {
            return Err(Error::new(
                ErrorKind::Invalid,
                "remint",
                "there is no token above the largest",
            ));
        }
        match self
            .run("remint", &self.shared.calls.remint(hold, above, false))
            .await?
        {
            Value::Int(0) => Ok(Remint::Lost),
            answer => token(answer, "remint").map(Remint::Minted),
        }
    }
}

impl RedisBackend {
    /// One answer a call; an error of the connection is everyone's.
    async fn send_all<C>(&self, calls: &[C], command: impl Fn(&C) -> Cmd) -> Vec<RedisResult<Value>> {
        if calls.is_empty() {
            return Vec::new();
        }
        let commands: Vec<Cmd> = calls.iter().map(command).collect();
        match self.shared.link.query_all(commands).await {
            Ok(answers) => answers,
            Err(error) => calls.iter().map(|_| Err(error.clone())).collect(),
        }
    }
}
