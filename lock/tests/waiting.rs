//! Waiting: deadlines, wakes and their absence, hand-overs, order, late grants. Time is paused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Fault, Faulty, MS, S, lock};
use outbox_lock::{ErrorKind, State};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn every_wait_ends_at_its_deadline() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let other = faulty.locks().await;
    let guard = lock(&other, "a").acquire(S).await.unwrap();
    let hangs = Fault {
        hangs: true,
        ..Fault::default()
    };
    let lost = Fault {
        lost: true,
        ..Fault::default()
    };
    for (operation, fault) in [
        ("none", lost),
        ("listen", hangs),
        ("listen", lost),
        ("acquire", lost),
        ("acquire", hangs),
    ] {
        faulty.set(operation, fault);
        for fair in [false, true] {
            let locks = faulty.builder().fair(fair).build().await.unwrap();
            for within in [Duration::ZERO, MS, S * 7] {
                let began = Instant::now();
                let error = lock(&locks, "a").acquire(within).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Timeout);
                let took = began.elapsed();
                assert!(took >= within && took <= within + MS * 2, "{operation}: {took:?}");
            }
            let began = Instant::now();
            let until = began + S;
            lock(&locks, "a").acquire_until(until).await.unwrap_err();
            assert!(began.elapsed() <= S + MS * 2);
        }
        faulty.heal();
    }
    assert!(lock(&locks, "a").try_acquire().await.unwrap().is_none());
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn a_release_elsewhere_wakes_a_waiter_at_once() {
    let faulty = Faulty::default();
    let (here, elsewhere) = (faulty.locks().await, faulty.locks().await);
    for fair in [false, true] {
        let here = faulty.builder().fair(fair).build().await.unwrap();
        let guard = lock(&elsewhere, "a").acquire(S).await.unwrap();
        let waiter = tokio::spawn(async move {
            let guard = lock(&here, "a").acquire(S * 20).await.unwrap();
            (guard, Instant::now())
        });
        sleep(S * 3 + MS * 33).await;
        let released = Instant::now();
        guard.release().await.unwrap();
        let (guard, granted) = waiter.await.unwrap();
        assert!(granted - released < MS * 4, "{:?}", granted - released);
        guard.release().await.unwrap();
    }
    drop(here);
}

