//! A worker: a thread with a runtime of its own, so that it can be frozen whole, as a stopped process is.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use outbox_lock::{ErrorKind, Guard, Locks};

use crate::places::Places;
use crate::shop::Shop;

/// How long the card's company takes, between the check and the act.
const THINKING: Duration = Duration::from_millis(5);

/// How long a worker waits for a lock.
const PATIENCE: Duration = Duration::from_secs(30);

/// The lease where a holder is frozen: what each of those payments costs in time.
const SHORT_LEASE: Duration = Duration::from_millis(500);

/// What protects the payments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protection {
    Nothing,
    Lock,
    LockAndFence,
}

/// How two workers go at the same payments.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) payments: std::ops::Range<i64>,
    pub(crate) protection: Protection,
    /// Whether the first worker is frozen between its check and its act, until the second one is done.
    pub(crate) frozen: bool,
}

/// Carries the plan out; returns how many late writes the database refused.
pub(crate) fn race(places: &Places, plan: &Plan) -> anyhow::Result<u64> {
    let meeting = Arc::new(Barrier::new(2));
    let workers: Vec<_> = ["first", "second"]
        .map(|name| {
            let (places, plan, meeting) = (places.clone(), plan.clone(), Arc::clone(&meeting));
            std::thread::spawn(move || -> anyhow::Result<u64> {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(Worker { name, plan, meeting }.work(&places))
            })
        })
        .into();
    let mut refused = 0;
    for worker in workers {
        let outcome = worker.join();
        refused += outcome.map_err(|_| anyhow::anyhow!("a worker panicked"))??;
    }
    Ok(refused)
}

struct Worker {
    name: &'static str,
    plan: Plan,
    /// Blocks the thread, and so all of this worker: nothing renews its locks meanwhile.
    meeting: Arc<Barrier>,
}

impl Worker {
    async fn work(self, places: &Places) -> anyhow::Result<u64> {
        let mut shop = places.shop().await?;
        let mut builder = Locks::builder(places.backend()?);
        if self.plan.frozen {
            builder = builder.ttl(SHORT_LEASE);
        }
        let locks = builder.build().await?;
        let mut refused = 0;
        for payment in self.plan.payments.clone() {
            self.meeting.wait();
            refused += u64::from(!self.pay(payment, shop.as_mut(), &locks).await?);
        }
        locks.drained().await;
        Ok(refused)
    }

    /// Checks, then acts. `false` if the act was refused.
    async fn pay(&self, payment: i64, shop: &mut dyn Shop, locks: &Locks) -> anyhow::Result<bool> {
        let is_first = self.name == "first";
        if self.plan.frozen && !is_first {
            self.meeting.wait(); // the first worker holds the lock and has checked
        }
        let guard = match self.plan.protection {
            Protection::Nothing => None,
            _ => Some(
                locks
                    .lock(format!("payment:{payment}"))?
                    .acquire(PATIENCE)
                    .await?,
            ),
        };
        let mut accepted = true;
        if shop.is_open(payment).await? {
            if self.plan.frozen && is_first {
                self.meeting.wait();
                self.meeting.wait(); // frozen until the second worker is done
            } else {
                tokio::time::sleep(THINKING).await;
            }
            accepted = self.act(payment, shop, guard.as_ref()).await?;
        }
        if let Some(guard) = guard {
            guard.release().await?;
        }
        if self.plan.frozen && !is_first {
            self.meeting.wait(); // wakes the first worker
        }
        Ok(accepted)
    }

    /// The act. A refused worker that still holds the lock asks for a higher token (the lock service lost
    /// its counter) and begins again; one that does not is an old holder, and stops.
    async fn act(&self, payment: i64, shop: &mut dyn Shop, guard: Option<&Guard>) -> anyhow::Result<bool> {
        let fenced = self.plan.protection == Protection::LockAndFence;
        loop {
            let shown = guard.filter(|_| fenced).map(|guard| (guard.key(), guard.token()));
            let Err(error) = shop.charge(payment, self.name, shown).await else {
                return Ok(true);
            };
            let (Some(guard), Some(refusal)) = (guard, error.fenced()) else {
                return Err(error.into());
            };
            match guard.remint(refusal.seen()).await {
                Ok(_) => {}
                Err(lost) if lost.kind() == ErrorKind::Lost => return Ok(false),
                Err(other) => return Err(other.into()),
            }
        }
    }
}
