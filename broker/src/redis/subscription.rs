//! A member of a group: takes entries from the partitions it owns, or from all of an unordered group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{FromRedisValue, Pipeline, Value, cmd};
use tokio::time::{Instant, sleep_until};

use super::envelope;
use super::error::Failure;
use super::partitions::Partitions;
use super::scripts::{self, call};
use super::settlement::{Outside, Place, RedisSettlement, Returns, Seat, milliseconds};
use crate::{Delivery, Error, ErrorKind, Lag, Malformed, Message, Start, SubscribeOptions, Subscription};

/// A membership in a group. Dropped without [`Subscription::close`], it leaves after the visibility timeout.
pub struct RedisSubscription {
    seat: Arc<Seat>,
    options: SubscribeOptions,
    partitions: Partitions,
    returns: Arc<Returns>,
    /// Taken by this process, not yet handed out.
    arrived: BTreeMap<Place, Parcel>,
    /// When the server has something due again, as far as it said.
    next_due: Option<Instant>,
    joined: bool,
    paused: bool,
    /// The connection that waits for new entries, so that nobody else waits behind it.
    waiter: Option<MultiplexedConnection>,
}

struct Parcel {
    content: Result<Message, Malformed>,
    count: u32,
    /// Ours until the visibility timeout after this.
    taken_at: Instant,
}

impl Parcel {
    fn key(&self) -> Option<&str> {
        self.content.as_ref().ok()?.key.as_deref()
    }
}

impl RedisSubscription {
    pub(super) fn new(seat: Arc<Seat>, options: SubscribeOptions) -> Self {
        Self {
            partitions: Partitions::new(Arc::clone(&seat)),
            seat,
            options,
            returns: Arc::default(),
            arrived: BTreeMap::new(),
            next_due: None,
            joined: false,
            paused: false,
            waiter: None,
        }
    }

    /// Creates the group where it is missing and says that a member is here.
    pub(super) async fn join(&mut self) -> Result<(), Failure> {
        let first = match self.options.start {
            Start::Earliest => "0",
            Start::Latest => "$",
        };
        let mut pipeline = Pipeline::new();
        for keys in &self.seat.partitions {
            let mut join = call(&scripts::JOIN, &[&keys.stream]);
            join.arg(&self.options.group).arg(first);
            pipeline.add_command(join);
        }
        self.seat.link.ask_all::<i64>(&pipeline).await?;
        self.joined = true;
        self.partitions.look_round().await
    }

    async fn receive_some(&mut self, max: usize, until: Instant) -> Result<Vec<Delivery>, Failure> {
        loop {
            if self.seat.has_left() || self.seat.link.is_closed() {
                return Err(Failure::closed());
            }
            if !self.joined {
                self.join().await?;
            }
            if self.partitions.is_time() {
                self.partitions.look_round().await?;
                self.keep_arrived().await?;
            }
            let prefetch = usize::from(self.options.prefetch);
            let room = max.min(prefetch.saturating_sub(self.returns.outside()));
            if !self.paused && room > 0 {
                let mut out = self.hand_out(room);
                if out.is_empty() {
                    self.take(room).await?;
                    out = self.hand_out(room);
                }
                if !out.is_empty() {
                    return Ok(out);
                }
            }
            if Instant::now() >= until {
                return Ok(Vec::new());
            }
            self.wait(until).await?;
        }
    }

    /// Whether new entries may be taken: what is here and unsettled stays near the prefetch.
    fn wants_more(&self) -> bool {
        let here = self.arrived.len() + self.returns.outside() + self.returns.holds();
        !self.paused && here < usize::from(self.options.prefetch)
    }

