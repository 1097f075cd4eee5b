//! What a holder sees: renewal, suspicion, loss, release. Time is paused and moves by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Fault, Faulty, MS, S, lock};
use outbox_lock::{Backend, ErrorKind, FencingToken, Key, LossReason, Release, Shape, State};
use tokio::time::{Instant, sleep, timeout};

fn lost() -> Fault {
    Fault {
        lost: true,
        ..Fault::default()
    }
}

fn hangs() -> Fault {
    Fault {
        hangs: true,
        ..Fault::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_lock_is_renewed_and_refused_to_others_until_it_is_released() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let guard = lock(&locks, "a").try_acquire().await.unwrap().unwrap();
    assert_eq!(guard.deadline() - Instant::now(), S * 20);
    sleep(S * 100).await;
    assert_eq!(guard.state(), State::Held);
    assert!(!faulty.is_free("a").await);
    assert!(faulty.calls("renew") <= 11, "{}", faulty.calls("renew"));
    assert_eq!(guard.release().await.unwrap(), Release::Released);
    assert!(faulty.is_free("a").await);
}

#[tokio::test(start_paused = true)]
async fn one_failed_renewal_is_suspect_and_the_next_one_mends_it() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let guard = lock(&locks, "a").try_acquire().await.unwrap().unwrap();
    faulty.set("renew", lost());
    let mut states = guard.watch();
    states.changed().await.unwrap();
    assert_eq!(*states.borrow_and_update(), State::Suspect);
    faulty.heal();
    states.changed().await.unwrap();
    assert_eq!(*states.borrow_and_update(), State::Held);
    sleep(S * 60).await;
    assert_eq!(guard.state(), State::Held);
    guard.release().await.unwrap();
    assert_eq!(*states.borrow_and_update(), State::Released);
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_lost_at_its_deadline_though_the_service_never_answers() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let guard = lock(&locks, "a").try_acquire().await.unwrap().unwrap();
    let deadline = guard.deadline();
    faulty.set("renew", hangs());
    assert_eq!(guard.lost().await, LossReason::Deadline);
    assert!(Instant::now() - deadline < MS * 2);
    assert!(
        !faulty.is_free("a").await,
        "the service still holds it: the margin is real"
    );
    faulty.heal();
    sleep(S * 100).await;
    assert_eq!(
        guard.state(),
        State::Lost(LossReason::Deadline),
        "lost is terminal"
    );
    assert_eq!(guard.release().await.unwrap(), Release::NotHeld);
}

#[tokio::test(start_paused = true)]
async fn watchers_learn_of_the_deadline_without_anybody_asking() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let guard = lock(&locks, "a").try_acquire().await.unwrap().unwrap();
    let (mut states, deadline) = (guard.watch(), guard.deadline());
    faulty.set("renew", hangs());
    let ended = states
        .wait_for(|state| !state.is_held())
        .await
        .map(|state| *state);
    assert_eq!(ended.unwrap(), State::Lost(LossReason::Deadline));
    assert!(Instant::now() - deadline < MS * 2);
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_key_is_expired_and_a_taken_one_stolen() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    for (key, taken, reason) in [("a", false, LossReason::Expired), ("b", true, LossReason::Stolen)] {
        let guard = lock(&locks, key).try_acquire().await.unwrap().unwrap();
        let named = Key::new(key).unwrap();
        let gone = faulty.service.leave(&named, guard.owner(), Shape::Exclusive);
        gone.await.unwrap();
        let other = if taken {
            lock(&locks, key).try_acquire().await.unwrap()
        } else {
            None
        };
        let began = Instant::now();
        assert_eq!(guard.lost().await, reason);
        assert!(began.elapsed() < S * 11, "at the next renewal");
        let renewals = faulty.renewed();
        drop(other);
        sleep(S * 100).await;
        assert_eq!(faulty.renewed(), renewals, "a lost lock is not renewed");
        drop(guard);
    }
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_guard_is_renewed_until_max_hold_and_no_longer() {
    let faulty = Faulty::default();
    let locks = faulty.builder().max_hold(S * 60).build().await.unwrap();
    let guard = lock(&locks, "a").try_acquire().await.unwrap().unwrap();
    let states = guard.watch();
    std::mem::forget(guard);
    sleep(S * 59).await;
    assert!(states.borrow().is_held());
    assert!(!faulty.is_free("a").await);
    sleep(S * 31).await;
    assert_eq!(*states.borrow(), State::Lost(LossReason::MaxHold));
    assert!(faulty.is_free("a").await);
}

