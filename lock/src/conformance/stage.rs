//! Where a scenario plays: the fixture, unique names, and the waits with a deadline.

use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::{Fixture, Need};
use crate::{Acquire, Backend, FencingToken, Hold, Key, Owner, Release, Request, RequestId, Shape};

/// How long a scenario may take. Chosen: far above the slowest, so that only a hang reaches it.
const SCENARIO_LIMIT: Duration = Duration::from_secs(60);

/// How long a scenario waits for a grant that must come. Chosen: far above every ttl it waits for.
const GRANT_LIMIT: Duration = Duration::from_secs(20);

/// A ttl that does not end within a scenario.
pub const LONG: Duration = Duration::from_secs(90);

/// A ttl that is waited for. Chosen: long enough for a busy machine to ask twice within it.
pub const SHORT: Duration = Duration::from_millis(400);

/// Why a scenario says nothing about a backend.
#[derive(Debug)]
pub struct NotApplicable(String);

/// What a scenario returns.
pub type Played = Result<(), NotApplicable>;

type Scenario = for<'a> fn(&'a Stage) -> Pin<Box<dyn Future<Output = Played> + Send + 'a>>;

/// Sets up and plays one scenario on a runtime of its own. The macro calls it.
///
/// # Panics
/// The backend does not keep the contract, or its declared capabilities are not those claimed.
pub fn run<F, S, Fut>(name: &str, setup: S, scenario: Scenario)
where
    F: Fixture,
    S: FnOnce() -> Fut,
    Fut: Future<Output = Result<F, String>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let fixture = match setup().await {
            Ok(fixture) => fixture,
            Err(reason) => {
                announce(&format!("SKIPPED: {name}: {reason}"));
                return;
            }
        };
        let backend = fixture.backend().await;
        assert_eq!(backend.capabilities(), fixture.claims(), "declared and claimed");
        let stage = Stage {
            backend,
            fixture: Box::new(fixture),
        };
        match timeout(SCENARIO_LIMIT, scenario(&stage)).await {
            Ok(Ok(())) => {}
            Ok(Err(NotApplicable(reason))) => announce(&format!("not applicable: {name} needs {reason}")),
            Err(_) => panic!("{name} did not end within {SCENARIO_LIMIT:?}"),
        }
    });
}

/// Writes past the test runner, which hides what a passing test prints.
fn announce(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// A key that no other scenario uses.
pub(super) fn key(name: &str) -> Key {
    Key::new(format!("{name}:{}", Uuid::new_v4())).unwrap()
}

/// A question of a fresh owner, without a place.
pub(super) fn ask(key: &Key, shape: Shape, ttl: Duration) -> Request {
    Request {
        key: key.clone(),
        owner: Owner::new(),
        shape,
        ttl,
        place: None,
    }
}

/// The same with a place that lasts `place`.
pub(super) fn line_up(key: &Key, shape: Shape, place: Duration) -> Request {
    Request {
        place: Some(place),
        ..ask(key, shape, LONG)
    }
}

/// The fixture of a running scenario and the steps that scenarios share.
pub struct Stage {
    backend: Arc<dyn Backend>,
    fixture: Box<dyn Fixture>,
}

impl Stage {
    /// Ends the scenario as not applicable unless `need` is claimed.
    ///
    /// # Errors
    /// It is not claimed.
    pub fn need(&self, need: Need) -> Played {
        if need.is_met(self.fixture.claims()) {
            return Ok(());
        }
        Err(NotApplicable(need.to_string()))
    }

    /// The backend that most steps use.
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// A second one, as another process has.
    pub async fn another(&self) -> Arc<dyn Backend> {
        self.fixture.backend().await
    }

    /// Asks; `None` if held.
    pub async fn acquire(&self, request: &Request) -> Option<Hold> {
        match self.backend.acquire(request).await.unwrap() {
            Acquire::Granted { token } => Some(hold(request, token)),
            Acquire::Held { .. } => None,
        }
    }

    /// Asks for what must be granted at once.
    pub async fn granted(&self, request: &Request) -> Hold {
        match self.backend.acquire(request).await.unwrap() {
            Acquire::Granted { token } => hold(request, token),
            held => panic!("{request:?} was answered with {held:?}"),
        }
    }

    /// Asks for what must not be granted; what remains is returned.
    pub async fn refused(&self, request: &Request) -> Duration {
        match self.backend.acquire(request).await.unwrap() {
            Acquire::Held { retry_after } => retry_after,
            granted => panic!("{request:?} was answered with {granted:?}"),
        }
    }

    /// Asks until it is granted; returns how long that took, too.
    pub async fn eventually(&self, request: &Request) -> (Hold, Duration) {
        let since = Instant::now();
        loop {
            if let Some(hold) = self.acquire(request).await {
                return (hold, since.elapsed());
            }
            assert!(since.elapsed() < GRANT_LIMIT, "{request:?} was never granted");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Releases what must be held.
    pub async fn release(&self, hold: &Hold) {
        let released = self.backend.release(hold, RequestId::new()).await.unwrap();
        assert_eq!(released, Release::Released, "{hold:?}");
    }
}

fn hold(request: &Request, token: FencingToken) -> Hold {
    Hold {
        key: request.key.clone(),
        owner: request.owner,
        shape: request.shape,
        token,
    }
}