    /// Takes from every partition what `room` allows.
    async fn take(&mut self, room: usize) -> Result<(), Failure> {
        let asked = self.partitions.to_ask();
        if asked.is_empty() {
            self.next_due = None;
            return Ok(());
        }
        let each = room.div_ceil(asked.len());
        let wants_more = self.wants_more();
        let mut pipeline = Pipeline::new();
        for &(partition, is_wanted) in &asked {
            let keys = &self.seat.partitions[usize::from(partition)];
            let mut take = call(&scripts::TAKE, &[&keys.stream, &keys.due, &keys.owner]);
            take.arg(&self.seat.group)
                .arg(&self.seat.consumer)
                .arg(self.seat.visibility_ms())
                .arg(each)
                .arg(u8::from(self.seat.link.config.ordered))
                .arg(u8::from(is_wanted && wants_more));
            pipeline.add_command(take);
        }
        let sent_at = Instant::now();
        let answers: Vec<Value> = self.seat.link.ask_all(&pipeline).await?;
        self.next_due = None;
        for ((partition, _), answer) in asked.into_iter().zip(answers) {
            let Some(taken) = read_answer(answer)? else {
                self.lose(partition);
                continue;
            };
            self.partitions.owned(partition, taken.last);
            if let Some(due) = taken.due_in {
                let due = sent_at + due;
                self.next_due = Some(self.next_due.map_or(due, |next| next.min(due)));
            }
            for (id, count, fields) in taken.entries {
                let place = Place::new(partition, &id)?;
                self.returns.let_go(place);
                let content = envelope::message(fields);
                let taken_at = sent_at;
                self.arrived.insert(
                    place,
                    Parcel {
                        content,
                        count,
                        taken_at,
                    },
                );
            }
        }
        Ok(())
    }

    /// Hands out up to `room` entries in order; one that follows a held one of its key waits.
    fn hand_out(&mut self, room: usize) -> Vec<Delivery> {
        let barriers = self.returns.barriers();
        let may_go = |place: &Place, parcel: &Parcel| {
            let barrier = parcel.key().and_then(|key| barriers.get(key));
            barrier.is_none_or(|first| place < first)
        };
        let turn: Vec<Place> = self
            .arrived
            .iter()
            .filter(|(place, parcel)| may_go(place, parcel))
            .map(|(place, _)| *place)
            .take(room)
            .collect();
        let mut out = Vec::with_capacity(turn.len());
        for place in turn {
            let Some(parcel) = self.arrived.remove(&place) else {
                continue;
            };
            let settlement = RedisSettlement {
                seat: Arc::clone(&self.seat),
                place,
                count: parcel.count,
                key: parcel.key().map(str::to_owned),
                outside: Outside::new(&self.returns),
            };
            out.push(Delivery::new(parcel.content, parcel.count, settlement));
        }
        out
    }

