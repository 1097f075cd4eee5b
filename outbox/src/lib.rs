//! Transactional outbox: write business rows and messages in one database transaction.

mod error;
pub mod record;
pub mod store;
mod wakeup;

pub use error::{Error, ErrorKind};
pub use outbox_broker::{InvalidMessage, Limits, Message, MessageBuilder, MessageId};
pub use wakeup::Wakeup;
