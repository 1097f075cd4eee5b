//! What becomes of a delivery.

use std::time::Duration;

use tokio::time::Instant;

use crate::conformance::stage::{
    Played, Stage, ack, consume, content, message, numbered, publish, quiet, receive, sorted, texts, topic,
};
use crate::{Capability, Delivery, Settled, SubscribeOptions};

/// Every message of a batch, nacked once.
pub async fn nacked_delivery_comes_again(stage: &Stage) -> Played {
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let sent = numbered(&topic, 20);
    publish(&*stage.publisher().await, &sent).await;
    for delivery in receive(&mut *group, 20).await {
        assert_eq!(delivery.nack(Duration::ZERO).await.unwrap(), Settled::Done);
    }
    assert_eq!(
        sorted(texts(&consume(&mut *group, 20).await)),
        sorted(texts(&sent))
    );
    quiet(&mut *group).await;
    Ok(())
}

/// Not before its time, and soon after.
pub async fn nack_delay_is_kept(stage: &Stage) -> Played {
    stage.need(Capability::NackDelay)?;
    let delay = Duration::from_secs(2);
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    publish(&*stage.publisher().await, &numbered(&topic, 1)).await;
    let first = receive(&mut *group, 1).await.remove(0);
    let nacked_at = Instant::now();
    first.nack(delay).await.unwrap();
    consume(&mut *group, 1).await;
    let after = nacked_at.elapsed();
    assert!(
        after >= delay,
        "came {after:?} after a nack with a delay of {delay:?}"
    );
    assert!(
        after < delay * 3,
        "came only {after:?} after a nack with a delay of {delay:?}"
    );
    Ok(())
}

/// First 1, then 2, then 3.
pub async fn attempts_are_counted(stage: &Stage) -> Played {
    stage.need(Capability::CountsAttempts)?;
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    publish(&*stage.publisher().await, &numbered(&topic, 1)).await;
    for attempt in 1..=4 {
        let delivery = receive(&mut *group, 1).await.remove(0);
        assert_eq!(delivery.attempt(), attempt);
        delivery.nack(Duration::ZERO).await.unwrap();
    }
    // A consumer that died counts too.
    let abandoned = receive(&mut *group, 1).await.remove(0);
    assert_eq!(abandoned.attempt(), 5);
    group.close().await.unwrap();
    let mut group = stage.subscription(&topic, "group").await;
    let delivery = receive(&mut *group, 1).await.remove(0);
    assert_eq!(delivery.attempt(), 6);
    ack(delivery).await;
    Ok(())
}

/// Settled and unsettled ones of one subscription.
pub async fn unsettled_deliveries_come_back_when_the_subscription_closes(stage: &Stage) -> Played {
    let topic = topic();
    let mut first = stage.subscription(&topic, "group").await;
    publish(&*stage.publisher().await, &numbered(&topic, 10)).await;
    let mut held = receive(&mut *first, 10).await;
    let done = held.split_off(6);
    for delivery in done {
        ack(delivery).await;
    }
    let expected: Vec<_> = held.iter().map(content).collect();
    first.close().await.unwrap();
    let mut second = stage.subscription(&topic, "group").await;
    let came = consume(&mut *second, expected.len()).await;
    assert_eq!(sorted(texts(&came)), sorted(texts(&expected)));
    quiet(&mut *second).await;
    Ok(())
}

/// Closing the connection is enough, even if the subscription is still there.
pub async fn unsettled_deliveries_come_back_when_the_subscriber_closes(stage: &Stage) -> Played {
    let topic = topic();
    let subscriber = stage.subscriber().await;
    let mut first = subscriber
        .subscribe(SubscribeOptions::new(&topic, "group"))
        .await
        .unwrap();
    publish(&*stage.publisher().await, &numbered(&topic, 10)).await;
    let held = receive(&mut *first, 10).await;
    subscriber.close().await.unwrap();
    assert!(
        first.receive(1, Duration::from_secs(1)).await.is_err(),
        "a closed subscriber hands out nothing"
    );
    let mut second = stage.subscription(&topic, "group").await;
    consume(&mut *second, 10).await;
    for delivery in held {
        assert_eq!(delivery.ack().await.unwrap(), Settled::Stale);
    }
    Ok(())
}

/// Each verdict of a delivery that is no longer ours does nothing.
pub async fn settling_after_the_subscription_closed_is_stale(stage: &Stage) -> Played {
    let topic = topic();
    let mut first = stage.subscription(&topic, "group").await;
    publish(&*stage.publisher().await, &numbered(&topic, 3)).await;
    let mut held = receive(&mut *first, 3).await;
    first.close().await.unwrap();
    let mut second = stage.subscription(&topic, "group").await;
    let again = receive(&mut *second, 3).await;
    let mut next = || -> Delivery { held.remove(0) };
    assert_eq!(next().ack().await.unwrap(), Settled::Stale);
    assert_eq!(next().nack(Duration::ZERO).await.unwrap(), Settled::Stale);
    assert_eq!(next().dead("stale").await.unwrap(), Settled::Stale);
    quiet(&mut *second).await;
    for delivery in again {
        ack(delivery).await;
    }
    quiet(&mut *second).await;
    Ok(())
}

/// Not to this member, not to the next one.
pub async fn acknowledged_messages_do_not_come_again(stage: &Stage) -> Played {
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    publish(&*stage.publisher().await, &numbered(&topic, 50)).await;
    consume(&mut *group, 50).await;
    quiet(&mut *group).await;
    group.close().await.unwrap();
    let mut group = stage.subscription(&topic, "group").await;
    quiet(&mut *group).await;
    Ok(())
}

/// A message given up does not stop the next of its key, and is kept where the broker keeps dead letters.
pub async fn dead_delivery_moves_on(stage: &Stage) -> Played {
    let topic = topic();
    let mut group = stage
        .subscribe(SubscribeOptions::new(&topic, "group").prefetch(1))
        .await;
    let batch = [
        message(&topic, Some("a"), "poison"),
        message(&topic, Some("a"), "good"),
    ];
    publish(&*stage.publisher().await, &batch).await;
    let poison = receive(&mut *group, 1).await.remove(0);
    assert_eq!(content(&poison), batch[0]);
    assert_eq!(poison.dead("cannot be read").await.unwrap(), Settled::Done);
    assert_eq!(consume(&mut *group, 1).await, [batch[1].clone()]);
    quiet(&mut *group).await;
    if !stage.claims(Capability::DeadLetters) {
        return Ok(());
    }
    let until = Instant::now() + Duration::from_secs(10);
    while let Some(count) = stage.fixture().dead_letters(&topic, "group").await
        && count != 1
    {
        assert!(
            Instant::now() < until,
            "one dead letter is to be kept, {count} are"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// No more than asked for is out at any time, and settling makes room.
pub async fn prefetch_bounds_what_is_unsettled(stage: &Stage) -> Played {
    let topic = topic();
    let mut group = stage
        .subscribe(SubscribeOptions::new(&topic, "group").prefetch(4))
        .await;
    publish(&*stage.publisher().await, &numbered(&topic, 10)).await;
    let mut held = receive(&mut *group, 4).await;
    quiet(&mut *group).await;
    ack(held.remove(0)).await;
    held.extend(receive(&mut *group, 1).await);
    quiet(&mut *group).await;
    for delivery in held {
        ack(delivery).await;
    }
    consume(&mut *group, 5).await;
    Ok(())
}
