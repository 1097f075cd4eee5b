//! Rows that come late, come back, come too early, or are no messages; and a database that fails.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_row_that_commits_late_is_published_before_the_successor_of_its_key() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::accepting());
    let relay = Running::start(&store, wire.clone(), small());
    let slow = store.begin();
    store.insert(slow, message("k0", "k0:00000"));
    for number in 0..20 {
        store.add(message("k1", &format!("k1:{number:05}")));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    until(5, "the others flow past it", || wire.accepted().len() == 20).await;
    assert_eq!(relay.status.snapshot().shards[0].gaps, 1);
    store.commit(slow);
    store.add(message("k0", "k0:00001"));
    until(1, "the late row", || wire.accepted().len() == 22).await;
    assert!(by_key(&wire.accepted())["k0"].is_sorted());
    until(5, "no gap is left", || {
        relay.status.snapshot().shards[0].gaps == 0
    })
    .await;
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn gaps_of_rolled_back_transactions_are_forgotten_without_traffic() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::accepting());
    let relay = Running::start(&store, wire.clone(), small());
    store.skip_positions(100_000);
    let undone = store.begin();
    store.insert(undone, message("k0", "k0:00000"));
    store.add(message("k1", "k1:00000"));
    until(5, "it is published", || wire.accepted().len() == 1).await;
    store.rollback(undone);
    until(5, "no gap is left", || {
        relay.status.snapshot().shards[0].gaps == 0
    })
    .await;
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn transactions_that_end_in_any_order_lose_nothing_and_keep_order() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::accepting());
    let relay = Running::start(&store, wire.clone(), small());
    // A key is used by one transaction at a time, as under the lock of its aggregate.
    let mut open: HashMap<usize, (u64, u64)> = HashMap::new();
    let mut next = [0usize; 8];
    let mut random: u64 = 0x9E37_79B9;
    for step in 0..6_000u64 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let key = (random >> 33) as usize % 8;
        match open.get(&key) {
            None => {
                let transaction = store.begin();
                let number = next[key];
                store.insert(
                    transaction,
                    message(&format!("k{key}"), &format!("k{key}:{number:05}")),
                );
                let life = if random >> 60 == 0 {
                    600
                } else {
                    (random >> 40) % 8
                };
                open.insert(key, (transaction, step + life));
            }
            Some((transaction, until)) if step >= *until => {
                if (random >> 20).is_multiple_of(20) {
                    store.rollback(*transaction);
                } else {
                    store.commit(*transaction);
                    next[key] += 1;
                }
                open.remove(&key);
            }
            Some(_) => {}
        }
        if step.is_multiple_of(3) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    for (key, (transaction, _)) in open {
        store.commit(transaction);
        next[key] += 1;
    }
    until(30, "backlog empty", || store.pending() == 0).await;
    let found = by_key(&wire.accepted());
    for (key, count) in next.iter().enumerate() {
        let texts = &found[&format!("k{key}")];
        assert_eq!(texts.len(), *count);
        assert!(texts.is_sorted());
    }
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_sweep_finds_rows_restored_below_the_floor() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::accepting());
    add_numbered(&store, 2, 50);
    let relay = Running::start(&store, wire.clone(), small());
    until(20, "backlog empty", || store.pending() == 0).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    store.restore(7, message("k9", "k9:00000"));
    until(3, "the restored row, by the sweep of an idle relay", || {
        store.pending() == 0
    })
    .await;
    assert_eq!(wire.accepted().len(), 101);

    for number in 0..10_000 {
        if number == 100 {
            store.restore(8, message("k8", "k8:00000"));
        }
        store.add(message("k7", &format!("k7:{number:05}")));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(
        by_key(&wire.accepted()).contains_key("k8"),
        "by the sweep of a busy relay"
    );
    until(20, "backlog empty", || store.pending() == 0).await;
    assert_eq!(wire.accepted().len(), 10_102, "a sweep publishes nothing twice");
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_no_message_is_a_dead_letter_and_stops_nothing() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::accepting());
    add_numbered(&store, 2, 5);
    store.add_malformed();
    add_numbered(&store, 2, 5);
    let relay = Running::start(&store, wire.clone(), small());
    until(5, "backlog empty", || store.pending() == 0).await;
    assert_eq!(wire.accepted().len(), 20);
    let rows = store.parked();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].state, ParkState::Dead);
    assert!(rows[0].error.as_ref().unwrap().contains("no topic"));
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_scheduled_message_is_published_when_it_is_due() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::accepting());
    let relay = Running::start(&store, wire.clone(), small());
    store.schedule(message("k0", "k0:00001"), Duration::from_secs(10));
    store.add(message("k0", "k0:00000"));
    tokio::time::sleep(Duration::from_millis(9_990)).await;
    assert_eq!(wire.accepted(), ["k0:00000"]);
    until(1, "it is due", || wire.accepted().len() == 2).await;
    until(1, "it is settled", || store.parked().is_empty()).await;
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_message_is_published_kept_or_dropped_by_policy() {
    for (policy, published, parked) in [
        (OnExpired::Publish, 3, 0),
        (OnExpired::Drop, 2, 0),
        (OnExpired::Dead, 2, 1),
    ] {
        let store = Arc::new(TestStore::default());
        let wire = Arc::new(Wire::accepting());
        store.add(message("k0", "k0:00000"));
        let mut expired = message("k1", "k1:00000");
        expired.expires_at = Some(chrono::Utc::now() - Duration::from_secs(1));
        store.add(expired);
        store.add(message("k2", "k2:00000"));
        let options = RelayOptions {
            on_expired: policy,
            ..small()
        };
        let relay = Running::start(&store, wire.clone(), options);
        until(5, "backlog empty", || store.pending() == 0).await;
        assert_eq!(
            (wire.accepted().len(), store.parked().len()),
            (published, parked),
            "{policy:?}"
        );
        relay.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_database_that_fails_for_a_while_is_asked_again() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::new(|message, attempt| {
        (text(message).ends_with('5') && attempt == 1).then_some(ErrorKind::Rejected)
    }));
    add_numbered(&store, 5, 40);
    for call in [
        "check",
        "acquire",
        "blocked_keys",
        "claim",
        "settle",
        "due",
        "begin_attempts",
        "settle_parked",
        "renew",
        "next_due",
    ] {
        store.fail(call, 3);
    }
    let relay = Running::start(&store, wire.clone(), small());
    until(120, "everything", || {
        store.pending() == 0 && store.parked().is_empty()
    })
    .await;
    assert_complete_and_in_order(&wire.accepted(), 5, 40);
    assert_eq!(
        wire.accepted().len(),
        200,
        "nothing twice: a settle is repeated, not the publish"
    );
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_settle_whose_reply_was_lost_is_repeated_and_changes_nothing() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::accepting());
    store.tables().lose_settle_replies = 4;
    add_numbered(&store, 5, 40);
    let relay = Running::start(&store, wire.clone(), small());
    until(60, "everything", || store.pending() == 0).await;
    assert_eq!(wire.accepted().len(), 200);
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn while_the_database_takes_no_settle_no_more_than_the_window_is_published() {
    let store = Arc::new(TestStore::default());
    let wire = Arc::new(Wire::accepting());
    store.fail("settle", usize::MAX);
    add_numbered(&store, 10, 100);
    let relay = Running::start(&store, wire.clone(), small());
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(wire.accepted().len(), 100);
    store.fail("settle", 0);
    until(20, "everything", || store.pending() == 0).await;
    assert_eq!(wire.accepted().len(), 1_000);
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_relay_asks_the_database_seldom() {
    let store = Arc::new(TestStore::default());
    let relay = Running::start(&store, Arc::new(Wire::accepting()), small());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (claims, dues) = (store.calls("claim"), store.calls("due"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (claims, dues) = (store.calls("claim") - claims, store.calls("due") - dues);
    assert!(
        claims <= 300 && dues <= 130,
        "{claims} claims, {dues} looks at the parked table in a minute"
    );
    assert!(store.calls("settle") <= 1);
    relay.stop().await;
}