#[tokio::test(start_paused = true)]
async fn with_wakes_dead_the_poll_floor_makes_progress() {
    let faulty = Faulty::default();
    faulty.deafen();
    let (here, elsewhere) = (faulty.locks().await, faulty.locks().await);
    for _ in 0..20 {
        let guard = lock(&elsewhere, "a").acquire(S * 5).await.unwrap();
        let here = here.clone();
        let waiter = tokio::spawn(async move {
            let guard = lock(&here, "a").acquire(S * 20).await.unwrap();
            (guard, Instant::now())
        });
        sleep(S * 2).await;
        let released = Instant::now();
        guard.release().await.unwrap();
        let (guard, granted) = waiter.await.unwrap();
        assert!(granted - released <= S + MS, "{:?}", granted - released);
        guard.release().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_gets_the_lock_when_a_dead_holder_s_ttl_ends() {
    let faulty = Faulty::default();
    faulty.deafen();
    let (here, elsewhere) = (faulty.locks().await, faulty.locks().await);
    let dead = lock(&elsewhere, "a").ttl(S * 3 + MS * 100).unwrap();
    let dead = dead.acquire(S).await.unwrap();
    faulty.set(
        "renew",
        Fault {
            lost: true,
            ..Fault::default()
        },
    );
    let began = Instant::now();
    lock(&here, "a")
        .acquire(S * 20)
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let took = began.elapsed();
    assert!(took >= S * 3 && took < S * 3 + MS * 110, "{took:?}");
    drop(dead);
}

#[tokio::test(start_paused = true)]
async fn waiters_of_one_process_are_served_in_order_by_one_question_each() {
    const WAITERS: usize = 64;
    for fair in [false, true] {
        let faulty = Faulty::default();
        let locks = faulty.builder().fair(fair).build().await.unwrap();
        let first = lock(&locks, "a").acquire(S).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        for n in 0..WAITERS {
            let (locks, order) = (locks.clone(), Arc::clone(&order));
            tasks.spawn(async move {
                let guard = lock(&locks, "a").acquire(S * 60).await.unwrap();
                order.lock().unwrap().push(n);
                sleep(MS).await;
                guard.release().await.unwrap();
            });
            tokio::task::yield_now().await;
        }
        let before = faulty.calls("acquire");
        let began = Instant::now();
        first.release().await.unwrap();
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..WAITERS).collect::<Vec<_>>());
        let asked = faulty.calls("acquire") - before;
        assert!(asked <= WAITERS as u64 * if fair { 2 } else { 1 } + 1, "{asked}");
        assert!(faulty.calls("listen") <= if fair { WAITERS as u64 + 1 } else { 1 });
        assert!(began.elapsed() < MS * 80, "{:?}", began.elapsed());
        assert!(faulty.is_free("a").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_process_lets_another_one_in() {
    let faulty = Faulty::default();
    let (busy, other) = (faulty.locks().await, faulty.locks().await);
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let busy = busy.clone();
        tasks.spawn(async move {
            loop {
                let guard = lock(&busy, "a").acquire(S * 60).await.unwrap();
                sleep(MS).await;
                guard.release().await.unwrap();
            }
        });
    }
    sleep(MS * 50).await;
    for _ in 0..20 {
        let began = Instant::now();
        let guard = lock(&other, "a").acquire(S * 5).await.unwrap();
        assert!(began.elapsed() < MS * 300, "{:?}", began.elapsed());
        guard.release().await.unwrap();
        sleep(MS * 20).await;
    }
}

#[tokio::test(start_paused = true)]
async fn processes_that_hand_over_among_themselves_starve_nobody() {
    const PROCESSES: usize = 4;
    let faulty = Faulty::default();
    let slow = Fault {
        before: MS,
        after: MS,
        ..Fault::default()
    };
    faulty.set("acquire", slow);
    faulty.set("release", slow);
    let turns = Arc::new(Mutex::new([0; PROCESSES]));
    let end = Instant::now() + S * 20;
    let mut tasks = JoinSet::new();
    for n in 0..PROCESSES {
        let locks = faulty.locks().await;
        for _ in 0..8 {
            let (locks, turns) = (locks.clone(), Arc::clone(&turns));
            tasks.spawn(async move {
                while Instant::now() < end {
                    let guard = lock(&locks, "a").acquire(S * 60).await.unwrap();
                    sleep(MS).await;
                    guard.release().await.unwrap();
                    turns.lock().unwrap()[n] += 1;
                }
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let turns = *turns.lock().unwrap();
    let fair = turns.iter().sum::<i32>() / 4;
    assert!(turns.iter().all(|turns| *turns > fair / 4), "{turns:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_does_not_lock_its_asker_out() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    faulty.set(
        "acquire",
        Fault {
            swallowed: true,
            ..Fault::default()
        },
    );
    let waiter = {
        let locks = locks.clone();
        tokio::spawn(async move { lock(&locks, "a").acquire(S * 10).await.unwrap() })
    };
    sleep(S * 2).await;
    let healed = Instant::now();
    faulty.heal();
    let guard = waiter.await.unwrap();
    assert!(healed.elapsed() <= S * 2, "{:?}", healed.elapsed());
    guard.release().await.unwrap();
    faulty.set(
        "acquire",
        Fault {
            swallowed: true,
            ..Fault::default()
        },
    );
    lock(&locks, "b").try_acquire().await.unwrap_err();
    locks.drained().await;
    assert!(faulty.is_free("b").await, "a failed try holds nothing");
}

#[tokio::test(start_paused = true)]
async fn a_grant_after_its_own_deadline_is_given_back_and_asked_for_again() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let slow = |after| Fault {
        after,
        ..Fault::default()
    };
    faulty.set("acquire", slow(S * 21));
    let waiter = {
        let locks = locks.clone();
        tokio::spawn(async move { lock(&locks, "a").acquire(S * 100).await })
    };
    sleep(S * 15).await;
    faulty.set("acquire", slow(S * 5));
    let guard = waiter.await.unwrap().unwrap();
    assert_eq!(guard.state(), State::Held);
    assert!(faulty.calls("leave") >= 1);
    assert_eq!(guard.deadline() - Instant::now(), S * 15);
    guard.release().await.unwrap();
    faulty.set("acquire", slow(S * 21));
    let error = lock(&locks, "a").try_acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("lengthen the ttl"), "{error}");
    assert!(faulty.is_free("a").await);
}

#[tokio::test(start_paused = true)]
async fn a_dead_waiter_of_a_fair_lock_costs_the_others_its_place() {
    let faulty = Faulty::default();
    let (dying, alive) = (
        faulty.builder().fair(true).build().await.unwrap(),
        faulty.builder().fair(true).build().await.unwrap(),
    );
    let holder = lock(&alive, "a").acquire(S).await.unwrap();
    let dead = tokio::spawn(async move { lock(&dying, "a").acquire(S * 60).await.map(drop) });
    sleep(MS * 100).await;
    let waiter = {
        let alive = alive.clone();
        tokio::spawn(async move { lock(&alive, "a").acquire(S * 60).await.unwrap() })
    };
    sleep(MS * 100).await;
    faulty.set(
        "leave",
        Fault {
            lost: true,
            ..Fault::default()
        },
    );
    dead.abort();
    dead.await.unwrap_err();
    let began = Instant::now();
    holder.release().await.unwrap();
    let guard = waiter.await.unwrap();
    assert!(began.elapsed() <= MS * 510, "{:?}", began.elapsed());
    guard.release().await.unwrap();
}
