//! What the broker refuses, and what it does not answer.

use super::*;

fn quick() -> RelayOptions {
    RelayOptions {
        retry: RetryPolicy {
            initial: Duration::from_millis(100),
            max: Duration::from_secs(1),
            jitter: 0.0,
            max_attempts: 3,
        },
        ..small()
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_with_an_unknown_outcome_is_published_again_in_order() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::new(|message, attempt| {
        (text(message).ends_with('3') && attempt == 1).then_some(ErrorKind::OutcomeUnknown)
    }));
    add_numbered(&store, 5, 40);
    let relay = Running::start(&store, wire.clone(), quick());
    until(60, "backlog empty", || store.pending() == 0).await;
    assert_complete_and_in_order(&wire.accepted(), 5, 40);
    assert!(store.parked().is_empty(), "an unknown outcome parks nothing");
    let summary = relay.stop().await;
    assert_eq!((summary.totals.dead, summary.totals.parked), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_holds_back_its_key_only_and_the_key_goes_on_in_order() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::new(|message, attempt| {
        (text(message) == "k1:00005" && attempt <= 2).then_some(ErrorKind::Rejected)
    }));
    add_numbered(&store, 3, 50);
    let relay = Running::start(&store, wire.clone(), quick());
    until(20, "the other keys", || wire.accepted().len() == 105).await;
    assert_eq!(by_key(&wire.accepted())["k1"].len(), 5);
    until(20, "everything", || {
        wire.accepted().len() == 150 && store.parked().is_empty()
    })
    .await;
    assert_complete_and_in_order(&wire.accepted(), 3, 50);
    assert_eq!(relay.status.snapshot().shards[0].blocked_keys, 0);
    // The key is free: later messages go the short way.
    let parked = relay.status.snapshot().totals.parked;
    store.add(message("k1", "k1:00050"));
    until(20, "the last one", || wire.accepted().len() == 151).await;
    assert_eq!(relay.stop().await.totals.parked, parked);
}

#[tokio::test(start_paused = true)]
async fn a_poisonous_message_becomes_a_dead_letter_and_its_key_waits() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::new(|message, _| {
        (text(message) == "k1:00005").then_some(ErrorKind::Rejected)
    }));
    add_numbered(&store, 3, 20);
    let relay = Running::start(&store, wire.clone(), quick());
    let dead = || store.parked().iter().any(|row| row.state == ParkState::Dead);
    until(20, "the dead letter", dead).await;
    until(20, "the others", || wire.accepted().len() == 45).await;
    let rows = store.parked();
    assert_eq!((rows[0].state, rows[0].attempts), (ParkState::Dead, 3));
    assert!(rows[0].error.as_ref().unwrap().contains("a fault was asked for"));
    assert_eq!(rows.len(), 15, "it and the rows of its key behind it");

    // A person discards it: the key goes on.
    Store::discard(&*store, &[rows[0].sequence]).await.unwrap();
    until(20, "the key", || {
        wire.accepted().len() == 59 && store.parked().is_empty()
    })
    .await;
    until(20, "the key is free", || {
        relay.status.snapshot().shards[0].blocked_keys == 0
    })
    .await;
    let found = &by_key(&wire.accepted())["k1"];
    assert!(found.is_sorted() && found.len() == 19);
    assert_eq!(relay.stop().await.totals.dead, 1);
}

