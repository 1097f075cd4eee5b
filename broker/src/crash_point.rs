//! Named places where a process may die, for crash tests of this library and of yours.
//!
//! The loops call [`reach`] at each point. Nothing happens unless a test armed the process with
//! [`arm`]; unarmed, a call is one atomic load. The closure usually aborts the process:
//!
//! ```
//! use outbox_broker::crash_point::{self, CrashPoint};
//!
//! crash_point::arm(|point| {
//!     if point == CrashPoint::PublishedNotSettled && std::env::var_os("CRASH_HERE").is_some() {
//!         std::process::abort();
//!     }
//! });
//! crash_point::reach(CrashPoint::PublishedNotSettled);
//! ```
//!
//! A program that is made to be crashed calls [`arm_from_environment`] first thing, and whoever starts it
//! sets `OUTBOX_CRASH=published_not_settled@3`.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

mod rule;

pub use rule::{CRASH_VARIABLE, CrashRule, InvalidCrashRule, arm_from_environment};

/// A place between two durable steps, on the way of a message from the producer to its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CrashPoint {
    /// The rows are written, the business transaction is still open.
    AppendedNotCommitted,
    /// The business transaction committed, no relay has read the rows.
    CommittedNotClaimed,
    /// The relay has read the rows, nothing is handed to the broker.
    ClaimedNotPublished,
    /// The broker confirmed, the rows are still there.
    PublishedNotSettled,
    /// A publish is under way and the relay's lease has ended.
    LeaseExpiredWhilePublishing,
    /// The consumer holds the delivery, no transaction has begun.
    ReceivedNotBegun,
    /// The handler is done, its transaction is open.
    HandledNotCommitted,
    /// The effects are committed, the broker still waits for the ack.
    CommittedNotAcked,
}

impl CrashPoint {
    /// Every point, in the order a message meets them.
    pub const ALL: [Self; 8] = [
        Self::AppendedNotCommitted,
        Self::CommittedNotClaimed,
        Self::ClaimedNotPublished,
        Self::PublishedNotSettled,
        Self::LeaseExpiredWhilePublishing,
        Self::ReceivedNotBegun,
        Self::HandledNotCommitted,
        Self::CommittedNotAcked,
    ];

    /// The name used in documents, tests and environment variables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AppendedNotCommitted => "appended_not_committed",
            Self::CommittedNotClaimed => "committed_not_claimed",
            Self::ClaimedNotPublished => "claimed_not_published",
            Self::PublishedNotSettled => "published_not_settled",
            Self::LeaseExpiredWhilePublishing => "lease_expired_while_publishing",
            Self::ReceivedNotBegun => "received_not_begun",
            Self::HandledNotCommitted => "handled_not_committed",
            Self::CommittedNotAcked => "committed_not_acked",
        }
    }
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no crash point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no crash point; the names are those of CrashPoint::ALL, such as `published_not_settled`")]
pub struct UnknownCrashPoint(String);

impl FromStr for CrashPoint {
    type Err = UnknownCrashPoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|point| point.as_str() == text)
            .ok_or_else(|| UnknownCrashPoint(text.to_owned()))
    }
}

type Hook = Box<dyn Fn(CrashPoint) + Send + Sync>;

static HOOK: OnceLock<Hook> = OnceLock::new();

/// Calls `hook` at every crash point from now on. The first call in a process wins.
///
/// Returns whether this call armed the process.
pub fn arm(hook: impl Fn(CrashPoint) + Send + Sync + 'static) -> bool {
    HOOK.set(Box::new(hook)).is_ok()
}

/// Says that the calling code stands at `point`.
pub fn reach(point: CrashPoint) {
    if let Some(hook) = HOOK.get() {
        hook(point);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_as_its_point() {
        for point in CrashPoint::ALL {
            assert_eq!(point.as_str().parse::<CrashPoint>().unwrap(), point);
        }
        assert!("published".parse::<CrashPoint>().is_err());
    }
}
