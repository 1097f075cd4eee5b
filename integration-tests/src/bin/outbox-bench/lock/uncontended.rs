//! Acquire and release where nobody else wants the key.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use super::Plan;
use super::peers::{Peer, Peers};
use crate::report::{Report, rate};

/// Tasks at once, each with a key of its own.
const TASKS: [usize; 3] = [1, 8, 64];

pub(super) async fn run(plan: &Plan, peers: &Peers) -> Result<()> {
    let mut report = Report::new("lock-uncontended", "throughput", "acquire+release/s");
    for round in 1..=plan.rounds {
        println!("uncontended, round {round} of {}", plan.rounds);
        for tasks in TASKS {
            let named = |who: &str| format!("{who}, {tasks} tasks");
            let cases = [
                (named("floor"), &peers.floor),
                (named("rslock"), &peers.rslock),
                (named("locks"), &peers.ours),
            ];
            let mut rates = [0.0; 3];
            // Another one begins each round.
            for turn in 0..cases.len() {
                let at = (turn + round) % cases.len();
                let (name, peer) = &cases[at];
                rates[at] = cycles(peer, tasks, plan.time).await?;
                report.add(name, rates[at]);
            }
            report.compare(&cases[2].0, rates[2], &cases[0].0, rates[0]);
            report.compare(&cases[2].0, rates[2], &cases[1].0, rates[1]);
        }
    }
    report.finish(&crate::target())
}

/// Cycles a second.
async fn cycles(peer: &Peer, tasks: usize, time: Duration) -> Result<f64> {
    let mut running = JoinSet::new();
    let start = Instant::now();
    for task in 0..tasks {
        let peer = peer.clone();
        running.spawn(async move {
            let key = format!("bench:{task}");
            let mut count = 0_u64;
            while start.elapsed() < time {
                let held = peer.acquire(&key).await?;
                peer.release(held).await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut all = 0;
    while let Some(count) = running.join_next().await {
        all += count??;
    }
    Ok(rate(all, start.elapsed()))
}
