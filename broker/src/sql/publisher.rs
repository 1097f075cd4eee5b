//! The sending side: short transactions, all of one or none.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::RwLock;

use super::Shared;
use super::store::{Appended, Fault, PUBLISH_BYTES, PUBLISH_ROWS, Row};
use crate::{Capabilities, Error, ErrorKind, InvalidMessage, Message, Outcome, Publisher, Receipt};

/// Publishes to a [`SqlBroker`](super::SqlBroker).
///
/// A batch goes in transactions of at most 500 messages or 4 MiB. When one fails, so does everything after
/// it in the batch. The receipt's position is the message's `seq`.
pub struct SqlPublisher {
    shared: Arc<Shared>,
    /// True once closed; a publish holds it for reading, so that closing waits for it.
    closed: RwLock<bool>,
}

impl SqlPublisher {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            closed: RwLock::new(false),
        }
    }

    /// Appends the chunks in order; the first failure ends it, and what follows was not tried.
    async fn append(&self, messages: &[&Message]) -> Vec<Result<Receipt, Fault>> {
        let mut out = Vec::with_capacity(messages.len());
        if let Err(fault) = self.shared.ready().await {
            return messages.iter().map(|_| Err(fault.clone())).collect();
        }
        let mut rest = messages;
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(chunk_len(rest));
            rest = later;
            let rows = chunk.iter().map(|message| Row::new(message)).collect();
            let timeout = self.shared.config.publish_timeout;
            let appended = match tokio::time::timeout(timeout, self.shared.store.publish(rows)).await {
                Ok(appended) => appended,
                Err(_) => Err(Fault::new(
                    ErrorKind::OutcomeUnknown,
                    "no answer within `publish_timeout_ms`; publish again",
                )),
            };
            match appended {
                Ok(appended) => out.extend(appended.into_iter().map(|appended| match appended {
                    Appended::At(seq) => Ok(Receipt::at(seq.to_string())),
                    Appended::Duplicate => Ok(Receipt::duplicate()),
                })),
                Err(fault) => {
                    out.extend(chunk.iter().map(|_| Err(fault.clone())));
                    let untried = Fault::new(ErrorKind::Rejected, "an earlier part of the batch failed");
                    out.extend(rest.iter().map(|_| Err(untried.clone())));
                    break;
                }
            }
        }
        out
    }
}

#[async_trait]
impl Publisher for SqlPublisher {
    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities()
    }

    async fn publish(&self, batch: &[Message]) -> Vec<Outcome> {
        let closed = self.closed.read().await;
        if *closed {
            return batch.iter().map(|_| Err(closed_error())).collect();
        }
        let limits = self.shared.config.limits();
        let mut failed_keys = HashSet::new();
        // What the database need not see is settled first; `None` stands for a message that goes to it.
        let refused: Vec<Option<Error>> = batch
            .iter()
            .map(|message| {
                // The accepted messages of a key are a prefix: what follows a failure is not stored.
                let key = message.key.as_deref();
                if key.is_some_and(|key| failed_keys.contains(key)) {
                    let context = "an earlier message of this key failed";
                    return Some(Error::new(ErrorKind::Rejected, "publish", context));
                }
                let invalid = message.validate(&limits).err()?;
                failed_keys.extend(key);
                Some(refusal(invalid))
            })
            .collect();
        let good: Vec<&Message> = batch
            .iter()
            .zip(&refused)
            .filter(|(_, error)| error.is_none())
            .map(|(m, _)| m)
            .collect();
        let mut appended = self.append(&good).await.into_iter();
        if !good.is_empty() {
            self.shared.changed();
        }
        let lost = || Fault::new(ErrorKind::Broker, "the database answered for too few messages");
        refused
            .into_iter()
            .map(|refused| match refused {
                Some(error) => Err(error),
                None => appended
                    .next()
                    .unwrap_or_else(|| Err(lost()))
                    .map_err(|fault| fault.into_error("publish")),
            })
            .collect()
    }

    async fn close(&self) -> Result<(), Error> {
        *self.closed.write().await = true;
        Ok(())
    }
}

impl fmt::Debug for SqlPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlPublisher").finish_non_exhaustive()
    }
}

/// Messages of the next transaction: as many as fit, at least one.
fn chunk_len(messages: &[&Message]) -> usize {
    let mut bytes = 0;
    let fit = messages
        .iter()
        .take(PUBLISH_ROWS)
        .take_while(|message| {
            bytes += message.size();
            bytes <= PUBLISH_BYTES
        })
        .count();
    fit.max(1).min(messages.len())
}

fn closed_error() -> Error {
    Error::new(ErrorKind::Closed, "publish", "the publisher was closed")
}

fn refusal(invalid: InvalidMessage) -> Error {
    let kind = match invalid {
        InvalidMessage::TooLarge { .. } => ErrorKind::TooLarge,
        _ => ErrorKind::Invalid,
    };
    Error::new(kind, "publish", "the message breaks a rule; see the cause").with_cause(invalid)
}
