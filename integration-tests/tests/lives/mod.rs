//! Runs the `crash-child` program over a place of its own and reads what it left.
#![allow(dead_code, reason = "each test program uses its part of this module")]

use std::process::Stdio;
use std::time::Duration;

use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use outbox_testing::services;
use tokio::process::{Child, Command};

type Sqlite = diesel_async::sync_connection_wrapper::SyncConnectionWrapper<diesel::SqliteConnection>;

/// A life that neither ends nor is aborted by then fails the test.
const DEADLINE: Duration = Duration::from_secs(120);

/// A store and a broker of one run's own; what they hold goes when it is dropped.
pub(crate) struct Place {
    pub(crate) store: String,
    pub(crate) broker: String,
    _owned: Vec<Box<dyn std::any::Any + Send + Sync>>,
}

impl Place {
    /// SQLite files in a directory of their own.
    pub(crate) fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
        Self {
            store: url("store.sqlite"),
            broker: url("queue.sqlite"),
            _owned: vec![Box::new(directory)],
        }
    }

    /// A database and a virtual host of their own.
    pub(crate) async fn servers(postgres: &services::Postgres, rabbitmq: &services::RabbitMq) -> Self {
        let database = postgres.database().await.unwrap();
        let vhost = rabbitmq.vhost().await.unwrap();
        Self {
            store: database.url().to_owned(),
            broker: vhost.url().to_owned(),
            _owned: vec![Box::new(database), Box::new(vhost)],
        }
    }
}

/// How a life ended.
#[derive(Debug)]
pub(crate) enum Life {
    Aborted,
    Finished(String),
    Failed(String),
}

/// The work of one run.
pub(crate) struct Run<'a> {
    place: &'a Place,
    topic: String,
    keys: u32,
    per_key: i64,
}

impl<'a> Run<'a> {
    pub(crate) fn new(place: &'a Place, topic: impl Into<String>) -> Self {
        Self {
            place,
            topic: topic.into(),
            keys: 4,
            per_key: 10,
        }
    }

    pub(crate) fn size(mut self, keys: u32, per_key: i64) -> Self {
        (self.keys, self.per_key) = (keys, per_key);
        self
    }

    pub(crate) fn spawn(&self, role: &str, rule: Option<&str>, lapse: bool) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crash-child"));
        command
            .args([
                "--store",
                &self.place.store,
                "--broker",
                &self.place.broker,
                "--topic",
                &self.topic,
            ])
            .args([
                "--keys",
                &self.keys.to_string(),
                "--per-key",
                &self.per_key.to_string(),
            ])
            .args(["--role", role])
            .env_remove("OUTBOX_CRASH")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if lapse {
            command.arg("--lapse-lease");
        }
        if let Some(rule) = rule {
            command.env("OUTBOX_CRASH", rule);
        }
        command.spawn().expect("cannot start crash-child")
    }

    /// One life to its end.
    pub(crate) async fn live(&self, rule: Option<&str>, lapse: bool) -> Life {
        Self::outcome(self.spawn("all", rule, lapse)).await
    }

    /// How the life of `child` ends.
    pub(crate) async fn outcome(child: Child) -> Life {
        use std::os::unix::process::ExitStatusExt as _;
        const SIGABRT: i32 = 6;
        let Ok(output) = tokio::time::timeout(DEADLINE, child.wait_with_output()).await else {
            return Life::Failed(format!("still running after {DEADLINE:?}"));
        };
        let output = output.expect("cannot wait for crash-child");
        if output.status.success() {
            return Life::Finished(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        if output.status.signal() == Some(SIGABRT) {
            return Life::Aborted;
        }
        Life::Failed(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ))
    }

    /// Effects so far; 0 before the tables are there.
    pub(crate) async fn effects(&self) -> usize {
        let mut connection = AsyncPgConnection::establish(&self.place.store).await.unwrap();
        let rows: Result<Vec<Step>, _> = diesel::sql_query(EFFECTS).load(&mut connection).await;
        rows.map_or(0, |rows| rows.len())
    }

    /// What the databases say.
    pub(crate) async fn report(&self) -> Report {
        let (produced, effects) = if let Some(path) = self.place.store.strip_prefix("sqlite:") {
            let mut connection = Sqlite::establish(path).await.unwrap();
            (
                steps(&mut connection, PRODUCED).await,
                steps(&mut connection, EFFECTS).await,
            )
        } else {
            let mut connection = AsyncPgConnection::establish(&self.place.store).await.unwrap();
            (
                steps_postgres(&mut connection, PRODUCED).await,
                steps_postgres(&mut connection, EFFECTS).await,
            )
        };
        let wanted = u64::from(self.keys) * self.per_key.unsigned_abs();
        assert_eq!(produced.len() as u64, wanted, "the producer did not finish");
        Report::of(&produced, &effects)
    }
}

const PRODUCED: &str = "SELECT step_key, step FROM produced ORDER BY step_key, step";
const EFFECTS: &str = "SELECT step_key, step FROM effects ORDER BY number";

#[derive(diesel::QueryableByName)]
struct Step {
    #[diesel(sql_type = Text)]
    step_key: String,
    #[diesel(sql_type = BigInt)]
    step: i64,
}

async fn steps(connection: &mut Sqlite, query: &str) -> Vec<(String, i64)> {
    let rows: Vec<Step> = diesel::sql_query(query).load(connection).await.unwrap();
    rows.into_iter().map(|row| (row.step_key, row.step)).collect()
}

async fn steps_postgres(connection: &mut AsyncPgConnection, query: &str) -> Vec<(String, i64)> {
    let rows: Vec<Step> = diesel::sql_query(query).load(connection).await.unwrap();
    rows.into_iter().map(|row| (row.step_key, row.step)).collect()
}

/// Counts of what went wrong.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) lost: Vec<(String, i64)>,
    pub(crate) doubled: Vec<(String, i64)>,
    pub(crate) phantom: Vec<(String, i64)>,
    pub(crate) out_of_order: Vec<(String, i64)>,
}

impl Report {
    fn of(produced: &[(String, i64)], effects: &[(String, i64)]) -> Self {
        use std::collections::{HashMap, HashSet};
        let made: HashSet<_> = produced.iter().collect();
        let mut seen = HashSet::new();
        let mut last: HashMap<&str, i64> = HashMap::new();
        let mut report = Self {
            lost: vec![],
            doubled: vec![],
            phantom: vec![],
            out_of_order: vec![],
        };
        for effect in effects {
            if !made.contains(effect) {
                report.phantom.push(effect.clone());
            } else if !seen.insert(effect) {
                report.doubled.push(effect.clone());
            } else if *last
                .entry(&effect.0)
                .and_modify(|l| *l = (*l).max(effect.1))
                .or_insert(effect.1)
                > effect.1
            {
                report.out_of_order.push(effect.clone());
            }
        }
        report.lost = produced
            .iter()
            .filter(|step| !seen.contains(step))
            .cloned()
            .collect();
        report
    }

    /// Fails unless nothing went wrong.
    pub(crate) fn assert_clean(&self, context: &str) {
        let clean = self.lost.is_empty()
            && self.doubled.is_empty()
            && self.phantom.is_empty()
            && self.out_of_order.is_empty();
        assert!(clean, "{context}: {self:#?}");
    }
}
