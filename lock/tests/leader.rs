//! A role is filled by one, lost at its deadline, stood for again, and handed over. Time is paused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{Fault, Faulty, MS, S};
use outbox_lock::{LossReason, TermEnd};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// What happened to a role, in order: who, the number of the term, and how it ended.
type Log = Arc<Mutex<Vec<(&'static str, i64, Option<TermEnd>)>>>;

struct Candidate {
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

/// Stands for the role under a connection of its own, and leads until it must go.
async fn stands(faulty: &Faulty, name: &'static str, log: &Log, leading: &Arc<AtomicU64>) -> Candidate {
    let locks = faulty.locks().await;
    let (gained, lost) = (Arc::clone(log), Arc::clone(log));
    let leader = locks
        .leader("role")
        .unwrap()
        .on_gain(move |term| gained.lock().unwrap().push((name, term.get(), None)))
        .on_loss(move |term, end| lost.lock().unwrap().push((name, term.get(), Some(end))));
    let shutdown = CancellationToken::new();
    let (asked, leading) = (shutdown.clone(), Arc::clone(leading));
    let running = tokio::spawn(async move {
        let lead = |term: outbox_lock::Term| {
            let office = Office::enter(&leading);
            async move {
                term.closing().await;
                // The last of the work: the role is held until it is done.
                sleep(MS * 50).await;
                drop(office);
            }
        };
        leader.run(asked, lead).await.unwrap();
    });
    Candidate { shutdown, running }
}

/// Counts who leads; there is never more than one.
struct Office(Arc<AtomicU64>);

impl Office {
    fn enter(leading: &Arc<AtomicU64>) -> Self {
        assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0, "two lead");
        Self(Arc::clone(leading))
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn until(condition: impl Fn() -> bool) {
    timeout(S * 300, async {
        while !condition() {
            sleep(MS).await;
        }
    })
    .await
    .expect("it comes to pass");
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_hands_over_at_shutdown() {
    let (faulty, log, leading) = (Faulty::default(), Log::default(), Arc::default());
    let one = stands(&faulty, "one", &log, &leading).await;
    until(|| !log.lock().unwrap().is_empty()).await;
    let two = stands(&faulty, "two", &log, &leading).await;
    // Longer than the longest hold of a lock: a term has none.
    sleep(S * 2000).await;
    assert_eq!(log.lock().unwrap().len(), 1);
    let since = Instant::now();
    one.shutdown.cancel();
    one.running.await.unwrap();
    until(|| log.lock().unwrap().len() == 3).await;
    assert!(
        since.elapsed() < MS * 200,
        "handed over after {:?}",
        since.elapsed()
    );
    two.shutdown.cancel();
    two.running.await.unwrap();
    let log = log.lock().unwrap().clone();
    let [(_, first, None), (_, _, Some(end)), (heir, second, None), ..] = log[..] else {
        panic!("{log:?}");
    };
    assert_eq!((end, heir), (TermEnd::Shutdown, "two"));
    assert!(second > first, "a later term has a greater number");
    assert!(faulty.is_free("role").await);
}

#[tokio::test(start_paused = true)]
async fn a_leader_cut_off_stops_before_its_successor_begins_and_stands_again() {
    let (near, log, leading) = (Faulty::default(), Log::default(), Arc::default());
    // The same service, reached by another way.
    let far = near.beside();
    let one = stands(&near, "one", &log, &leading).await;
    until(|| !log.lock().unwrap().is_empty()).await;
    let two = stands(&far, "two", &log, &leading).await;
    let lost = Fault {
        lost: true,
        ..Fault::default()
    };
    for operation in ["acquire", "renew", "release", "leave", "listen"] {
        near.set(operation, lost);
    }
    // `Office` asserts that the old work is gone before the new begins.
    until(|| log.lock().unwrap().iter().any(|(who, ..)| *who == "two")).await;
    assert_eq!(
        log.lock().unwrap()[1].2,
        Some(TermEnd::Lost(LossReason::Deadline))
    );
    near.heal();
    two.shutdown.cancel();
    two.running.await.unwrap();
    until(|| {
        log.lock()
            .unwrap()
            .last()
            .is_some_and(|(who, _, end)| *who == "one" && end.is_none())
    })
    .await;
    let terms: Vec<i64> = log
        .lock()
        .unwrap()
        .iter()
        .filter(|(.., end)| end.is_none())
        .map(|(_, term, _)| *term)
        .collect();
    assert!(terms.is_sorted_by(|a, b| a < b), "{terms:?}");
    one.shutdown.cancel();
    one.running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn work_that_ends_gives_the_role_up_and_stands_again_after_a_rest() {
    let faulty = Faulty::default();
    let locks = faulty.locks().await;
    let terms = AtomicU64::new(0);
    let shutdown = CancellationToken::new();
    let since = Instant::now();
    let leader = locks.leader("role").unwrap().rest(S * 5);
    let lead = |_| {
        let last = terms.fetch_add(1, Ordering::SeqCst) == 2;
        let shutdown = shutdown.clone();
        async move {
            if last {
                shutdown.cancel();
            }
        }
    };
    leader.run(shutdown.clone(), lead).await.unwrap();
    assert_eq!(terms.load(Ordering::SeqCst), 3);
    assert!(since.elapsed() >= S * 10 && since.elapsed() < S * 11);
    assert!(faulty.is_free("role").await);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_is_dropped_leaves_the_role_to_others() {
    let (faulty, log, leading) = (Faulty::default(), Log::default(), Arc::default());
    let one = stands(&faulty, "one", &log, &leading).await;
    until(|| !log.lock().unwrap().is_empty()).await;
    one.running.abort();
    let two = stands(&faulty, "two", &log, &leading).await;
    until(|| log.lock().unwrap().last().is_some_and(|(who, ..)| *who == "two")).await;
    two.shutdown.cancel();
    two.running.await.unwrap();
}
