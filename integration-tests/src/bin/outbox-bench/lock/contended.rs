//! Many waiters on one key: how long they wait, how fast it changes hands, and who gets it how often.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout_at;

use super::Plan;
use super::peers::{Peer, Peers, locks};
use crate::report::{Report, percentile, rate};

/// How long each holder works.
const HOLD: Duration = Duration::from_millis(1);

/// Processes that the waiters of the last case are spread over, each with a connection and a line of its own.
const PROCESSES: usize = 4;

const RSLOCK: &str = "rslock";
const OURS: &str = "locks";
const FAIR: &str = "locks over four connections, fair";

/// What one run saw.
struct Seen {
    /// Seconds.
    waits: Vec<f64>,
    holds: Vec<f64>,
    /// Acquisitions of each waiter.
    counts: Vec<u64>,
    /// How often the holder was another than the one before: who takes again what it just released hands
    /// nothing over.
    handovers: u64,
    time: Duration,
}

pub(super) async fn run(plan: &Plan, peers: &Peers) -> Result<()> {
    let mut waits = Report::new("lock-wait", "p99_wait", "µs");
    let mut handovers = Report::new("lock-handover", "throughput", "handovers/s");
    let mut acquisitions = Report::new("lock-acquisition", "throughput", "acquisitions/s");
    let mut fairness = Report::new("lock-fairness", "most_acquisitions", "acquisitions");
    let mut spread = Vec::new();
    for _ in 0..PROCESSES {
        spread.push(Peer::Ours(locks(&peers.url, true).await?));
    }
    let cases = [
        (RSLOCK, vec![peers.rslock.clone()]),
        (OURS, vec![peers.ours.clone()]),
        (FAIR, spread),
    ];
    for round in 1..=plan.rounds {
        println!(
            "{} waiters on one key, round {round} of {}",
            plan.waiters, plan.rounds
        );
        let mut rates = [0.0; 3];
        for turn in 0..cases.len() {
            let at = (turn + round) % cases.len();
            let (name, peers) = &cases[at];
            let key = format!("contended:{name}:{round}");
            let seen = contend(peers, &key, plan.waiters, plan.time * 2).await?;
            let p99 = percentile(&seen.waits, 0.99) * 1e6;
            // What a line without any cost of its own would take.
            let ideal = percentile(&seen.holds, 0.5) * 1e6 * number(plan.waiters);
            waits.add(name, p99);
            waits.compare(name, p99, "waiters × measured hold", ideal);
            rates[at] = rate(seen.handovers, seen.time);
            handovers.add(name, rates[at]);
            acquisitions.add(name, rate(seen.counts.iter().sum(), seen.time));
            let most = seen.counts.iter().copied().max().unwrap_or(0);
            let fewest = seen.counts.iter().copied().min().unwrap_or(0);
            fairness.add(name, rate(most, Duration::from_secs(1)));
            // A waiter that never got it counts as one that did once, or there were no ratio.
            let fewest = rate(fewest.max(1), Duration::from_secs(1));
            let most = rate(most, Duration::from_secs(1));
            fairness.compare(name, most, "the fewest", fewest);
        }
        for at in [1, 2] {
            handovers.compare(cases[at].0, rates[at], RSLOCK, rates[0]);
        }
    }
    waits.finish(&crate::target())?;
    handovers.finish(&crate::target())?;
    acquisitions.finish(&crate::target())?;
    fairness.finish(&crate::target())
}

async fn contend(peers: &[Peer], key: &str, waiters: usize, time: Duration) -> Result<Seen> {
    let mut running = JoinSet::new();
    let start = Instant::now();
    let end = start + time;
    let last = Arc::new(AtomicUsize::new(usize::MAX));
    let handovers = Arc::new(AtomicU64::new(0));
    for waiter in 0..waiters {
        let (peer, key) = (peers[waiter % peers.len()].clone(), key.to_owned());
        let (last, handovers) = (last.clone(), handovers.clone());
        running.spawn(async move {
            let (mut waits, mut holds) = (Vec::new(), Vec::new());
            while Instant::now() < end {
                let asked = Instant::now();
                // Who still waits at the end has not been served.
                let Ok(held) = timeout_at(end.into(), peer.acquire(&key)).await else {
                    break;
                };
                let held = held?;
                let granted = Instant::now();
                if last.swap(waiter, Ordering::Relaxed) != waiter {
                    handovers.fetch_add(1, Ordering::Relaxed);
                }
                waits.push((granted - asked).as_secs_f64());
                // The timer of tokio counts whole milliseconds and would hold for two.
                spawn_blocking(|| std::thread::sleep(HOLD)).await?;
                holds.push(granted.elapsed().as_secs_f64());
                peer.release(held).await?;
            }
            anyhow::Ok((waits, holds))
        });
    }
    let mut seen = Seen {
        waits: Vec::new(),
        holds: Vec::new(),
        counts: Vec::new(),
        handovers: 0,
        time,
    };
    while let Some(one) = running.join_next().await {
        let (waits, holds) = one??;
        seen.counts.push(waits.len().try_into()?);
        seen.waits.extend(waits);
        seen.holds.extend(holds);
    }
    seen.handovers = handovers.load(Ordering::Relaxed);
    ensure!(!seen.waits.is_empty(), "nobody got {key}");
    Ok(seen)
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
