//! What every lock, guard and wait of one backend shares.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::backend::{Acquire, Backend, Hold, Release, Request};
use crate::error::Error;
use crate::guard::Guard;
use crate::held::Held;
use crate::lease::{Lease, State, Terms};
use crate::line::{Handed, Lines};
use crate::options::Options;
use crate::schedule::Schedule;
use crate::telemetry;
use crate::token::{FencingToken, RequestId};
use crate::token_source::TokenSource;
use crate::watchdog::{Chore, Order};

/// The first and the longest pause between attempts after an error. Chosen: a restarting service is not
/// flooded, and found again within a second.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LONGEST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) name: &'static str,
    pub(crate) options: Options,
    pub(crate) tokens: Option<Arc<dyn TokenSource>>,
    pub(crate) lines: Lines,
    pub(crate) schedule: Arc<Schedule>,
    orders: mpsc::UnboundedSender<Order>,
    numbers: AtomicU64,
}

impl Service {
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        options: Options,
        tokens: Option<Arc<dyn TokenSource>>,
        schedule: Arc<Schedule>,
        orders: mpsc::UnboundedSender<Order>,
    ) -> Self {
        Self {
            name: backend.name(),
            backend,
            options,
            tokens,
            lines: Lines::default(),
            schedule,
            orders,
            numbers: AtomicU64::new(0),
        }
    }

    /// Gives an order to the watchdog; without one, because its runtime has ended, the ttl frees what is
    /// left. Never waits and never panics.
    pub(crate) fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    pub(crate) fn chore(&self, chore: impl Future<Output = ()> + Send + 'static) {
        self.order(Order::Chore(Box::pin(chore)));
    }

    /// Runs `call` to its end: if whoever waits for it goes away, the watchdog carries it on.
    pub(crate) fn carried<T: Send + 'static>(
        self: &Arc<Self>,
        call: impl Future<Output = T> + Send + 'static,
        then: impl FnOnce(T) -> Option<Chore> + Send + 'static,
    ) -> Carried<T> {
        Carried {
            service: Arc::clone(self),
            call: Some((Box::pin(call), Box::new(then))),
        }
    }

    /// Gives up whatever `request` may have been granted or may wait for, repeating it while a grant of it
    /// could last.
    pub(crate) fn leave(self: &Arc<Self>, request: &Request) -> Chore {
        let (backend, request) = (Arc::clone(&self.backend), request.clone());
        let name = self.name;
        Box::pin(async move {
            let until = Instant::now() + request.ttl;
            let mut pause = RETRY_FIRST;
            while let Err(error) = backend.leave(&request.key, request.owner, request.shape).await {
                telemetry::failed(name, "leave", &error);
                if !error.is_transient() || Instant::now() >= until {
                    tracing::warn!(key = %request.key, %error, "a wait could not be left; its ttl ends it");
                    return;
                }
                rest(&mut pause).await;
            }
        })
    }

    /// The token of a grant: the backend's own, or a fresh one of the token source. If the asker goes away,
    /// the grant is given up.
    pub(crate) async fn token(
        self: &Arc<Self>,
        request: &Request,
        granted: FencingToken,
    ) -> Result<FencingToken, Error> {
        let Some(source) = self.tokens.clone() else {
            return Ok(granted);
        };
        let key = request.key.clone();
        let (service, left) = (Arc::clone(self), request.clone());
        let then = move |_| Some(service.leave(&left));
        self.carried(async move { source.mint(&key).await }, then).await
    }

    /// The guard of what was granted; `None` when it came after its own deadline.
    pub(crate) fn grant(
        self: &Arc<Self>,
        request: &Request,
        terms: Terms,
        sent: Instant,
        token: FencingToken,
    ) -> Option<Guard> {
        let Some(lease) = Lease::granted(terms, sent, Instant::now()) else {
            telemetry::late_grant(self.name, request.shape);
            return None;
        };
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let held = Arc::new(Held::new(number, self.name, request.clone(), token, lease));
        self.schedule.put(&held);
        self.lines.granted(request);
        Some(Guard::new(Arc::clone(self), held))
    }

    /// Ends a hold. Called once a guard, whatever became of it.
    pub(crate) async fn release(self: Arc<Self>, held: Arc<Held>) -> Result<Release, Error> {
        self.schedule.remove(held.number);
        held.update(|lease, now| lease.release(now));
        let was_held = held.observe() == State::Released;
        held.quiet().await;
        let hold = held.hold();
        let until = Instant::now() + held.kept();
        let nonce = RequestId::new();
        let heir = if was_held {
            self.lines.heir(held.request())
        } else {
            None
        };
        let sent = Instant::now();
        let released = if let Some(heir) = heir {
            let (released, answer) = self.backend.hand_over(&hold, nonce, heir.request()).await;
            if let Some(orphan) = self.lines.hand(&heir, Handed { sent, answer }) {
                self.order(Order::Chore(self.leave(&orphan)));
            }
            released
        } else {
            self.backend.release(&hold, nonce).await
        };
        self.lines.released(held.request(), sent.elapsed());
        telemetry::held(self.name, hold.shape, held.since().elapsed());
        match &released {
            Ok(Release::NotHeld) if was_held => {
                let Hold { key, token, .. } = &hold;
                tracing::warn!(%key, %token, "a lock was gone before it was released");
            }
            Ok(_) => {}
            Err(error) => {
                telemetry::failed(self.name, "release", error);
                self.order(Order::Chore(self.release_again(hold, nonce, until)));
            }
        }
        released
    }

    /// Repeats a release that failed, until the ttl has ended the hold anyway.
    fn release_again(self: &Arc<Self>, hold: Hold, nonce: RequestId, until: Instant) -> Chore {
        let (backend, name) = (Arc::clone(&self.backend), self.name);
        Box::pin(async move {
            let mut pause = RETRY_FIRST;
            loop {
                rest(&mut pause).await;
                let Err(error) = backend.release(&hold, nonce).await else {
                    return;
                };
                telemetry::failed(name, "release", &error);
                if !error.is_transient() || Instant::now() >= until {
                    tracing::warn!(key = %hold.key, %error, "a release failed; the ttl ends the hold");
                    return;
                }
            }
        })
    }

    /// Asks once. If the asker goes away, the question is carried to its end and its grant given up.
    pub(crate) async fn ask(self: &Arc<Self>, request: &Request) -> Handed {
        let (backend, asked) = (Arc::clone(&self.backend), request.clone());
        let (service, left) = (Arc::clone(self), request.clone());
        let sent = Instant::now();
        let call = async move { backend.acquire(&asked).await };
        let then = move |answer: Result<Acquire, Error>| {
            let settled = matches!(answer, Ok(Acquire::Held { .. })) && left.place.is_none();
            (!settled).then(|| service.leave(&left))
        };
        let answer = self.carried(call, then).await;
        Handed { sent, answer }
    }
}

