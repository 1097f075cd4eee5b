//! Many tasks on real threads: one holder at a time, tokens in order, nobody forgotten.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use common::{Fault, Faulty, MS, S, lock};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, timeout};

const TASKS: u32 = 16;
const TURNS: u32 = 60;

/// What happens inside the lock: who is in, how often, and the last token seen.
#[derive(Debug, Default)]
struct Room {
    inside: AtomicU32,
    visits: AtomicU32,
    token: AtomicI64,
}

impl Room {
    async fn visit(&self, token: i64) {
        assert_eq!(self.inside.fetch_add(1, Ordering::SeqCst), 0, "two are inside");
        let last = self.token.swap(token, Ordering::SeqCst);
        assert!(last < token, "token {token} after {last}");
        let visits = self.visits.load(Ordering::SeqCst);
        yield_now().await;
        self.visits.store(visits + 1, Ordering::SeqCst);
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn contend(fair: bool) {
    let faulty = Faulty::default();
    for operation in ["acquire", "release"] {
        let after = MS / 2;
        faulty.set(
            operation,
            Fault {
                after,
                ..Fault::default()
            },
        );
    }
    let mut services = Vec::new();
    for _ in 0..3 {
        services.push(faulty.builder().fair(fair).build().await.unwrap());
    }
    let room = Arc::new(Room::default());
    let mut tasks = JoinSet::new();
    for n in 0..TASKS {
        let (locks, room) = (services[n as usize % services.len()].clone(), Arc::clone(&room));
        tasks.spawn(async move {
            let lock = lock(&locks, "room");
            let mut turns = 0;
            let mut round = n;
            while turns < TURNS {
                round += 1;
                let patience = if round.is_multiple_of(5) {
                    MS * (round % 7)
                } else {
                    S * 50
                };
                let Ok(Ok(guard)) = timeout(patience, lock.acquire(S * 50)).await else {
                    continue;
                };
                room.visit(guard.token().get()).await;
                turns += 1;
                match round % 3 {
                    0 => drop(guard),
                    1 => drop(guard.release().await.unwrap()),
                    _ => drop(timeout(MS / 4, guard.release()).await),
                }
            }
        });
    }
    let began = Instant::now();
    while let Some(done) = timeout(S * 60, tasks.join_next())
        .await
        .expect("somebody waits for ever")
    {
        done.unwrap();
    }
    assert_eq!(room.visits.load(Ordering::SeqCst), TASKS * TURNS, "{room:?}");
    for locks in &services {
        timeout(S * 20, locks.drained()).await.unwrap();
    }
    assert!(faulty.is_free("room").await, "after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_of_three_processes_are_one_at_a_time() {
    contend(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_of_three_processes_stand_in_one_fair_line() {
    contend(true).await;
}
