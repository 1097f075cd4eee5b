//! Which run dies where, from a seed; and carrying it out.

use std::fmt;
use std::time::Duration;

use outbox_broker::crash_point::{CrashPoint, CrashRule};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use super::{Exit, Program};

/// How many times a program dies, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashPlan {
    seed: u64,
    crashes: u32,
    points: Vec<CrashPoint>,
    latest_passage: u64,
    deadline: Duration,
}

impl CrashPlan {
    /// `crashes` aborts at random points, the passage drawn from 1 to 50, all within 120 s.
    pub fn new(seed: u64, crashes: u32) -> Self {
        Self {
            seed,
            crashes,
            points: CrashPoint::ALL.to_vec(),
            latest_passage: 50,
            deadline: Duration::from_secs(120),
        }
    }

    /// Dies at these points only. None at all means: never.
    #[must_use]
    pub fn at(mut self, points: impl IntoIterator<Item = CrashPoint>) -> Self {
        self.points = points.into_iter().collect();
        self
    }

    /// The passage to die at is drawn from 1 to `latest`; default 50. A point that a run does not reach that
    /// often lets the run through.
    #[must_use]
    pub fn latest_passage(mut self, latest: u64) -> Self {
        self.latest_passage = latest.max(1);
        self
    }

    /// Time for all runs together; default 120 s.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Where the given run (from 0) dies; `None` when it may run through.
    pub fn rule(&self, run: u32) -> Option<CrashRule> {
        if run >= self.crashes || self.points.is_empty() {
            return None;
        }
        // Each run has draws of its own, so that one run can be replayed without those before it.
        let mut draws = StdRng::seed_from_u64(self.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(run)));
        let point = self.points[draws.random_range(0..self.points.len())];
        Some(CrashRule::At {
            point,
            nth: draws.random_range(1..=self.latest_passage),
        })
    }

    /// Starts `program` again and again until it ends by itself with code 0.
    ///
    /// # Errors
    /// [`CrashFailure`] when a run ends in any other way, cannot be started, or the deadline passes. The
    /// process is then gone.
    pub async fn run(&self, program: &Program) -> Result<Survived, CrashFailure> {
        let end = Instant::now() + self.deadline;
        let mut survived = Survived {
            runs: 0,
            crashes: Vec::new(),
        };
        loop {
            let rule = self.rule(survived.runs);
            survived.runs += 1;
            let fail = |what: String, tail: String| CrashFailure {
                seed: self.seed,
                run: survived.runs,
                crashes: survived.crashes.clone(),
                what,
                replay: program.replay(rule),
                tail,
            };
            let mut child = program
                .spawn(rule)
                .map_err(|error| fail(error.to_string(), String::new()))?;
            match child.wait(end.saturating_duration_since(Instant::now())).await {
                Ok(Exit::Code(0)) => return Ok(survived),
                Ok(Exit::Crashed(point, nth)) => survived.crashes.push(Crashed { point, nth }),
                Ok(exit) => return Err(fail(exit.to_string(), child.tail())),
                Err(error) => return Err(fail(error.to_string(), child.tail())),
            }
        }
    }
}

/// One abort that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crashed {
    /// Where.
    pub point: CrashPoint,
    /// At which passage, from 1.
    pub nth: u64,
}

impl fmt::Display for Crashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.point, self.nth)
    }
}

/// The program ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Survived {
    /// Starts, the last one included.
    pub runs: u32,
    /// The aborts, in order. Fewer than planned when a run ended before it reached its point.
    pub crashes: Vec<Crashed>,
}

/// The program ended badly, or not in time.
#[derive(Debug, thiserror::Error)]
#[error(
    "seed {seed}, run {run}: {what}\ncrashes before: {}\nreplay: {replay}\nlast output:\n{tail}",
    list(crashes)
)]
pub struct CrashFailure {
    seed: u64,
    run: u32,
    crashes: Vec<Crashed>,
    what: String,
    replay: String,
    tail: String,
}

fn list(crashes: &[Crashed]) -> String {
    crashes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_follows_from_its_seed() {
        let rules = |seed| {
            (0..20)
                .map(|run| CrashPlan::new(seed, 20).rule(run))
                .collect::<Vec<_>>()
        };
        assert_eq!(rules(1), rules(1));
        assert_ne!(rules(1), rules(2));
        assert!(rules(1).iter().all(Option::is_some));
        assert_eq!(CrashPlan::new(1, 20).rule(20), None);
        assert_eq!(CrashPlan::new(1, 20).at([]).rule(0), None);
    }

    #[test]
    fn a_plan_keeps_to_its_points_and_passages() {
        let plan = CrashPlan::new(3, 100)
            .at([CrashPoint::HandledNotCommitted])
            .latest_passage(4);
        for run in 0..100 {
            let Some(CrashRule::At { point, nth }) = plan.rule(run) else {
                panic!("run {run} has no rule")
            };
            assert_eq!(point, CrashPoint::HandledNotCommitted);
            assert!((1..=4).contains(&nth));
        }
    }

    #[tokio::test]
    async fn a_program_is_restarted_until_it_runs_through() {
        let script = r#"[ -z "$OUTBOX_CRASH" ] && exit 0; echo "OUTBOX_CRASH aborted at $OUTBOX_CRASH" >&2; kill -ABRT $$"#;
        let program = Program::new("/bin/sh").arg("-c").arg(script);
        let plan = CrashPlan::new(5, 3);
        let survived = plan.run(&program).await.unwrap();
        assert_eq!(survived.runs, 4);
        let planned: Vec<String> = (0..3).map(|run| plan.rule(run).unwrap().to_string()).collect();
        assert_eq!(
            survived
                .crashes
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            planned
        );
    }

    #[tokio::test]
    async fn a_failure_prints_seed_point_and_replay_line() {
        let program = Program::new("/bin/sh").arg("-c").arg("echo it broke; exit 7");
        let failure = CrashPlan::new(99, 1).run(&program).await.unwrap_err().to_string();
        for part in ["seed 99", "exited with 7", "replay: OUTBOX_CRASH=", "it broke"] {
            assert!(failure.contains(part), "{part}: {failure}");
        }
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_at_the_deadline() {
        let program = Program::new("/bin/sh").arg("-c").arg("exec sleep 600");
        let plan = CrashPlan::new(1, 0).deadline(Duration::from_millis(200));
        let failure = plan.run(&program).await.unwrap_err().to_string();
        assert!(failure.contains("still running"), "{failure}");
    }
}
