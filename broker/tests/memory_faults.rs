//! What only the memory broker does: faults on request, limits, timeouts under a paused clock.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use outbox_broker::memory::{Faults, MemoryBroker, MemoryConfig};
use outbox_broker::{Delivery, ErrorKind, Message, Publisher, Settled, SubscribeOptions, Subscriber};

const NOW: Duration = Duration::from_millis(1);

fn message(key: &str, payload: &'static str) -> Message {
    Message::builder("orders", "order.placed")
        .source("/test")
        .key(key)
        .payload(payload, "text/plain")
        .build()
        .unwrap()
}

fn payloads(deliveries: &[Delivery]) -> Vec<String> {
    let text = |delivery: &Delivery| String::from_utf8(delivery.content().unwrap().payload.to_vec()).unwrap();
    deliveries.iter().map(text).collect()
}

fn kinds(outcomes: &[outbox_broker::Outcome]) -> Vec<Option<ErrorKind>> {
    outcomes
        .iter()
        .map(|outcome| outcome.as_ref().err().map(outbox_broker::Error::kind))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn unsettled_delivery_comes_again_after_its_visibility() {
    let broker = MemoryBroker::new();
    let options = SubscribeOptions::new("orders", "billing").visibility(Duration::from_secs(30));
    let mut billing = broker.subscriber().subscribe(options).await.unwrap();
    assert_eq!(
        kinds(&broker.publisher().publish(&[message("a", "1")]).await),
        [None]
    );
    let first = billing.receive(10, NOW).await.unwrap().remove(0);
    assert!(
        billing
            .receive(10, Duration::from_secs(29))
            .await
            .unwrap()
            .is_empty()
    );
    let mut again = billing.receive(10, Duration::from_secs(2)).await.unwrap();
    assert_eq!(again[0].attempt(), 2);
    assert_eq!(first.ack().await.unwrap(), Settled::Stale);
    assert_eq!(again.remove(0).ack().await.unwrap(), Settled::Done);
    assert!(
        billing
            .receive(10, Duration::from_secs(60))
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test(start_paused = true)]
async fn extended_delivery_stays_with_its_member() {
    let broker = MemoryBroker::new();
    let options = SubscribeOptions::new("orders", "billing").visibility(Duration::from_secs(30));
    let mut billing = broker.subscriber().subscribe(options).await.unwrap();
    broker.publisher().publish(&[message("a", "1")]).await[0]
        .as_ref()
        .unwrap();
    let (_, settlement) = billing.receive(10, NOW).await.unwrap().remove(0).split();
    for _ in 0..5 {
        assert!(
            billing
                .receive(10, Duration::from_secs(20))
                .await
                .unwrap()
                .is_empty()
        );
        assert_eq!(settlement.extend().await.unwrap(), Settled::Done);
    }
}

#[tokio::test(start_paused = true)]
async fn nacked_delivery_comes_before_later_ones_of_its_key_and_holds_no_other_key() {
    let broker = MemoryBroker::with_config(MemoryConfig {
        partitions: 1,
        ..MemoryConfig::default()
    });
    let options = SubscribeOptions::new("orders", "billing").prefetch(1);
    let mut billing = broker.subscriber().subscribe(options.clone()).await.unwrap();
    let mut other = broker.subscriber().subscribe(options).await.unwrap();
    let batch = [message("a", "a1"), message("a", "a2"), message("b", "b1")];
    assert_eq!(
        kinds(&broker.publisher().publish(&batch).await),
        [None, None, None]
    );
    let first = billing.receive(10, NOW).await.unwrap().remove(0);
    let of_b = other.receive(10, NOW).await.unwrap();
    assert_eq!(
        payloads(&of_b),
        ["b1"],
        "a2 follows a1, which the first member holds"
    );
    first.nack(Duration::from_secs(5)).await.unwrap();
    assert!(
        billing
            .receive(10, Duration::from_secs(4))
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        payloads(&billing.receive(10, Duration::from_secs(2)).await.unwrap()),
        ["a1"]
    );
}

#[tokio::test]
async fn lost_outcome_is_stored_and_later_messages_of_the_key_are_not() {
    let broker = MemoryBroker::new();
    let mut billing = broker
        .subscriber()
        .subscribe(SubscribeOptions::new("orders", "billing"))
        .await
        .unwrap();
    broker.set_faults(Faults {
        lose_outcomes: 1,
        ..Faults::default()
    });
    let batch = [message("a", "a1"), message("a", "a2"), message("b", "b1")];
    let publisher = broker.publisher();
    let outcomes = kinds(&publisher.publish(&batch).await);
    assert_eq!(
        outcomes,
        [Some(ErrorKind::OutcomeUnknown), Some(ErrorKind::Rejected), None]
    );
    let again = publisher.publish(&batch).await;
    assert!(again[0].as_ref().unwrap().duplicate && !again[1].as_ref().unwrap().duplicate);
    let mut seen = payloads(&billing.receive(10, NOW).await.unwrap());
    seen.sort();
    assert_eq!(seen, ["a1", "a2", "b1"]);
}

#[tokio::test]
async fn failed_messages_are_not_stored_and_duplicated_ones_are_stored_twice() {
    let broker = MemoryBroker::new();
    broker.set_faults(Faults {
        fail: Some((1, ErrorKind::Unreachable)),
        duplicate: 1,
        ..Faults::default()
    });
    let outcomes = broker
        .publisher()
        .publish(&[message("a", "1"), message("b", "2")])
        .await;
    assert_eq!(kinds(&outcomes), [Some(ErrorKind::Unreachable), None]);
    assert_eq!(broker.held("orders"), 2);
}

#[tokio::test]
async fn full_broker_rejects_and_takes_again_after_acknowledgements() {
    let config = MemoryConfig {
        capacity_bytes: 2_000,
        retained_messages: 0,
        ..MemoryConfig::default()
    };
    let broker = MemoryBroker::with_config(config);
    let mut billing = broker
        .subscriber()
        .subscribe(SubscribeOptions::new("orders", "billing"))
        .await
        .unwrap();
    let publisher = broker.publisher();
    let mut stored = 0;
    while publisher.publish(&[message("a", "1")]).await[0].is_ok() {
        stored += 1;
    }
    assert_eq!(
        kinds(&publisher.publish(&[message("a", "1")]).await),
        [Some(ErrorKind::Rejected)]
    );
    for delivery in billing.receive(stored, NOW).await.unwrap() {
        delivery.ack().await.unwrap();
    }
    assert_eq!(broker.held("orders"), 0);
    assert_eq!(kinds(&publisher.publish(&[message("a", "1")]).await), [None]);
}
