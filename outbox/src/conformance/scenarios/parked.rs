//! Parked rows: retries, scheduled messages, dead letters.

use std::time::Duration;

use chrono::{SubsecRound, TimeDelta, Utc};

use super::super::fixture::{Stage, eventually, message};
use super::{NONE, number};
use crate::ErrorKind;
use crate::record::{Lease, ParkState, Parked, ParkedFailure, ParkedSettlement};

const LATER: Duration = Duration::from_secs(600);

fn read(rows: &[Parked]) -> Vec<usize> {
    rows.iter()
        .map(|row| number(&row.message.as_ref().unwrap().payload))
        .collect()
}

async fn due(stage: &Stage, lease: &Lease, skip_dead: bool) -> Vec<usize> {
    read(&stage.store.due(lease, 100, skip_dead).await.unwrap())
}

/// A retry that is not due holds back the rows of its key behind it, not those before it or of other keys.
pub async fn a_waiting_row_holds_back_its_key_only(stage: Stage) {
    let lease = stage.lease().await;
    let park = async |key: &str, n, delay| {
        stage
            .parked(&lease, vec![message(key, n)], ParkState::Retry, delay)
            .await
    };
    park("a", 1, Duration::ZERO).await;
    park("a", 2, LATER).await;
    park("a", 3, Duration::ZERO).await;
    park("b", 4, Duration::ZERO).await;
    assert_eq!(due(&stage, &lease, false).await, [1, 4]);
    assert_eq!(read(&stage.store.due(&lease, 1, false).await.unwrap()), [1]);
    let mut keys = stage.store.blocked_keys(&lease, false).await.unwrap();
    keys.sort();
    assert_eq!(keys, [("a".to_owned(), 3), ("b".to_owned(), 1)]);
    assert_eq!(
        stage.store.next_due(&lease, false).await.unwrap(),
        Some(Duration::ZERO)
    );
    let other = Lease {
        shard: crate::record::Shard(1),
        ..lease
    };
    assert_eq!(due(&stage, &other, false).await, NONE, "shards are apart");
}

/// A scheduled message comes when its time has come and blocks no key meanwhile.
pub async fn scheduled_rows_come_at_their_time_and_hold_nothing_back(stage: Stage) {
    let lease = stage.lease().await;
    assert_eq!(stage.store.next_due(&lease, false).await.unwrap(), None);
    let mut far = message("a", 1);
    far.available_at = Some(Utc::now() + TimeDelta::hours(1));
    stage.enqueue(vec![far]).await;
    let next = stage.store.next_due(&lease, false).await.unwrap().unwrap();
    assert!(
        next > Duration::from_secs(3_500) && next <= Duration::from_secs(3_600),
        "{next:?}"
    );
    let mut soon = message("a", 2);
    soon.available_at = Some((Utc::now() + TimeDelta::milliseconds(300)).trunc_subsecs(6));
    let expected = soon.clone();
    stage.enqueue(vec![soon]).await;
    stage
        .parked(&lease, vec![message("a", 3)], ParkState::Retry, Duration::ZERO)
        .await;
    assert_eq!(
        stage.store.blocked_keys(&lease, false).await.unwrap(),
        [("a".to_owned(), 1)]
    );
    eventually("the scheduled message is due", async || {
        due(&stage, &lease, false).await == [2, 3]
    })
    .await;
    let rows = stage.store.due(&lease, 100, false).await.unwrap();
    assert_eq!(rows[0].state, ParkState::Scheduled);
    assert_eq!(rows[0].attempts, 0);
    assert_eq!(rows[0].message.as_ref().unwrap(), &expected);
    assert!(expected.available_at.unwrap() <= Utc::now());
}

/// An attempt is counted once for each call, before it is made.
pub async fn begun_attempts_are_counted_and_guarded(stage: Stage) {
    let lease = stage.lease().await;
    let rows = stage
        .parked(
            &lease,
            vec![message("a", 1), message("b", 2)],
            ParkState::Retry,
            Duration::ZERO,
        )
        .await;
    stage.store.begin_attempts(&lease, &rows).await.unwrap();
    stage.store.begin_attempts(&lease, &rows[..1]).await.unwrap();
    let due = stage.fixture.store().await.due(&lease, 10, false).await.unwrap();
    let attempts: Vec<u32> = due.iter().map(|row| row.attempts).collect();
    assert_eq!(attempts, [5, 4]);
    stage.store.release(&[lease]).await.unwrap();
    let error = stage.store.begin_attempts(&lease, &rows).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
}

