//! One Redis, one fault, three holders: the one it strikes, its successor, and one that comes after all.

use std::time::Duration;

use outbox_testing::crash::{Child, Exit, Program};
use outbox_testing::or_skip;
use outbox_testing::proxy::Proxy;
use outbox_testing::services::{self, postgres::Database};
use tokio::sync::OnceCell;

use crate::fault::{Fault, Trouble};
use crate::history;

/// A third of it is the margin, and the time between two renewals.
pub(crate) const TTL: Duration = Duration::from_millis(900);

/// How long a fault lasts that ends by itself: every lease of before it has run out.
const WINDOW: Duration = Duration::from_millis(1_300);

/// How long anything may take on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(40);

/// Where the fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Acquire,
    Hold,
    Renew,
    Commit,
    Release,
}

impl Step {
    pub(crate) const ALL: [Self; 5] = [
        Self::Acquire,
        Self::Hold,
        Self::Renew,
        Self::Commit,
        Self::Release,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Acquire => "acquire",
            Self::Hold => "hold",
            Self::Renew => "renew",
            Self::Commit => "commit",
            Self::Release => "release",
        }
    }
}

/// Servers, proxies and the names of a test.
pub(crate) struct Stage {
    pub(crate) redis: services::Redis,
    pub(crate) replica: Option<services::Redis>,
    /// Between Redis and the holder that the fault strikes.
    pub(crate) first: Proxy,
    /// Between Redis and everyone else.
    pub(crate) others: Proxy,
    pub(crate) key: String,
    database: &'static Database,
    gate: tempfile::TempDir,
}

/// The tables of all tests; each has a resource of its own.
pub(crate) async fn database() -> Result<&'static Database, services::Error> {
    static DATABASE: OnceCell<Result<Database, services::Error>> = OnceCell::const_new();
    let made = DATABASE.get_or_init(|| async {
        let database = services::postgres().await?.database().await?;
        history::prepare(&database).await;
        Ok(database)
    });
    made.await.as_ref().map_err(Clone::clone)
}

impl Stage {
    async fn start(fault: Fault) -> Result<Self, services::Error> {
        let database = database().await?;
        let redis = fault.server().await?;
        let replica = fault.replica(&redis).await?;
        let key = format!("order:{}", uuid::Uuid::new_v4());
        history::open(database, &key).await;
        Ok(Self {
            first: Proxy::start(redis.address()).await.unwrap(),
            others: Proxy::start(redis.address()).await.unwrap(),
            redis,
            replica,
            key,
            database,
            gate: tempfile::tempdir().unwrap(),
        })
    }

    pub(crate) fn holder(&self, name: &str, proxy: &Proxy) -> Program {
        holder(self.database, &self.key, name)
            .arg("--redis")
            .arg(format!("redis://{}", proxy.address()))
    }

    fn gate(&self) -> std::path::PathBuf {
        self.gate.path().join("open")
    }
}

/// A holder without a Redis.
pub(crate) fn holder(database: &Database, key: &str, name: &str) -> Program {
    Program::new(env!("CARGO_BIN_EXE_lock-child"))
        .arg("--database")
        .arg(database.url())
        .arg("--key")
        .arg(key)
        .arg("--name")
        .arg(name)
        .arg("--ttl-ms")
        .arg(TTL.as_millis().to_string())
}

/// Waits for a holder that must get through; returns its last word.
pub(crate) async fn through(child: &mut Child) -> String {
    let exit = child.wait(LONG).await;
    let exit = exit.unwrap_or_else(|error| panic!("{error}\n{}\n{}", child.replay(), child.tail()));
    assert_eq!(exit, Exit::Code(0), "{}\n{}", child.replay(), child.tail());
    let tail = child.tail();
    let done = tail.lines().rev().find_map(|line| line.strip_prefix("done: "));
    done.unwrap_or_else(|| panic!("no last word:\n{tail}")).to_owned()
}

/// The fault strikes the first holder at the step; then everything goes on.
pub(crate) async fn play(fault: Fault, step: Step) {
    let stage = or_skip!(Stage::start(fault).await);
    let mut program = stage
        .holder("first", &stage.first)
        .arg("--at")
        .arg(step.as_str())
        .arg("--gate")
        .arg(stage.gate());
    if fault == Fault::RuntimeShutDown {
        program = program.arg("--shut-down");
    }
    let mut first = program.spawn(None).unwrap();
    let at = format!("at {}", step.as_str());
    if let Err(error) = first.printed(&at, LONG).await {
        panic!("{error}\n{}\n{}", first.replay(), first.tail());
    }
    let mut second = stage.holder("second", &stage.others).spawn(None).unwrap();
    // It looked at the server before the fault.
    if let Err(error) = second.printed("ready", LONG).await {
        panic!("{error}\n{}\n{}", second.replay(), second.tail());
    }
    let trouble = Trouble::begin(fault, &stage, &first).await;
    std::fs::write(stage.gate(), "").unwrap();
    let mut fate = None;
    if fault.ends_the_holder() {
        // Its belief ends with it.
        fate = Some(end(&mut first).await);
        history::gone(stage.database, &stage.key, "first").await;
    } else if fault.lasts_until_the_successor_is_done() {
        through(&mut second).await;
    } else {
        tokio::time::sleep(WINDOW).await;
    }
    trouble.end(&stage, &first).await;
    let fate = match fate {
        Some(fate) => fate,
        None => through(&mut first).await,
    };
    if !fault.lasts_until_the_successor_is_done() {
        through(&mut second).await;
    }
    // Nothing may be left that keeps the next one out for longer than a lease.
    let since = tokio::time::Instant::now();
    let mut third = stage.holder("third", &stage.others).spawn(None).unwrap();
    let word = through(&mut third).await;
    assert!(word.starts_with("committed"), "{word}");
    let books = history::read(stage.database, &stage.key).await;
    println!(
        "{fault:?} at {step:?}: the first was {fate}; the third took {:?}; {books}",
        since.elapsed()
    );
    books.check(fault.forgets(), TTL);
    fault.check(step, &fate, &books);
}

/// Waits for the end of a holder that is not to get through.
async fn end(child: &mut Child) -> String {
    match child.wait(LONG).await.unwrap() {
        Exit::Signal(9) => "killed".to_owned(),
        Exit::Code(0) => "shut down".to_owned(),
        exit => panic!("{exit}\n{}\n{}", child.replay(), child.tail()),
    }
}
