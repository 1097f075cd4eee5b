//! Group commit of verdicts: what arrives while a commit is under way goes together in the next one.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};

use super::store::{Action, Fault, Order, Store};
use crate::{Error, ErrorKind, Settle, Settled, Verdict};

/// Verdicts of one transaction at most. Chosen: some 3 ms of SQLite's writer lock.
const SETTLE_ROWS: usize = 500;

/// Verdicts that may wait; whoever comes then waits to be let in. Chosen: a few transactions' worth.
const QUEUE: usize = 4 * SETTLE_ROWS;

/// Characters of a dead letter's reason that are kept.
const REASON_CHARS: usize = 4_096;

type Ticket = (Order, oneshot::Sender<Result<bool, Fault>>);

/// The way to the task that settles.
#[derive(Debug, Clone)]
pub(super) struct Settler {
    orders: mpsc::Sender<Ticket>,
}

impl Settler {
    /// Starts the task; it ends with the last `Settler`.
    pub(super) fn start(store: Arc<dyn Store>, changes: watch::Sender<u64>) -> Self {
        let (orders, queue) = mpsc::channel(QUEUE);
        tokio::spawn(work(store, changes, queue));
        Self { orders }
    }

    /// Carries out `order`; resolves after its commit.
    async fn carry_out(&self, order: Order) -> Result<Settled, Fault> {
        let (answer, settled) = oneshot::channel();
        self.orders
            .send((order, answer))
            .await
            .map_err(|_| Fault::closed())?;
        match settled.await.map_err(|_| Fault::closed())?? {
            true => Ok(Settled::Done),
            false => Ok(Settled::Stale),
        }
    }
}

async fn work(store: Arc<dyn Store>, changes: watch::Sender<u64>, mut queue: mpsc::Receiver<Ticket>) {
    let mut tickets = Vec::with_capacity(SETTLE_ROWS);
    while queue.recv_many(&mut tickets, SETTLE_ROWS).await > 0 {
        let (orders, answers): (Vec<Order>, Vec<_>) = tickets.drain(..).unzip();
        match store.settle(orders.into()).await {
            Ok(settled) => {
                for (answer, held) in answers.into_iter().zip(settled) {
                    // Nobody waits for it any more; the verdict stands all the same.
                    drop(answer.send(Ok(held)));
                }
            }
            Err(fault) => {
                for answer in answers {
                    drop(answer.send(Err(fault.clone())));
                }
            }
        }
        // A settled row frees prefetch, and its key for other members.
        changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// A delivery's lease.
pub(super) struct Lease {
    pub(super) settler: Settler,
    pub(super) group: i64,
    pub(super) seq: i64,
    pub(super) member: i64,
    pub(super) attempt: i32,
    pub(super) visibility: std::time::Duration,
}

impl Lease {
    async fn carry_out(&self, action: Action, operation: &'static str) -> Result<Settled, Error> {
        let order = Order {
            group: self.group,
            seq: self.seq,
            member: self.member,
            attempt: self.attempt,
            action,
        };
        self.settler.carry_out(order).await.map_err(|mut fault| {
            if fault.kind == ErrorKind::Rejected {
                fault.context = "the verdict was not written; the message comes again".into();
            }
            fault.into_error(operation)
        })
    }
}

#[async_trait]
impl Settle for Lease {
    async fn settle(self: Box<Self>, verdict: Verdict) -> Result<Settled, Error> {
        match verdict {
            Verdict::Ack => self.carry_out(Action::Ack, "ack").await,
            Verdict::Nack { delay } => self.carry_out(Action::Nack(delay), "nack").await,
            Verdict::Dead { reason } => {
                // PostgreSQL's text holds no NUL.
                let reason = reason.chars().filter(|c| *c != '\0').take(REASON_CHARS).collect();
                self.carry_out(Action::Dead(reason), "dead").await
            }
        }
    }

    async fn extend(&self) -> Result<Settled, Error> {
        self.carry_out(Action::Extend(self.visibility), "extend").await
    }
}
