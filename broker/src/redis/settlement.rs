//! What becomes of a delivery.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::{Cmd, Pipeline};
use tokio::sync::Notify;

use super::error::Failure;
use super::link::Link;
use super::scripts::{self, call};
use crate::{Error, Settle, Settled, SubscribeOptions, Verdict};

/// Where an entry stands: partition, and id within its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) partition: u16,
    ms: u64,
    seq: u64,
}

impl Place {
    pub(super) fn new(partition: u16, id: &str) -> Result<Self, Failure> {
        let (ms, seq) = id.split_once('-').ok_or(Failure::garbled())?;
        let number = |text| u64::from_str(text).map_err(|_| Failure::garbled());
        Ok(Self {
            partition,
            ms: number(ms)?,
            seq: number(seq)?,
        })
    }
}

/// The id within the stream.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// The keys of one partition for one group.
pub(super) struct Keys {
    pub(super) stream: String,
    pub(super) due: String,
    pub(super) owner: String,
    dead: String,
}

/// A member's place in a group, known to Redis by the name of its consumer.
pub(super) struct Seat {
    pub(super) link: Arc<Link>,
    pub(super) topic: String,
    pub(super) group: String,
    pub(super) consumer: String,
    pub(super) partitions: Vec<Keys>,
    pub(super) visibility: Duration,
    left: AtomicBool,
}

impl Seat {
    pub(super) fn new(link: Arc<Link>, options: &SubscribeOptions, partitions: u16) -> Self {
        let config = Arc::clone(&link.config);
        let keys = |partition| {
            let stream = config.stream_key(&options.topic, partition);
            Keys {
                due: format!("{stream}:due:{}", options.group),
                owner: format!("{stream}:owner:{}", options.group),
                dead: config.dead_key(&options.topic, partition, &options.group),
                stream,
            }
        };
        Self {
            link,
            topic: options.topic.clone(),
            group: options.group.clone(),
            consumer: uuid::Uuid::new_v4().simple().to_string(),
            partitions: (0..partitions).map(keys).collect(),
            visibility: options.visibility,
            left: AtomicBool::new(false),
        }
    }

    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// The visibility timeout as Redis takes it.
    pub(super) fn visibility_ms(&self) -> u64 {
        milliseconds(self.visibility).max(1)
    }

    pub(super) fn settle(&self, place: Place, count: u32, verdict: &str, argument: &str) -> Cmd {
        let keys = &self.partitions[usize::from(place.partition)];
        let owned = if self.link.config.ordered {
            self.visibility_ms()
        } else {
            0
        };
        let mut command = call(
            &scripts::SETTLE,
            &[&keys.stream, &keys.due, &keys.owner, &keys.dead],
        );
        command
            .arg(&self.group)
            .arg(&self.consumer)
            .arg(place.to_string())
            .arg(count)
            .arg(owned)
            .arg(verdict)
            .arg(argument);
        command
    }

    /// Gives everything back; deliveries that are still out are stale from then on.
    pub(super) async fn leave(&self) -> Result<(), Failure> {
        if self.left.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let mut pipeline = Pipeline::new();
        for keys in &self.partitions {
            let mut leave = call(&scripts::LEAVE, &[&keys.stream, &keys.due, &keys.owner]);
            leave.arg(&self.group).arg(&self.consumer);
            pipeline.add_command(leave);
        }
        pipeline
            .cmd("ZREM")
            .arg(self.link.config.members_key(&self.topic, &self.group))
            .arg(&self.consumer);
        self.link.ask_all::<i64>(&pipeline).await.map(drop)
    }
}

/// The way back from deliveries to their subscription.
#[derive(Default)]
pub(super) struct Returns {
    /// Entries given back in an ordered group: later ones of their key wait for them.
    held: Mutex<BTreeMap<Place, Option<String>>>,
    outside: AtomicUsize,
    /// There is room, or something was given back.
    pub(super) came: Notify,
}

impl Returns {
    fn held(&self) -> MutexGuard<'_, BTreeMap<Place, Option<String>>> {
        // Entries come and go whole, whatever panics.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first place of each key that must come again before later ones.
    pub(super) fn barriers(&self) -> HashMap<String, Place> {
        let mut first = HashMap::new();
        for (place, key) in self.held().iter() {
            if let Some(key) = key {
                first.entry(key.clone()).or_insert(*place);
            }
        }
        first
    }

    pub(super) fn holds(&self) -> usize {
        self.held().len()
    }

    /// The entry came again, or somewhere else.
    pub(super) fn let_go(&self, place: Place) {
        self.held().remove(&place);
    }

    /// The partition is no longer ours.
    pub(super) fn forget(&self, partition: u16) {
        self.held().retain(|place, _| place.partition != partition);
    }

    /// Handed out and not yet settled or dropped.
    pub(super) fn outside(&self) -> usize {
        self.outside.load(Ordering::Acquire)
    }
}

/// Counts as handed out for as long as it lives.
pub(super) struct Outside(Arc<Returns>);

impl Outside {
    pub(super) fn new(returns: &Arc<Returns>) -> Self {
        returns.outside.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(returns))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.0.outside.fetch_sub(1, Ordering::AcqRel);
        self.0.came.notify_one();
    }
}

/// The right to settle one delivery, until it comes again.
pub(super) struct RedisSettlement {
    pub(super) seat: Arc<Seat>,
    pub(super) place: Place,
    /// The delivery's number: with the consumer's name it tells this delivery from every other.
    pub(super) count: u32,
    pub(super) key: Option<String>,
    pub(super) outside: Outside,
}

impl RedisSettlement {
    async fn tell(&self, verdict: &str, argument: &str) -> Result<Settled, Failure> {
        if self.seat.has_left() {
            return Ok(Settled::Stale);
        }
        let command = self.seat.settle(self.place, self.count, verdict, argument);
        let done: bool = self.seat.link.ask(&command).await?;
        Ok(if done { Settled::Done } else { Settled::Stale })
    }

    async fn give_back(&self, delay: Duration) -> Result<Settled, Failure> {
        let returns = &self.outside.0;
        // Before Redis knows, so that no later entry of the key is handed out in between.
        if self.seat.link.config.ordered {
            returns.held().insert(self.place, self.key.clone());
        }
        let told = self.tell("again", &milliseconds(delay).to_string()).await;
        if !matches!(told, Ok(Settled::Done)) {
            returns.let_go(self.place);
        }
        told
    }
}

#[async_trait]
impl Settle for RedisSettlement {
    async fn settle(self: Box<Self>, verdict: Verdict) -> Result<Settled, Error> {
        let told = match verdict {
            Verdict::Ack => self.tell("ack", "").await,
            Verdict::Nack { delay } => self.give_back(delay).await,
            Verdict::Dead { reason } => self.tell("dead", &reason).await,
        };
        told.map_err(|failure| failure.during("settle"))
    }

    async fn extend(&self) -> Result<Settled, Error> {
        let visibility = self.seat.visibility_ms().to_string();
        let told = self.tell("extend", &visibility).await;
        told.map_err(|failure| failure.during("extend"))
    }
}

pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