    /// Keeps what waits here ours; what another member got meanwhile is dropped.
    async fn keep_arrived(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let visibility = self.seat.visibility_ms().to_string();
        let mut pipeline = Pipeline::new();
        let mut asked = Vec::new();
        for (place, parcel) in &self.arrived {
            if now - parcel.taken_at > self.seat.visibility / 3 {
                pipeline.add_command(self.seat.settle(*place, parcel.count, "extend", &visibility));
                asked.push(*place);
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        let kept: Vec<bool> = self.seat.link.ask_all(&pipeline).await?;
        for (place, is_kept) in asked.into_iter().zip(kept) {
            if !is_kept {
                self.arrived.remove(&place);
            } else if let Some(parcel) = self.arrived.get_mut(&place) {
                parcel.taken_at = now;
            }
        }
        Ok(())
    }

    /// Another member owns the partition.
    fn lose(&mut self, partition: u16) {
        self.partitions.lost(partition);
        self.returns.forget(partition);
        self.arrived.retain(|place, _| place.partition != partition);
    }

    /// Waits for a new entry, for one that is due, or for room; at most until `until`.
    async fn wait(&mut self, until: Instant) -> Result<(), Failure> {
        let until = until.min(self.partitions.next_look());
        let until = self.next_due.map_or(until, |due| due.min(until));
        let returns = Arc::clone(&self.returns);
        let streams = if self.wants_more() {
            self.partitions.to_watch()
        } else {
            Vec::new()
        };
        if streams.is_empty() {
            tokio::select! {
                () = returns.came.notified() => {}
                () = sleep_until(until) => {}
            }
            return Ok(());
        }
        let mut waiter = match self.waiter.take() {
            Some(waiter) => waiter,
            None => self.seat.link.dedicated(self.seat.link.deadline()).await?,
        };
        let block = until.saturating_duration_since(Instant::now());
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(1).arg("BLOCK");
        read.arg(milliseconds(block).max(1)).arg("STREAMS");
        for (stream, _) in &streams {
            read.arg(stream);
        }
        for (_, last) in &streams {
            read.arg(last);
        }
        // An answer that never comes is the next question's matter: that one has a deadline.
        let answer = tokio::select! {
            answer = read.query_async::<Value>(&mut waiter) => answer.map(drop),
            () = returns.came.notified() => Ok(()),
            () = sleep_until(until) => Ok(()),
        };
        answer?;
        self.waiter = Some(waiter);
        Ok(())
    }
}

/// What a partition gave.
struct Taken {
    /// The last id the group was given, where the server said it.
    last: Option<String>,
    due_in: Option<Duration>,
    entries: Vec<(String, u32, Vec<Vec<u8>>)>,
}

/// Reads the answer of `take.lua`; `None`: another member owns the partition.
fn read_answer(answer: Value) -> Result<Option<Taken>, Failure> {
    fn read<T: FromRedisValue>(value: Option<Value>) -> Result<T, Failure> {
        T::from_redis_value(value.unwrap_or_default()).map_err(|_| Failure::garbled())
    }
    let Value::Array(parts) = answer else {
        return Err(Failure::garbled());
    };
    let mut parts = parts.into_iter();
    if read::<i64>(parts.next())? == 0 {
        return Ok(None);
    }
    let last: String = read(parts.next())?;
    let due_in: i64 = read(parts.next())?;
    let mut entries = Vec::with_capacity(parts.len());
    for entry in parts {
        let Value::Array(entry) = entry else {
            return Err(Failure::garbled());
        };
        let mut entry = entry.into_iter();
        entries.push((read(entry.next())?, read(entry.next())?, read(entry.next())?));
    }
    Ok(Some(Taken {
        last: Some(last).filter(|last| !last.is_empty()),
        due_in: u64::try_from(due_in).ok().map(Duration::from_millis),
        entries,
    }))
}

#[async_trait]
impl Subscription for RedisSubscription {
    async fn receive(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>, Error> {
        if max == 0 {
            return Ok(Vec::new());
        }
        let received = self.receive_some(max, Instant::now() + wait).await;
        received.map_err(|failure| {
            self.waiter = None; // opened again by the next call
            if failure.kind == ErrorKind::UnknownDestination {
                self.joined = false;
            }
            failure.during("receive")
        })
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
        let mut pipeline = Pipeline::new();
        for keys in &self.seat.partitions {
            let mut lag = call(&scripts::LAG, &[&keys.stream]);
            lag.arg(&self.seat.group);
            pipeline.add_command(lag);
        }
        let counted: Result<Vec<Vec<i64>>, Failure> = self.seat.link.ask_all(&pipeline).await;
        let counted = counted.map_err(|failure| failure.during("lag"))?;
        let mut lag = Lag::default();
        for partition in counted {
            let [messages, age] = partition[..] else {
                return Err(Failure::garbled().during("lag"));
            };
            lag.messages += u64::try_from(messages).unwrap_or(0);
            lag.age = lag.age.max(u64::try_from(age).ok().map(Duration::from_millis));
        }
        Ok(lag)
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        let left = self.seat.leave().await;
        left.map_err(|failure| failure.during("close"))
    }
}
