//! Waiting for a lock: take a turn in the line of this process, ask, rest, ask again.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::backend::{Acquire, Request, Wake};
use crate::error::{Error, ErrorKind};
use crate::guard::Guard;
use crate::lease::Terms;
use crate::line::{Handed, News, Ticket};
use crate::service::{Service, first_rest, rest};
use crate::telemetry::{self, Waited};

/// How often a single try asks again after grants that came too late. Chosen: a stall is one answer, a ttl
/// shorter than the way to the service is every answer.
const LATE_TRIES: u32 = 3;

/// The shortest rest. Source: the resolution of the ttl, and of tokio's timer.
const SHORTEST_REST: Duration = Duration::from_millis(1);

/// A waiter without a place asks up to this long after a wake. Chosen: a service tells its listeners in a
/// fixed order, and this is longer than the order takes, so that everybody is first some day.
const WAKE_SPREAD: Duration = Duration::from_millis(2);

/// A waiter asks this many times while its place lasts, so that a slow answer does not cost the place.
const ASKS_A_PLACE: u32 = 3;

/// Asks once; nobody who waits in this process is overtaken.
pub(crate) async fn try_once(
    service: &Arc<Service>,
    request: &Request,
    terms: Terms,
) -> Result<Option<Guard>, Error> {
    let since = Instant::now();
    let tried = ask_once(service, request, terms).await;
    let how = match &tried {
        Ok(Some(_)) => Waited::Granted,
        Ok(None) => Waited::Held,
        Err(_) => Waited::Failed,
    };
    telemetry::waited(service.name, request.shape, how, since.elapsed());
    tried
}

async fn ask_once(service: &Arc<Service>, request: &Request, terms: Terms) -> Result<Option<Guard>, Error> {
    if service.lines.is_waited_for(request) {
        return Ok(None);
    }
    for _ in 0..LATE_TRIES {
        let Handed { sent, answer } = service.ask(request).await;
        match granted(service, request, answer).await {
            Ok(Acquire::Granted { token }) => {
                if let Some(guard) = service.grant(request, terms, sent, token) {
                    tracing::Span::current().record("token", token.get());
                    return Ok(Some(guard));
                }
                service.carried(service.leave(request), |()| None).await;
            }
            Ok(Acquire::Held { .. }) => return Ok(None),
            Err(error) => {
                telemetry::failed(service.name, "acquire", &error);
                service.chore(service.leave(request));
                return Err(error);
            }
        }
    }
    let context = format!(
        "{LATE_TRIES} grants came after their own deadline ({:?} after asking): lengthen the ttl",
        terms.trust()
    );
    Err(Error::new(ErrorKind::Unavailable, "acquire", context))
}

/// The answer, with the token that the holder will show to the database.
async fn granted(
    service: &Arc<Service>,
    request: &Request,
    answer: Result<Acquire, Error>,
) -> Result<Acquire, Error> {
    let Ok(Acquire::Granted { token }) = answer else {
        return answer;
    };
    let token = service.token(request, token).await?;
    Ok(Acquire::Granted { token })
}

/// Waits until the lock is granted or the deadline has come.
pub(crate) async fn until(
    service: &Arc<Service>,
    request: Request,
    terms: Terms,
    deadline: Instant,
) -> Result<Guard, Error> {
    let (since, shape) = (Instant::now(), request.shape);
    let mut turn = Turn::join(Arc::clone(service), request, terms);
    let waited = match timeout_at(deadline, turn.granted()).await {
        Ok(granted) => granted,
        Err(_) => Err(turn.timed_out(since.elapsed())),
    };
    let how = match &waited {
        Ok(_) => Waited::Granted,
        Err(error) if error.kind() == ErrorKind::Timeout => Waited::Timeout,
        Err(_) => Waited::Failed,
    };
    telemetry::waited(service.name, shape, how, since.elapsed());
    waited
}

/// One waiter's way through the line. Dropped at any point, it leaves nothing behind.
struct Turn {
    service: Arc<Service>,
    ticket: Arc<Ticket>,
    terms: Terms,
    wake: Option<Wake>,
    /// The service may have granted this without an answer, or keeps a place for it.
    known: bool,
    granted: bool,
    attempt: u64,
    pause: Duration,
    last_error: Option<Error>,
}

enum Next {
    Ask,
    Rest(Duration),
    Judge(Handed),
}

enum Verdict {
    Granted(Guard),
    Then(Next),
}

impl Turn {
    fn join(service: Arc<Service>, request: Request, terms: Terms) -> Self {
        Self {
            ticket: service.lines.join(request),
            service,
            terms,
            wake: None,
            known: false,
            granted: false,
            attempt: 0,
            pause: first_rest(),
            last_error: None,
        }
    }

    async fn granted(&mut self) -> Result<Guard, Error> {
        while !self.service.lines.is_head(&self.ticket) {
            self.ticket.told.notified().await;
        }
        let request = self.ticket.request();
        let mut next = Next::Ask;
        if self.service.lines.is_held_here(request) {
            telemetry::contended(self.service.name, request.shape);
            if request.place.is_none() {
                next = Next::Rest(self.rest_after(Duration::MAX));
            } else {
                self.listen().await;
            }
        }
        loop {
            next = match next {
                Next::Ask => Next::Judge(self.ask().await),
                Next::Rest(pause) => self.rest(pause).await.map_or(Next::Ask, Next::Judge),
                Next::Judge(handed) => match self.judge(handed).await? {
                    Verdict::Granted(guard) => return Ok(guard),
                    Verdict::Then(next) => next,
                },
            };
        }
    }