/// What was published leaves; what failed keeps its place and waits for its delay, with its error.
pub async fn failed_attempts_wait_again_and_published_rows_leave(stage: Stage) {
    let lease = stage.lease().await;
    let messages = (0..4).map(|n| message("abcd".get(n..=n).unwrap(), n)).collect();
    let rows = stage
        .parked(&lease, messages, ParkState::Retry, Duration::ZERO)
        .await;
    let failure = |sequence, state, delay| ParkedFailure {
        sequence,
        state,
        delay,
        error: "no\u{0}t routable".to_owned(),
    };
    let settled = stage
        .store
        .settle_parked(
            &lease,
            &ParkedSettlement {
                published: vec![rows[0], rows[0] + 10_000],
                failed: vec![
                    failure(rows[1], ParkState::Retry, LATER),
                    failure(rows[2], ParkState::Dead, Duration::ZERO),
                    failure(rows[3], ParkState::Retry, Duration::ZERO),
                ],
            },
        )
        .await
        .unwrap();
    assert_eq!(settled.rows, 4);
    let due = stage.store.due(&lease, 10, false).await.unwrap();
    assert_eq!(read(&due), [3]);
    assert!(due[0].error.as_deref().unwrap().contains("routable"));
    let dead = stage.store.dead(0, 10).await.unwrap();
    assert_eq!(read(&dead), [2]);
    assert_eq!(dead[0].state, ParkState::Dead);
}

/// A dead row holds back its key, or with `skip_dead` does not; the same for the time of the next row.
pub async fn a_dead_row_blocks_its_key_unless_skipped(stage: Stage) {
    let lease = stage.lease().await;
    stage
        .parked(&lease, vec![message("a", 1)], ParkState::Dead, Duration::ZERO)
        .await;
    stage
        .parked(&lease, vec![message("a", 2)], ParkState::Retry, Duration::ZERO)
        .await;
    assert_eq!(due(&stage, &lease, false).await, NONE);
    assert_eq!(due(&stage, &lease, true).await, [2]);
    assert_eq!(
        stage.store.next_due(&lease, false).await.unwrap(),
        None,
        "a person is needed"
    );
    assert_eq!(
        stage.store.next_due(&lease, true).await.unwrap(),
        Some(Duration::ZERO)
    );
    assert_eq!(
        stage.store.blocked_keys(&lease, false).await.unwrap(),
        [("a".to_owned(), 2)]
    );
    assert_eq!(
        stage.store.blocked_keys(&lease, true).await.unwrap(),
        [("a".to_owned(), 1)]
    );
}

/// Dead letters are listed in order and by page; redrive makes them due in their old place, discard ends them.
pub async fn dead_letters_are_listed_redriven_and_discarded(stage: Stage) {
    let lease = stage.lease().await;
    let original = message("a", 1);
    let mut rows = stage
        .parked(&lease, vec![original.clone()], ParkState::Dead, Duration::ZERO)
        .await;
    rows.extend(
        stage
            .parked(
                &lease,
                vec![message("b", 2), message("c", 3)],
                ParkState::Dead,
                Duration::ZERO,
            )
            .await,
    );
    let follower = stage
        .parked(&lease, vec![message("a", 4)], ParkState::Retry, Duration::ZERO)
        .await;
    assert_eq!(read(&stage.store.dead(0, 2).await.unwrap()), [1, 2]);
    assert_eq!(read(&stage.store.dead(rows[1], 10).await.unwrap()), [3]);
    assert_eq!(
        stage
            .store
            .redrive(&[rows[0], follower[0], 99_999])
            .await
            .unwrap(),
        1
    );
    let due = stage.store.due(&lease, 10, false).await.unwrap();
    assert_eq!(read(&due), [1, 4], "the old place, before its follower");
    assert_eq!((due[0].state, due[0].attempts), (ParkState::Retry, 0));
    assert_eq!(due[0].message.as_ref().unwrap(), &original, "the id is kept");
    assert_eq!(
        stage.store.discard(&[rows[1], follower[0]]).await.unwrap(),
        1,
        "only dead letters"
    );
    assert_eq!(read(&stage.store.dead(0, 10).await.unwrap()), [3]);
}

/// The backlog tells rows by kind, the oldest age, and whether the count is exact.
pub async fn the_backlog_counts_every_kind(stage: Stage) {
    let empty = stage.store.backlog().await.unwrap();
    assert!(
        empty.is_drained() && empty.exact && empty.oldest_age.is_none(),
        "{empty:?}"
    );
    let lease = stage.lease().await;
    let park = async |key: &str, state| {
        stage
            .parked(&lease, vec![message(key, 1)], state, Duration::ZERO)
            .await
    };
    park("a", ParkState::Retry).await;
    park("a", ParkState::Retry).await;
    park("b", ParkState::Dead).await;
    park("c", ParkState::Scheduled).await;
    let mut old = message("d", 1);
    old.time = Utc::now() - TimeDelta::minutes(10);
    stage.enqueue(vec![old, message("d", 2)]).await;
    let backlog = stage.store.backlog().await.unwrap();
    assert_eq!((backlog.pending, backlog.exact), (2, true));
    assert_eq!((backlog.scheduled, backlog.retry, backlog.dead), (1, 2, 1));
    assert_eq!(backlog.blocked_keys, 2);
    let age = backlog.oldest_age.unwrap();
    assert!(
        age > Duration::from_secs(590) && age < Duration::from_secs(900),
        "{age:?}"
    );
    assert!(!backlog.is_drained());
}
