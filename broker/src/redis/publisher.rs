//! The sending side: a call is cut by partition, a partition into script calls that follow each other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{Cmd, FromRedisValue, Pipeline, Value, cmd};
use futures::StreamExt;
use futures::stream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::error::Failure;
use super::link::Link;
use super::scripts::{self, call};
use super::{RedisConfig, agreed_partitions, envelope};
use crate::{Capabilities, Error, ErrorKind, Message, Outcome, Publisher, Receipt};

/// Publishes under way at once; further ones wait. Chosen: a relay has few lanes.
const CALLS: u32 = 64;

/// Partitions of one publish written at once. Chosen: enough to hide the round trip, Redis works off one at
/// a time.
const PARTITIONS_AT_ONCE: usize = 64;

/// Publishes to Redis Streams by script, and waits for the answers.
pub struct RedisPublisher {
    link: Link,
    capabilities: Capabilities,
    /// The partitions of the topics seen so far.
    topics: Mutex<HashMap<String, u16>>,
    permits: Semaphore,
}

/// What goes to one partition, by place in the batch.
type Share = Vec<usize>;

impl RedisPublisher {
    pub(super) fn new(link: Link, capabilities: Capabilities) -> Self {
        Self {
            link,
            capabilities,
            topics: Mutex::new(HashMap::new()),
            permits: Semaphore::new(CALLS as usize),
        }
    }

    /// Connects now, so that a wrong address or account shows before the first publish.
    ///
    /// # Errors
    /// Redis cannot be reached or refuses us.
    pub async fn connect(&self) -> Result<(), Error> {
        let connection = self.link.connection(self.link.deadline()).await;
        connection.map(drop).map_err(|failure| failure.during("connect"))
    }

    async fn publish_all(&self, batch: &[Message], outcomes: &mut [Option<Outcome>]) -> Result<(), Failure> {
        let deadline = Instant::now() + self.link.config.publish_timeout;
        let busy = Failure::new(ErrorKind::Unreachable, "other publishes are late");
        let _permit = timeout_at(deadline, self.permits.acquire())
            .await
            .map_err(|_| busy)?
            .map_err(|_| Failure::closed())?;
        let connection = self.link.connection(deadline).await?;
        let shares = self.shares(batch, outcomes, deadline).await?;
        let mut shares = stream::iter(shares)
            .map(|((topic, partition), share)| {
                let stream = self.link.config.stream_key(&topic, partition);
                self.publish_share(connection.clone(), stream, batch, share, deadline)
            })
            .buffer_unordered(PARTITIONS_AT_ONCE);
        let mut failed = None;
        while let Some(written) = shares.next().await {
            for (index, outcome) in written.outcomes {
                outcomes[index] = Some(outcome);
            }
            failed = failed.or(written.failure);
        }
        drop(shares);
        match failed {
            Some(failure) => {
                self.link.discard_after(&failure).await;
                Err(failure)
            }
            None => Ok(()),
        }
    }

    /// Cuts the batch by topic and partition; what cannot be sent gets its outcome.
    async fn shares(
        &self,
        batch: &[Message],
        outcomes: &mut [Option<Outcome>],
        deadline: Instant,
    ) -> Result<BTreeMap<(String, u16), Share>, Failure> {
        let limit = self.link.config.max_payload_bytes;
        let mut shares: BTreeMap<(String, u16), Share> = BTreeMap::new();
        let mut failed_keys = HashSet::new();
        for (index, message) in batch.iter().enumerate() {
            let failed = |kind, context: String| Some(Err(Error::new(kind, "publish", context)));
            let key = message.key.as_deref();
            if key.is_some_and(|key| failed_keys.contains(&(message.topic.as_str(), key))) {
                let context = "an earlier message of this key failed".to_owned();
                outcomes[index] = failed(ErrorKind::Rejected, context);
                continue;
            }
            if message.payload.len() > limit {
                let actual = message.payload.len();
                let context = format!("the payload has {actual} bytes, max_payload_bytes is {limit}");
                outcomes[index] = failed(ErrorKind::TooLarge, context);
                failed_keys.extend(key.map(|key| (message.topic.as_str(), key)));
                continue;
            }
            let partitions = self.partitions(&message.topic, deadline).await?;
            let partition = envelope::partition(message, partitions);
            shares
                .entry((message.topic.clone(), partition))
                .or_default()
                .push(index);
        }
        Ok(shares)
    }

