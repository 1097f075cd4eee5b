//! What an adapter promises. Declared, never "depends on the implementation".

use std::fmt;

use crate::{Error, ErrorKind};

/// The promises of one adapter.
///
/// Asking for what is not promised fails when the relay or consumer is built, with an error that names the
/// capability ([`Capabilities::require`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Deliveries of one key come in publish order.
    pub key_order: bool,
    /// The accepted messages of a key are a prefix of that key's messages in one publish.
    pub prefix_order: bool,
    /// A second publish of an id is suppressed by the broker.
    pub deduplicates: bool,
    /// A nacked delivery is held back for the asked delay.
    pub nack_delay: bool,
    /// Messages survive a restart of the broker.
    pub durable: bool,
    /// Several processes share the broker.
    pub shared: bool,
    /// A publish to a topic that nothing would keep fails as unroutable.
    pub reports_unroutable: bool,
    /// The delivery attempt is counted by the broker.
    pub counts_attempts: bool,
    /// The broker keeps dead letters.
    pub dead_letters: bool,
    /// Largest payload in bytes; `None`: bounded by memory only.
    pub max_payload: Option<usize>,
}

impl Capabilities {
    /// Promises nothing; an adapter switches on what it keeps.
    pub const NONE: Self = Self {
        key_order: false,
        prefix_order: false,
        deduplicates: false,
        nack_delay: false,
        durable: false,
        shared: false,
        reports_unroutable: false,
        counts_attempts: false,
        dead_letters: false,
        max_payload: None,
    };

    /// Whether `capability` is promised.
    pub const fn has(&self, capability: Capability) -> bool {
        match capability {
            Capability::KeyOrder => self.key_order,
            Capability::PrefixOrder => self.prefix_order,
            Capability::Deduplicates => self.deduplicates,
            Capability::NackDelay => self.nack_delay,
            Capability::Durable => self.durable,
            Capability::Shared => self.shared,
            Capability::ReportsUnroutable => self.reports_unroutable,
            Capability::CountsAttempts => self.counts_attempts,
            Capability::DeadLetters => self.dead_letters,
        }
    }

    /// Fails unless `capability` is promised.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], naming the capability and `adapter`.
    pub fn require(&self, adapter: &str, capability: Capability) -> Result<(), Error> {
        if self.has(capability) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            "build",
            format!(
                "the {adapter} adapter does not offer `{capability}`; choose a broker that does, or drop the setting that needs it"
            ),
        ))
    }
}

/// The name of one promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// See [`Capabilities::key_order`].
    KeyOrder,
    /// See [`Capabilities::prefix_order`].
    PrefixOrder,
    /// See [`Capabilities::deduplicates`].
    Deduplicates,
    /// See [`Capabilities::nack_delay`].
    NackDelay,
    /// See [`Capabilities::durable`].
    Durable,
    /// See [`Capabilities::shared`].
    Shared,
    /// See [`Capabilities::reports_unroutable`].
    ReportsUnroutable,
    /// See [`Capabilities::counts_attempts`].
    CountsAttempts,
    /// See [`Capabilities::dead_letters`].
    DeadLetters,
}

impl Capability {
    /// Every capability.
    pub const ALL: [Self; 9] = [
        Self::KeyOrder,
        Self::PrefixOrder,
        Self::Deduplicates,
        Self::NackDelay,
        Self::Durable,
        Self::Shared,
        Self::ReportsUnroutable,
        Self::CountsAttempts,
        Self::DeadLetters,
    ];

    /// The name used in documents and error messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeyOrder => "key_order",
            Self::PrefixOrder => "prefix_order",
            Self::Deduplicates => "deduplicates",
            Self::NackDelay => "nack_delay",
            Self::Durable => "durable",
            Self::Shared => "shared",
            Self::ReportsUnroutable => "reports_unroutable",
            Self::CountsAttempts => "counts_attempts",
            Self::DeadLetters => "dead_letters",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
