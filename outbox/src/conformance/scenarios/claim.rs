//! Claim: what is read, in which order, and what is known of gaps.

use chrono::{SubsecRound, TimeDelta, Utc};

use super::super::fixture::{Stage, eventually, message};
use super::{NONE, numbers, positions};
use crate::record::{ClaimRequest, Settlement};
use crate::{Database, Message};

/// A rolled-back transaction's rows are seen by no claim, before or after.
pub async fn rolled_back_rows_are_never_claimed(stage: Stage) {
    let lease = stage.lease().await;
    let mut business = stage.fixture.begin().await;
    business.enqueue(vec![message("a", 1)]).await;
    assert_eq!(
        numbers(&stage.claim(&lease, 0, &[]).await),
        NONE,
        "uncommitted rows are invisible"
    );
    business.rollback().await;
    stage.enqueue(vec![message("a", 2)]).await;
    let claim = stage.claim(&lease, 0, &[]).await;
    assert_eq!(numbers(&claim), [2]);
    let claim = stage.claim(&lease, 100, &(1..100).collect::<Vec<_>>()).await;
    assert_eq!(
        numbers(&claim),
        [2],
        "a rolled-back row is in no missing range either"
    );
}

/// Rows come in the order of their positions, none at or below the floor, no more than asked for.
pub async fn rows_come_by_position_above_the_floor_up_to_the_limit(stage: Stage) {
    let lease = stage.lease().await;
    stage.enqueue((0..10).map(|n| message("a", n)).collect()).await;
    let request = |above, limit| ClaimRequest {
        lease: &lease,
        above,
        limit,
        max_bytes: usize::MAX,
        missing: &[],
    };
    let first = stage.store.claim(request(0, 4)).await.unwrap();
    assert_eq!(numbers(&first), [0, 1, 2, 3]);
    assert!(first.more);
    let floor = *positions(&first).last().unwrap();
    let rest = stage.store.claim(request(floor, 100)).await.unwrap();
    assert_eq!(numbers(&rest), [4, 5, 6, 7, 8, 9]);
    assert!(!rest.more);
    assert!(positions(&rest).is_sorted());
    let again = stage.store.claim(request(floor, 100)).await.unwrap();
    assert_eq!(positions(&again), positions(&rest), "a claim changes nothing");
}

/// A claim stops before the bytes exceed the bound, and still returns a single row that does.
pub async fn bytes_bound_a_claim_but_never_below_one_row(stage: Stage) {
    let lease = stage.lease().await;
    let sized = |bytes: usize| {
        Message::builder("suite", "suite.ran")
            .source("/suite")
            .payload(vec![b'x'; bytes], "text/plain")
            .build()
            .unwrap()
    };
    stage
        .enqueue(vec![
            sized(5),
            sized(500_000),
            sized(400),
            sized(400),
            sized(400),
            sized(0),
        ])
        .await;
    let request = |above| ClaimRequest {
        lease: &lease,
        above,
        limit: 100,
        max_bytes: 1_000,
        missing: &[],
    };
    let mut above = 0;
    let mut sizes = Vec::new();
    loop {
        let claim = stage.store.claim(request(above)).await.unwrap();
        sizes.push(
            claim
                .records
                .iter()
                .map(|record| record.message.as_ref().unwrap().payload.len())
                .collect::<Vec<_>>(),
        );
        above = *positions(&claim).last().unwrap();
        if !claim.more {
            break;
        }
    }
    assert_eq!(sizes, [vec![5], vec![500_000], vec![400, 400], vec![400, 0]]);
}

/// Every attribute of a message survives the row.
pub async fn a_message_comes_back_as_it_was_enqueued(stage: Stage) {
    let lease = stage.lease().await;
    let full = Message::builder("suite.topic", "suite.full")
        .source("/suite")
        .key("schlüssel-1 'quoted' \"twice\" \\ back")
        .header("tenant", "größe 🦀 \"x\" \\")
        .header("empty", "")
        .payload(vec![0, 255, 1, b'\'', b'\\'], "application/octet-stream")
        .schema("https://schemas.invalid/full")
        .time(Utc::now() - TimeDelta::days(400))
        .expires_at(Utc::now() + TimeDelta::days(400))
        .trace(
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            Some("vendor=1".to_owned()),
        )
        .correlation_id("conversation-1")
        .causation_id("cause-1")
        .build()
        .unwrap();
    let plain = Message::builder("suite", "suite.plain")
        .source("/suite")
        .build()
        .unwrap();
    stage.enqueue(vec![full.clone(), plain.clone()]).await;
    let claim = stage.claim(&lease, 0, &[]).await;
    let read: Vec<&Message> = claim
        .records
        .iter()
        .map(|record| record.message.as_ref().unwrap())
        .collect();
    assert_eq!(read, [&full, &plain]);
}

