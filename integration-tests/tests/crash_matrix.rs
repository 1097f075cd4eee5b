//! Every crash point × PostgreSQL + RabbitMQ and SQLite + the SQL broker, several seeds each.
//!
//! A child process does the whole job and is aborted at the point; a second life finishes the work. Then the
//! databases are read: nothing lost, no effect doubled, no key out of order. Replay one run with
//! `OUTBOX_CRASH_SEED=N cargo test -p outbox-testing --all-features --test crash_matrix NAME`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test program"
)]

mod lives;

use lives::{DEADLINE, Place, Run};
use outbox_testing::crash::{CrashPoint, CrashRule, Exit};
use outbox_testing::{or_skip, services};

/// Runs of each point and stack. The passage at which a run dies is drawn from its seed.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=5;

fn seeds() -> Vec<u64> {
    match std::env::var("OUTBOX_CRASH_SEED") {
        Ok(seed) => vec![seed.parse().expect("OUTBOX_CRASH_SEED must be a number")],
        Err(_) => SEEDS.collect(),
    }
}

/// At which passage of `point` the run with `seed` dies. Points passed once a batch get a small number, so
/// that the run does reach it.
fn passage(point: CrashPoint, seed: u64) -> u64 {
    match point {
        CrashPoint::AppendedNotCommitted
        | CrashPoint::ReceivedNotBegun
        | CrashPoint::HandledNotCommitted
        | CrashPoint::CommittedNotAcked => 1 + (seed * 7) % 30,
        CrashPoint::LeaseExpiredWhilePublishing => 1,
        _ => 1 + seed % 3,
    }
}

async fn survives(point: CrashPoint, place: impl AsyncFn() -> Place) {
    for seed in seeds() {
        let place = place().await;
        let run = Run::new(&place, format!("crash-{point}-{seed}"));
        let nth = passage(point, seed);
        let rule = CrashRule::At { point, nth };
        let lapse = point == CrashPoint::LeaseExpiredWhilePublishing;

        let mut first = run.spawn("all", Some(rule), lapse);
        let ended = first.wait(DEADLINE).await.unwrap();
        assert_eq!(
            ended,
            Exit::Crashed(point, nth),
            "seed {seed}, the first life:\n{}",
            first.tail()
        );

        let mut second = run.spawn("all", None, false);
        let ended = second.wait(DEADLINE).await.unwrap();
        assert_eq!(
            ended,
            Exit::Code(0),
            "seed {seed}, the life after {point}@{nth}:\n{}",
            second.tail()
        );
        eprintln!("seed {seed}, {point}@{nth}: {}", second.tail().trim());
        let report = run.ledger().await.report();
        assert!(report.is_clean(), "seed {seed}, {point}@{nth}:\n{report}");
    }
}

macro_rules! matrix {
    ($($name:ident => $point:ident),* $(,)?) => {
        mod sqlite_and_sql {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                survives(CrashPoint::$point, async || Place::sqlite()).await;
            })*
        }
        mod postgres_and_rabbitmq {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let postgres = or_skip!(services::postgres().await);
                let rabbitmq = or_skip!(services::rabbitmq().await);
                survives(CrashPoint::$point, async || Place::servers(postgres, rabbitmq).await).await;
            })*
        }
    };
}

matrix! {
    dies_with_rows_appended_and_not_committed => AppendedNotCommitted,
    dies_with_rows_committed_and_not_claimed => CommittedNotClaimed,
    dies_with_records_claimed_and_not_published => ClaimedNotPublished,
    dies_with_messages_published_and_not_settled => PublishedNotSettled,
    dies_when_its_lease_expires_while_publishing => LeaseExpiredWhilePublishing,
    dies_with_a_delivery_received_and_not_begun => ReceivedNotBegun,
    dies_with_effects_handled_and_not_committed => HandledNotCommitted,
    dies_with_effects_committed_and_not_acked => CommittedNotAcked,
}
