//! The one task that renews what a process holds, and clears up what it dropped.
//!
//! A guard and a cancelled wait send it what is left to do; they never wait for it. It never waits for
//! the lock service with its own hands either: renewals and releases are on their way beside each other,
//! bounded in number, while it goes on watching the deadlines.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::backend::{Backend, Hold, Renew};
use crate::error::{Error, ErrorKind};
use crate::held::Renewing;
use crate::lease::LossReason;
use crate::schedule::Schedule;
use crate::telemetry;

/// How many chunks of renewals are on their way at once. Chosen: enough to hide a slow round trip, few
/// enough to leave a connection pool of ten to the program.
const CHUNKS_AT_ONCE: usize = 4;

/// How many releases of dropped guards are on their way at once. Chosen: as above, for small requests.
const CHORES_AT_ONCE: usize = 32;

/// The deadline of a hold is looked at a little after it, so that one look is enough.
const LATE: Duration = Duration::from_micros(100);

/// Something left to do, carried out to its end.
pub(crate) type Chore = BoxFuture<'static, ()>;

/// What the watchdog is told.
pub(crate) enum Order {
    Chore(Chore),
    /// Answered once no chore is left.
    Drain(oneshot::Sender<()>),
}

pub(crate) struct Watchdog {
    backend: Arc<dyn Backend>,
    schedule: Arc<Schedule>,
    orders: mpsc::UnboundedReceiver<Order>,
    chunk: usize,
    chunks: VecDeque<Vec<Renewing>>,
    renewals: FuturesUnordered<BoxFuture<'static, Vec<Renewing>>>,
    waiting: VecDeque<Chore>,
    chores: FuturesUnordered<Chore>,
    drains: Vec<oneshot::Sender<()>>,
}

impl Watchdog {
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        schedule: Arc<Schedule>,
        orders: mpsc::UnboundedReceiver<Order>,
        chunk: usize,
    ) -> Self {
        Self {
            backend,
            schedule,
            orders,
            chunk,
            chunks: VecDeque::new(),
            renewals: FuturesUnordered::new(),
            waiting: VecDeque::new(),
            chores: FuturesUnordered::new(),
            drains: Vec::new(),
        }
    }

    /// Runs until every guard and every handle of the lock service is gone and nothing is left to do.
    pub(crate) async fn run(mut self) {
        let mut open = true;
        while open || !self.is_idle() {
            self.start();
            let next = self.schedule.next();
            let due = async {
                match next {
                    Some(at) => sleep_until(at + LATE).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = self.orders.recv(), if open => match order {
                    Some(Order::Chore(chore)) => self.waiting.push_back(chore),
                    Some(Order::Drain(drained)) => self.drains.push(drained),
                    None => open = false,
                },
                Some(done) = self.renewals.next() => {
                    for renewing in done {
                        let held = Arc::clone(renewing.held());
                        drop(renewing);
                        self.schedule.put_back(&held);
                    }
                }
                Some(()) = self.chores.next() => {}
                () = due => {}
                () = self.schedule.sooner() => {}
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.chores.is_empty()
    }

    /// Sends on their way as many as may be.
    fn start(&mut self) {
        let mut due = self.schedule.take(Instant::now());
        while !due.is_empty() {
            let rest = due.split_off(due.len().min(self.chunk));
            self.chunks.push_back(std::mem::replace(&mut due, rest));
        }
        while self.renewals.len() < CHUNKS_AT_ONCE
            && let Some(chunk) = self.chunks.pop_front()
        {
            let backend = Arc::clone(&self.backend);
            self.renewals.push(Box::pin(renew(backend, chunk)));
        }
        while self.chores.len() < CHORES_AT_ONCE
            && let Some(chore) = self.waiting.pop_front()
        {
            self.chores.push(chore);
        }
        if self.is_idle() {
            for drained in self.drains.drain(..) {
                // Whoever asked may have stopped waiting.
                let _ = drained.send(());
            }
        }
    }
}

/// One chunk, one call. An error is never fatal: the next attempt comes before the deadline.
async fn renew(backend: Arc<dyn Backend>, mut chunk: Vec<Renewing>) -> Vec<Renewing> {
    chunk.retain(Renewing::sent);
    if chunk.is_empty() {
        return chunk;
    }
    let holds: Vec<(Hold, Duration)> = chunk
        .iter()
        .map(|renewing| (renewing.held().hold(), renewing.held().kept()))
        .collect();
    let sent = Instant::now();
    let mut answers = backend.renew(&holds).await.into_iter();
    let name = backend.name();
    for renewing in &chunk {
        let answer = answers.next().unwrap_or_else(|| {
            let context = "the backend answered fewer holds than were asked for";
            Err(Error::new(ErrorKind::Backend, "renew", context))
        });
        renewing.held().update(|lease, now| match &answer {
            Ok(Renew::Renewed) => lease.renewed(sent, now),
            Ok(Renew::Expired) => lease.gone(LossReason::Expired, now),
            Ok(Renew::Stolen) => lease.gone(LossReason::Stolen, now),
            Err(_) => lease.failed(now),
        });
        let result = match answer {
            Ok(Renew::Renewed) => "renewed",
            Ok(Renew::Expired) => "expired",
            Ok(Renew::Stolen) => "stolen",
            Err(error) => {
                let key = &renewing.held().request().key;
                let cause = std::error::Error::source(&error);
                tracing::warn!(%key, kind = %error.kind(), %error, cause, "renewal failed, trying again");
                telemetry::failed(name, "renew", &error);
                "failed"
            }
        };
        telemetry::renewed(name, result);
    }
    chunk
}
