//! Tells the relay of this process that a transaction with messages has committed.

use std::sync::Arc;

use tokio::sync::Notify;

/// A signal from the producers of a process to its relay: "there may be new rows".
///
/// Clones share one signal. Any number of [`notify`](Wakeup::notify) calls before the relay looks are one
/// wake-up, and one that comes while nobody waits is kept for the next wait. A relay polls as well, so a
/// signal that is never sent costs latency, never a message.
#[derive(Debug, Clone, Default)]
pub struct Wakeup {
    signal: Arc<Notify>,
}

impl Wakeup {
    /// A signal of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes the relay; call it after the commit. A few nanoseconds, never blocks.
    pub fn notify(&self) {
        self.signal.notify_one();
    }

    /// Waits for a [`notify`](Wakeup::notify) since the last one that was waited for.
    ///
    /// One waiter takes each signal: a `Wakeup` belongs to one relay.
    ///
    /// # Cancel safety
    /// Safe: a signal that is not returned is kept.
    pub async fn notified(&self) {
        self.signal.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_signal_sent_while_nobody_waits_is_kept() {
        let wakeup = Wakeup::new();
        wakeup.clone().notify();
        wakeup.notify();
        assert_eq!(wakeup.notified().now_or_never(), Some(()));
        assert_eq!(
            wakeup.notified().now_or_never(),
            None,
            "two signals are one wake-up"
        );
    }

    #[tokio::test]
    async fn a_waiter_wakes_on_a_signal() {
        let wakeup = Wakeup::new();
        let waiting = tokio::spawn({
            let wakeup = wakeup.clone();
            async move { wakeup.notified().await }
        });
        tokio::task::yield_now().await;
        wakeup.notify();
        tokio::time::timeout(std::time::Duration::from_secs(5), waiting)
            .await
            .expect("the waiter wakes")
            .unwrap();
    }
}
