//! Readers and writers, permits and several keys at once. Time is paused and moves by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

mod common;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use common::{Fault, Faulty, MS, Plain, S, lock};
use futures::FutureExt;
use outbox_lock::{ErrorKind, Locks, Release, Shape, State};
use tokio::time::{Instant, sleep};

fn slow() -> Fault {
    Fault {
        before: MS * 2,
        after: MS * 2,
        ..Fault::default()
    }
}

#[tokio::test(start_paused = true)]
async fn readers_hold_together_and_a_writer_alone() {
    let locks = Faulty::default().locks().await;
    let both = locks.read_write("a").unwrap();
    let one = both.read().acquire(S).await.unwrap();
    let two = both.read().acquire(S).await.unwrap();
    assert_eq!((one.shape(), two.shape()), (Shape::Read, Shape::Read));
    assert!(both.write().try_acquire().await.unwrap().is_none());
    let since = Instant::now();
    let (_, _, writer) = tokio::join!(one.release(), two.release(), both.write().acquire(S));
    let writer = writer.unwrap();
    assert!(since.elapsed() < MS * 100);
    assert!(both.read().try_acquire().await.unwrap().is_none());
    let late = both.read().acquire(MS * 10).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Timeout);
    writer.release().await.unwrap();
    both.read()
        .try_acquire()
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_writer_gets_its_turn_among_readers_who_come_and_go() {
    let faulty = Faulty::default();
    let (here, there) = (faulty.locks().await, faulty.locks().await);
    let reading = tokio::spawn(async move {
        let both = there.read_write("a").unwrap();
        // Two readers that overlap, so that the key is never free of them by itself.
        let reader = |offset: Duration| {
            let read = both.read().clone();
            async move {
                sleep(offset).await;
                loop {
                    let guard = read.acquire(S * 60).await.unwrap();
                    sleep(MS * 40).await;
                    guard.release().await.unwrap();
                }
            }
        };
        tokio::join!(reader(Duration::ZERO), reader(MS * 20));
    });
    sleep(MS * 100).await;
    let both = here.read_write("a").unwrap();
    for _ in 0..10 {
        both.write()
            .acquire(S)
            .await
            .expect("not starved")
            .release()
            .await
            .unwrap();
        sleep(MS * 30).await;
    }
    reading.abort();
}

#[tokio::test(start_paused = true)]
async fn a_semaphore_gives_as_many_permits_as_its_limit_and_takes_back_those_of_the_dead() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let permits = locks.semaphore("s", 2).unwrap();
    assert_eq!(permits.limit(), 2);
    let one = permits.acquire(S).await.unwrap();
    let two = permits.try_acquire().await.unwrap().unwrap();
    assert!(two.token() > one.token());
    assert!(permits.try_acquire().await.unwrap().is_none());
    one.release().await.unwrap();
    let three = permits.acquire(S).await.unwrap();
    // A holder that can neither renew nor release is as good as dead.
    let lost = Fault {
        lost: true,
        ..Fault::default()
    };
    faulty.set("renew", lost);
    faulty.set("release", lost);
    drop(three);
    let since = Instant::now();
    let four = permits.acquire(S * 60).await.unwrap();
    assert!(since.elapsed() <= S * 31, "{:?}", since.elapsed());
    assert_eq!(four.state(), State::Held);
}

#[tokio::test(start_paused = true)]
async fn what_a_backend_lacks_is_refused_when_the_handle_is_made() {
    let locks = Locks::builder(Arc::new(Plain)).build().await.unwrap();
    let (both, permits) = (locks.read_write("a"), locks.semaphore("a", 3));
    for (error, capability) in [
        (both.err().unwrap(), "`read_write`"),
        (permits.err().unwrap(), "`permits`"),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(capability), "{error}");
    }
    for refused in [
        locks.semaphore("a", 0).err().unwrap(),
        locks.all(Vec::<String>::new()).err().unwrap(),
        locks.all((0..65).map(|n| n.to_string())).err().unwrap(),
        locks.all(["a", ""]).err().unwrap(),
        locks.leader("").err().unwrap(),
    ] {
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    }
    let names = locks.all(["b", "a", "b"]).unwrap();
    assert!(names.keys().map(outbox_lock::Key::as_str).eq(["a", "b"]));
}

