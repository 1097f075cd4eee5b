//! Groups, their members, their place and their pace.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::conformance::stage::{
    Played, Stage, ack, consume, content, message, numbered, publish, quiet, receive, sorted, text, texts,
    topic,
};
use crate::{Start, SubscribeOptions};

/// Groups do not take from each other.
pub async fn two_groups_each_see_every_message(stage: &Stage) -> Played {
    let topic = topic();
    let mut billing = stage.subscription(&topic, "billing").await;
    let mut mailing = stage.subscription(&topic, "mailing").await;
    let sent = numbered(&topic, 50);
    publish(&*stage.publisher().await, &sent).await;
    for group in [&mut billing, &mut mailing] {
        assert_eq!(
            sorted(texts(&consume(&mut **group, 50).await)),
            sorted(texts(&sent))
        );
        quiet(&mut **group).await;
    }
    Ok(())
}

/// Each message goes to one member; when a member leaves, the other goes on alone.
pub async fn two_members_share_the_messages(stage: &Stage) -> Played {
    let topic = topic();
    let options = SubscribeOptions::new(&topic, "group").prefetch(10);
    let mut first = stage.subscribe(options.clone()).await;
    let mut second = stage.subscribe(options).await;
    let publisher = stage.publisher().await;
    let keyed = |from: usize| -> Vec<_> {
        (from..from + 100)
            .map(|number| message(&topic, Some(&format!("k{}", number % 10)), &number.to_string()))
            .collect()
    };
    publish(&*publisher, &keyed(0)).await;
    let mut seen = HashSet::new();
    let until = Instant::now() + Duration::from_secs(30);
    while seen.len() < 100 {
        assert!(Instant::now() < until, "{} of 100 came", seen.len());
        for member in [&mut first, &mut second] {
            for delivery in member.receive(10, Duration::from_millis(50)).await.unwrap() {
                assert!(seen.insert(text(&content(&delivery))), "{delivery:?} came twice");
                ack(delivery).await;
            }
        }
    }
    first.close().await.unwrap();
    publish(&*publisher, &keyed(100)).await;
    consume(&mut *second, 100).await;
    quiet(&mut *second).await;
    Ok(())
}

/// The past is not shown to a group that did not ask for it.
pub async fn group_that_starts_latest_sees_only_what_comes_after(stage: &Stage) -> Played {
    let topic = topic();
    let mut early = stage.subscription(&topic, "early").await;
    let publisher = stage.publisher().await;
    publish(&*publisher, &[message(&topic, None, "before")]).await;
    let mut late = stage
        .subscribe(SubscribeOptions::new(&topic, "late").start(Start::Latest))
        .await;
    publish(&*publisher, &[message(&topic, None, "after")]).await;
    assert_eq!(texts(&consume(&mut *late, 1).await), ["after"]);
    assert_eq!(sorted(texts(&consume(&mut *early, 2).await)), ["after", "before"]);
    quiet(&mut *late).await;
    Ok(())
}

/// What was handed out before the pause stays valid; what comes meanwhile waits.
pub async fn paused_subscription_hands_out_nothing_until_resumed(stage: &Stage) -> Played {
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let publisher = stage.publisher().await;
    publish(&*publisher, &numbered(&topic, 5)).await;
    let mut held = receive(&mut *group, 2).await;
    group.pause().await.unwrap();
    publish(&*publisher, &[message(&topic, None, "meanwhile")]).await;
    quiet(&mut *group).await;
    ack(held.remove(0)).await;
    quiet(&mut *group).await;
    group.resume().await.unwrap();
    ack(held.remove(0)).await;
    let came = texts(&consume(&mut *group, 4).await);
    assert!(came.contains(&"meanwhile".to_owned()));
    quiet(&mut *group).await;
    Ok(())
}

/// Handed out or not: what is not acknowledged counts.
pub async fn lag_counts_what_is_not_acknowledged(stage: &Stage) -> Played {
    let topic = topic();
    let mut group = stage
        .subscribe(SubscribeOptions::new(&topic, "group").prefetch(5))
        .await;
    assert_eq!(group.lag().await.unwrap().messages, 0);
    publish(&*stage.publisher().await, &numbered(&topic, 12)).await;
    let mut left = 12;
    for delivery in receive(&mut *group, 5).await {
        if left > 9 {
            ack(delivery).await;
            left -= 1;
        } else {
            delivery.nack(Duration::ZERO).await.unwrap();
        }
    }
    // Some brokers count a moment later.
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let lag = group.lag().await.unwrap().messages;
        if lag == left {
            break;
        }
        assert!(
            Instant::now() < until,
            "the lag is {lag}, {left} messages are not acknowledged"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    consume(&mut *group, 9).await;
    Ok(())
}
