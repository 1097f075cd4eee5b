//! The receiving side: members of groups that claim rows and wait for more.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use super::settle::Lease;
use super::store::{Claim, Claimed, ClaimedRow, Fault};
use crate::{Capabilities, Delivery, Error, ErrorKind, Lag, SubscribeOptions, Subscriber, Subscription};

/// First pause of a subscription that found nothing; it doubles up to the configured longest. Chosen: some
/// 1 % of a core.
const POLL_FIRST: Duration = Duration::from_millis(5);

/// Joins groups of a [`SqlBroker`](super::SqlBroker).
pub struct SqlSubscriber {
    shared: Arc<Shared>,
    closed: CancellationToken,
    /// Open memberships: member → group.
    members: Arc<Mutex<HashMap<i64, i64>>>,
}

impl SqlSubscriber {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            closed: CancellationToken::new(),
            members: Arc::default(),
        }
    }
}

#[async_trait]
impl Subscriber for SqlSubscriber {
    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities()
    }

    async fn subscribe(&self, options: SubscribeOptions) -> Result<Box<dyn Subscription>, Error> {
        if self.closed.is_cancelled() {
            return Err(Error::new(
                ErrorKind::Closed,
                "subscribe",
                "the subscriber was closed",
            ));
        }
        let error = |fault: Fault| fault.into_error("subscribe");
        self.shared.ready().await.map_err(error)?;
        let join = self
            .shared
            .store
            .join(&options.topic, &options.group, options.start);
        let group = join.await.map_err(error)?;
        let (id, _) = Uuid::new_v4().as_u64_pair();
        let member = i64::from_ne_bytes(id.to_ne_bytes());
        lock(&self.members).insert(member, group);
        Ok(Box::new(SqlSubscription {
            shared: Arc::clone(&self.shared),
            changes: self.shared.changes.subscribe(),
            closed: self.closed.clone(),
            members: Arc::clone(&self.members),
            group,
            member,
            prefetch: usize::from(options.prefetch.max(1)),
            visibility: options.visibility,
            paused: false,
            claiming: None,
            ready: VecDeque::new(),
        }))
    }

    async fn close(&self) -> Result<(), Error> {
        self.closed.cancel();
        let members: Vec<(i64, i64)> = lock(&self.members).drain().collect();
        for (member, group) in members {
            self.shared
                .store
                .release(group, member)
                .await
                .map_err(|fault| fault.into_error("close"))?;
        }
        self.shared.changed();
        Ok(())
    }
}

impl fmt::Debug for SqlSubscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlSubscriber").finish_non_exhaustive()
    }
}

fn lock(members: &Mutex<HashMap<i64, i64>>) -> std::sync::MutexGuard<'_, HashMap<i64, i64>> {
    // A map stays whole whatever panicked while it was locked.
    members.lock().unwrap_or_else(PoisonError::into_inner)
}

struct SqlSubscription {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
    closed: CancellationToken,
    members: Arc<Mutex<HashMap<i64, i64>>>,
    group: i64,
    member: i64,
    prefetch: usize,
    visibility: Duration,
    paused: bool,
    /// A claim under way. It outlives a `receive` that is dropped, and the next one takes what it brings.
    claiming: Option<JoinHandle<Result<Claimed, Fault>>>,
    /// Claimed and not handed out.
    ready: VecDeque<ClaimedRow>,
}

impl SqlSubscription {
    /// Finishes the claim under way, or makes one.
    async fn claim(&mut self, max: usize) -> Result<Claimed, Fault> {
        let claiming = match &mut self.claiming {
            Some(claiming) => claiming,
            None => {
                let claim = Claim {
                    group: self.group,
                    member: self.member,
                    max,
                    prefetch: self.prefetch,
                    visibility: self.visibility,
                };
                let (store, limit) = (Arc::clone(&self.shared.store), self.shared.config.publish_timeout);
                self.claiming.insert(tokio::spawn(async move {
                    let late = Fault::new(ErrorKind::Unreachable, "no answer within `publish_timeout_ms`");
                    tokio::time::timeout(limit, store.claim(claim))
                        .await
                        .unwrap_or(Err(late))
                }))
            }
        };
        let claimed = claiming.await;
        self.claiming = None;
        claimed.unwrap_or_else(|lost| {
            Err(Fault::caused(
                ErrorKind::Closed,
                "the claim was cut off by the end of the runtime",
                lost,
            ))
        })
    }