/// A plain INSERT of three columns is a message; what is no message is malformed and stops nothing.
pub async fn rows_of_foreign_hands_become_messages_or_malformed_records(stage: Stage) {
    let lease = stage.lease().await;
    stage
        .fixture
        .execute("INSERT INTO outbox (topic, type, payload) VALUES ('suite', 'foreign', '{\"a\":1}')")
        .await;
    stage
        .fixture
        .execute(
            "INSERT INTO outbox (topic, type, payload, headers) VALUES \
             ('suite', 'foreign', '1', 'no json'), ('suite', 'foreign', '2', '[\"a list\"]'), \
             ('', 'foreign', '3', NULL), ('suite', 'foreign', '4', '{\"tenant\":\"acme\"}')",
        )
        .await;
    stage.enqueue(vec![message("a", 5)]).await;
    let claim = stage.claim(&lease, 0, &[]).await;
    let valid: Vec<bool> = claim
        .records
        .iter()
        .map(|record| record.message.is_ok())
        .collect();
    assert_eq!(valid, [true, false, false, false, true, true]);
    let first = claim.records[0].message.as_ref().unwrap();
    assert_eq!(&first.payload[..], b"{\"a\":1}");
    assert_eq!(first.content_type, "application/json");
    assert!(!first.source.is_empty(), "CloudEvents needs a source");
    assert!((Utc::now() - first.time.trunc_subsecs(0)).abs() < TimeDelta::minutes(5));
    let malformed = claim.records[1].message.as_ref().unwrap_err();
    assert!(malformed.reason.contains("headers"), "{malformed:?}");
    assert!(malformed.id.is_some());
    assert_eq!(&malformed.body[..], b"1");
    let settled = stage
        .store
        .settle(
            &lease,
            &Settlement {
                published: positions(&claim),
                park: Vec::new(),
            },
        )
        .await
        .unwrap();
    assert_eq!(settled.rows, 6);
}

/// A row that commits below the floor is read when its position is asked for, together with new rows.
pub async fn late_rows_appear_through_the_missing_positions(stage: Stage) {
    if !stage.store.traits().late_rows {
        println!("not applicable: commits are serial");
        return;
    }
    let lease = stage.lease().await;
    let mut slow = stage.fixture.begin().await;
    slow.enqueue(vec![message("a", 1), message("a", 2)]).await;
    stage.enqueue(vec![message("b", 3)]).await;
    let claim = stage.claim(&lease, 0, &[]).await;
    assert_eq!(numbers(&claim), [3]);
    let floor = positions(&claim)[0];
    let missing = [floor - 2, floor - 1];
    assert_eq!(numbers(&stage.claim(&lease, floor, &missing).await), NONE);
    slow.commit().await;
    stage.enqueue(vec![message("b", 4)]).await;
    let claim = stage.claim(&lease, floor, &missing).await;
    assert_eq!(numbers(&claim), [1, 2, 4], "late and new rows, by position");
}

