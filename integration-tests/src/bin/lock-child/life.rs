//! From the acquisition to the release.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::Context as _;
use outbox_lock::{Guard, Key, Lock, Locks, RedisBackend, RedisConfig, State};
use tokio::time::Instant;

use crate::books::{Books, Committed};
use crate::{Arguments, Step};

/// How a life ends whose runtime was taken away.
pub(crate) const SHUT_DOWN: &str = "shut down";

/// Between two looks at the gate or the lease.
const POLL: Duration = Duration::from_millis(5);

/// A waiter's poll floor: with wakes dead a test does not wait for a second.
const POLL_FLOOR: Duration = Duration::from_millis(200);

/// Short against the ttl, so that a swallowed answer costs one renewal and not the lock.
const TIMEOUT: Duration = Duration::from_millis(150);

/// Says how it ended.
pub(crate) async fn live(
    arguments: &Arguments,
    shut_down: Sender<anyhow::Result<String>>,
) -> anyhow::Result<String> {
    let mut books = Books::open(arguments).await?;
    let gate = Gate { arguments, shut_down };
    if arguments.bare {
        return bare(arguments, &gate, &mut books).await;
    }
    let lock = lock(arguments).await?;
    ready();
    gate.pass(Step::Acquire).await;
    let acquired = lock.acquire(Duration::from_millis(arguments.within_ms)).await;
    let guard = acquired.context("the lock was not acquired")?;
    books.granted(guard.token()).await?;
    let how = hold(arguments, &gate, &mut books, guard).await?;
    Ok(how)
}

#[expect(clippy::print_stdout, reason = "the test waits for it")]
fn ready() {
    println!("ready");
}

async fn lock(arguments: &Arguments) -> anyhow::Result<Lock> {
    let backend = RedisBackend::new(RedisConfig {
        response_timeout: TIMEOUT,
        connect_timeout: TIMEOUT,
        ..RedisConfig::node(&arguments.redis)
    })?;
    let locks = Locks::builder(Arc::new(backend))
        .ttl(Duration::from_millis(arguments.ttl_ms))
        .poll_floor(POLL_FLOOR)
        .build()
        .await?;
    Ok(locks.lock(arguments.key.as_str())?)
}

async fn hold(
    arguments: &Arguments,
    gate: &Gate<'_>,
    books: &mut Books,
    guard: Guard,
) -> anyhow::Result<String> {
    gate.pass(Step::Hold).await;
    renewed(&guard).await;
    gate.pass(Step::Renew).await;
    renewed(&guard).await;
    // A careful holder looks before it writes; what happens after the look is the fence's business.
    let (mut how, is_held) = match guard.state() {
        State::Lost(reason) => (format!("lost ({})", reason.as_str()), false),
        _ => (String::new(), true),
    };
    if is_held {
        gate.pass(Step::Commit).await;
        let key = Key::new(arguments.key.as_str())?;
        how = match books.commit(&key, Some(guard.token())).await? {
            Committed::Wrote => "committed".to_owned(),
            Committed::Fenced => "fenced".to_owned(),
        };
    }
    gate.pass(Step::Release).await;
    // Who asks for the release has stopped believing: the next holder may be told before the answer is here.
    let believed_until = guard.deadline().min(Instant::now());
    let released = guard.release().await;
    books.ended(believed_until).await?;
    let released = match released {
        Ok(released) => format!("{released:?}"),
        Err(error) => error.kind().to_string(),
    };
    Ok(format!("{how}, release: {released}"))
}

/// Waits for the next renewal, or the loss.
async fn renewed(guard: &Guard) {
    let before = guard.deadline();
    while guard.deadline() == before && guard.state().is_held() {
        tokio::time::sleep(POLL).await;
    }
}

/// The race that locks are for: look, wait, act.
async fn bare(arguments: &Arguments, gate: &Gate<'_>, books: &mut Books) -> anyhow::Result<String> {
    let is_open = books.is_open().await?;
    gate.pass(Step::Commit).await;
    if is_open {
        books.act(&arguments.name).await?;
    }
    Ok("committed".to_owned())
}

struct Gate<'a> {
    arguments: &'a Arguments,
    shut_down: Sender<anyhow::Result<String>>,
}

impl Gate<'_> {
    #[expect(clippy::print_stdout, reason = "the test waits for it")]
    async fn pass(&self, step: Step) {
        if self.arguments.at != Some(step) {
            return;
        }
        println!("at {}", step.as_str());
        while self.arguments.gate.as_ref().is_some_and(|gate| !gate.exists()) {
            tokio::time::sleep(POLL).await;
        }
        if self.arguments.shut_down {
            let _ = self.shut_down.send(Ok(SHUT_DOWN.to_owned()));
        }
    }
}