    async fn partitions(&self, topic: &str, deadline: Instant) -> Result<u16, Failure> {
        if let Some(known) = self.topics().get(topic) {
            return Ok(*known);
        }
        let agreed = timeout_at(deadline, agreed_partitions(&self.link, topic)).await;
        let agreed = agreed.unwrap_or(Err(Failure::silent()))?;
        self.topics().insert(topic.to_owned(), agreed);
        Ok(agreed)
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<String, u16>> {
        // An insertion leaves a whole map whatever panics.
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the messages of one partition, one script call after the other, until one fails.
    async fn publish_share(
        &self,
        mut connection: MultiplexedConnection,
        stream: String,
        batch: &[Message],
        share: Share,
        deadline: Instant,
    ) -> Written {
        let mut written = Written::default();
        let mut rest = &share[..];
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(chunk_length(&self.link.config, batch, rest));
            rest = after;
            let mut pipeline = Pipeline::new();
            pipeline.add_command(append(&self.link.config, &stream, batch, chunk));
            if self.link.config.replicas > 0 {
                let mut wait = cmd("WAIT");
                let within = self.link.config.replicas_timeout.as_millis();
                wait.arg(self.link.config.replicas)
                    .arg(u64::try_from(within).unwrap_or(u64::MAX));
                pipeline.add_command(wait);
            }
            let answer = timeout_at(deadline, pipeline.query_async::<Vec<Value>>(&mut connection)).await;
            let judged = match answer {
                Ok(Ok(answer)) => self.judge(&mut written, chunk, answer),
                Ok(Err(cause)) => Err(Failure::in_flight(cause)),
                Err(_) => Err(Failure::new(
                    ErrorKind::OutcomeUnknown,
                    "Redis did not answer within the publish timeout",
                )),
            };
            match judged {
                Ok(true) => {}
                Ok(false) => {
                    written.fail(rest, &behind());
                    break;
                }
                Err(failure) => {
                    written.fail(chunk, &failure);
                    written.failure = Some(failure);
                    break; // what was not sent gets its outcome from the failure of the call
                }
            }
        }
        written
    }

    /// Writes the outcomes of one script call; false if it broke off.
    fn judge(&self, written: &mut Written, chunk: &[usize], answer: Vec<Value>) -> Result<bool, Failure> {
        let mut answer = answer.into_iter();
        let entries: Vec<String> = answer
            .next()
            .and_then(|entries| FromRedisValue::from_redis_value(entries).ok())
            .ok_or(Failure::garbled())?;
        if let Some(copies) = answer.next() {
            let copies = u32::from_redis_value(copies).map_err(|_| Failure::garbled())?;
            if copies < self.link.config.replicas {
                return Err(Failure::new(
                    ErrorKind::OutcomeUnknown,
                    "too few replicas have the message in time",
                ));
            }
        }
        let mut rest = chunk.iter().copied();
        for (entry, index) in entries.iter().zip(&mut rest) {
            let outcome = if let Some(known) = entry.strip_prefix('=') {
                let mut receipt = Receipt::at(known);
                receipt.duplicate = true;
                Ok(receipt)
            } else if let Some(reason) = entry.strip_prefix('!') {
                Err(Error::new(
                    ErrorKind::Rejected,
                    "publish",
                    format!("Redis did not take it: {reason}"),
                ))
            } else {
                Ok(Receipt::at(entry.as_str()))
            };
            written.outcomes.push((index, outcome));
        }
        let broke_off = entries.last().is_some_and(|entry| entry.starts_with('!'));
        let unsent: Vec<usize> = rest.collect();
        written.fail(&unsent, &behind());
        Ok(!broke_off && unsent.is_empty())
    }
}

/// Outcomes of one partition.
#[derive(Default)]
struct Written {
    outcomes: Vec<(usize, Outcome)>,
    failure: Option<Failure>,
}

impl Written {
    fn fail(&mut self, indices: &[usize], failure: &Failure) {
        let failed = indices
            .iter()
            .map(|index| (*index, Err(failure.during("publish"))));
        self.outcomes.extend(failed);
    }
}

const fn behind() -> Failure {
    Failure::new(ErrorKind::Rejected, "an earlier message of its partition failed")
}

/// How many of `rest` go into the next script call.
fn chunk_length(config: &RedisConfig, batch: &[Message], rest: &[usize]) -> usize {
    let mut bytes = 0;
    let fits = rest.iter().take(config.batch).take_while(|index| {
        bytes += batch[**index].payload.len();
        bytes <= config.batch_bytes
    });
    fits.count().max(1)
}

fn append(config: &RedisConfig, stream: &str, batch: &[Message], chunk: &[usize]) -> Cmd {
    let ids: Vec<String> = chunk
        .iter()
        .map(|index| format!("{stream}:id:{}", batch[*index].id))
        .collect();
    let mut keys = vec![stream];
    keys.extend(ids.iter().map(String::as_str));
    let mut append = call(&scripts::PUBLISH, &keys);
    append.arg(u64::try_from(config.dedup_window.as_millis()).unwrap_or(u64::MAX));
    for index in chunk {
        let message = &batch[*index];
        let fields = envelope::fields(message);
        append.arg(fields.len() + 1).arg(fields).arg(&message.payload[..]);
    }
    append
}

#[async_trait]
impl Publisher for RedisPublisher {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        let mut outcomes: Vec<Option<Outcome>> = batch.iter().map(|_| None).collect();
        let published = if self.link.is_closed() {
            Err(Failure::closed())
        } else {
            self.publish_all(batch, &mut outcomes).await
        };
        let unsent = match published {
            Ok(()) => Failure::new(ErrorKind::Broker, "no answer was recorded"),
            // Whatever befell others: this message was not handed over.
            Err(failure) if failure.kind == ErrorKind::OutcomeUnknown => Failure::new(
                ErrorKind::Unreachable,
                "the connection was lost before the message was sent",
            ),
            Err(failure) => failure,
        };
        outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(|| Err(unsent.during("publish"))))
            .collect()
    }

    async fn close(&self) -> Result<(), Error> {
        self.link.refuse();
        let deadline = Instant::now() + self.link.config.publish_timeout;
        // What is under way ends within the same timeout; nothing new begins.
        let _all = timeout_at(deadline, self.permits.acquire_many(CALLS)).await;
        self.permits.close();
        self.link.close().await;
        Ok(())
    }
}
