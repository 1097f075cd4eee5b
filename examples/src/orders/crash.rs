//! Lives and deaths: the work runs in a child that is aborted at random crash points and started again.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use outbox_broker::crash_point::{CRASH_VARIABLE, CrashPoint};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::arguments::Arguments;
use crate::input::Orders;

/// The signal an aborted process ends with.
const SIGABRT: i32 = 6;

/// Points that a run without outside interference reaches: all but the one that needs a lost lease.
const POINTS: [CrashPoint; 7] = [
    CrashPoint::AppendedNotCommitted,
    CrashPoint::CommittedNotClaimed,
    CrashPoint::ClaimedNotPublished,
    CrashPoint::PublishedNotSettled,
    CrashPoint::ReceivedNotBegun,
    CrashPoint::HandledNotCommitted,
    CrashPoint::CommittedNotAcked,
];

/// Lives tried for each crash before giving up. Chosen: a life without work takes a fraction of a second.
const LIVES_PER_CRASH: u64 = 50;

/// What the lives were like.
pub(crate) struct History {
    pub(crate) crashes: u32,
    pub(crate) refused_lines: u64,
    pub(crate) seed: u64,
}

/// Runs the work in children until it is done, aborting it `arguments.crash` times on the way.
pub(crate) fn run_until_done(arguments: &Arguments, directory: &Path) -> anyhow::Result<History> {
    let seed = arguments.seed.unwrap_or_else(|| rand::rng().random());
    let mut random = StdRng::seed_from_u64(seed);
    let input = directory.join("input.jsonl");
    let (expected, refused_lines) = materialise(arguments, seed, &input)?;
    // What each life may add at most: twice as many lives as crashes can pass before the orders run out.
    let share = (expected / (2 * u64::from(arguments.crash) + 2)).max(1);
    let mut allowed = 0;
    let bar = crate::progress::bar("crashes", Some(arguments.crash.into()));
    let mut crashes = 0;
    let mut lives_left = LIVES_PER_CRASH * u64::from(arguments.crash);
    while crashes < arguments.crash {
        lives_left -= 1;
        if lives_left == 0 {
            bail!(
                "only {crashes} of {} crashes struck; generate more orders (seed {seed})",
                arguments.crash
            );
        }
        let point = POINTS[random.random_range(0..POINTS.len())];
        let count = match point {
            // Reached once a message.
            CrashPoint::AppendedNotCommitted
            | CrashPoint::ReceivedNotBegun
            | CrashPoint::HandledNotCommitted
            | CrashPoint::CommittedNotAcked => random.random_range(1..=share),
            // Reached once a batch.
            _ => random.random_range(1..=share.min(5)),
        };
        allowed += share;
        // A life may end before it passes its point so often; when no orders are left, it dies at its start.
        let rule = if allowed < expected {
            format!("{point}@{count}")
        } else {
            CrashPoint::CommittedNotClaimed.to_string()
        };
        bar.set_message(rule.clone());
        if let Life::Aborted = live(&input, directory, Some(&rule), Some(allowed))? {
            crashes += 1;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    match live(&input, directory, None, None)? {
        Life::Finished => Ok(History {
            crashes,
            refused_lines,
            seed,
        }),
        Life::Aborted => bail!("the last life was aborted although no crash was asked for (seed {seed})"),
    }
}

enum Life {
    Aborted,
    Finished,
}

fn live(input: &Path, directory: &Path, rule: Option<&str>, limit: Option<u64>) -> anyhow::Result<Life> {
    let program = std::env::current_exe().context("cannot find this program to run it again")?;
    let mut command = Command::new(program);
    command
        .arg("--child")
        .arg("--input")
        .arg(input)
        .arg("--directory")
        .arg(directory);
    command
        .env_remove(CRASH_VARIABLE)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if let Some(limit) = limit {
        command.arg("--limit").arg(limit.to_string());
    }
    if let Some(rule) = rule {
        command.env(CRASH_VARIABLE, rule);
    }
    let output = command.output().context("cannot start a life")?;
    if output.status.success() {
        return Ok(Life::Finished);
    }
    if rule.is_some() && output.status.signal() == Some(SIGABRT) {
        return Ok(Life::Aborted);
    }
    let last_words = String::from_utf8_lossy(&output.stderr);
    bail!(
        "a life ended with {} (crash point {}): {last_words}",
        output.status,
        rule.unwrap_or("none")
    );
}

/// Writes the orders to a file that every life reads; returns how many, and how many lines were refused.
fn materialise(arguments: &Arguments, seed: u64, path: &Path) -> anyhow::Result<(u64, u64)> {
    let arguments = Arguments {
        seed: Some(seed),
        ..arguments.clone()
    };
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let (mut orders, mut refused) = (0, 0);
    for line in Orders::open(&arguments)? {
        match line? {
            Ok(order) => {
                serde_json::to_writer(&mut file, &order)?;
                file.write_all(b"\n")?;
                orders += 1;
            }
            Err(bad) => {
                crate::service::refuse(&bad);
                refused += 1;
            }
        }
    }
    file.flush()?;
    Ok((orders, refused))
}