    fn hand_out(&mut self, max: usize) -> Vec<Delivery> {
        let rows = self.ready.drain(..max.min(self.ready.len()));
        rows.map(|row| {
            let lease = Lease {
                settler: self.shared.settler.clone(),
                group: self.group,
                seq: row.seq,
                member: self.member,
                attempt: row.attempt,
                visibility: self.visibility,
            };
            let attempt = u32::try_from(row.attempt).unwrap_or(1);
            Delivery::new(row.read(), attempt, lease)
        })
        .collect()
    }

    /// Gives back everything that this member holds.
    async fn leave(&mut self, operation: &'static str) -> Result<(), Error> {
        // A claim that still runs would lease rows after the release.
        if self.claiming.is_some() {
            drop(self.claim(0).await);
        }
        self.ready.clear();
        let released = self.shared.store.release(self.group, self.member).await;
        released.map_err(|fault| fault.into_error(operation))?;
        self.shared.changed();
        Ok(())
    }

    async fn receive_until(&mut self, max: usize, deadline: Instant) -> Result<Vec<Delivery>, Fault> {
        let mut pause = POLL_FIRST.min(self.shared.config.poll_interval);
        loop {
            self.changes.mark_unchanged();
            if self.ready.is_empty() {
                let claimed = self.claim(max).await?;
                self.ready.extend(claimed.rows);
                if self.ready.is_empty() && claimed.advanced {
                    continue;
                }
                if self.ready.is_empty() {
                    let now = Instant::now();
                    if now >= deadline {
                        return Ok(Vec::new());
                    }
                    let nap = claimed.next_due.map_or(pause, |due| due.min(pause));
                    tokio::select! {
                        _ = self.changes.changed() => {}
                        () = tokio::time::sleep_until((now + nap).min(deadline)) => {}
                    }
                    pause = (pause * 2).min(self.shared.config.poll_interval);
                    continue;
                }
            }
            return Ok(self.hand_out(max));
        }
    }
}

#[async_trait]
impl Subscription for SqlSubscription {
    async fn receive(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>, Error> {
        let gone = || Error::new(ErrorKind::Closed, "receive", "the subscriber was closed");
        let closed = self.closed.clone();
        if closed.is_cancelled() {
            return Err(gone());
        }
        if max == 0 {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + wait;
        if self.paused {
            closed
                .run_until_cancelled(tokio::time::sleep_until(deadline))
                .await
                .ok_or_else(gone)?;
            return Ok(Vec::new());
        }
        match closed
            .run_until_cancelled(self.receive_until(max, deadline))
            .await
        {
            Some(received) => received.map_err(|fault| fault.into_error("receive")),
            None => {
                // A claim that was under way may have leased rows after the subscriber gave all back.
                if self.claiming.is_some() {
                    self.leave("receive").await?;
                }
                Err(gone())
            }
        }
    }

    async fn pause(&mut self) -> Result<(), Error> {
        self.paused = true;
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), Error> {
        self.paused = false;
        Ok(())
    }

    async fn lag(&mut self) -> Result<Lag, Error> {
        let lag = self.shared.store.lag(self.group).await;
        let (messages, age) = lag.map_err(|fault| fault.into_error("lag"))?;
        Ok(Lag {
            messages: u64::try_from(messages).unwrap_or(0),
            age,
        })
    }

    async fn close(mut self: Box<Self>) -> Result<(), Error> {
        lock(&self.members).remove(&self.member);
        self.leave("close").await
    }
}
