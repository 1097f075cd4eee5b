//! Settings of the memory broker.

/// Sizes and switches of a [`MemoryBroker`](super::MemoryBroker).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Partitions of a topic, at least 1. Default 4: chosen, enough to show that order is kept per key and
    /// not per topic. Messages without a key go round them.
    pub partitions: usize,
    /// Largest payload in bytes. Default 16 MiB: the default limit of RabbitMQ 4.
    pub max_payload_bytes: usize,
    /// Bytes of all messages held. Default 1 GiB; a publish beyond it is rejected until groups have
    /// acknowledged what they owe.
    pub capacity_bytes: usize,
    /// Messages of a partition kept after every group acknowledged them, for groups that come later.
    /// Default 1,000.
    pub retained_messages: usize,
    /// Ids of a topic remembered to suppress a second publish. Default 100,000 (about 5 MB a topic);
    /// 0 remembers none, so that tests can count copies.
    pub dedup_ids: usize,
    /// Dead letters kept for each group; the oldest go first. Default 10,000.
    pub dead_letters: usize,
    /// Whether a publish to a topic that no group reads is kept. Default true; with false it fails as
    /// unroutable.
    pub create_topics: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            partitions: 4,
            max_payload_bytes: 16 * 1024 * 1024,
            capacity_bytes: 1024 * 1024 * 1024,
            retained_messages: 1_000,
            dedup_ids: 100_000,
            dead_letters: 10_000,
            create_topics: true,
        }
    }
}
