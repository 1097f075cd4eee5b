//! What `publish` answers.

use std::sync::Arc;

use crate::conformance::stage::{
    Played, Stage, accepted, consume, message, numbered, publish, quiet, sorted, text, texts, topic,
};
use crate::{Bytes, Capability, ErrorKind};

/// Nothing to do, nothing to say.
pub async fn empty_batch_is_answered_with_nothing(stage: &Stage) -> Played {
    assert!(stage.publisher().await.publish(&[]).await.is_empty());
    Ok(())
}

/// A message beyond the adapter's maximum fails at its own place; its neighbours arrive.
pub async fn too_large_message_fails_alone_and_results_keep_input_order(stage: &Stage) -> Played {
    let publisher = stage.publisher().await;
    let Some(max) = publisher.capabilities().max_payload else {
        return Err(crate::conformance::NotApplicable::new("a maximum payload"));
    };
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let mut batch = numbered(&topic, 7);
    for bad in [1, 5] {
        batch[bad].payload = Bytes::from(vec![0; max + 1]);
    }
    let outcomes = publisher.publish(&batch).await;
    let kinds: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().err().map(crate::Error::kind))
        .collect();
    let large = Some(ErrorKind::TooLarge);
    assert_eq!(kinds, [None, large, None, None, None, large, None]);
    assert!(outcomes[1].as_ref().unwrap_err().is_message_fault());
    assert_eq!(
        sorted(texts(&consume(&mut *group, 5).await)),
        ["0", "2", "3", "4", "6"]
    );
    quiet(&mut *group).await;
    Ok(())
}

/// In a mixed batch exactly the messages that nothing would keep fail.
pub async fn unroutable_messages_are_reported_and_others_are_not(stage: &Stage) -> Played {
    stage.need(Capability::ReportsUnroutable)?;
    let (read, unread) = (topic(), topic());
    let mut group = stage.subscription(&read, "group").await;
    let publisher = stage.publisher().await;
    // Several patterns: an adapter that pairs returns and confirms by their order gets one of them wrong.
    for every in [1, 2, 3, 7] {
        let batch: Vec<_> = (0..60)
            .map(|number| {
                message(
                    if number % every == 0 { &unread } else { &read },
                    None,
                    &number.to_string(),
                )
            })
            .collect();
        let outcomes = publisher.publish(&batch).await;
        let mut kept = 0;
        for (message, outcome) in batch.iter().zip(&outcomes) {
            if message.topic == read {
                assert!(
                    outcome.is_ok(),
                    "message {} of {every}: {outcome:?}",
                    text(message)
                );
                kept += 1;
            } else {
                let error = outcome.as_ref().expect_err("nothing keeps this message");
                assert!(matches!(
                    error.kind(),
                    ErrorKind::Unroutable | ErrorKind::UnknownDestination
                ));
                assert!(error.is_transient(), "a queue may be declared later");
            }
        }
        consume(&mut *group, kept).await;
        quiet(&mut *group).await;
    }
    Ok(())
}

/// The second publish of an id is accepted and delivered once.
pub async fn repeated_id_is_suppressed(stage: &Stage) -> Played {
    stage.need(Capability::Deduplicates)?;
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let batch = numbered(&topic, 20);
    publish(&*stage.publisher().await, &batch).await;
    // Another publisher: a relay that took over knows nothing of the first one's connection.
    let again = stage.publisher().await.publish(&batch).await;
    accepted(&again);
    assert!(
        again.iter().flatten().all(|receipt| receipt.duplicate),
        "{again:?}"
    );
    consume(&mut *group, 20).await;
    quiet(&mut *group).await;
    Ok(())
}

/// An id is known per topic: a message may be sent on elsewhere.
pub async fn one_id_may_go_to_two_topics(stage: &Stage) -> Played {
    let (first, second) = (topic(), topic());
    let mut of_first = stage.subscription(&first, "group").await;
    let mut of_second = stage.subscription(&second, "group").await;
    let one = message(&first, None, "both");
    let other = crate::Message {
        topic: second,
        ..one.clone()
    };
    publish(&*stage.publisher().await, &[one.clone(), other.clone()]).await;
    assert_eq!(consume(&mut *of_first, 1).await, [one]);
    assert_eq!(consume(&mut *of_second, 1).await, [other]);
    Ok(())
}

/// Closing twice is fine; publishing afterwards is the caller's mistake and says so.
pub async fn publish_after_close_fails_as_closed(stage: &Stage) -> Played {
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let publisher = stage.publisher().await;
    publish(&*publisher, &numbered(&topic, 3)).await;
    publisher.close().await.unwrap();
    publisher.close().await.unwrap();
    for outcome in publisher.publish(&numbered(&topic, 2)).await {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Closed);
    }
    consume(&mut *group, 3).await;
    quiet(&mut *group).await;
    Ok(())
}

/// Eight callers share one publisher.
pub async fn concurrent_publishes_all_arrive(stage: &Stage) -> Played {
    let topic = Arc::new(topic());
    let mut group = stage.subscription(&topic, "group").await;
    let publisher = stage.publisher().await;
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let (publisher, topic) = (Arc::clone(&publisher), Arc::clone(&topic));
            tokio::spawn(async move {
                for round in 0..5 {
                    let name = |number| format!("{caller}/{round}/{number}");
                    let key = format!("caller {caller}");
                    let batch: Vec<_> = (0..10)
                        .map(|number| message(&topic, Some(&key), &name(number)))
                        .collect();
                    publish(&*publisher, &batch).await;
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let mut came = texts(&consume(&mut *group, 400).await);
    came.sort();
    came.dedup();
    assert_eq!(came.len(), 400);
    Ok(())
}
