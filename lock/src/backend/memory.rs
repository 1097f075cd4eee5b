//! The reference: a lock service inside one process.
//!
//! It offers everything the contract names except durability, keeps the time of tokio's clock (so that a
//! test with paused time works), and nothing outlives the process. Use it in tests, and where one process
//! is all there is.

mod line;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use self::state::State;
use super::{Acquire, Backend, Capabilities, Hold, Release, Remint, Renew, Request, Shape, Wake};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::token::{FencingToken, Owner, RequestId};

/// A lock service in this process. Clones are connections to the same service.
#[derive(Debug, Clone, Default)]
pub struct MemoryBackend {
    state: Arc<Mutex<State>>,
}

impl MemoryBackend {
    /// A service that holds nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Nothing panics while the state is locked, so a poisoned lock holds a sound state.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn valid(request: &Request) -> Result<(), Error> {
    let refused = if request.ttl < Duration::from_millis(1) {
        "a lock was asked for with a ttl below 1 ms: lengthen the ttl"
    } else if request.shape == (Shape::Permit { limit: 0 }) {
        "a semaphore of no permits grants nothing: raise its limit"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Invalid, "acquire", refused))
}

/// Ends a listener when the waiter drops its [`Wake`].
struct Interest {
    state: Arc<Mutex<State>>,
    key: Key,
    shape: Shape,
    number: u64,
}

impl Drop for Interest {
    fn drop(&mut self) {
        lock(&self.state).unlisten(&self.key, self.shape, self.number);
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_write: true,
            permits: true,
            fair: true,
            wakes: true,
            durable: false,
        }
    }

    async fn check(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    async fn acquire(&self, request: &Request) -> Result<Acquire, Error> {
        valid(request)?;
        Ok(self.state().acquire(request, Instant::now()))
    }

    async fn renew(&self, holds: &[(Hold, Duration)]) -> Vec<Result<Renew, Error>> {
        let mut state = self.state();
        let now = Instant::now();
        let answer = |(hold, ttl): &(Hold, Duration)| Ok(state.renew(hold, *ttl, now));
        holds.iter().map(answer).collect()
    }

    async fn release(&self, hold: &Hold, request: RequestId) -> Result<Release, Error> {
        Ok(self.state().release(hold, request, Instant::now()))
    }

    async fn hand_over(
        &self,
        hold: &Hold,
        request: RequestId,
        next: &Request,
    ) -> (Result<Release, Error>, Result<Acquire, Error>) {
        if let Err(refused) = valid(next) {
            return (self.release(hold, request).await, Err(refused));
        }
        let (released, answer) = self.state().hand_over(hold, request, next, Instant::now());
        (Ok(released), Ok(answer))
    }

    async fn leave(&self, key: &Key, owner: Owner, shape: Shape) -> Result<(), Error> {
        self.state().leave(key, owner, shape, Instant::now());
        Ok(())
    }

    async fn listen(&self, key: &Key, owner: Owner, shape: Shape) -> Result<Option<Wake>, Error> {
        let (number, count) = self.state().listen(key, owner, shape);
        let interest = Interest {
            state: Arc::clone(&self.state),
            key: key.clone(),
            shape,
            number,
        };
        Ok(Some(Wake::new(count, interest)))
    }

    async fn remint(&self, hold: &Hold, above: FencingToken) -> Result<Remint, Error> {
        if above.get() == i64::MAX {
            let refused = "no token is above the highest one: the fence row of this resource was damaged";
            return Err(Error::new(ErrorKind::Invalid, "remint", refused));
        }
        Ok(self.state().remint(hold, above, Instant::now()))
    }
}
