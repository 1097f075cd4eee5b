//! An acquisition dropped at any await leaves nothing behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

mod common;

use std::pin::pin;
use std::time::Duration;

use common::{Fault, Faulty, MS, S, lock};
use futures::FutureExt;
use outbox_lock::Locks;
use tokio::time::{Instant, sleep, timeout};

const TTL: Duration = Duration::from_secs(30);

/// Polls an acquisition `polls` times with a little time between, and drops it.
async fn cancelled(locks: &Locks, key: &str, polls: usize) {
    let lock = lock(locks, key);
    let mut acquiring = pin!(lock.acquire(S * 3));
    for _ in 0..polls {
        if let Some(guard) = (&mut acquiring).now_or_never() {
            drop(guard);
            break;
        }
        // Half of the time on the way: the next poll meets the request, the grant, or the answer.
        sleep(MS).await;
    }
}

async fn nothing_is_left(faulty: &Faulty, key: &str) {
    let began = Instant::now();
    while !faulty.is_free(key).await {
        assert!(began.elapsed() <= TTL * 2, "{key} is held after twice its ttl");
        sleep(S).await;
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_cancelled_acquisitions_leave_nothing() {
    let faulty = Faulty::default();
    let slow = Fault {
        before: MS * 2,
        after: MS * 2,
        ..Fault::default()
    };
    for operation in ["acquire", "release", "leave", "listen"] {
        faulty.set(operation, slow);
    }
    let unfair = faulty.locks().await;
    let fair = faulty.builder().fair(true).build().await.unwrap();
    let elsewhere = faulty.locks().await;
    for round in 0..10_000_usize {
        let (locks, polls) = (if round % 2 == 0 { &unfair } else { &fair }, (round / 2) % 14);
        let key = format!("k{}", round % 7);
        match round % 3 {
            // Free.
            0 => cancelled(locks, &key, polls).await,
            // Held elsewhere, and released while it waits.
            1 => {
                if let Ok(guard) = lock(&elsewhere, &key).acquire(MS * 50).await {
                    tokio::join!(cancelled(locks, &key, polls), async {
                        sleep(MS * 4).await;
                        guard.release().await.unwrap();
                    });
                }
            }
            // Held here, and handed over while it waits.
            _ => {
                if let Ok(guard) = lock(locks, &key).acquire(MS * 50).await {
                    tokio::join!(
                        cancelled(locks, &key, polls),
                        cancelled(locks, &key, polls / 2),
                        async {
                            sleep(MS * 4).await;
                            guard.release().await.unwrap();
                        }
                    );
                }
            }
        }
    }
    timeout(TTL, async {
        tokio::join!(unfair.drained(), fair.drained(), elsewhere.drained())
    })
    .await
    .expect("nothing is left to do");
    for n in 0..7 {
        assert!(faulty.is_free(&format!("k{n}")).await, "k{n} was left to its ttl");
    }
    let renewals = faulty.renewed();
    sleep(TTL * 2).await;
    assert_eq!(faulty.renewed(), renewals, "nothing is renewed");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_release_is_carried_out() {
    let faulty = Faulty::default();
    faulty.set(
        "release",
        Fault {
            before: MS * 2,
            after: MS * 2,
            ..Fault::default()
        },
    );
    let locks = faulty.locks().await;
    for polls in 0..6 {
        let guard = lock(&locks, "a").acquire(S).await.unwrap();
        {
            let mut releasing = Box::pin(guard.release());
            for _ in 0..polls {
                if (&mut releasing).now_or_never().is_some() {
                    break;
                }
                sleep(MS).await;
            }
        }
        locks.drained().await;
        assert!(faulty.is_free("a").await, "{polls} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_acquisition_whose_leave_is_lost_ends_with_its_ttl() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    faulty.set(
        "acquire",
        Fault {
            swallowed: true,
            ..Fault::default()
        },
    );
    faulty.set(
        "leave",
        Fault {
            lost: true,
            ..Fault::default()
        },
    );
    for polls in 0..6 {
        cancelled(&locks, "a", polls).await;
    }
    nothing_is_left(&faulty, "a").await;
}
