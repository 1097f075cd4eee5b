//! How fast locks in one Redis change hands, against what the server gives and against a peer.

mod contended;
mod peers;
mod renewal;
mod uncontended;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use outbox_testing::services;

use self::peers::Peers;

/// What `lock` takes.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; every case runs once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each case without contention; with contention it runs twice as long.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Waiters on one key.
    #[arg(long, default_value_t = 64)]
    waiters: usize,
    /// Locks held while renewals are counted.
    #[arg(long, default_value_t = 10_000)]
    held: usize,
    /// One of `uncontended`, `contended`, `renewal`; all if empty.
    #[arg(long, default_value = "")]
    only: String,
    /// Two short rounds and 1,000 held locks, to see that it works.
    #[arg(long)]
    quick: bool,
}

/// What the cases share.
struct Plan {
    rounds: usize,
    time: Duration,
    waiters: usize,
    held: usize,
    /// The ttl of the locks that are held: renewed every third of it.
    ttl: Duration,
}

/// Runs the benchmark and reports.
pub(crate) async fn run(options: &Options) -> Result<()> {
    ensure!(
        options.rounds > 0 && options.seconds > 0.0 && options.waiters > 0 && options.held > 0,
        "rounds, seconds, waiters and held must be above 0"
    );
    let plan = if options.quick {
        Plan {
            rounds: 2,
            time: Duration::from_millis(300),
            waiters: options.waiters,
            held: options.held.min(1_000),
            ttl: Duration::from_secs(3),
        }
    } else {
        Plan {
            rounds: options.rounds,
            time: Duration::from_secs_f64(options.seconds),
            waiters: options.waiters,
            held: options.held,
            ttl: Duration::from_secs(30),
        }
    };
    // Without a log that is flushed at each write: the disk would be what is measured, in every case alike.
    let server = services::own_redis_without_persistence().await?;
    let peers = Peers::connect(server.url()).await?;
    let wanted = |case: &str| options.only.is_empty() || options.only == case;
    if wanted("uncontended") {
        uncontended::run(&plan, &peers).await?;
    }
    if wanted("contended") {
        contended::run(&plan, &peers).await?;
    }
    if wanted("renewal") {
        renewal::run(&plan, &peers, server.pid()).await?;
    }
    Ok(())
}
