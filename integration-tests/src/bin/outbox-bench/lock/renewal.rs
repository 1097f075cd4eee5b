//! What it costs to hold many locks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deadpool_redis::redis::cmd;
use futures::{StreamExt, TryStreamExt, stream};
use outbox_lock::Guard;

use super::Plan;
use super::peers::Peers;
use crate::report::Report;
use crate::usage;

/// Locks that are acquired or released at once.
const AT_ONCE: usize = 64;

/// What the server has done so far.
struct Done {
    commands: u64,
    scripts: u64,
    redis_cpu: Duration,
    own_cpu: Duration,
    at: Instant,
}

pub(super) async fn run(plan: &Plan, peers: &Peers, redis: Option<i32>) -> Result<()> {
    let redis = redis.context("the CPU time of this Redis cannot be read")?;
    println!(
        "{} locks held, ttl {:?}, renewed every {:?}",
        plan.held,
        plan.ttl,
        plan.ttl / 3
    );
    let acquiring = stream::iter(0..plan.held).map(|number| async move {
        let lock = peers.locks.lock(format!("held:{number}"))?.ttl(plan.ttl)?;
        lock.acquire(Duration::from_secs(60)).await
    });
    let guards: Vec<Guard> = acquiring.buffer_unordered(AT_ONCE).try_collect().await?;
    let mut counts = Report::new("lock-renewal", "rate", "/s");
    let mut cpu = Report::new("lock-renewal-cpu", "cpu", "ms/s");
    for round in 1..=plan.rounds {
        println!("renewal, round {round} of {}", plan.rounds);
        let before = done(peers, redis).await?;
        tokio::time::sleep(plan.ttl / 3).await;
        let after = done(peers, redis).await?;
        let seconds = (after.at - before.at).as_secs_f64();
        let per_second = |more: u64| f64::from(u32::try_from(more).unwrap_or(u32::MAX)) / seconds;
        let milliseconds = |more: Duration| more.as_secs_f64() * 1_000.0 / seconds;
        counts.add("scripts", per_second(after.scripts - before.scripts));
        counts.add(
            "commands, those of the scripts included",
            per_second(after.commands - before.commands),
        );
        cpu.add("Redis", milliseconds(after.redis_cpu - before.redis_cpu));
        cpu.add("holder", milliseconds(after.own_cpu - before.own_cpu));
    }
    ensure!(
        guards.iter().all(|guard| guard.state().is_held()),
        "a lock was lost while it was measured"
    );
    stream::iter(guards)
        .map(Guard::release)
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    counts.finish(&crate::target())?;
    cpu.finish(&crate::target())
}

async fn done(peers: &Peers, redis: i32) -> Result<Done> {
    let text: String = cmd("INFO")
        .arg("commandstats")
        .query_async(&mut peers.admin.clone())
        .await?;
    let (mut commands, mut scripts) = (0, 0);
    for line in text.lines() {
        // cmdstat_evalsha:calls=5,usec=…
        let Some((name, rest)) = line.split_once(":calls=") else {
            continue;
        };
        let calls: u64 = rest.split(',').next().unwrap_or_default().parse()?;
        commands += calls;
        if matches!(name, "cmdstat_evalsha" | "cmdstat_eval") {
            scripts += calls;
        }
    }
    Ok(Done {
        commands,
        scripts,
        redis_cpu: usage::cpu(redis)?,
        own_cpu: usage::own_cpu()?,
        at: Instant::now(),
    })
}
