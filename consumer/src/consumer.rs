//! The loop: receive, give each key a lane, carry the attempts' outcomes back, stop cleanly.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use outbox::Outbox;
use outbox_broker::{Delivery, SubscribeOptions, Subscriber, Subscription};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::builder::{Builder, Config};
use crate::dead_letter::{self, DeadLetter};
use crate::fetch::Fetch;
use crate::lanes::{LaneKey, Lanes};
use crate::statement::Sql;
use crate::status::{Count, Status, Summary};
use crate::work::Work;
use crate::worker::{Next, Worker};
use crate::{Connection, Error, ErrorKind, Handler, Inbox, prune};

/// Dead letters taken up at once by a redrive. Chosen: half a default prefetch, so that traffic goes on.
const REDRIVE_BATCH: usize = 128;
/// Deliveries whose visibility is extended at the same time. Chosen: hides a round trip.
const EXTEND_AT_ONCE: usize = 16;
/// How long the subscription may take to stop. Chosen: longer than a receive waits.
const CLOSE: Duration = Duration::from_secs(5);
/// The wait before work is tried again whose attempt broke in this library.
const AFTER_FAULT: Duration = Duration::from_secs(1);

/// A consumer, ready to run. See the crate's front page.
pub struct Consumer<C: Connection> {
    pub(crate) config: Arc<Config>,
    pub(crate) subscriber: Arc<dyn Subscriber>,
    pub(crate) inbox: Inbox<C>,
    pub(crate) outbox: Option<Outbox>,
    pub(crate) handler: Arc<dyn Handler<C>>,
    pub(crate) status: Status,
}

impl<C: Connection> fmt::Debug for Consumer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("name", &self.config.name)
            .field("topic", &self.config.topic)
            .finish_non_exhaustive()
    }
}

impl<C: Connection> Consumer<C> {
    /// Starts the settings of the consumer `name`, which is also its group at the broker and its name in the
    /// inbox.
    pub fn builder(name: impl Into<String>, subscriber: Arc<dyn Subscriber>, inbox: Inbox<C>) -> Builder<C> {
        Builder::new(name.into(), subscriber, inbox)
    }

    /// A handle to the counters; it stays valid while and after the consumer runs.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// The dead letters of this consumer.
    pub fn dead_letters(&self) -> dead_letter::DeadLetters<C> {
        dead_letter::DeadLetters::new(self.inbox.clone(), self.config.name.clone())
    }

    /// Consumes until `shutdown` is cancelled, then lets running handlers end within the grace and returns
    /// the counters. A broker or database that is away is waited for.
    ///
    /// # Errors
    /// [`ErrorKind::Schema`]: the inbox tables are missing. [`ErrorKind::Broker`]: the subscription is refused for
    /// good, or was closed by someone else.
    ///
    /// # Cancel safety
    /// A dropped future stops like a crash: nothing half done is committed, what was not acked comes again.
    pub async fn run(self, shutdown: CancellationToken) -> Result<Summary, Error> {
        self.check_tables().await?;
        let Some(subscription) = self.subscribe(&shutdown).await? else {
            return Ok(self.status.summary());
        };
        let abandon = CancellationToken::new();
        let stop = shutdown.child_token();
        // Dropping this future stops the helpers that were spawned for it.
        let _stop = stop.clone().drop_guard();
        let (sender, receiver) = mpsc::channel(4);
        let fetch = Fetch {
            config: self.config.clone(),
            status: self.status.clone(),
            shutdown: stop.clone(),
            sender,
        };
        let mut fetching = JoinSet::new();
        fetching.spawn(fetch.run(subscription));
        let mut pruning = JoinSet::new();
        pruning.spawn(prune::run(self.inbox.clone(), self.config.clone(), stop.clone()));
        let worker = Arc::new(Worker {
            config: self.config.clone(),
            inbox: self.inbox,
            handler: self.handler,
            outbox: self.outbox,
            status: self.status.clone(),
            shutdown: stop.clone(),
            abandon: abandon.clone(),
        });
        let engine = Engine {
            lanes: Lanes::new(self.config.mode.running()),
            config: self.config,
            status: self.status.clone(),
            worker,
            abandon,
            stop,
            attempts: JoinSet::new(),
            running: HashMap::new(),
            live: HashMap::new(),
            redriving: HashSet::new(),
            next_id: 0,
            side: JoinSet::new(),
        };
        engine.run(receiver).await;
        pruning.abort_all();
        close(&mut fetching).await?;
        Ok(self.status.summary())
    }

