//! Where a scenario plays: the fixture, unique names, and the waits with a deadline.

use std::collections::HashMap;
use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Fixture, Need, Server};
use crate::{
    Capability, Delivery, Message, Outcome, Publisher, Settled, SubscribeOptions, Subscriber, Subscription,
};

/// How long a scenario may take. Chosen: three restarts of the slowest broker known.
const SCENARIO_LIMIT: Duration = Duration::from_secs(180);

/// How long a scenario waits for deliveries that must come. Chosen: above a restart and a redelivery.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(60);

/// How long nothing must come for "nothing comes". Chosen: far above a local delivery (about 1 ms).
const QUIET: Duration = Duration::from_millis(400);

/// Why a scenario says nothing about an adapter.
#[derive(Debug)]
pub struct NotApplicable(String);

impl NotApplicable {
    /// What the scenario would need.
    pub fn new(need: impl Into<String>) -> Self {
        Self(need.into())
    }
}

/// What a scenario returns.
pub type Played = Result<(), NotApplicable>;

type Scenario = for<'a> fn(&'a Stage) -> Pin<Box<dyn Future<Output = Played> + Send + 'a>>;

/// Sets up and plays one scenario on a runtime of its own. The macro calls it.
///
/// # Panics
/// The adapter does not keep the contract, or its declared capabilities are not those claimed.
pub fn run<F, S, Fut>(name: &str, need: Need, setup: S, scenario: Scenario)
where
    F: Fixture,
    S: FnOnce(Need) -> Fut,
    Fut: Future<Output = Result<F, String>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let fixture = match setup(need).await {
            Ok(fixture) => fixture,
            Err(reason) => {
                announce(&format!("SKIPPED: {name}: {reason}"));
                return;
            }
        };
        let stage = Stage {
            fixture: Box::new(fixture),
        };
        stage.compare_claims().await;
        match timeout(SCENARIO_LIMIT, scenario(&stage)).await {
            Ok(Ok(())) => {}
            Ok(Err(NotApplicable(reason))) => announce(&format!("not applicable: {name} needs {reason}")),
            Err(_) => panic!("{name} did not end within {SCENARIO_LIMIT:?}"),
        }
    });
}

