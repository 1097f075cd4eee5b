//! A quorum of independent Redis servers (Redlock).
//!
//! A lock is held when a majority of the servers granted it and enough of the ttl is left. One of three, or
//! two of five, may be down without anybody noticing.
//!
//! # What it does not promise
//!
//! - **It is a lease like any other.** A holder that is paused past its ttl still believes that it holds the
//!   lock. Only the fencing token, checked by the database, stops its write. More servers do not change that.
//! - **It trusts clocks.** A server whose clock jumps ends its part of a lease early. Two such servers of
//!   three, and two holders hold at once.
//! - **It trusts memory.** A server that comes back empty forgets its part of every lease, and may grant it
//!   again at once: with one such server and one that was never asked, a second majority exists. Run the
//!   servers with `appendonly yes` and `appendfsync always`, or keep a restarted one away for the longest
//!   ttl.
//! - **Its tokens grow only while a majority keeps its counters, or its clocks do not go back.** Before a grant
//!   counts, its token, the greatest that any server of the majority minted, is written to a majority; so
//!   the next majority meets it. A majority that lost its counters goes on from its clocks. Should a token go
//!   back nevertheless, the database refuses it, and the holder asks for a higher one; to be rid of the
//!   case, let tokens come from the database ([`TokenSource`](crate::TokenSource)).
//! - **Nothing about order.** There is no line of waiters: two that ask at once may both get a
//!   minority, take it back, and try again after a random pause. Permits are refused: three servers that
//!   each keep a limit do not keep it together.
//!
//! If one server with a replica and the fence is enough, and it usually is, use that: it is faster and does
//! no less for correctness.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use rand::Rng as _;
use tokio::sync::watch;
use tokio::time::Instant;

use super::redis::{RedisBackend, RedisConfig};
use super::{Acquire, Backend, Capabilities, Hold, Release, Remint, Renew, Request, Shape, Wake};
use crate::{Error, ErrorKind, FencingToken, Key, Owner, RequestId};

/// The part of a ttl by which the servers' clocks may run apart, and the least (the Redlock description).
const DRIFT_DIVISOR: u32 = 100;
const DRIFT_AT_LEAST: Duration = Duration::from_millis(2);

/// Below this a ttl is all drift, and the caller's margin alone decides.
const CHECKED_FROM: Duration = Duration::from_millis(10);

/// How long those who split the vote wait before they ask again. Chosen: some round trips, so that one of
/// them finds the others gone.
const SPLIT_VOTE_MS: std::ops::Range<u64> = 5..40;

/// Locks kept by a majority of independent Redis servers.
#[derive(Debug, Clone)]
pub struct QuorumBackend {
    nodes: Arc<[RedisBackend]>,
}

