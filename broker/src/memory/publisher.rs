//! The sending side.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::time::Instant;

use super::MemoryBroker;
use super::faults::Fault;
use super::state::State;
use crate::{Capabilities, Error, ErrorKind, Message, Outcome, Publisher, Receipt};

/// Publishes to a [`MemoryBroker`].
#[derive(Debug)]
pub struct MemoryPublisher {
    broker: MemoryBroker,
    closed: AtomicBool,
}

impl MemoryPublisher {
    pub(super) fn new(broker: MemoryBroker) -> Self {
        Self {
            broker,
            closed: AtomicBool::new(false),
        }
    }

    fn store(&self, state: &mut State, message: &Message, now: Instant) -> Outcome {
        let config = &self.broker.shared.config;
        if message.payload.len() > config.max_payload_bytes {
            return Err(error(
                ErrorKind::TooLarge,
                "the payload exceeds MemoryConfig::max_payload_bytes; raise it or send a reference",
            ));
        }
        if !config.create_topics && !state.is_read(&message.topic) {
            return Err(error(
                ErrorKind::Unroutable,
                "no group reads the topic; subscribe one first",
            ));
        }
        let fault = state.faults.next();
        if let Fault::Fail(kind) = fault {
            return Err(error(kind, "a fault was asked for"));
        }
        if state.is_known(&message.topic, message.id) {
            return Ok(Receipt::duplicate());
        }
        if state.is_full(message.size()) {
            return Err(error(
                ErrorKind::Rejected,
                "MemoryConfig::capacity_bytes is used up; wait until groups have acknowledged",
            ));
        }
        let (partition, offset) = state.append(&message.topic, Ok(message.clone()), now);
        match fault {
            Fault::LoseOutcome => Err(error(ErrorKind::OutcomeUnknown, "a fault was asked for")),
            Fault::Duplicate => {
                state.append(&message.topic, Ok(message.clone()), now);
                Ok(Receipt::at(format!("{partition}:{offset}")))
            }
            Fault::None | Fault::Fail(_) => Ok(Receipt::at(format!("{partition}:{offset}"))),
        }
    }
}

#[async_trait]
impl Publisher for MemoryPublisher {
    fn capabilities(&self) -> Capabilities {
        self.broker.capabilities()
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        let latency = self.broker.lock().faults.latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        if self.closed.load(Ordering::Acquire) {
            return batch
                .iter()
                .map(|_| Err(error(ErrorKind::Closed, "the publisher was closed")))
                .collect();
        }
        let now = Instant::now();
        let mut failed_keys = HashSet::new();
        let mut topics = HashSet::new();
        let mut state = self.broker.lock();
        let outcomes = batch.iter().map(|message| {
            // The accepted messages of a key are a prefix: what follows a failure is not stored.
            if message
                .key
                .as_ref()
                .is_some_and(|key| failed_keys.contains(key.as_str()))
            {
                return Err(error(
                    ErrorKind::Rejected,
                    "an earlier message of this key failed",
                ));
            }
            topics.insert(message.topic.as_str());
            let outcome = self.store(&mut state, message, now);
            if let (Err(_), Some(key)) = (&outcome, &message.key) {
                failed_keys.insert(key.as_str());
            }
            outcome
        });
        let outcomes = outcomes.collect();
        for topic in topics {
            state.wake(topic);
        }
        outcomes
    }

    async fn close(&self) -> Result<(), Error> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

fn error(kind: ErrorKind, context: &'static str) -> Error {
    Error::new(kind, "publish", context)
}
