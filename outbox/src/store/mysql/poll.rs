//! Waits for producers by polling: no notification goes from one process to another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::config::MysqlConfig;

/// The pause between claims: short while rows come, doubled while none do.
#[derive(Debug)]
pub(super) struct Poll {
    least: Duration,
    most: Duration,
    /// Microseconds until the next poll.
    interval: AtomicU64,
}

impl Poll {
    pub(super) fn new(config: &MysqlConfig) -> Self {
        Self {
            least: config.poll_min,
            most: config.poll_max.max(config.poll_min),
            interval: AtomicU64::new(micros(config.poll_min)),
        }
    }

    /// A claim found rows: more are likely, poll eagerly again.
    pub(super) fn found_rows(&self) {
        self.interval.store(micros(self.least), Ordering::Relaxed);
    }

    /// Waits for the next poll or `at_most`.
    pub(super) async fn wait(&self, at_most: Duration) {
        let interval = Duration::from_micros(self.interval.load(Ordering::Relaxed));
        tokio::time::sleep(interval.min(at_most)).await;
        let longer = (interval * 2).min(self.most);
        self.interval.store(micros(longer), Ordering::Relaxed);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
