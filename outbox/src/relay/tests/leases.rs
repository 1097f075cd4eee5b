//! Who may publish, and what happens when that ends.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_relay_whose_lease_was_taken_stops_and_settles_nothing() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::taking(Duration::from_millis(200)));
    add_numbered(&store, 4, 10);
    let relay = Running::start(&store, wire.clone(), small());
    until(5, "a call is under way", || wire.calls() > 0).await;
    store.steal_lease();
    let standby = || relay.status.snapshot().state == RelayState::Standby;
    until(30, "it stands by", standby).await;
    let accepted = wire.accepted().len();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        wire.accepted().len(),
        accepted,
        "nothing is published without a lease"
    );
    assert_eq!(store.pending(), 40, "nothing was settled");
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn no_publish_starts_after_the_deadline_of_a_lease_that_could_not_be_renewed() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::accepting());
    let started = Instant::now();
    store.add(message("k", "k:00000"));
    let relay = Running::start(&store, wire.clone(), small());
    until(5, "it publishes", || wire.accepted().len() == 1).await;
    store.fail("renew", usize::MAX);
    store.fail("acquire", usize::MAX);
    let ttl = RelayOptions::default().lease_ttl;
    let deadline = started + ttl - RelayOptions::default().margin();
    let mut number = 1;
    while started.elapsed() < ttl * 3 {
        store.add(message("k", &format!("k:{number:05}")));
        number += 1;
        let before = wire.calls();
        tokio::time::sleep(Duration::from_millis(97)).await;
        if Instant::now() > deadline + Duration::from_millis(100) {
            assert_eq!(wire.calls(), before, "a publish after the deadline");
        }
    }
    assert!(wire.accepted().len() > 50, "it publishes until the deadline");
    assert_eq!(relay.status.snapshot().shards[0].lease_left_ms, 0);

    store.fail("renew", 0);
    store.fail("acquire", 0);
    until(30, "it takes the shard again and goes on", || {
        store.pending() == 0
    })
    .await;
    let accepted = wire.accepted();
    assert_complete_and_in_order(&accepted, 1, number);
    assert_eq!(accepted.len(), number, "and publishes nothing twice");
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_claimed_before_the_deadline_is_not_published_after_it() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::taking(Duration::from_secs(3)));
    add_numbered(&store, 1, 100);
    let started = Instant::now();
    let options = RelayOptions {
        batch_size: 5,
        ..small()
    };
    let deadline = options.lease_ttl - options.margin();
    let relay = Running::start(&store, wire.clone(), options);
    until(1, "a call is under way", || wire.calls() > 0).await;
    store.fail("renew", usize::MAX);
    store.fail("acquire", usize::MAX);
    tokio::time::sleep_until(started + deadline).await;
    let calls = wire.calls();
    assert!(calls > 1);
    assert!(
        relay.status.snapshot().shards[0].queued > 0,
        "there is more to publish"
    );
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(wire.calls(), calls, "a publish after the deadline");
    relay.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_publishes_under_way_settles_them_and_frees_the_shard() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::taking(Duration::from_secs(3)));
    add_numbered(&store, 4, 30);
    let relay = Running::start(&store, wire.clone(), small());
    until(5, "calls are under way", || wire.calls() > 0).await;
    let summary = relay.stop().await;
    assert!(!wire.accepted().is_empty());
    assert_eq!(summary.totals.published, wire.accepted().len() as u64);
    assert_eq!(
        store.pending(),
        120 - wire.accepted().len(),
        "what was published is settled"
    );
    assert_eq!(store.holder(), None);
    assert_eq!((summary.released, summary.abandoned), (1, 0));

    let next = Running::start(&store, wire.clone(), small());
    until(60, "the next one goes on", || store.pending() == 0).await;
    assert_eq!(wire.accepted().len(), 120, "nothing twice");
    assert_complete_and_in_order(&wire.accepted(), 4, 30);
    next.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_takes_too_long_leaves_the_lease_to_end_by_itself() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::taking(Duration::from_secs(3600)));
    add_numbered(&store, 1, 1);
    let relay = Running::start(&store, wire.clone(), small());
    until(5, "a call is under way", || wire.calls() > 0).await;
    let started = Instant::now();
    let summary = relay.stop().await;
    assert!(started.elapsed() < Duration::from_secs(21));
    assert_eq!((summary.released, summary.abandoned), (0, 1));
    assert!(store.holder().is_some());
}