impl QuorumBackend {
    /// Checks the settings; does no I/O. The time limit of each server is its own
    /// [`RedisConfig::response_timeout`]: shorten it, since the slowest answer is waited for.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`]: fewer than three servers, an even number, or settings that [`RedisBackend::new`]
    /// refuses.
    pub fn new(nodes: impl IntoIterator<Item = RedisConfig>) -> Result<Self, Error> {
        let nodes = nodes
            .into_iter()
            .map(RedisBackend::new)
            .collect::<Result<Vec<_>, _>>()?;
        if nodes.len() < 3 || nodes.len().is_multiple_of(2) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "configure",
                format!(
                    "a quorum of {} servers: name three or five independent ones (an even number only adds one \
                     that may fail)",
                    nodes.len()
                ),
            ));
        }
        Ok(Self { nodes: nodes.into() })
    }

    fn majority(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    /// Makes the token known where a lower one was minted. Returns on how many servers it stands.
    async fn settle(&self, hold: &Hold, granted: &[(usize, FencingToken)]) -> usize {
        let each = granted.iter().map(|(at, token)| async move {
            match self.nodes.get(*at) {
                Some(node) if *token < hold.token => node.adopt(hold).await.is_ok(),
                node => node.is_some(),
            }
        });
        join_all(each).await.into_iter().filter(|stands| *stands).count()
    }

    /// Takes back what was granted, wherever it was.
    async fn roll_back(&self, request: &Request) -> bool {
        let each = self
            .nodes
            .iter()
            .map(|node| node.leave(&request.key, request.owner, request.shape));
        join_all(each).await.iter().all(Result::is_ok)
    }

    /// Lets a server that forgot the lease have its part again, so that restarts do not thin the quorum until
    /// a renewal fails.
    async fn mend(&self, node: &RedisBackend, hold: &Hold, ttl: Duration) {
        let request = Request {
            key: hold.key.clone(),
            owner: hold.owner,
            shape: hold.shape,
            ttl,
            place: None,
        };
        if let Ok(Acquire::Granted { .. }) = node.acquire(&request).await {
            // Were it lost as well, the next renewal would find it.
            let _ = node.adopt(hold).await;
        }
    }

    fn supported(shape: Shape) -> Result<(), Error> {
        if matches!(shape, Shape::Permit { .. }) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "acquire",
                "a quorum keeps no permits: servers that each keep the limit do not keep it together; use one \
                 Redis, or a database",
            ));
        }
        Ok(())
    }

    /// What the answers to one renewal come to.
    async fn renewed(
        &self,
        hold: &Hold,
        ttl: Duration,
        answers: Vec<Result<Renew, Error>>,
    ) -> Result<Renew, Error> {
        let count = |wanted: Renew| {
            let same = answers
                .iter()
                .filter(|answer| matches!(answer, Ok(answer) if *answer == wanted));
            same.count()
        };
        let (renewed, expired, stolen) = (count(Renew::Renewed), count(Renew::Expired), count(Renew::Stolen));
        if renewed >= self.majority() {
            if expired > 0 {
                let forgot = self
                    .nodes
                    .iter()
                    .zip(&answers)
                    .filter(|(_, answer)| matches!(answer, Ok(Renew::Expired)))
                    .map(|(node, _)| self.mend(node, hold, ttl));
                join_all(forgot).await;
            }
            return Ok(Renew::Renewed);
        }
        // So many say no that no majority can say yes.
        let lost = self.nodes.len() - self.majority() < expired + stolen;
        match (lost, answers.into_iter().find_map(Result::err)) {
            (true, _) if stolen > 0 => Ok(Renew::Stolen),
            (false, Some(error)) => Err(error),
            _ => Ok(Renew::Expired),
        }
    }
}

