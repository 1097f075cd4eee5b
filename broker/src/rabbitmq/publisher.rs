//! The sending side: a call is cut into waves, in which no two messages share a key.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::confirms::{Confirms, Outgoing};
use super::error::Failure;
use super::link::Link;
use super::{RabbitMqConfig, envelope};
use crate::{Capabilities, Error, ErrorKind, Message, Outcome, Publisher};

/// Publishes to a RabbitMQ exchange with confirms.
pub struct RabbitMqPublisher {
    link: Link,
    capabilities: Capabilities,
    /// Channels in confirm mode on which nothing is unconfirmed.
    idle: Mutex<Vec<Channel>>,
    /// One permit for each channel.
    permits: Semaphore,
}

impl RabbitMqPublisher {
    pub(super) fn new(link: Link, capabilities: Capabilities) -> Self {
        let permits = Semaphore::new(link.config.channels);
        Self {
            link,
            capabilities,
            idle: Mutex::new(Vec::new()),
            permits,
        }
    }

    /// Connects now, so that a wrong address or account shows before the first publish.
    ///
    /// # Errors
    /// RabbitMQ cannot be reached or refuses us.
    pub async fn connect(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.link.config.connect_timeout;
        let channel = self
            .channel(deadline)
            .await
            .map_err(|failure| failure.during("connect"))?;
        self.idle().push(channel);
        Ok(())
    }

    /// Publishes wave by wave; what is left without an outcome met the failure.
    async fn publish_waves(
        &self,
        batch: &[Message],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + self.link.config.publish_timeout;
        let _permit = self.permit(deadline).await?;
        let mut channel = None;
        let mut failed_keys = HashSet::new();
        for wave in waves(batch) {
            let outgoing = prepare(&self.link.config, batch, &wave, &failed_keys, outcomes);
            if !outgoing.is_empty() {
                let channel = match &channel {
                    Some(channel) => channel,
                    None => channel.insert(self.channel(deadline).await?),
                };
                let mut confirms = Confirms::new(channel, &self.link.config, deadline);
                confirms.send(batch, outgoing).await;
                let late = confirms.late;
                if let Err(failure) = confirms.judge(batch, outcomes) {
                    // The channel is not given back to the idle ones, and a connection that fell silent is
                    // given up: a new one is found faster than a half-open one is noticed.
                    if late {
                        self.link.discard().await;
                    }
                    return Err(failure);
                }
            }
            for index in wave {
                if let (Some(Err(_)), Some(key)) = (&outcomes[index], &batch[index].key) {
                    failed_keys.insert(key.as_str());
                }
            }
        }
        self.idle().extend(channel);
        Ok(())
    }

    /// A channel for one call.
    async fn channel(&self, deadline: Instant) -> Result<Channel, Failure> {
        while let Some(channel) = { self.idle().pop() } {
            if channel.status().connected() {
                return Ok(channel);
            }
        }
        let channel = self.link.channel(deadline).await?;
        match timeout_at(deadline, channel.confirm_select(ConfirmSelectOptions::default())).await {
            Ok(selected) => selected?,
            Err(_) => return Err(Failure::silent()),
        }
        Ok(channel)
    }

    async fn permit(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, Failure> {
        let busy = Failure::new(
            ErrorKind::Unreachable,
            "every channel is busy with a publish that is late",
        );
        let permit = timeout_at(deadline, self.permits.acquire())
            .await
            .map_err(|_| busy)?;
        permit.map_err(|_| Failure::closed())
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Channel>> {
        // Pushing and popping leave a whole list whatever panics.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Publisher for RabbitMqPublisher {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        let mut outcomes: Vec<Option<Outcome>> = batch.iter().map(|_| None).collect();
        let published = if self.link.is_closed() {
            Err(Failure::closed())
        } else {
            self.publish_waves(batch, &mut outcomes).await
        };
        let unsent = match published {
            Ok(()) => Failure::new(ErrorKind::Broker, "no confirmation was recorded"),
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
        let channels = u32::try_from(self.link.config.channels).unwrap_or(u32::MAX);
        let deadline = Instant::now() + self.link.config.publish_timeout;
        // What is under way ends within the same timeout; nothing new begins.
        let _all = timeout_at(deadline, self.permits.acquire_many(channels)).await;
        self.permits.close();
        self.idle().clear();
        self.link.close().await
    }
}

/// Indices of `batch` in waves: the n-th message of each key is in the n-th wave, those without a key are in
/// the first.
fn waves(batch: &[Message]) -> Vec<Vec<usize>> {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut waves: Vec<Vec<usize>> = Vec::new();
    for (index, message) in batch.iter().enumerate() {
        let wave = match message.key.as_deref() {
            None => 0,
            Some(key) => {
                let next = seen.entry(key).or_default();
                *next += 1;
                *next - 1
            }
        };
        if wave >= waves.len() {
            waves.resize_with(wave + 1, Vec::new);
        }
        waves[wave].push(index);
    }
    waves
}

/// Encodes what may be sent of a wave; the others get their outcome.
fn prepare(
    config: &RabbitMqConfig,
    batch: &[Message],
    wave: &[usize],
    failed_keys: &HashSet<&str>,
    outcomes: &mut [Option<Outcome>],
) -> Vec<Outgoing> {
    let mut outgoing = Vec::with_capacity(wave.len());
    for &index in wave {
        let message = &batch[index];
        let error = |kind, context| Error::new(kind, "publish", context);
        let refused = if message
            .key
            .as_deref()
            .is_some_and(|key| failed_keys.contains(key))
        {
            error(
                ErrorKind::Rejected,
                "an earlier message of this key failed".to_owned(),
            )
        } else if message.payload.len() > config.max_payload_bytes {
            let (actual, limit) = (message.payload.len(), config.max_payload_bytes);
            let context = format!("the payload has {actual} bytes, max_payload_bytes is {limit}");
            error(ErrorKind::TooLarge, context)
        } else {
            match (
                envelope::properties(message),
                envelope::short(message.topic.clone(), "the topic"),
            ) {
                (Ok(properties), Ok(topic)) => {
                    outgoing.push(Outgoing {
                        index,
                        topic,
                        properties,
                    });
                    continue;
                }
                (Err(what), _) | (_, Err(what)) => error(
                    ErrorKind::Invalid,
                    format!("{what} is longer than the 255 bytes AMQP allows"),
                ),
            }
        };
        outcomes[index] = Some(Err(refused));
    }
    outgoing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wave_holds_two_messages_of_a_key() {
        let keys = [Some("a"), None, Some("a"), Some("b"), None, Some("a"), Some("b")];
        let batch = keys.map(|key| {
            let builder = Message::builder("t", "t").source("s");
            if let Some(key) = key {
                builder.key(key)
            } else {
                builder
            }
            .build()
            .unwrap()
        });
        assert_eq!(waves(&batch), [vec![0, 1, 3, 4], vec![2, 6], vec![5]]);
        assert!(waves(&[]).is_empty());
    }
}
