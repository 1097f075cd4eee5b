//! Receiving: as many deliveries as there is room for, for ever.

use std::sync::Arc;
use std::time::Duration;

use outbox_broker::{ErrorKind as BrokerErrorKind, Subscription};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::builder::Config;
use crate::consumer::Received;
use crate::status::Status;
use crate::{Error, ErrorKind};

/// How long a receive waits for a first delivery. Chosen: it bounds how long a shutdown waits for it.
const WAIT: Duration = Duration::from_millis(500);
/// How long a nearly full consumer collects free places before it asks for more, so that a busy consumer
/// does not fetch one delivery a round trip.
const COLLECT: Duration = Duration::from_millis(1);

/// The wait after the given number of failures in a row.
pub(crate) fn backoff(failures: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(5);
    let plain = FIRST.saturating_mul(1 << failures.min(10)).min(MOST);
    let roll: f64 = rand::random();
    plain + plain.mul_f64(0.2 * roll)
}

/// The receiving half of a consumer.
pub(crate) struct Fetch {
    pub(crate) config: Arc<Config>,
    pub(crate) status: Status,
    pub(crate) shutdown: CancellationToken,
    pub(crate) sender: mpsc::Sender<Vec<Received>>,
}

impl Fetch {
    /// Receives until shutdown and returns the subscription, to be closed when the handlers are done.
    ///
    /// A receive that was begun is always awaited: a delivery lost between broker and here would be overtaken
    /// by its successors.
    pub(crate) async fn run(
        self,
        mut subscription: Box<dyn Subscription>,
    ) -> Result<Box<dyn Subscription>, Error> {
        let prefetch = usize::from(self.config.prefetch);
        let places = Arc::new(Semaphore::new(prefetch));
        let mut failures = 0;
        loop {
            let first = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ok(subscription),
                first = places.clone().acquire_owned() => first,
            };
            let Ok(mut permits) = first else {
                return Ok(subscription);
            };
            if places.available_permits() < prefetch / 8 {
                sleep(COLLECT).await;
            }
            let more = u32::try_from(places.available_permits()).unwrap_or(u32::MAX);
            if let Ok(more) = places.clone().try_acquire_many_owned(more) {
                permits.merge(more);
            }
            match subscription.receive(permits.num_permits(), WAIT).await {
                Ok(deliveries) => {
                    failures = 0;
                    self.status.received(deliveries.len());
                    let received: Vec<Received> = deliveries
                        .into_iter()
                        .filter_map(|delivery| permits.split(1).map(|permit| (delivery, permit)))
                        .collect();
                    drop(permits);
                    if !received.is_empty() && self.sender.send(received).await.is_err() {
                        return Ok(subscription);
                    }
                }
                Err(error) if error.kind() == BrokerErrorKind::Closed => {
                    return Err(
                        Error::new(ErrorKind::Broker, "receive", "the subscription was closed")
                            .with_cause(error),
                    );
                }
                Err(error) => {
                    let text = crate::error::chain(&error);
                    tracing::warn!(
                        consumer = self.config.name,
                        topic = self.config.topic,
                        error = text,
                        "cannot receive"
                    );
                    self.status.error(text);
                    drop(permits);
                    tokio::select! {
                        () = sleep(backoff(failures)) => failures = failures.saturating_add(1),
                        () = self.shutdown.cancelled() => return Ok(subscription),
                    }
                }
            }
        }
    }
}
