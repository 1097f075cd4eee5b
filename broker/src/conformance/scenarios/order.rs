//! Order of the messages of a key.

use std::collections::HashMap;
use std::time::Duration;

use crate::conformance::stage::{
    Played, Stage, accepted, ack, consume, content, message, publish, receive, text, topic,
};
use crate::{Bytes, Capability, Message, SubscribeOptions};

/// Asserts that the numbers of each key rise.
pub(super) fn assert_rising(messages: &[Message]) {
    let mut last: HashMap<&str, u64> = HashMap::new();
    for message in messages {
        let key = message.key.as_deref().unwrap();
        let number: u64 = text(message).parse().unwrap();
        if let Some(before) = last.insert(key, number) {
            assert!(before < number, "key {key}: {number} came after {before}");
        }
    }
}

/// Several keys interleaved, several batches.
pub async fn messages_of_a_key_arrive_in_order(stage: &Stage) -> Played {
    stage.need(Capability::KeyOrder)?;
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let publisher = stage.publisher().await;
    for round in 0..10 {
        let batch: Vec<_> = (0..60)
            .map(|number| {
                message(
                    &topic,
                    Some(&format!("k{}", number % 6)),
                    &(round * 60 + number).to_string(),
                )
            })
            .collect();
        publish(&*publisher, &batch).await;
    }
    assert_rising(&consume(&mut *group, 600).await);
    Ok(())
}

/// After a message of a key failed, no later one of the key is accepted or delivered; other keys go on.
pub async fn accepted_messages_of_a_key_are_a_prefix(stage: &Stage) -> Played {
    stage.need(Capability::PrefixOrder)?;
    let publisher = stage.publisher().await;
    let Some(max) = publisher.capabilities().max_payload else {
        return Err(crate::conformance::NotApplicable::new("a maximum payload"));
    };
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let mut batch: Vec<_> = (0..40)
        .map(|number| {
            message(
                &topic,
                Some(["a", "b", "c", "d"][number % 4]),
                &number.to_string(),
            )
        })
        .collect();
    batch[9].payload = Bytes::from(vec![0; max + 1]); // the third of key b
    let outcomes = publisher.publish(&batch).await;
    let expected: Vec<bool> = (0..40).map(|number| number % 4 != 1 || number < 9).collect();
    assert_eq!(outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(), expected);
    assert!(
        outcomes[13].as_ref().unwrap_err().is_transient(),
        "what follows a failure may be sent again"
    );
    let came = consume(&mut *group, expected.iter().filter(|accepted| **accepted).count()).await;
    assert_rising(&came);
    batch[9].payload = Bytes::from_static(b"9");
    let rest: Vec<_> = batch
        .into_iter()
        .zip(expected)
        .filter(|(_, accepted)| !accepted)
        .map(|(m, _)| m)
        .collect();
    accepted(&publisher.publish(&rest).await);
    let rest_came = consume(&mut *group, rest.len()).await;
    assert_eq!(rest_came, rest);
    Ok(())
}

/// With one delivery at a time, a nacked message is what comes next for its key.
pub async fn nacked_delivery_comes_before_later_messages_of_its_key(stage: &Stage) -> Played {
    stage.need(Capability::KeyOrder)?;
    let topic = topic();
    let mut group = stage
        .subscribe(SubscribeOptions::new(&topic, "group").prefetch(1))
        .await;
    let batch: Vec<_> = (0..5)
        .map(|number| message(&topic, Some("a"), &number.to_string()))
        .collect();
    publish(&*stage.publisher().await, &batch).await;
    for expected in &batch {
        for _ in 0..2 {
            let delivery = receive(&mut *group, 1).await.remove(0);
            assert_eq!(content(&delivery), *expected);
            delivery.nack(Duration::ZERO).await.unwrap();
        }
        let delivery = receive(&mut *group, 1).await.remove(0);
        assert_eq!(content(&delivery), *expected);
        ack(delivery).await;
    }
    Ok(())
}

/// What was not handed out when a message was nacked waits for it, if it has the same key; other keys pass.
pub async fn messages_behind_a_nacked_one_of_their_key_wait_for_it(stage: &Stage) -> Played {
    stage.need(Capability::KeyOrder)?;
    stage.need(Capability::NackDelay)?;
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let batch: Vec<_> = (0..20)
        .map(|number| message(&topic, Some(["a", "b"][number % 2]), &number.to_string()))
        .collect();
    publish(&*stage.publisher().await, &batch).await;
    let nacked = loop {
        // The first of key a; whichever of key b comes before it is done.
        let delivery = receive(&mut *group, 1).await.remove(0);
        if content(&delivery) == batch[0] {
            break delivery;
        }
        ack(delivery).await;
    };
    nacked.nack(Duration::from_secs(2)).await.unwrap();
    let mut came = Vec::new();
    while came
        .iter()
        .filter(|message: &&Message| message.key.as_deref() == Some("a"))
        .count()
        < 10
    {
        came.extend(consume(&mut *group, 1).await);
    }
    assert_rising(&came);
    Ok(())
}

/// A member that goes leaves the order as it was.
pub async fn unsettled_deliveries_come_back_in_order(stage: &Stage) -> Played {
    stage.need(Capability::KeyOrder)?;
    let topic = topic();
    let options = SubscribeOptions::new(&topic, "group").prefetch(10);
    let mut group = stage.subscribe(options.clone()).await;
    let batch: Vec<_> = (0..30)
        .map(|number| message(&topic, Some("a"), &number.to_string()))
        .collect();
    publish(&*stage.publisher().await, &batch).await;
    let mut acknowledged = 0;
    for _ in 0..3 {
        let mut held = receive(&mut *group, 5).await;
        assert_eq!(
            held.iter().map(content).collect::<Vec<_>>(),
            batch[acknowledged..acknowledged + 5]
        );
        for delivery in held.drain(..2) {
            ack(delivery).await;
            acknowledged += 1;
        }
        group.close().await.unwrap();
        group = stage.subscribe(options.clone()).await;
    }
    assert_eq!(
        consume(&mut *group, 30 - acknowledged).await,
        batch[acknowledged..]
    );
    Ok(())
}