    async fn ask(&mut self) -> Handed {
        self.attempt += 1;
        tracing::Span::current().record("attempt", self.attempt);
        self.ticket.asks();
        self.service.ask(self.ticket.request()).await
    }

    async fn judge(&mut self, Handed { sent, answer }: Handed) -> Result<Verdict, Error> {
        let request = self.ticket.request();
        match granted(&self.service, request, answer).await {
            Ok(Acquire::Granted { token }) => {
                if let Some(guard) = self.service.grant(request, self.terms, sent, token) {
                    tracing::Span::current().record("token", token.get());
                    self.granted = true;
                    return Ok(Verdict::Granted(guard));
                }
                self.known = true;
                let left = self.service.carried(self.service.leave(request), |()| None);
                left.await;
                rest(&mut self.pause).await;
                Ok(Verdict::Then(Next::Ask))
            }
            Ok(Acquire::Held { retry_after }) => {
                if let News::Handed(handed) = self.ticket.news(Instant::now()) {
                    return Ok(Verdict::Then(Next::Judge(handed)));
                }
                if self.attempt == 1 && self.wake.is_none() {
                    telemetry::contended(self.service.name, request.shape);
                }
                self.known = request.place.is_some();
                self.pause = first_rest();
                let rest = self.rest_after(retry_after);
                let next = if self.listen().await {
                    Next::Ask
                } else {
                    Next::Rest(rest)
                };
                Ok(Verdict::Then(next))
            }
            Err(error) => {
                telemetry::failed(self.service.name, "acquire", &error);
                self.known = true;
                if !error.is_transient() {
                    return Err(error);
                }
                tracing::debug!(%error, "asking for a lock failed, trying again");
                self.last_error = Some(error);
                rest(&mut self.pause).await;
                Ok(Verdict::Then(Next::Ask))
            }
        }
    }

    /// Until when to rest: what remains of the hold in the way, at most the poll floor, and never so long
    /// that the place in the line is lost.
    fn rest_after(&self, retry_after: Duration) -> Duration {
        let part = rand::rng().random_range(0.75..=1.0);
        let floor = self.service.options.poll_floor.mul_f64(part);
        let place = self.ticket.request().place;
        let most = place.map_or(floor, |place| floor.min(place / ASKS_A_PLACE));
        retry_after.min(most).max(SHORTEST_REST)
    }

    /// Sees to a listener; whether one began just now, so that a release before it may have been missed.
    async fn listen(&mut self) -> bool {
        if self.wake.is_some() || !self.service.backend.capabilities().wakes {
            return false;
        }
        let request = self.ticket.request();
        if request.place.is_none() {
            self.wake = self.service.lines.wake(request);
            if self.wake.is_some() {
                return false;
            }
        }
        let listening = self
            .service
            .backend
            .listen(&request.key, request.owner, request.shape);
        match listening.await {
            Ok(wake) => self.wake = wake,
            Err(error) => {
                telemetry::failed(self.service.name, "listen", &error);
                tracing::debug!(%error, "no wakes for now, the lock is asked for again and again");
            }
        }
        self.wake.is_some()
    }

    /// Rests until an answer is handed over, or there is a reason to ask.
    async fn rest(&mut self, pause: Duration) -> Option<Handed> {
        let until = Instant::now() + pause;
        loop {
            let (listens, until) = match self.ticket.news(Instant::now()) {
                News::Handed(handed) => return Some(handed),
                News::Ask => return None,
                News::Quiet(at) => (false, at.map_or(until, |at| at.min(until))),
                News::None => (true, until),
            };
            let ticket = Arc::clone(&self.ticket);
            tokio::select! {
                () = ticket.told.notified() => {}
                () = woken(self.wake.as_mut()), if listens => {
                    if self.ticket.request().place.is_none() {
                        let part = rand::rng().random_range(0.0..=1.0);
                        sleep(WAKE_SPREAD.mul_f64(part)).await;
                    }
                    break;
                }
                () = sleep_until(until) => break,
            }
        }
        // A release in this process wakes and hands over at once: what was handed over comes first.
        match self.ticket.news(Instant::now()) {
            News::Handed(handed) => Some(handed),
            _ => None,
        }
    }

    fn timed_out(&mut self, waited: Duration) -> Error {
        let key = &self.ticket.request().key;
        let error = Error::new(
            ErrorKind::Timeout,
            "acquire",
            format!("the lock {key} was not granted within {waited:.1?}"),
        );
        match self.last_error.take() {
            Some(cause) => error.with_cause(cause),
            None => error,
        }
    }
}

async fn woken(wake: Option<&mut Wake>) {
    match wake {
        Some(wake) => wake.woken().await,
        None => std::future::pending().await,
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let wake = self.wake.take().filter(|_| self.ticket.request().place.is_none());
        let unread = self.service.lines.part(&self.ticket, self.granted, wake);
        if !self.granted && (self.known || unread) {
            self.service.chore(self.service.leave(self.ticket.request()));
        }
    }
}