#[tokio::test(start_paused = true)]
async fn work_is_stopped_when_the_lock_is_lost() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let guard = lock(&locks, "a").acquire(S).await.unwrap();
    faulty.set("renew", lost());
    let written = Arc::new(AtomicBool::new(false));
    let work = {
        let written = Arc::clone(&written);
        async move {
            sleep(S * 25).await;
            written.store(true, Ordering::SeqCst);
        }
    };
    let stopped = guard.run(work).await.unwrap_err();
    assert_eq!(stopped.reason(), LossReason::Deadline);
    sleep(S * 10).await;
    assert!(!written.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn work_that_ends_in_time_releases_the_lock() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let guard = lock(&locks, "a").acquire(S).await.unwrap();
    let token = guard.token();
    let out = guard.run(async move {
        sleep(S * 45).await;
        token
    });
    assert_eq!(out.await.unwrap(), token);
    assert!(faulty.is_free("a").await);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_on_its_way_does_not_outlive_a_release() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    for part in 0..20 {
        let guard = lock(&locks, "a").acquire(S).await.unwrap();
        faulty.set(
            "renew",
            Fault {
                before: MS * 10,
                after: MS * 10,
                ..Fault::default()
            },
        );
        sleep(S * 10 + MS * part).await;
        assert_eq!(guard.release().await.unwrap(), Release::Released);
        assert!(faulty.is_free("a").await);
        faulty.heal();
        sleep(S).await;
        assert!(faulty.is_free("a").await, "the renewal took it again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_without_an_answer_is_repeated() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let guard = lock(&locks, "a").acquire(S).await.unwrap();
    faulty.set("release", lost());
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!faulty.is_free("a").await);
    faulty.heal();
    timeout(S * 2, locks.drained()).await.unwrap();
    assert!(faulty.is_free("a").await, "long before its ttl");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_guard_is_given_back_by_the_watchdog() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let guard = lock(&locks, "a").acquire(S).await.unwrap();
    let states = guard.watch();
    drop(guard);
    assert_eq!(*states.borrow(), State::Released);
    locks.drained().await;
    assert!(faulty.is_free("a").await);
}

#[test]
fn a_guard_dropped_without_a_runtime_or_after_it_panics_nowhere() {
    let faulty = Faulty::default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (elsewhere, held, late) = runtime.block_on(async {
        let locks = faulty.builder().ttl(MS * 300).build().await.unwrap();
        let [elsewhere, held, late] = ["elsewhere", "held", "late"].map(|key| lock(&locks, key));
        let elsewhere = elsewhere.acquire(S).await.unwrap();
        std::thread::spawn(move || drop(elsewhere)).join().unwrap();
        locks.drained().await;
        assert!(
            faulty.is_free("elsewhere").await,
            "the watchdog was told from a plain thread"
        );
        let elsewhere = lock(&locks, "elsewhere").acquire(S).await.unwrap();
        (
            elsewhere,
            held.acquire(S).await.unwrap(),
            late.acquire(S).await.unwrap(),
        )
    });
    runtime.spawn(async move {
        let _held = held;
        std::future::pending::<()>().await;
    });
    runtime.shutdown_background();
    std::thread::spawn(move || drop(elsewhere)).join().unwrap();
    drop(late);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let began = std::time::Instant::now();
        for key in ["elsewhere", "held", "late"] {
            while !faulty.is_free(key).await {
                assert!(began.elapsed() < S * 5, "{key} was not freed by its ttl");
                sleep(MS * 10).await;
            }
        }
    });
}

#[test]
fn a_lock_is_lost_at_its_deadline_though_its_watchdog_is_gone() {
    let faulty = Faulty::default();
    let first = tokio::runtime::Runtime::new().unwrap();
    let guard = first.block_on(async {
        let locks = faulty.builder().ttl(MS * 600).build().await.unwrap();
        lock(&locks, "a").acquire(S).await.unwrap()
    });
    first.shutdown_background();
    let second = tokio::runtime::Runtime::new().unwrap();
    second.block_on(async {
        let lost = timeout(S * 5, guard.lost()).await.expect("it fires locally");
        assert_eq!(lost, LossReason::Deadline);
        assert!(!guard.state().is_held());
        timeout(S, guard.release()).await.unwrap().unwrap();
    });
}

#[tokio::test(start_paused = true)]
async fn a_token_can_be_raised_while_the_lock_is_held() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let guard = lock(&locks, "a").acquire(S).await.unwrap();
    let above = FencingToken::new(1_000_000).unwrap();
    let token = guard.remint(above).await.unwrap();
    assert!(token > above && guard.token() == token);
    sleep(S * 60).await;
    assert_eq!(guard.state(), State::Held);
    guard.release().await.unwrap();
    let next = lock(&locks, "a").acquire(S).await.unwrap();
    assert!(next.token() > token);
    faulty.set("renew", hangs());
    next.lost().await;
    assert_eq!(next.remint(above).await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lock_stays_closed_for_its_grace_and_a_released_one_does_not() {
    let faulty = Faulty::default();
    let locks = faulty.builder().lost_grace(S * 15).build().await.unwrap();
    let guard = lock(&locks, "a").acquire(S).await.unwrap();
    guard.release().await.unwrap();
    assert!(faulty.is_free("a").await);
    let guard = lock(&locks, "a").acquire(S).await.unwrap();
    faulty.set("renew", lost());
    faulty.set("release", lost());
    drop(guard);
    sleep(S * 40).await;
    assert!(!faulty.is_free("a").await);
    sleep(S * 6).await;
    assert!(faulty.is_free("a").await);
}