/// A bulk that commits below the floor comes in portions, the lowest first, before any newer row.
pub async fn limits_cut_late_rows_before_new_ones(stage: Stage) {
    if !stage.store.traits().late_rows {
        println!("not applicable: commits are serial");
        return;
    }
    let lease = stage.lease().await;
    let mut slow = stage.fixture.begin().await;
    slow.enqueue((0..10).map(|n| message("a", n)).collect()).await;
    stage.enqueue(vec![message("b", 10)]).await;
    let floor = positions(&stage.claim(&lease, 0, &[]).await)[0];
    slow.commit().await;
    stage.enqueue(vec![message("a", 11)]).await;
    let request = |above, limit, max_bytes, missing| ClaimRequest {
        lease: &lease,
        above,
        limit,
        max_bytes,
        missing,
    };
    let whole = [(1, floor - 1)];
    let first = stage
        .store
        .claim(request(floor, 4, usize::MAX, &whole))
        .await
        .unwrap();
    assert_eq!(numbers(&first), [0, 1, 2, 3]);
    assert!(first.more);
    let last = positions(&first)[3];
    let rest = [(last + 1, floor - 1)];
    let one = stage.store.claim(request(floor, 100, 1, &rest)).await.unwrap();
    assert_eq!(numbers(&one), [4], "one row, whatever its bytes");
    assert!(one.more);
    let rest = stage
        .store
        .claim(request(floor, 100, usize::MAX, &rest))
        .await
        .unwrap();
    assert_eq!(numbers(&rest), [4, 5, 6, 7, 8, 9, 11], "late rows, then new ones");
    assert!(!rest.more);
}

/// The rule that drops a gap: `horizon > bound`, with the bound of a settle sent after the gap was seen.
pub async fn a_gap_is_dead_only_after_its_transaction_ended(stage: Stage) {
    if !stage.store.traits().horizon {
        println!("not applicable: the store declares no horizon");
        return;
    }
    let lease = stage.lease().await;
    let mut slow = stage.fixture.begin().await;
    slow.enqueue(vec![message("a", 1)]).await;
    stage.enqueue(vec![message("b", 2)]).await;
    let claim = stage.claim(&lease, 0, &[]).await;
    let floor = positions(&claim)[0];
    let settled = stage
        .store
        .settle(
            &lease,
            &Settlement {
                published: vec![floor],
                park: Vec::new(),
            },
        )
        .await
        .unwrap();
    let bound = settled.bound.expect("the store declares a bound");
    for n in 3..6 {
        stage.enqueue(vec![message("b", n)]).await;
        let claim = stage.claim(&lease, floor, &[floor - 1]).await;
        assert!(
            claim.horizon.unwrap() <= bound,
            "the gap's transaction is open: the horizon may not pass the bound"
        );
    }
    slow.rollback().await;
    // Transactions of other tests on the same server hold the horizon back too.
    eventually("the gap is dead", async || {
        let claim = stage.claim(&lease, floor, &[floor - 1]).await;
        assert_eq!(numbers(&claim), [3, 4, 5]);
        claim.horizon.unwrap() > bound
    })
    .await;
}

/// A transaction id that is much older than the gap it makes does not make the gap look dead, nor does one
/// that is taken by the INSERT itself.
pub async fn a_transaction_that_took_its_id_early_keeps_its_gap_alive(stage: Stage) {
    if !stage.store.traits().horizon {
        println!("not applicable: the store declares no horizon");
        return;
    }
    let lease = stage.lease().await;
    for early in [true, false] {
        let mut slow = stage.fixture.begin().await;
        if early {
            assert_eq!(stage.fixture.database(), Database::Postgres);
            slow.execute("SELECT pg_current_xact_id()").await;
        }
        for n in 0..5 {
            stage.enqueue(vec![message("b", n)]).await;
        }
        slow.enqueue(vec![message("a", 77)]).await;
        stage.enqueue(vec![message("b", 5)]).await;
        let claim = stage.claim(&lease, 0, &[]).await;
        let seen = positions(&claim);
        let gap = seen[seen.len() - 1] - 1;
        assert!(!seen.contains(&gap));
        let settled = stage
            .store
            .settle(
                &lease,
                &Settlement {
                    published: seen.clone(),
                    park: Vec::new(),
                },
            )
            .await
            .unwrap();
        let floor = seen[seen.len() - 1];
        let before = stage.claim(&lease, floor, &[gap]).await;
        assert!(
            before.horizon.unwrap() <= settled.bound.unwrap(),
            "early: {early}"
        );
        slow.commit().await;
        let after = stage.claim(&lease, floor, &[gap]).await;
        assert_eq!(numbers(&after), [77], "early: {early}");
        stage
            .store
            .settle(
                &lease,
                &Settlement {
                    published: vec![gap],
                    park: Vec::new(),
                },
            )
            .await
            .unwrap();
    }
}