/// Writes past the test runner, which hides what a passing test prints.
fn announce(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// The fixture of a running scenario and the steps that scenarios share.
pub struct Stage {
    fixture: Box<dyn Fixture>,
}

impl Stage {
    /// Ends the scenario as not applicable unless `capability` is claimed.
    ///
    /// # Errors
    /// It is not claimed.
    pub fn need(&self, capability: Capability) -> Played {
        if self.claims(capability) {
            return Ok(());
        }
        Err(NotApplicable(capability.to_string()))
    }

    /// Whether `capability` is claimed.
    pub fn claims(&self, capability: Capability) -> bool {
        self.fixture.claims().contains(&capability)
    }

    /// The server's controls.
    ///
    /// # Errors
    /// The fixture has none.
    pub fn server(&self) -> Result<&dyn Server, NotApplicable> {
        self.fixture
            .server()
            .ok_or_else(|| NotApplicable("a server of its own".to_owned()))
    }

    /// The fixture itself.
    pub fn fixture(&self) -> &dyn Fixture {
        self.fixture.as_ref()
    }

    /// A new publisher.
    pub async fn publisher(&self) -> Arc<dyn Publisher> {
        self.fixture.publisher().await
    }

    /// A new subscriber.
    pub async fn subscriber(&self) -> Arc<dyn Subscriber> {
        self.fixture.subscriber().await
    }

    /// A membership in `group` with a subscriber of its own.
    pub async fn subscription(&self, topic: &str, group: &str) -> Box<dyn Subscription> {
        self.subscribe(SubscribeOptions::new(topic, group)).await
    }

    /// The same with options.
    pub async fn subscribe(&self, options: SubscribeOptions) -> Box<dyn Subscription> {
        let subscriber = self.subscriber().await;
        subscriber
            .subscribe(options)
            .await
            .unwrap_or_else(|error| panic!("subscribe: {error:?}"))
    }

    async fn compare_claims(&self) {
        let (publisher, subscriber) = (self.publisher().await, self.subscriber().await);
        for capability in Capability::ALL {
            let claimed = self.claims(capability);
            let declared = (
                publisher.capabilities().has(capability),
                subscriber.capabilities().has(capability),
            );
            assert_eq!(
                declared,
                (claimed, claimed),
                "`{capability}`: the test file claims {claimed}, publisher and subscriber declare {declared:?}"
            );
        }
    }
}

/// A topic that no other scenario uses.
pub(super) fn topic() -> String {
    format!("conformance.{}", uuid::Uuid::now_v7().simple())
}

/// A message whose payload is `text`.
pub(super) fn message(topic: &str, key: Option<&str>, text: &str) -> Message {
    let builder = Message::builder(topic, "conformance.said").source("/conformance");
    let builder = builder.payload(text.to_owned(), "text/plain");
    match key {
        Some(key) => builder.key(key),
        None => builder,
    }
    .build()
    .unwrap()
}

/// Messages 0 to `count` without a key.
pub(super) fn numbered(topic: &str, count: usize) -> Vec<Message> {
    (0..count)
        .map(|number| message(topic, None, &number.to_string()))
        .collect()
}

/// Asserts that every outcome is `Ok`.
pub(super) fn accepted(outcomes: &[Outcome]) {
    for (index, outcome) in outcomes.iter().enumerate() {
        assert!(
            outcome.is_ok(),
            "message {index} of {} was not accepted: {outcome:?}",
            outcomes.len()
        );
    }
}

/// Publishes and asserts that everything was accepted.
pub(super) async fn publish(publisher: &dyn Publisher, batch: &[Message]) {
    let outcomes = publisher.publish(batch).await;
    assert_eq!(outcomes.len(), batch.len(), "one outcome for each message");
    accepted(&outcomes);
}

/// Receives exactly `count` deliveries, at most the prefetch, or fails when they do not come in time.
pub(super) async fn receive(subscription: &mut dyn Subscription, count: usize) -> Vec<Delivery> {
    let until = Instant::now() + ARRIVAL_LIMIT;
    let mut out = Vec::new();
    while out.len() < count {
        out.extend(receive_some(subscription, count, out.len(), until).await);
    }
    out
}

/// Receives `count` messages, acknowledging each.
pub(super) async fn consume(subscription: &mut dyn Subscription, count: usize) -> Vec<Message> {
    let until = Instant::now() + ARRIVAL_LIMIT;
    let mut out = Vec::new();
    while out.len() < count {
        for delivery in receive_some(subscription, count, out.len(), until).await {
            out.push(content(&delivery));
            ack(delivery).await;
        }
    }
    out
}

async fn receive_some(
    subscription: &mut dyn Subscription,
    count: usize,
    came: usize,
    until: Instant,
) -> Vec<Delivery> {
    let left = until.saturating_duration_since(Instant::now());
    assert!(
        !left.is_zero(),
        "{came} of {count} deliveries came within {ARRIVAL_LIMIT:?}"
    );
    let wait = left.min(Duration::from_secs(5));
    let some = subscription.receive(count - came, wait).await;
    let some = some.unwrap_or_else(|error| panic!("receive: {error:?}"));
    assert!(
        some.len() <= count - came,
        "receive handed out more than it was asked for"
    );
    some
}

/// The expected messages (and what else came before the last of them) in the order of their first arrival, acknowledged, whatever breaks
/// meanwhile.
pub(super) async fn consume_distinct(
    subscription: &mut dyn Subscription,
    mut expected: HashMap<crate::MessageId, String>,
) -> Vec<Message> {
    let until = Instant::now() + ARRIVAL_LIMIT;
    let mut seen = std::collections::HashSet::new();
    let mut out = Vec::new();
    while !expected.is_empty() {
        assert!(
            Instant::now() < until,
            "{} accepted messages never came: {expected:?}",
            expected.len()
        );
        // A receive that fails is repaired by a later one: that is what the caller tests.
        let Ok(deliveries) = subscription.receive(100, Duration::from_secs(1)).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        for delivery in deliveries {
            let message = content(&delivery);
            expected.remove(&message.id);
            if seen.insert(message.id) {
                out.push(message);
            }
            let _ = delivery.ack().await; // comes again if it did not get through
        }
    }
    out
}

/// Asserts that nothing comes for a moment.
pub(super) async fn quiet(subscription: &mut dyn Subscription) {
    let came = subscription.receive(10, QUIET).await.unwrap();
    assert!(came.is_empty(), "nothing was to come, and this did: {came:?}");
}

/// Acknowledges and asserts that the broker took it.
pub(super) async fn ack(delivery: Delivery) {
    assert_eq!(delivery.ack().await.unwrap(), Settled::Done);
}

/// The message of a delivery.
pub(super) fn content(delivery: &Delivery) -> Message {
    delivery
        .content()
        .unwrap_or_else(|malformed| panic!("malformed: {malformed:?}"))
        .clone()
}

/// The payload as text.
pub(super) fn text(message: &Message) -> String {
    String::from_utf8(message.payload.to_vec()).unwrap()
}

/// The payloads as text.
pub(super) fn texts(messages: &[Message]) -> Vec<String> {
    messages.iter().map(text).collect()
}

/// The same, sorted.
pub(super) fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}