#[tokio::test(start_paused = true)]
async fn a_set_is_taken_whole_or_not_at_all() {
    let faulty = Faulty::default();
    let (here, there) = (faulty.locks().await, faulty.locks().await);
    let held = lock(&there, "b").acquire(S).await.unwrap();
    let set = here.all(["c", "b", "a"]).unwrap();
    assert!(set.try_acquire().await.unwrap().is_none());
    for free in ["a", "c"] {
        assert!(faulty.is_free(free).await, "{free} was kept");
    }
    let since = Instant::now();
    let timeout = set.acquire(S).await.unwrap_err();
    assert_eq!((timeout.kind(), since.elapsed()), (ErrorKind::Timeout, S));
    here.drained().await;
    assert!(faulty.is_free("a").await && faulty.is_free("c").await);

    let (_, guards) = tokio::join!(held.release(), set.acquire(S));
    let guards = guards.unwrap();
    for key in ["a", "b", "c"] {
        assert!(!faulty.is_free(key).await);
    }
    let tokens: Vec<_> = guards
        .tokens()
        .map(|(key, token)| (key.as_str().to_owned(), token))
        .collect();
    assert!(tokens.iter().map(|(key, _)| key).eq(["a", "b", "c"]));
    assert_eq!(guards.token("b"), Some(tokens[1].1));
    assert_eq!(guards.token("d"), None);
    assert!(guards.deadline() <= Instant::now() + S * 20);
    assert_eq!(guards.release().await.unwrap(), Release::Released);
    for key in ["a", "b", "c"] {
        assert!(faulty.is_free(key).await, "{key} was kept");
    }
}

#[tokio::test(start_paused = true)]
async fn sets_that_overlap_in_any_order_never_wait_in_a_circle() {
    let faulty = Faulty::default();
    for operation in ["acquire", "release"] {
        faulty.set(operation, slow());
    }
    let (here, there) = (faulty.locks().await, faulty.locks().await);
    let rounds = |locks: Locks, keys: [&'static str; 3]| {
        tokio::spawn(async move {
            for _ in 0..50 {
                let guards = locks.all(keys).unwrap().acquire(S * 60).await.unwrap();
                sleep(MS).await;
                guards.release().await.unwrap();
            }
        })
    };
    let since = Instant::now();
    let all = [
        rounds(here.clone(), ["a", "b", "c"]),
        rounds(there.clone(), ["c", "b", "a"]),
        rounds(here, ["b", "c", "a"]),
    ];
    for one in all {
        one.await.unwrap();
    }
    assert!(since.elapsed() < S * 60, "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_set_is_lost_with_the_first_of_its_locks() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let guards = locks.all(["a", "b"]).unwrap().acquire(S).await.unwrap();
    assert_eq!(guards.state(), State::Held);
    let thief = &guards.guards()[1];
    faulty.steal(thief.key(), thief.owner(), thief.shape()).await;
    let lost = guards.lost().await;
    assert_eq!(lost.key().as_str(), "b");
    assert_eq!(guards.state(), State::Lost(lost.reason()));
    let stopped = guards.run(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(stopped, lost);
    locks.drained().await;
    assert!(faulty.is_free("a").await, "the rest is given back");
}

#[tokio::test(start_paused = true)]
async fn a_lock_lost_while_the_rest_is_waited_for_is_taken_again() {
    let faulty = Faulty::default();
    let (here, there) = (faulty.locks().await, faulty.locks().await);
    let held = lock(&there, "b")
        .max_hold(None)
        .unwrap()
        .acquire(S)
        .await
        .unwrap();
    // The first lock of the set is held for no longer than its ttl: it ends while the other is waited for.
    let set = here.all(["a", "b"]).unwrap().max_hold(S * 30).unwrap();
    let (guards, _) = tokio::join!(set.acquire(S * 100), async {
        // Renewed twice, then lost at 40 s; the service would keep it until 50 s.
        sleep(S * 55).await;
        assert!(!faulty.is_free("a").await, "it was not taken again");
        held.release().await.unwrap();
    });
    let guards = guards.unwrap();
    assert_eq!(guards.state(), State::Held);
    assert!(guards.deadline() > Instant::now());
    guards.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_set_cancelled_at_any_await_leaves_nothing() {
    let faulty = Faulty::default();
    for operation in ["acquire", "release", "leave", "listen"] {
        faulty.set(operation, slow());
    }
    let (here, there) = (faulty.locks().await, faulty.locks().await);
    for polls in 0..40 {
        let held = lock(&there, "b").acquire(S).await.unwrap();
        {
            let set = here.all(["a", "b", "c"]).unwrap();
            let mut acquiring = pin!(set.acquire(S * 3));
            let mut releasing = pin!(
                async {
                    sleep(MS * 12).await;
                    held.release().await.unwrap();
                }
                .fuse()
            );
            for _ in 0..polls {
                let _ = (&mut releasing).now_or_never();
                if let Some(guards) = (&mut acquiring).now_or_never() {
                    drop(guards);
                    break;
                }
                sleep(MS).await;
            }
        }
        tokio::join!(here.drained(), there.drained());
        for key in ["a", "b", "c"] {
            assert!(faulty.is_free(key).await, "{key} after {polls} polls");
        }
    }
}
