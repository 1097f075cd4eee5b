//! Many holds, one task: chunks, bounds, and faults that must not stop it. Time is paused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

mod common;

use common::{Fault, Faulty, MS, S, lock};
use outbox_lock::{LossReason, State};
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn ten_thousand_holds_cost_a_call_a_chunk_and_period() {
    const HOLDS: u64 = 10_000;
    let faulty = Faulty::default();
    let locks = faulty.builder().max_hold(None).build().await.unwrap();
    let mut guards = Vec::new();
    for n in 0..HOLDS {
        guards.push(lock(&locks, &format!("many:{n}")).acquire(S).await.unwrap());
        if n % 10 == 0 {
            sleep(MS * 9).await;
        }
    }
    sleep(S * 20).await;
    let (calls, renewed) = (faulty.calls("renew"), faulty.renewed());
    sleep(S * 100).await;
    let (calls, renewed) = (faulty.calls("renew") - calls, faulty.renewed() - renewed);
    assert!(renewed >= HOLDS * 9, "{renewed} renewals in ten periods");
    assert!(renewed <= HOLDS * 12, "{renewed} renewals in ten periods");
    // 20 chunks of 500, and what is left over of the few groups that the holds fall into.
    assert!(calls <= 12 * 25, "{calls} calls in ten periods");
    assert!(guards.iter().all(|guard| guard.state() == State::Held));
}

#[tokio::test(start_paused = true)]
async fn chunks_are_as_large_as_allowed() {
    let faulty = Faulty::default();
    let locks = faulty.builder().renew_chunk(3).build().await.unwrap();
    let mut guards = Vec::new();
    for n in 0..10 {
        guards.push(lock(&locks, &format!("{n}")).acquire(S).await.unwrap());
    }
    sleep(S * 15).await;
    assert_eq!((faulty.calls("renew"), faulty.renewed()), (4, 10));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_for_a_while_costs_no_lock_and_stops_no_renewal() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let guard = lock(&locks, "a").acquire(S).await.unwrap();
    for _ in 0..5 {
        faulty.set(
            "renew",
            Fault {
                lost: true,
                ..Fault::default()
            },
        );
        sleep(S * 8).await;
        faulty.heal();
        sleep(S * 9).await;
        assert_eq!(guard.state(), State::Held);
    }
}

#[tokio::test(start_paused = true)]
async fn renewals_without_answers_hold_up_neither_deadlines_nor_releases() {
    let faulty = Faulty::default();
    let locks = faulty.builder().renew_chunk(1).build().await.unwrap();
    faulty.set(
        "renew",
        Fault {
            hangs: true,
            ..Fault::default()
        },
    );
    let mut guards = Vec::new();
    for n in 0..20 {
        guards.push(lock(&locks, &format!("{n}")).acquire(S).await.unwrap());
    }
    sleep(S * 11).await;
    let dropped = lock(&locks, "dropped").acquire(S).await.unwrap();
    drop(dropped);
    locks.drained().await;
    assert!(faulty.is_free("dropped").await);
    sleep(S * 10).await;
    for guard in &guards {
        assert_eq!(*guard.watch().borrow(), State::Lost(LossReason::Deadline));
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_lock_is_renewed_beside_long_ones() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let long = lock(&locks, "long").acquire(S).await.unwrap();
    sleep(S).await;
    let short = lock(&locks, "short")
        .ttl(MS * 60)
        .unwrap()
        .acquire(S)
        .await
        .unwrap();
    sleep(S * 5).await;
    assert_eq!(short.state(), State::Held);
    assert_eq!(long.state(), State::Held);
    assert!(!faulty.is_free("short").await);
}

#[tokio::test(start_paused = true)]
async fn the_watchdog_ends_with_the_last_handle_and_finishes_what_was_dropped() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let guard = lock(&locks, "a").acquire(S).await.unwrap();
    drop(locks);
    sleep(S * 60).await;
    assert_eq!(guard.state(), State::Held, "a guard keeps the watchdog");
    drop(guard);
    let metrics = tokio::runtime::Handle::current().metrics();
    for _ in 0..1000 {
        if metrics.num_alive_tasks() == 0 {
            assert!(faulty.is_free("a").await);
            return;
        }
        sleep(MS).await;
    }
    panic!("the watchdog did not end");
}