#[async_trait]
impl Backend for QuorumBackend {
    fn name(&self) -> &'static str {
        "quorum"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_write: true,
            permits: false,
            fair: false,
            wakes: true,
            durable: true,
        }
    }

    async fn check(&self) -> Result<Vec<String>, Error> {
        let checked = join_all(self.nodes.iter().map(RedisBackend::check)).await;
        let (mut warnings, mut down) = (Vec::new(), Vec::new());
        for (at, checked) in checked.into_iter().enumerate() {
            match checked {
                Ok(more) => {
                    warnings.extend(more.iter().map(|warning| format!("server {}: {warning}", at + 1)));
                }
                Err(error) if error.kind() == ErrorKind::Unavailable => down.push((at, error)),
                Err(error) => return Err(error),
            }
        }
        if self.nodes.len() - down.len() < self.majority()
            && let Some((_, error)) = down.pop()
        {
            return Err(error);
        }
        for (at, error) in down {
            warnings.push(format!(
                "server {} of the quorum is down ({error}): start it",
                at + 1
            ));
        }
        Ok(warnings)
    }

    async fn acquire(&self, request: &Request) -> Result<Acquire, Error> {
        Self::supported(request.shape)?;
        let sent = Instant::now();
        let unplaced = Request {
            place: None,
            ..request.clone()
        };
        let answers = join_all(self.nodes.iter().map(|node| node.acquire(&unplaced))).await;
        let (mut granted, mut waits, mut failure) = (Vec::new(), Vec::new(), None);
        let mut failures = 0;
        for (at, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(Acquire::Granted { token }) => granted.push((at, token)),
                Ok(Acquire::Held { retry_after }) => waits.push(retry_after),
                Err(error) => {
                    failures += 1;
                    failure = Some(error);
                }
            }
        }
        let token = granted.iter().map(|(_, token)| *token).max();
        if let Some(token) = token.filter(|_| granted.len() >= self.majority()) {
            let hold = Hold {
                key: request.key.clone(),
                owner: request.owner,
                shape: request.shape,
                token,
            };
            let stands = self.settle(&hold, &granted).await;
            let drift = (request.ttl / DRIFT_DIVISOR).max(DRIFT_AT_LEAST);
            let late = request.ttl >= CHECKED_FROM && sent.elapsed() + drift >= request.ttl;
            if stands >= self.majority() && !late {
                return Ok(Acquire::Granted { token });
            }
        }
        let is_gone = self.roll_back(request).await;
        if waits.len() >= self.majority() || (failures == 0 && granted.len() < self.majority()) {
            // A split vote is over at once; a majority's hold is not.
            let split = Duration::from_millis(rand::rng().random_range(SPLIT_VOTE_MS));
            let held = waits.into_iter().min().filter(|_| granted.is_empty());
            return Ok(Acquire::Held {
                retry_after: held.unwrap_or(split),
            });
        }
        let kind = if is_gone {
            ErrorKind::NotReplicated
        } else {
            ErrorKind::Unavailable
        };
        let error = Error::new(
            kind,
            "acquire",
            format!(
                "{} of {} servers granted the lock in time, {} are needed",
                granted.len(),
                self.nodes.len(),
                self.majority()
            ),
        );
        Err(match failure {
            Some(failure) => error.with_cause(failure),
            None => error,
        })
    }

    async fn renew(&self, holds: &[(Hold, Duration)]) -> Vec<Result<Renew, Error>> {
        let mut answers: Vec<_> = join_all(self.nodes.iter().map(|node| node.renew(holds)))
            .await
            .into_iter()
            .map(Vec::into_iter)
            .collect();
        let each = holds.iter().map(|(hold, ttl)| {
            let of_hold = answers.iter_mut().filter_map(Iterator::next).collect();
            self.renewed(hold, *ttl, of_hold)
        });
        join_all(each.collect::<Vec<_>>()).await
    }

    async fn release(&self, hold: &Hold, request: RequestId) -> Result<Release, Error> {
        let answers = join_all(self.nodes.iter().map(|node| node.release(hold, request))).await;
        let released = answers
            .iter()
            .any(|answer| matches!(answer, Ok(Release::Released)));
        match answers.into_iter().find_map(Result::err) {
            // Where no answer came the ttl ends it; a majority without it is free.
            _ if released => Ok(Release::Released),
            Some(error) => Err(error),
            None => Ok(Release::NotHeld),
        }
    }

    async fn leave(&self, key: &Key, owner: Owner, shape: Shape) -> Result<(), Error> {
        let answers = join_all(self.nodes.iter().map(|node| node.leave(key, owner, shape))).await;
        let left = answers.iter().filter(|answer| answer.is_ok()).count();
        match answers.into_iter().find_map(Result::err) {
            Some(error) if left < self.majority() => Err(error),
            _ => Ok(()),
        }
    }

    async fn listen(&self, key: &Key, owner: Owner, shape: Shape) -> Result<Option<Wake>, Error> {
        let count = Arc::new(watch::Sender::new(0));
        let receiver = count.subscribe();
        let interests: Vec<_> = self
            .nodes
            .iter()
            .map(|node| node.interest(key, owner, shape, Arc::clone(&count)))
            .collect();
        Ok(Some(Wake::new(receiver, interests)))
    }

    async fn remint(&self, hold: &Hold, above: FencingToken) -> Result<Remint, Error> {
        let answers = join_all(self.nodes.iter().map(|node| node.remint(hold, above))).await;
        let (mut minted, mut lost, mut failure) = (Vec::new(), 0, None);
        for (at, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(Remint::Minted(token)) => minted.push((at, token)),
                Ok(Remint::Lost) => lost += 1,
                Err(error) => failure = Some(error),
            }
        }
        if let Some(token) = minted.iter().map(|(_, token)| *token).max() {
            let hold = Hold {
                token,
                ..hold.clone()
            };
            if self.settle(&hold, &minted).await >= self.majority() {
                return Ok(Remint::Minted(token));
            }
        }
        match failure {
            Some(error) if lost + minted.len() < self.majority() || lost < self.majority() => Err(error),
            _ => Ok(Remint::Lost),
        }
    }
}
