//! Runs the `crash-child` program over a place of its own and keeps the books on what it left.
#![allow(dead_code, reason = "each test program uses its part of this module")]

use std::any::Any;
use std::time::Duration;

use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use outbox_testing::crash::{Child, CrashRule, Program};
use outbox_testing::ledger::Ledger;
use outbox_testing::services::{Postgres, RabbitMq};

type Sqlite = diesel_async::sync_connection_wrapper::SyncConnectionWrapper<diesel::SqliteConnection>;

/// A life that neither ends nor is aborted by then fails the test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// A store and a broker of one run's own; what they hold goes when it is dropped.
pub(crate) struct Place {
    pub(crate) store: String,
    broker: String,
    _owned: Vec<Box<dyn Any + Send + Sync>>,
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
    pub(crate) async fn servers(postgres: &Postgres, rabbitmq: &RabbitMq) -> Self {
        let database = postgres.database().await.unwrap();
        let vhost = rabbitmq.vhost().await.unwrap();
        Self {
            store: database.url().to_owned(),
            broker: vhost.url().to_owned(),
            _owned: vec![Box::new(database), Box::new(vhost)],
        }
    }
}

/// The work of one run.
pub(crate) struct Run<'a> {
    place: &'a Place,
    topic: String,
    keys: u32,
    per_key: u32,
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

    pub(crate) fn size(mut self, keys: u32, per_key: u32) -> Self {
        (self.keys, self.per_key) = (keys, per_key);
        self
    }

    /// Starts a life in `role`; with `lapse` its lease ends while it publishes.
    pub(crate) fn spawn(&self, role: &str, rule: Option<CrashRule>, lapse: bool) -> Child {
        let mut program = Program::new(env!("CARGO_BIN_EXE_crash-child"))
            .arg("--store")
            .arg(&self.place.store)
            .arg("--broker")
            .arg(&self.place.broker)
            .arg("--topic")
            .arg(&self.topic)
            .arg("--keys")
            .arg(self.keys.to_string())
            .arg("--per-key")
            .arg(self.per_key.to_string())
            .arg("--role")
            .arg(role);
        if lapse {
            program = program.arg("--lapse-lease");
        }
        program.spawn(rule).unwrap()
    }

    /// Effects so far; 0 before the tables are there.
    pub(crate) async fn effects(&self) -> usize {
        let mut connection = AsyncPgConnection::establish(&self.place.store).await.unwrap();
        let rows: Result<Vec<Step>, _> = diesel::sql_query(EFFECTS).load(&mut connection).await;
        rows.map_or(0, |rows| rows.len())
    }

    /// What the databases say.
    pub(crate) async fn ledger(&self) -> Ledger {
        let (produced, effects) = if let Some(path) = self.place.store.strip_prefix("sqlite:") {
            let mut connection = Sqlite::establish(path).await.unwrap();
            let produced: Vec<Step> = diesel::sql_query(PRODUCED).load(&mut connection).await.unwrap();
            let effects: Vec<Step> = diesel::sql_query(EFFECTS).load(&mut connection).await.unwrap();
            (produced, effects)
        } else {
            let mut connection = AsyncPgConnection::establish(&self.place.store).await.unwrap();
            let produced: Vec<Step> = diesel::sql_query(PRODUCED).load(&mut connection).await.unwrap();
            let effects: Vec<Step> = diesel::sql_query(EFFECTS).load(&mut connection).await.unwrap();
            (produced, effects)
        };
        let wanted = self.keys as usize * self.per_key as usize;
        assert_eq!(produced.len(), wanted, "the producer did not finish");
        let mut ledger = Ledger::new();
        for step in produced {
            ledger.committed(step.id(), &step.step_key, step.step.unsigned_abs());
        }
        for step in effects {
            ledger.effect(step.id());
        }
        ledger
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

impl Step {
    fn id(&self) -> String {
        format!("{}/{}", self.step_key, self.step)
    }
}
