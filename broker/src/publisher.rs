//! The contract of the sending side.

use async_trait::async_trait;

use crate::{Capabilities, Error, Message};

/// What the broker said when it accepted a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// Where the message stands, in the broker's own words (partition and offset, sequence), if it says.
    pub position: Option<String>,
    /// The broker already held the message under this id and suppressed the copy.
    pub duplicate: bool,
}

impl Receipt {
    /// A receipt with a position in the broker's own words.
    pub fn at(position: impl Into<String>) -> Self {
        Self {
            position: Some(position.into()),
            duplicate: false,
        }
    }

    /// A receipt for a copy that the broker suppressed.
    pub fn duplicate() -> Self {
        Self {
            position: None,
            duplicate: true,
        }
    }
}

/// What became of one message. `Ok`: the broker durably accepted it.
pub type Outcome = Result<Receipt, Error>;

/// Sends messages to a broker and waits for its confirmation.
///
/// Object-safe: the adapter is chosen by configuration.
#[async_trait]
pub trait Publisher: Send + Sync + 'static {
    /// What this adapter promises; constant over its life.
    fn capabilities(&self) -> Capabilities;

    /// Publishes `batch` and returns one outcome per message, in input order.
    ///
    /// - `Ok` of a message: the broker durably accepted it (a confirm, an acknowledged append, a commit).
    /// - `Err`: it did not, or nobody knows ([`Error::is_outcome_unknown`]). Publishing again is safe in
    ///   either case because ids are stable.
    ///
    /// # Ordering
    /// Messages of one key reach the broker in input order. Within one call, the accepted messages of a key
    /// are a prefix of that key's messages, unless [`Capabilities::prefix_order`] is false; then the caller
    /// keeps one message per key in flight. Across concurrent calls nothing is promised for messages of one
    /// key: the caller does not start a call for a key before the previous one has returned.
    ///
    /// # Errors
    /// Every error belongs to a message. A broken connection fails the messages in flight and is repaired
    /// by a later call; a call never waits for ever: it ends within the adapter's configured timeout.
    ///
    /// # Cancel safety
    /// A dropped future may or may not have published; the outcome is unknown.
    async fn publish(&self, batch: &[Message]) -> Vec<Outcome>;

    /// Waits for what is in flight, then closes the connection. Later calls fail with
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed). Calling it twice is fine.
    ///
    /// # Errors
    /// The broker could not be told; what was accepted stays accepted.
    async fn close(&self) -> Result<(), Error>;
}