#[tokio::test(start_paused = true)]
async fn a_redriven_dead_letter_is_published_before_its_followers() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::new(|message, attempt| {
        (text(message) == "k0:00001" && attempt <= 3).then_some(ErrorKind::Rejected)
    }));
    add_numbered(&store, 1, 10);
    let relay = Running::start(&store, wire.clone(), quick());
    until(20, "the dead letter", || relay.status.snapshot().totals.dead == 1).await;
    until(20, "it is written", || {
        store
            .parked()
            .first()
            .is_some_and(|row| row.state == ParkState::Dead)
    })
    .await;
    assert_eq!(wire.accepted().len(), 1);
    let dead = store.parked()[0].sequence;
    Store::redrive(&*store, &[dead]).await.unwrap();
    until(20, "all", || wire.accepted().len() == 10).await;
    assert_complete_and_in_order(&wire.accepted(), 1, 10);
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn by_policy_a_key_skips_ahead_past_its_dead_letter() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::new(|message, _| match text(message).as_str() {
        "k0:00002" => Some(ErrorKind::TooLarge),
        "k1:00004" => Some(ErrorKind::Rejected),
        _ => None,
    }));
    add_numbered(&store, 2, 20);
    let options = RelayOptions {
        on_exhausted: OnExhausted::SkipAhead,
        ..quick()
    };
    let relay = Running::start(&store, wire.clone(), options);
    until(20, "all but the dead", || wire.accepted().len() == 38).await;
    until(20, "only the dead are left", || store.parked().len() == 2).await;
    assert!(by_key(&wire.accepted()).values().all(|texts| texts.is_sorted()));
    assert!(store.parked().iter().all(|row| row.state == ParkState::Dead));
    until(20, "no key is held", || {
        relay.status.snapshot().shards[0].blocked_keys == 0
    })
    .await;
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_queue_is_tried_for_ever_and_the_others_flow() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::new(|message, attempt| {
        (text(message) == "k0:00000" && attempt < 30).then_some(ErrorKind::Unroutable)
    }));
    add_numbered(&store, 2, 10);
    let relay = Running::start(&store, wire.clone(), quick());
    until(5, "the other key", || wire.accepted().len() == 10).await;
    until(120, "its queue is declared at last", || {
        wire.accepted().len() == 20
    })
    .await;
    assert_complete_and_in_order(&wire.accepted(), 2, 10);
    assert_eq!(relay.stop().await.totals.dead, 0);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_down_parks_nothing_costs_no_attempt_and_bounded_memory() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::accepting());
    wire.set_down(Some(ErrorKind::Unreachable));
    add_numbered(&store, 10, 100);
    let relay = Running::start(&store, wire.clone(), quick());
    let open = || {
        let shards = relay.status.snapshot().shards;
        shards
            .first()
            .is_some_and(|shard| shard.circuit == CircuitState::Open)
    };
    until(5, "the circuit opens", open).await;
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(relay.status.snapshot().shards[0].in_flight <= 100);
    }
    assert!(
        wire.calls() < 120,
        "one probe a second, not a storm: {}",
        wire.calls()
    );
    let error = relay.status.snapshot().last_error.unwrap();
    assert_eq!(
        (error.operation, error.kind, error.ongoing),
        ("publish", "unreachable", true)
    );
    assert!(store.parked().is_empty() && store.pending() == 1_000);

    wire.set_down(None);
    until(20, "everything", || store.pending() == 0).await;
    assert_complete_and_in_order(&wire.accepted(), 10, 100);
    assert_eq!(wire.accepted().len(), 1_000);
    assert!(!relay.status.snapshot().last_error.unwrap().ongoing);
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_broker_is_waited_for_and_parks_nothing() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::accepting());
    wire.set_down(Some(ErrorKind::Rejected));
    add_numbered(&store, 100, 3);
    let options = RelayOptions {
        batch_size: 100,
        lanes: 1,
        ..quick()
    };
    let relay = Running::start(&store, wire.clone(), options);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(store.parked().is_empty());
    wire.set_down(None);
    until(20, "everything", || store.pending() == 0).await;
    assert_complete_and_in_order(&wire.accepted(), 100, 3);
    assert_eq!(relay.stop().await.totals.dead, 0);
}

#[tokio::test(start_paused = true)]
async fn parked_rows_alone_close_the_circuit_again() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::new(|_, attempt| {
        (attempt == 1).then_some(ErrorKind::Rejected)
    }));
    add_numbered(&store, 1, 1);
    let relay = Running::start(&store, wire.clone(), quick());
    until(5, "it is parked", || !store.parked().is_empty()).await;
    wire.set_down(Some(ErrorKind::Unreachable));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        store.parked()[0].attempts,
        2,
        "one attempt, however long the outage"
    );
    wire.set_down(None);
    until(5, "it is published", || store.parked().is_empty()).await;
    assert_eq!(wire.accepted().len(), 1);
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_prefix_order_one_message_of_a_key_is_in_flight() {
    let store = Arc::new(TestStore::default());
    let wire = Wire::new(|message, attempt| {
        (text(message).ends_with('7') && attempt == 1).then_some(ErrorKind::Rejected)
    });
    let wire = Arc::new(wire.without_prefix_order());
    add_numbered(&store, 6, 30);
    let relay = Running::start(&store, wire.clone(), quick());
    until(60, "everything", || wire.accepted().len() == 180).await;
    assert_complete_and_in_order(&wire.accepted(), 6, 30);
    assert_eq!((wire.crowded(), wire.overlaps()), (0, 0));
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn failures_of_every_kind_together_keep_order_and_lose_nothing() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::new(|message, attempt| {
        let number: u32 = text(message)[3..].parse().unwrap();
        match (number % 17, attempt) {
            (3, 1) => Some(ErrorKind::OutcomeUnknown),
            (7, 1..=2) => Some(ErrorKind::Rejected),
            (9, 1) => Some(ErrorKind::Unreachable),
            (11, 1..=4) => Some(ErrorKind::UnknownDestination),
            (13, 1) => Some(ErrorKind::Unauthorized),
            _ => None,
        }
    }));
    let relay = Running::start(&store, wire.clone(), quick());
    for number in 0..200 {
        for key in 0..9 {
            store.add(message(&format!("k{key}"), &format!("k{key}:{number:05}")));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    until(300, "everything", || {
        store.pending() == 0 && store.parked().is_empty()
    })
    .await;
    assert_complete_and_in_order(&wire.accepted(), 9, 200);
    assert_eq!(wire.overlaps(), 0);
    assert_eq!(relay.stop().await.totals.dead, 0);
}