    async fn check_tables(&self) -> Result<(), Error> {
        let Ok(mut lent) = self.inbox.lend().await else {
            return Ok(()); // away, not wrong: every attempt tries again
        };
        let sql =
            Sql::new("SELECT count(*) AS number FROM consumer_dead_letter WHERE consumer = ? AND state = 1")
                .bind(self.config.name.as_str());
        match lent.numbers(sql).await {
            Ok(_) => {
                lent.give_back();
                Ok(())
            }
            Err(error) => {
                let error = Error::database("run", error);
                if error.kind() == ErrorKind::Schema {
                    Err(error)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Subscribes, waiting for a broker that is away; `None` if shutdown came first.
    async fn subscribe(&self, shutdown: &CancellationToken) -> Result<Option<Box<dyn Subscription>>, Error> {
        let mut failures = 0;
        loop {
            let options = SubscribeOptions::new(self.config.topic.as_str(), self.config.name.as_str())
                .prefetch(self.config.prefetch)
                .start(self.config.start)
                .visibility(self.config.visibility);
            let tried = tokio::select! {
                tried = self.subscriber.subscribe(options) => tried,
                () = shutdown.cancelled() => return Ok(None),
            };
            match tried {
                Ok(subscription) => return Ok(Some(subscription)),
                Err(error) if error.is_transient() => {
                    self.status.error(crate::error::chain(&error));
                    tracing::warn!(consumer = self.config.name, topic = self.config.topic, %error, "cannot subscribe yet");
                    tokio::select! {
                        () = tokio::time::sleep(crate::fetch::backoff(failures)) => failures += 1,
                        () = shutdown.cancelled() => return Ok(None),
                    }
                }
                Err(error) => {
                    return Err(Error::new(
                        ErrorKind::Broker,
                        "subscribe",
                        "the broker refuses the subscription",
                    )
                    .with_cause(error));
                }
            }
        }
    }
}

async fn close(fetching: &mut JoinSet<Result<Box<dyn Subscription>, Error>>) -> Result<(), Error> {
    match timeout(CLOSE, fetching.join_next()).await {
        Ok(Some(Ok(Ok(subscription)))) => {
            match timeout(CLOSE, subscription.close()).await {
                Ok(Ok(())) => {}
                // The broker notices by itself; what is unsettled comes again.
                Ok(Err(error)) => tracing::debug!(%error, "the subscription did not close"),
                Err(_late) => tracing::debug!("the subscription did not close in time"),
            }
            Ok(())
        }
        Ok(Some(Ok(Err(error)))) => Err(error),
        Ok(Some(Err(error))) => {
            Err(Error::new(ErrorKind::Broker, "receive", "receiving broke off").with_cause(error))
        }
        Ok(None) => Ok(()),
        Err(_late) => {
            fetching.abort_all();
            tracing::warn!("a receive did not end in time; the subscription was dropped");
            Ok(())
        }
    }
}

/// A delivery and its place in the prefetch.
pub(crate) type Received = (Delivery, OwnedSemaphorePermit);

struct Engine<C: Connection> {
    config: Arc<Config>,
    status: Status,
    worker: Arc<Worker<C>>,
    abandon: CancellationToken,
    stop: CancellationToken,
    lanes: Lanes<u64>,
    attempts: JoinSet<Next>,
    /// The work of each running task.
    running: HashMap<Id, (LaneKey, u64)>,
    /// Everything received and not settled, by a number of our own.
    live: HashMap<u64, Arc<Work>>,
    redriving: HashSet<i64>,
    next_id: u64,
    /// Extensions and looks at the redrives, so that the loop never waits for them.
    side: JoinSet<Vec<DeadLetter>>,
}

impl<C: Connection> Engine<C> {
    async fn run(mut self, mut receiver: mpsc::Receiver<Vec<Received>>) {
        let mut extend = ticks(self.config.visibility / 4);
        let mut redrive = ticks(self.config.redrive_every);
        let stop = self.stop.clone();
        loop {
            self.start_ready();
            let wake = self.lanes.next_wake();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.attempts.join_next_with_id(), if !self.attempts.is_empty() => self.ended(ended),
                Some(side) = self.side.join_next(), if !self.side.is_empty() => self.take_up(side.unwrap_or_default()),
                () = until(wake) => self.lanes.wake(Instant::now()),
                _ = extend.tick() => self.extend(),
                _ = redrive.tick() => self.look_for_redrives(),
                received = receiver.recv() => match received {
                    Some(received) => self.received(received),
                    None => break, // the subscription ended for good; run() says why
                },
            }
        }
        drop(receiver);
        self.drain(extend).await;
    }

    /// Begins nothing more; waits for what runs, then cuts it off.
    async fn drain(mut self, mut extend: tokio::time::Interval) {
        self.stop.cancel();
        // What has not begun goes back to the broker when the subscription closes.
        self.lanes.clear();
        let running: HashSet<u64> = self.running.values().map(|(_, id)| *id).collect();
        self.live.retain(|id, _| running.contains(id));
        let grace = Instant::now() + self.config.shutdown_grace;
        while !self.attempts.is_empty() {
            tokio::select! {
                Some(ended) = self.attempts.join_next_with_id() => self.ended(ended),
                Some(_) = self.side.join_next(), if !self.side.is_empty() => {}
                _ = extend.tick() => self.extend(),
                () = sleep_until(grace), if !self.abandon.is_cancelled() => {
                    tracing::warn!(
                        consumer = self.config.name, handlers = self.attempts.len(),
                        "the grace is over; running handlers are cut off and their messages come again"
                    );
                    self.abandon.cancel();
                }
            }
        }
    }

    fn push(&mut self, work: Work) {
        let id = self.next_id;
        self.next_id += 1;
        self.lanes.push(work.lane.clone(), id);
        self.live.insert(id, Arc::new(work));
    }

    fn received(&mut self, received: Vec<Received>) {
        for (delivery, permit) in received {
            self.push(Work::from_broker(
                &self.config,
                delivery,
                permit,
                self.status.clone(),
            ));
        }
    }

    fn start_ready(&mut self) {
        while let Some((key, id)) = self.lanes.next() {
            let Some(work) = self.live.get(&id).cloned() else {
                self.lanes.finish(&key);
                continue;
            };
            let worker = self.worker.clone();
            let task = self.attempts.spawn(async move { worker.attempt(&work).await });
            self.running.insert(task.id(), (key, id));
        }
    }

    fn ended(&mut self, ended: Result<(Id, Next), JoinError>) {
        let (task, next) = match ended {
            Ok((task, next)) => (task, next),
            // The handler's own panics are caught where they happen; this one is ours or the driver's.
            Err(error) => {
                tracing::error!(consumer = self.config.name, %error, "an attempt broke off; it is repeated");
                self.status.error(format!("an attempt broke off: {error}"));
                self.status.count(&self.config.name, Count::Deferred);
                (error.id(), Next::Hold(AFTER_FAULT))
            }
        };
        let Some((key, id)) = self.running.remove(&task) else {
            return;
        };
        match next {
            Next::Hold(delay) if !self.stop.is_cancelled() => {
                self.lanes.hold(&key, id, Instant::now() + delay);
            }
            Next::Hold(_) | Next::Finish => {
                self.lanes.finish(&key);
                if let Some(work) = self.live.remove(&id)
                    && let Some(seq) = work.redrive
                {
                    self.redriving.remove(&seq);
                }
            }
        }
    }

    /// Tells the broker of everything held here that it is still wanted.
    fn extend(&mut self) {
        let held: Vec<Arc<Work>> = self.live.values().cloned().collect();
        let period = self.config.visibility / 4;
        self.side.spawn(async move {
            futures::stream::iter(held)
                .for_each_concurrent(EXTEND_AT_ONCE, |work| async move { work.extend(period).await })
                .await;
            Vec::new()
        });
    }

    fn look_for_redrives(&mut self) {
        let inbox = self.worker.inbox.clone();
        let sql = Sql::new(dead_letter::REDRIVING)
            .bind(self.config.name.as_str())
            .bind(i64::try_from(REDRIVE_BATCH).unwrap_or(i64::MAX));
        self.side.spawn(async move {
            let look = async {
                let mut lent = inbox.lend().await.ok()?;
                let rows = lent.letters(sql).await.ok()?;
                lent.give_back();
                Some(rows.into_iter().map(DeadLetter::from).collect())
            };
            // A failed look is repeated at the next tick; an attempt reports the database's trouble.
            look.map(Option::unwrap_or_default).await
        });
    }

    fn take_up(&mut self, letters: Vec<DeadLetter>) {
        for letter in letters {
            if self.redriving.len() >= REDRIVE_BATCH || !self.redriving.insert(letter.seq) {
                continue;
            }
            let seq = letter.seq;
            match Work::from_dead_letter(&self.config, letter, self.status.clone()) {
                Some(work) => self.push(work),
                None => tracing::warn!(
                    consumer = self.config.name,
                    seq,
                    "a dead letter cannot be read and is not redriven"
                ),
            }
        }
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(wake) => sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
