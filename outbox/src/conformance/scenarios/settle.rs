//! Settle: what is deleted, what is moved, and what the lease guards.

use std::time::Duration;

use super::super::fixture::{Stage, message};
use super::{NONE, number, numbers, positions};
use crate::ErrorKind;
use crate::record::{Lease, Owner, Park, ParkState, ParkedFailure, ParkedSettlement, Settlement};

fn published(positions: Vec<i64>) -> Settlement {
    Settlement {
        published: positions,
        park: Vec::new(),
    }
}

/// What is settled as published is gone; settling it again changes nothing and is no error.
pub async fn published_rows_are_deleted_once(stage: Stage) {
    let lease = stage.lease().await;
    stage.enqueue((0..2_500).map(|n| message("a", n)).collect()).await;
    let mut claimed = Vec::new();
    while claimed.len() < 2_500 {
        let above = claimed.last().copied().unwrap_or(0);
        claimed.extend(positions(&stage.claim(&lease, above, &[]).await));
    }
    let every_second: Vec<i64> = claimed.iter().copied().step_by(2).collect();
    let settled = stage
        .store
        .settle(&lease, &published(every_second))
        .await
        .unwrap();
    assert_eq!(settled.rows, 1_250);
    assert_eq!(settled.bound.is_some(), stage.store.traits().horizon);
    let all = stage
        .store
        .settle(&lease, &published(claimed.clone()))
        .await
        .unwrap();
    assert_eq!(all.rows, 1_250, "the other half");
    let none = stage.store.settle(&lease, &published(claimed)).await.unwrap();
    assert_eq!(none.rows, 0);
    let empty = stage.store.settle(&lease, &Settlement::default()).await.unwrap();
    assert_eq!(empty.rows, 0);
    assert_eq!(numbers(&stage.claim(&lease, 0, &[]).await), NONE);
}

/// A range of positions is never deleted across a position that was not published.
pub async fn a_late_row_between_published_ones_survives_the_settle(stage: Stage) {
    let lease = stage.lease().await;
    stage.enqueue((0..20).map(|n| message("a", n)).collect()).await;
    let all = positions(&stage.claim(&lease, 0, &[]).await);
    let mut but_one = all.clone();
    let kept = but_one.remove(10);
    let settled = stage.store.settle(&lease, &published(but_one)).await.unwrap();
    assert_eq!(settled.rows, 19);
    let left = stage.claim(&lease, 0, &[]).await;
    assert_eq!(positions(&left), [kept]);
}

/// After a takeover the old owner settles, parks, counts and fails nothing.
pub async fn a_stale_lease_changes_nothing(stage: Stage) {
    let lease = stage.lease().await;
    let parked = stage
        .parked(&lease, vec![message("p", 0)], ParkState::Retry, Duration::ZERO)
        .await;
    stage.enqueue(vec![message("a", 1), message("a", 2)]).await;
    let rows = positions(&stage.claim(&lease, 0, &[]).await);
    stage.store.release(&[lease]).await.unwrap();
    let new = stage.lease().await;
    assert!(new.epoch > lease.epoch);
    let foreign = Lease {
        owner: Owner::new(),
        ..new
    };
    for stale in [lease, foreign] {
        let park = Settlement {
            published: vec![rows[0]],
            park: vec![Park {
                position: rows[1],
                state: ParkState::Retry,
                attempts: 1,
                delay: Duration::ZERO,
                error: None,
            }],
        };
        let errors = [
            stage.store.settle(&stale, &park).await.unwrap_err(),
            stage
                .store
                .settle(&stale, &Settlement::default())
                .await
                .unwrap_err(),
            stage.store.begin_attempts(&stale, &parked).await.unwrap_err(),
            stage
                .store
                .settle_parked(
                    &stale,
                    &ParkedSettlement {
                        published: parked.clone(),
                        failed: vec![ParkedFailure {
                            sequence: parked[0],
                            state: ParkState::Dead,
                            delay: Duration::ZERO,
                            error: "late".to_owned(),
                        }],
                    },
                )
                .await
                .unwrap_err(),
        ];
        assert!(
            errors.iter().all(|error| error.kind() == ErrorKind::LeaseLost),
            "{errors:?}"
        );
    }
    assert_eq!(numbers(&stage.claim(&new, 0, &[]).await), [1, 2]);
    let due = stage.store.due(&new, 10, false).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].attempts, 3, "the stale owner counted nothing");
    let current = stage.store.settle(&new, &published(rows)).await.unwrap();
    assert_eq!(current.rows, 2);
}

/// Rows are parked in the order of the settlement, whatever their positions, and leave the hot table.
pub async fn parked_rows_keep_the_order_given(stage: Stage) {
    let lease = stage.lease().await;
    stage.enqueue((0..200).map(|n| message("a", n)).collect()).await;
    let rows = positions(&stage.claim(&lease, 0, &[]).await);
    let order: Vec<usize> = (0..100).rev().chain(100..200).collect();
    let park = order
        .iter()
        .map(|n| Park {
            position: rows[*n],
            state: ParkState::Retry,
            attempts: u32::try_from(*n).unwrap(),
            delay: Duration::ZERO,
            error: (n % 2 == 0).then(|| format!("error {n}")),
        })
        .chain([Park {
            position: rows[199] + 1_000,
            state: ParkState::Retry,
            attempts: 1,
            delay: Duration::ZERO,
            error: None,
        }])
        .collect();
    let settled = stage
        .store
        .settle(
            &lease,
            &Settlement {
                published: Vec::new(),
                park,
            },
        )
        .await
        .unwrap();
    assert_eq!(settled.rows, 200, "a row that is gone is skipped");
    assert_eq!(numbers(&stage.claim(&lease, 0, &[]).await), NONE);
    let due = stage.store.due(&lease, 1_000, false).await.unwrap();
    let read: Vec<usize> = due
        .iter()
        .map(|row| number(&row.message.as_ref().unwrap().payload))
        .collect();
    assert_eq!(read, order);
    assert!(due.is_sorted_by_key(|row| row.sequence));
    assert_eq!(due[1].error.as_deref(), Some("error 98"));
    assert_eq!((due[0].attempts, due[0].error.as_deref()), (99, None));
}
