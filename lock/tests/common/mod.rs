//! A lock service with faults on demand, around the in-process one.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use outbox_lock::{
    Acquire, Backend, Capabilities, Error, ErrorKind, FencingToken, Hold, Key, Lock, Locks, LocksBuilder,
    MemoryBackend, Owner, Release, Remint, Renew, Request, RequestId, Shape, Wake,
};
use tokio::time::sleep;

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const S: Duration = Duration::from_secs(1);

/// What happens to one kind of call.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fault {
    /// How long the request is on its way.
    pub(crate) before: Duration,
    /// How long the answer is on its way.
    pub(crate) after: Duration,
    /// The request does not arrive.
    pub(crate) lost: bool,
    /// The answer does not arrive.
    pub(crate) swallowed: bool,
    /// Neither an answer nor an error comes.
    pub(crate) hangs: bool,
}

/// The in-process service with faults. Clones share service and faults.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faulty {
    pub(crate) service: MemoryBackend,
    faults: Arc<Mutex<HashMap<&'static str, Fault>>>,
    calls: Arc<Mutex<HashMap<&'static str, u64>>>,
    deaf: Arc<AtomicBool>,
    renewed: Arc<AtomicU64>,
}

impl Faulty {
    pub(crate) fn set(&self, operation: &'static str, fault: Fault) {
        self.faults.lock().unwrap().insert(operation, fault);
    }

    pub(crate) fn heal(&self) {
        self.faults.lock().unwrap().clear();
    }

    /// Wakes do not arrive any more.
    pub(crate) fn deafen(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    pub(crate) fn calls(&self, operation: &str) -> u64 {
        self.calls.lock().unwrap().get(operation).copied().unwrap_or(0)
    }

    /// How many holds were named in renewals.
    pub(crate) fn renewed(&self) -> u64 {
        self.renewed.load(Ordering::SeqCst)
    }

    pub(crate) fn builder(&self) -> LocksBuilder {
        Locks::builder(Arc::new(self.clone()))
    }

    pub(crate) async fn locks(&self) -> Locks {
        self.builder().build().await.unwrap()
    }

    /// Whether anybody may have the key now.
    pub(crate) async fn is_free(&self, key: &str) -> bool {
        let request = Request {
            key: Key::new(key).unwrap(),
            owner: Owner::new(),
            shape: Shape::Exclusive,
            ttl: S,
            place: None,
        };
        let free = matches!(
            self.service.acquire(&request).await.unwrap(),
            Acquire::Granted { .. }
        );
        let Request {
            key, owner, shape, ..
        } = request;
        self.service.leave(&key, owner, shape).await.unwrap();
        free
    }

    /// Another way to the same service, with faults of its own.
    pub(crate) fn beside(&self) -> Self {
        Self {
            service: self.service.clone(),
            ..Self::default()
        }
    }

    /// Ends this owner's hold behind its back.
    pub(crate) async fn steal(&self, key: &Key, owner: Owner, shape: Shape) {
        self.service.leave(key, owner, shape).await.unwrap();
    }

    async fn through<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        *self.calls.lock().unwrap().entry(operation).or_default() += 1;
        let fault = self
            .faults
            .lock()
            .unwrap()
            .get(operation)
            .copied()
            .unwrap_or_default();
        let unavailable = |context| Err(Error::new(ErrorKind::Unavailable, operation, context));
        if fault.hangs {
            std::future::pending::<()>().await;
        }
        if !fault.before.is_zero() {
            sleep(fault.before).await;
        }
        if fault.lost {
            return unavailable("the request did not arrive");
        }
        let answer = call.await;
        if !fault.after.is_zero() {
            sleep(fault.after).await;
        }
        if fault.swallowed {
            return unavailable("the answer did not arrive");
        }
        answer
    }
}

#[async_trait]
impl Backend for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn capabilities(&self) -> Capabilities {
        self.service.capabilities()
    }

    async fn check(&self) -> Result<Vec<String>, Error> {
        self.service.check().await
    }

    async fn acquire(&self, request: &Request) -> Result<Acquire, Error> {
        self.through("acquire", self.service.acquire(request)).await
    }

    async fn renew(&self, holds: &[(Hold, Duration)]) -> Vec<Result<Renew, Error>> {
        self.renewed.fetch_add(holds.len() as u64, Ordering::SeqCst);
        let call = async { Ok(self.service.renew(holds).await) };
        match self.through("renew", call).await {
            Ok(answers) => answers,
            Err(_) => holds
                .iter()
                .map(|_| Err(Error::new(ErrorKind::Unavailable, "renew", "no answer")))
                .collect(),
        }
    }

    async fn release(&self, hold: &Hold, request: RequestId) -> Result<Release, Error> {
        self.through("release", self.service.release(hold, request)).await
    }

    async fn hand_over(
        &self,
        hold: &Hold,
        request: RequestId,
        next: &Request,
    ) -> (Result<Release, Error>, Result<Acquire, Error>) {
        let call = async { Ok(self.service.hand_over(hold, request, next).await) };
        match self.through("release", call).await {
            Ok(answers) => answers,
            Err(error) => {
                let lost = Error::new(error.kind(), "acquire", "no answer to a hand-over");
                (Err(error), Err(lost))
            }
        }
    }

    async fn leave(&self, key: &Key, owner: Owner, shape: Shape) -> Result<(), Error> {
        self.through("leave", self.service.leave(key, owner, shape)).await
    }

    async fn listen(&self, key: &Key, owner: Owner, shape: Shape) -> Result<Option<Wake>, Error> {
        let call = self.service.listen(key, owner, shape);
        let wake = self.through("listen", call).await?;
        Ok(wake.filter(|_| !self.deaf.load(Ordering::SeqCst)))
    }

    async fn remint(&self, hold: &Hold, above: FencingToken) -> Result<Remint, Error> {
        self.through("remint", self.service.remint(hold, above)).await
    }
}

/// A lock service that knows exclusive locks alone.
#[derive(Debug)]
pub(crate) struct Plain;

#[async_trait]
impl Backend for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_write: false,
            permits: false,
            fair: false,
            wakes: false,
            durable: false,
        }
    }

    async fn check(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    async fn acquire(&self, _: &Request) -> Result<Acquire, Error> {
        Err(plain())
    }

    async fn renew(&self, holds: &[(Hold, Duration)]) -> Vec<Result<Renew, Error>> {
        holds.iter().map(|_| Err(plain())).collect()
    }

    async fn release(&self, _: &Hold, _: RequestId) -> Result<Release, Error> {
        Err(plain())
    }

    async fn leave(&self, _: &Key, _: Owner, _: Shape) -> Result<(), Error> {
        Ok(())
    }

    async fn listen(&self, _: &Key, _: Owner, _: Shape) -> Result<Option<Wake>, Error> {
        Ok(None)
    }

    async fn remint(&self, _: &Hold, _: FencingToken) -> Result<Remint, Error> {
        Err(plain())
    }
}

fn plain() -> Error {
    Error::new(ErrorKind::Unavailable, "acquire", "it keeps nothing")
}

/// The lock of this name.
pub(crate) fn lock(locks: &Locks, key: &str) -> Lock {
    locks.lock(key).unwrap()
}