/// Waits a little, and longer the next time.
pub(crate) async fn rest(pause: &mut Duration) {
    let part = rand::rng().random_range(0.75..=1.0);
    sleep(pause.mul_f64(part)).await;
    *pause = (*pause * 2).min(RETRY_LONGEST);
}

/// The first pause for [`rest`].
pub(crate) const fn first_rest() -> Duration {
    RETRY_FIRST
}

type Call<T> = BoxFuture<'static, T>;
type Then<T> = Box<dyn FnOnce(T) -> Option<Chore> + Send>;

/// A call to the backend that is never cut: dropped before its end, the watchdog finishes it and does what
/// follows from its answer.
pub(crate) struct Carried<T: Send + 'static> {
    service: Arc<Service>,
    call: Option<(Call<T>, Then<T>)>,
}

impl<T: Send + 'static> Future for Carried<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some((call, _)) = &mut self.call else {
            return Poll::Pending;
        };
        let answer = std::task::ready!(call.as_mut().poll(context));
        self.call = None;
        Poll::Ready(answer)
    }
}

impl<T: Send + 'static> Drop for Carried<T> {
    fn drop(&mut self) {
        if let Some((call, then)) = self.call.take() {
            self.service.chore(async move {
                if let Some(chore) = then(call.await) {
                    chore.await;
                }
            });
        }
    }
}
