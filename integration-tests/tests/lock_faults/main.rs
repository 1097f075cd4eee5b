//! The fault matrix of the lock: every fault at every step of a holder, against a real Redis, with holders in
//! processes of their own and a fence in PostgreSQL.
//!
//! What must hold whatever happens is read from the database afterwards: see `history.rs`. The table of what
//! happens is `lock/src/docs/faults.md`, which this program keeps in step (`OUTBOX_TEST_WRITE=1` writes it).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test program"
)]

mod bare;
mod fault;
mod history;
mod page;
mod stage;

use fault::Fault;
use stage::Step;

/// One module a fault, one test a step.
macro_rules! matrix {
    ($($name:ident: $fault:ident,)*) => {
        $(mod $name {
            use crate::{Fault, Step, stage};

            matrix!(@steps $fault: acquire Acquire, hold Hold, renew Renew, commit Commit, release Release);
        })*

        /// All faults, by the name of their module.
        const FAULTS: &[(&str, Fault)] = &[$((stringify!($name), Fault::$fault)),*];
    };
    (@steps $fault:ident: $($step:ident $variant:ident),*) => {
        $(#[tokio::test]
        async fn $step() {
            stage::play(Fault::$fault, Step::$variant).await;
        })*
    };
}

matrix! {
    holder_stopped: HolderStopped,
    holder_killed: HolderKilled,
    redis_stopped: RedisStopped,
    redis_restarted_empty: RedisRestartedEmpty,
    replica_promoted: ReplicaPromoted,
    clock_forward: ClockForward,
    clock_back: ClockBack,
    reply_swallowed: ReplySwallowed,
    wakes_cut: WakesCut,
    connections_exhausted: ConnectionsExhausted,
    runtime_shut_down: RuntimeShutDown,
}