#[tokio::test(start_paused = true)]
async fn of_two_relays_one_publishes_and_the_other_takes_over_when_it_dies() {
    let store = Arc::new(TestStore::default());
    let (first_wire, second_wire) = (Arc::new(Wire::accepting()), Arc::new(Wire::accepting()));
    let first = Running::start(&store, first_wire.clone(), small());
    until(5, "the first holds it", || store.holder().is_some()).await;
    let second = Running::start(&store, second_wire.clone(), small());
    add_numbered(&store, 5, 50);
    until(20, "the first publishes all", || store.pending() == 0).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        (first_wire.accepted().len(), second_wire.accepted().len()),
        (250, 0)
    );
    assert_eq!(second.status.snapshot().state, RelayState::Standby);

    first.kill().await;
    add_numbered(&store, 5, 60);
    let died = Instant::now();
    until(30, "the second publishes", || !second_wire.accepted().is_empty()).await;
    let took = died.elapsed();
    assert!(took < Duration::from_secs(17), "took over after {took:?}");
    until(30, "all", || store.pending() == 0 && store.parked().is_empty()).await;
    assert_complete_and_in_order(&second_wire.accepted(), 5, 60);
    assert_eq!(second_wire.accepted().len(), 300);
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_kills_its_relay_ends_as_a_dead_letter_and_the_others_are_published() {
    let store = Arc::new(TestStore::default());
    // A panic in the adapter is the crash that a test survives; the shard starts as after a death.
    let wire = Arc::new(Wire::new(|message, _| {
        if text(message) == "k2:00007" {
            panic!("this record kills its relay");
        }
        None
    }));
    add_numbered(&store, 4, 30);
    let options = RelayOptions {
        retry: RetryPolicy {
            max_attempts: 4,
            ..RetryPolicy::default()
        },
        ..small()
    };
    let relay = Running::start(&store, wire.clone(), options);
    until(60, "the others", || {
        let found = by_key(&wire.accepted());
        ["k0", "k1", "k3"].iter().all(|key| {
            let mut texts = found.get(*key).cloned().unwrap_or_default();
            texts.dedup();
            texts.len() >= 30
        })
    })
    .await;
    until(60, "the dead letter", || {
        store.parked().iter().any(|row| row.state == ParkState::Dead)
    })
    .await;
    let dead: Vec<_> = store
        .parked()
        .into_iter()
        .filter(|row| row.state == ParkState::Dead)
        .collect();
    assert_eq!(dead.len(), 1, "the one that kills, and no bystander");
    assert_eq!(text(dead[0].message.as_ref().unwrap()), "k2:00007");
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_key_leaves_the_parked_table_after_a_take_over() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::accepting());
    let first = Running::start(&store, wire.clone(), small());
    until(5, "the first holds it", || store.holder().is_some()).await;
    first.kill().await;
    add_numbered(&store, 2, 100);
    let second = Running::start(&store, wire.clone(), small());
    let mut number = 100;
    let mut parked = 0;
    for _ in 0..12_000 {
        // Steadily busy: never a moment without a row of each key.
        for key in 0..2 {
            store.add(message(&format!("k{key}"), &format!("k{key}:{number:05}")));
        }
        number += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
        parked = second.status.snapshot().totals.parked;
    }
    until(60, "all", || store.pending() == 0 && store.parked().is_empty()).await;
    assert_complete_and_in_order(&wire.accepted(), 2, number);
    assert!(parked > 0, "the leading window went through the parked table");
    assert!(parked < 2_000, "and the traffic after it did not: {parked}");
    second.stop().await;
}
