//! What a broken server does to publishers and subscriptions.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::order::assert_rising;
use crate::conformance::stage::{Played, Stage, consume_distinct, message, numbered, publish, topic};
use crate::{Capability, Message, MessageId, Publisher};

/// Slack over a configured timeout. Chosen: above one turn of a busy two-core machine.
const SLACK: Duration = Duration::from_secs(3);

/// Keys of the load, and messages of each.
const KEYS: usize = 8;
const PER_KEY: usize = 150;

/// SIGKILL while batches are under way; the caller sends again what failed, key by key in order.
///
/// An orderly restart comes first: what the broker has just declared may not be on its disk yet (RabbitMQ
/// 3.10 writes down a new quorum queue up to a second after it has confirmed it), and that is its own affair.
pub async fn broker_killed_under_load_loses_no_accepted_message_and_no_order(stage: &Stage) -> Played {
    stage.need(Capability::Durable)?;
    let server = stage.server()?;
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    server.stop().await;
    server.start().await;
    let publisher = stage.publisher().await;
    let (progress, mut accepted_so_far) = tokio::sync::watch::channel(0);
    let load = Load {
        publisher,
        // Without prefix order the contract asks the caller for one message of a key at a time.
        per_key: if stage.claims(Capability::PrefixOrder) {
            10
        } else {
            1
        },
        limit: stage.fixture().publish_timeout() + SLACK,
        progress,
    };
    let load = tokio::spawn(load.run(topic.clone()));
    accepted_so_far
        .wait_for(|accepted| *accepted >= KEYS * PER_KEY / 4)
        .await
        .unwrap();
    server.kill().await;
    server.start().await;
    let sent = load.await.unwrap();
    let came = consume_distinct(&mut *group, sent).await;
    if stage.claims(Capability::KeyOrder) {
        assert_rising(&came);
    }
    Ok(())
}

/// A caller that publishes a fixed number of messages a key, again and again until all are accepted.
struct Load {
    publisher: Arc<dyn Publisher>,
    per_key: usize,
    limit: Duration,
    progress: tokio::sync::watch::Sender<usize>,
}

impl Load {
    async fn run(self, topic: String) -> HashMap<MessageId, String> {
        let mut queues: Vec<VecDeque<Message>> = (0..KEYS)
            .map(|key| {
                (0..PER_KEY)
                    .map(|number| message(&topic, Some(&format!("k{key}")), &number.to_string()))
                    .collect()
            })
            .collect();
        let mut accepted = HashMap::new();
        let until = Instant::now() + Duration::from_secs(120);
        let mut last_error = String::new();
        while queues.iter().any(|queue| !queue.is_empty()) {
            assert!(
                Instant::now() < until,
                "{} accepted, then: {last_error}",
                accepted.len()
            );
            let batch: Vec<Message> = queues
                .iter()
                .flat_map(|queue| queue.iter().take(self.per_key).cloned())
                .collect();
            let began = Instant::now();
            let outcomes = self.publisher.publish(&batch).await;
            assert!(
                began.elapsed() < self.limit,
                "a publish took {:?}",
                began.elapsed()
            );
            let mut failed_keys = Vec::new();
            for (message, outcome) in batch.iter().zip(&outcomes) {
                match outcome {
                    Ok(_) => {
                        assert!(
                            !failed_keys.contains(&message.key),
                            "accepted after a failure of its key"
                        );
                        accepted.insert(message.id, format!("{:?}", message.payload));
                        for queue in &mut queues {
                            queue.retain(|waiting| waiting.id != message.id);
                        }
                    }
                    Err(error) => {
                        assert!(error.is_transient(), "{error:?}");
                        last_error = format!("{error:?}");
                        failed_keys.push(message.key.clone());
                    }
                }
            }
            if !failed_keys.is_empty() {
                tokio::time::sleep(Duration::from_millis(100)).await; // as a caller backs off
            }
            self.progress.send_replace(accepted.len());
        }
        accepted
    }
}

/// A server that holds the connection and does not answer must not hold the caller.
pub async fn paused_broker_ends_a_publish_within_the_timeout(stage: &Stage) -> Played {
    let server = stage.server()?;
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let publisher = stage.publisher().await;
    publish(&*publisher, &numbered(&topic, 1)).await;
    server.pause().await;
    let batch = numbered(&topic, 200);
    let began = Instant::now();
    let outcomes = publisher.publish(&batch).await;
    let took = began.elapsed();
    server.resume().await;
    assert!(
        took < stage.fixture().publish_timeout() + SLACK,
        "a publish took {took:?}"
    );
    for outcome in &outcomes {
        assert!(
            outcome.as_ref().is_err_and(crate::Error::is_transient),
            "{outcome:?}"
        );
    }
    // A resumed server may still take what was handed over; sent again, everything is there.
    let until = Instant::now() + Duration::from_secs(60);
    while publisher.publish(&batch).await.iter().any(Result::is_err) {
        assert!(
            Instant::now() < until,
            "publishing did not recover after the pause"
        );
    }
    let expected = batch.iter().map(|message| (message.id, String::new())).collect();
    consume_distinct(&mut *group, expected).await;
    Ok(())
}

/// Nothing can have been handed over to a server that is not there, and the outcome says so.
pub async fn stopped_broker_is_unreachable_and_a_restarted_one_is_found_again(stage: &Stage) -> Played {
    let server = stage.server()?;
    let topic = topic();
    let mut group = stage.subscription(&topic, "group").await;
    let publisher = stage.publisher().await;
    publish(&*publisher, &numbered(&topic, 1)).await;
    server.stop().await;
    // The first call may notice the broken connection only after handing over.
    let _ = publisher.publish(&numbered(&topic, 1)).await;
    let batch = numbered(&topic, 10);
    let began = Instant::now();
    let outcomes = publisher.publish(&batch).await;
    assert!(began.elapsed() < stage.fixture().publish_timeout() + SLACK);
    for outcome in &outcomes {
        let error = outcome.as_ref().expect_err("there is no server");
        assert!(error.is_transient() && !error.is_outcome_unknown(), "{error:?}");
    }
    server.start().await;
    let until = Instant::now() + Duration::from_secs(60);
    while publisher.publish(&batch).await.iter().any(Result::is_err) {
        assert!(
            Instant::now() < until,
            "publishing did not recover after the restart"
        );
    }
    let expected = batch.iter().map(|message| (message.id, String::new())).collect();
    consume_distinct(&mut *group, expected).await;
    Ok(())
}
