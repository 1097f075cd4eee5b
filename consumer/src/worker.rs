//! One attempt at one message: inbox row, handler, follow-up messages, COMMIT, ack.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use diesel::QueryResult;
use diesel::result::Error as DieselError;
use futures::FutureExt;
use outbox::Outbox;
use outbox_broker::crash_point::{self, CrashPoint};
use outbox_broker::{Message, Verdict};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::builder::{Config, OrderedFailure};
use crate::connection::{Inserted, is_busy};
use crate::dead_letter::{self, bury};
use crate::error::chain;
use crate::handler::Kind;
use crate::inbox::Lent;
use crate::statement::{Sql, Value};
use crate::status::{Count, Status};
use crate::step::{Action, Attempts, Burial, Content, Inbox as Found, Ran, step};
use crate::work::Work;
use crate::{Connection, Context, Handler, Inbox};

/// How long BEGIN or COMMIT may take. Chosen: above the busy_timeout of SQLite and a checkpoint.
const STATEMENT: Duration = Duration::from_secs(30);
/// The first wait of an attempt that is put off, doubled up to [`DEFER_MOST`].
const DEFER_FIRST: Duration = Duration::from_millis(50);
/// The longest wait of an attempt that is put off.
const DEFER_MOST: Duration = Duration::from_secs(5);
/// Delays from here on are left to the broker if it can hold a message back; shorter ones are not worth a
/// round trip.
const NACK_FROM: Duration = Duration::from_secs(1);
/// How long asking the server to stop a statement may take.
const CANCEL: Duration = Duration::from_secs(2);
/// How long taking back a counted attempt may delay a shutdown.
const UNCOUNT: Duration = Duration::from_secs(1);

/// What the loop does with the work after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is settled, or left to the broker.
    Finish,
    /// It stays here and is tried again after the delay.
    Hold(Duration),
}

/// Everything an attempt needs; shared by all lanes.
pub(crate) struct Worker<C: Connection> {
    pub(crate) config: Arc<Config>,
    pub(crate) inbox: Inbox<C>,
    pub(crate) handler: Arc<dyn Handler<C>>,
    pub(crate) outbox: Option<Outbox>,
    pub(crate) status: Status,
    pub(crate) shutdown: CancellationToken,
    pub(crate) abandon: CancellationToken,
}

/// How the handler's attempt ended, before the decision.
struct Ended {
    ran: Ran,
    error: Option<String>,
    follow_ups: Vec<Message>,
    /// The handler was cut off, perhaps in the middle of a statement: its connection is only good to close.
    cut: bool,
}

impl<C: Connection> Worker<C> {
    /// Makes one attempt at `work`.
    pub(crate) async fn attempt(&self, work: &Work) -> Next {
        crash_point::reach(CrashPoint::ReceivedNotBegun);
        if let Some(next) = self.recall(work).await {
            return next;
        }
        let content = work.content_at(Utc::now(), self.config.expiry);
        let (lent, found) = self.begin(work).await;
        let attempts = self.attempts(work);
        match (step(content, found, Ran::NotYet, attempts), lent) {
            (Action::Run, Some(lent)) => self.run(work, content, attempts, lent).await,
            (Action::Bury(burial), Some(lent)) => self.bury_in(work, burial, None, lent).await,
            (Action::Ack, Some(lent)) => self.ack(work, content, found, lent).await,
            (_, lent) => {
                drop(lent);
                self.defer(work)
            }
        }
    }

    fn attempts(&self, work: &Work) -> Attempts {
        let failed = work.progress().failed;
        Attempts {
            failed,
            limit: self.config.retry.attempts(),
            delay: self.config.retry.delay(failed.saturating_add(1), rand::random()),
        }
    }

    /// Lends a connection and begins the transaction with the inbox row.
    async fn begin(&self, work: &Work) -> (Option<Lent<C>>, Found) {
        let mut lent = match self.inbox.lend().await {
            Ok(lent) => lent,
            Err(error) => {
                self.trouble("connect", &error);
                return (None, Found::Unavailable);
            }
        };
        let entry = work.entry(&self.config);
        let begun = timeout(STATEMENT, lent.begin_with(&entry, self.config.in_flight_wait)).await;
        match begun {
            Ok(Ok(Inserted::Fresh)) => (Some(lent), Found::Fresh),
            Ok(Ok(Inserted::Duplicate)) => (Some(lent), Found::Duplicate),
            // A dead letter handed out again waits in the table for those before it, not behind itself.
            Ok(Ok(Inserted::Behind)) if work.redrive.is_some() => (None, Found::InFlight),
            Ok(Ok(Inserted::Behind)) => (Some(lent), Found::Behind),
            Ok(Err(error)) if is_busy(&error) => {
                self.roll_back(lent).await;
                (None, Found::InFlight)
            }
            Ok(Err(error)) => {
                self.trouble("begin", &error);
                (None, Found::Unavailable)
            }
            Err(late) => {
                self.trouble("begin", &late);
                (None, Found::Unavailable)
            }
        }
    }

    async fn run(&self, work: &Work, content: Content, attempts: Attempts, mut lent: Lent<C>) -> Next {
        let Ok(message) = &work.content else {
            return Next::Finish;
        };
        let mut ended = self.call(work, message, attempts, &mut lent).await;
        if ended.ran == Ran::Done {
            match self
                .commit(work, std::mem::take(&mut ended.follow_ups), &mut lent)
                .await
            {
                Ok(()) => {
                    lent.give_back();
                    crash_point::reach(CrashPoint::CommittedNotAcked);
                    self.status.count(&self.config.name, Count::Processed);
                    work.settle(&self.config, Verdict::Ack).await;
                    return Next::Finish;
                }
                Err(error) => {
                    ended.ran = Ran::Failed { asked: None };
                    ended.error = Some(error);
                }
            }
        }
        match step(content, Found::Fresh, ended.ran, attempts) {
            Action::Retry(delay) => {
                self.failed(work, message, attempts, &ended);
                self.end(lent, ended.cut).await;
                self.again(work, attempts, delay, ended.error).await
            }
            Action::Bury(burial) => {
                self.failed(work, message, attempts, &ended);
                self.end(lent, ended.cut).await;
                self.bury_again(work, burial, ended.error).await
            }
            _ => {
                // Stopped: nothing is counted.
                self.end(lent, ended.cut).await;
                self.leave(work).await
            }
        }
    }

    /// Calls the handler: bounded in time, panics caught, given up when the grace of a shutdown is over.
    async fn call(&self, work: &Work, message: &Message, attempts: Attempts, lent: &mut Lent<C>) -> Ended {
        let context = Context::new(
            message,
            &self.config.name,
            &work.dedup_key,
            attempts.failed.saturating_add(1),
            &self.shutdown,
        );
        let mut handling = self.handler.handle(&mut **lent, &context);
        let handled = {
            let caught = AssertUnwindSafe(handling.as_mut()).catch_unwind();
            tokio::select! {
                biased;
                handled = timeout(self.config.handler_timeout, caught) => Some(handled),
                () = self.abandon.cancelled() => None,
            }
        };
        // Dropping a handler inside a SQLite statement waits for the statement, and panics where the runtime
        // cannot wait (diesel-async's wrapper); the connection is closed in either case.
        if std::panic::catch_unwind(AssertUnwindSafe(move || drop(handling))).is_err() {
            tracing::debug!(
                consumer = self.config.name,
                "a handler was cut off inside a statement"
            );
        }
        let failed = Ran::Failed { asked: None };
        let cut = !matches!(handled, Some(Ok(Ok(_))));
        let (ran, error) = match handled {
            None => (Ran::Stopped, None),
            Some(Err(_late)) => (
                failed,
                Some(format!(
                    "the handler took longer than {:?}",
                    self.config.handler_timeout
                )),
            ),
            Some(Ok(Err(panic))) => (
                failed,
                Some(format!("the handler panicked: {}", panic_text(&*panic))),
            ),
            Some(Ok(Ok(Ok(())))) => (Ran::Done, None),
            Some(Ok(Ok(Err(error)))) => {
                let ran = match error.kind {
                    Kind::Dead => Ran::Refused,
                    // A handler that gives up because of the shutdown has not failed.
                    Kind::Retry { .. } if self.shutdown.is_cancelled() => Ran::Stopped,
                    Kind::Retry { asked } => Ran::Failed { asked },
                };
                (ran, Some(chain(error.cause())))
            }
        };
        Ended {
            ran,
            error,
            follow_ups: context.into_follow_ups(),
            cut,
        }
    }

    /// Writes what belongs to the effects, then commits.
    async fn commit(&self, work: &Work, follow_ups: Vec<Message>, lent: &mut Lent<C>) -> Result<(), String> {
        if !follow_ups.is_empty() {
            let Some(outbox) = &self.outbox else {
                return Err(
                    "the handler left a follow-up message, but the consumer was built without an outbox"
                        .to_owned(),
                );
            };
            if !lent.is_at_first_level() {
                return Err(crate::connection::tampered().to_string());
            }
            outbox
                .enqueue_all(&mut **lent, follow_ups)
                .await
                .map_err(|error| chain(&error))?;
        }
        let text = |error: DieselError| format!("the transaction was not committed: {error}");
        if work.progress().remembered {
            lent.change(self.of(work, FORGET)).await.map_err(text)?;
        }
        if let Some(seq) = work.redrive {
            let sql = Sql::new(dead_letter::SETTLE)
                .bind(self.config.name.as_str())
                .bind(seq);
            lent.change(sql).await.map_err(text)?;
        }
        crash_point::reach(CrashPoint::HandledNotCommitted);
        match timeout(STATEMENT, lent.commit()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(text(error)),
            Err(_late) => Err(
                "COMMIT was not answered in time; the next attempt finds out what became of it".to_owned(),
            ),
        }
    }

    fn failed(&self, work: &Work, message: &Message, attempts: Attempts, ended: &Ended) {
        let error = ended.error.as_deref().unwrap_or("no error was given");
        tracing::warn!(
            consumer = self.config.name, topic = self.config.topic, message = %message.id,
            attempt = attempts.failed.saturating_add(1), error, "an attempt failed"
        );
        self.status.count(&self.config.name, Count::Failed);
        self.status.error(error.to_owned());
        let mut progress = work.progress();
        progress.failed = progress.failed.saturating_add(1);
        progress.counted = false;
        progress.deferred = 0;
    }

    /// Keeps the failed attempt for other processes and arranges the next one.
    async fn again(&self, work: &Work, attempts: Attempts, delay: Duration, error: Option<String>) -> Next {
        let failed = attempts.failed.saturating_add(1);
        let not_before = Utc::now().timestamp_micros().saturating_add(micros(delay));
        let sql = Sql::new(REMEMBER)
            .bind(self.config.name.as_str())
            .bind(work.dedup_key.as_str())
            .bind(i64::from(failed))
            .bind(error.map(dead_letter::printable))
            .bind(not_before);
        match self.alone(sql).await {
            Ok(_) => work.progress().remembered = true,
            // The count lives on in this process; only a crash now would forget this attempt.
            Err(text) => tracing::warn!(
                consumer = self.config.name,
                error = text,
                "an attempt could not be recorded"
            ),
        }
        if work.redrive.is_none()
            && !self.config.mode.is_ordered()
            && self.config.nack_delays
            && delay >= NACK_FROM
        {
            work.settle(&self.config, Verdict::Nack { delay }).await;
            return Next::Finish;
        }
        Next::Hold(delay)
    }

    /// Commits the verdict in a transaction of its own, after the handler's was rolled back.
    async fn bury_again(&self, work: &Work, burial: Burial, error: Option<String>) -> Next {
        let (lent, found) = self.begin(work).await;
        match (found, lent) {
            (Found::Fresh | Found::Behind, Some(lent)) => self.bury_in(work, burial, error, lent).await,
            (Found::Duplicate, Some(lent)) => self.ack(work, Content::Message, found, lent).await,
            _ => self.defer_burial(work),
        }
    }

    /// The verdict could not be written: the last attempt is repeated rather than lost.
    fn defer_burial(&self, work: &Work) -> Next {
        let mut progress = work.progress();
        progress.failed = progress.failed.saturating_sub(1);
        drop(progress);
        self.defer(work)
    }

    /// Commits inbox mark and dead letter in the open transaction, then acks.
    async fn bury_in(&self, work: &Work, burial: Burial, error: Option<String>, mut lent: Lent<C>) -> Next {
        let attempts = work.progress().failed;
        let error = error.or_else(|| match &work.content {
            Err(malformed) => Some(malformed.reason.clone()),
            Ok(_) => None,
        });
        let verdict = dead_letter::Verdict {
            consumer: &self.config.name,
            dedup_key: &work.dedup_key,
            topic: &self.config.topic,
            content: work.content.as_ref(),
            burial,
            error,
            attempts,
            blocks_key: burial != Burial::Expired
                && work.ordering_key(&self.config).is_some()
                && self.config.ordered_failure == OrderedFailure::BlockKey,
        };
        let written = async {
            bury(&mut *lent, &verdict).await?;
            crash_point::reach(CrashPoint::HandledNotCommitted);
            lent.commit().await
        };
        match timeout(STATEMENT, written).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.trouble("bury", &error);
                return self.defer(work);
            }
            Err(late) => {
                self.trouble("bury", &late);
                return self.defer(work);
            }
        }
        lent.give_back();
        crash_point::reach(CrashPoint::CommittedNotAcked);
        tracing::warn!(
            consumer = self.config.name, topic = self.config.topic, key = %work.dedup_key,
            reason = burial.as_str(), error = verdict.error.as_deref(), "a message became a dead letter"
        );
        self.status.count(&self.config.name, Count::Dead);
        work.settle(&self.config, Verdict::Ack).await;
        Next::Finish
    }

    /// Nothing to write: ends the transaction and acks.
    async fn ack(&self, work: &Work, content: Content, found: Found, mut lent: Lent<C>) -> Next {
        if let Err(error) = lent.rollback().await {
            self.trouble("rollback", &error);
            return self.defer(work);
        }
        if let Some(seq) = work.redrive {
            let sql = Sql::new(dead_letter::SETTLE)
                .bind(self.config.name.as_str())
                .bind(seq);
            if let Err(error) = lent.change(sql).await {
                self.trouble("redrive", &error);
                return self.defer(work);
            }
        }
        lent.give_back();
        let what = match (content, found) {
            (Content::Expired { .. }, Found::Fresh | Found::Behind) => Count::Expired,
            _ => Count::Duplicate,
        };
        self.status.count(&self.config.name, what);
        work.settle(&self.config, Verdict::Ack).await;
        Next::Finish
    }

    /// Tries again soon and counts nothing.
    fn defer(&self, work: &Work) -> Next {
        self.status.count(&self.config.name, Count::Deferred);
        let mut progress = work.progress();
        let delay = DEFER_FIRST
            .saturating_mul(1 << progress.deferred.min(10))
            .min(DEFER_MOST);
        progress.deferred = progress.deferred.saturating_add(1);
        let roll: f64 = rand::random();
        Next::Hold(delay + delay.mul_f64(0.5 * roll))
    }

    /// Leaves the delivery to the broker; an attempt that was counted when it began is taken back.
    async fn leave(&self, work: &Work) -> Next {
        if work.progress().counted {
            let sql = self.of(work, UNCOUNT_ATTEMPT);
            if !matches!(timeout(UNCOUNT, self.alone(sql)).await, Ok(Ok(_))) {
                tracing::debug!(consumer = self.config.name, "a stopped attempt stays counted");
            }
        }
        Next::Finish
    }

    /// For a message that came before: was it done, must it wait, how often was it begun? Counts the
    /// attempt about to begin, so that a handler which takes its process down is counted too.
    async fn recall(&self, work: &Work) -> Option<Next> {
        if work.deliveries <= 1 || work.content.is_err() || work.progress().recalled {
            return None;
        }
        match self.recalled(work).await {
            Ok(Recalled::Begin { failed }) => {
                let mut progress = work.progress();
                progress.recalled = true;
                progress.counted = true;
                progress.remembered = true;
                progress.failed = failed;
                None
            }
            // The insert finds the row and acks; one path for all duplicates.
            Ok(Recalled::Done) => {
                work.progress().recalled = true;
                None
            }
            Ok(Recalled::NotYet(delay)) => Some(Next::Hold(delay)),
            Err(text) => {
                tracing::warn!(
                    consumer = self.config.name,
                    error = text,
                    "the attempts of a redelivery could not be read"
                );
                self.status.error(text);
                Some(self.defer(work))
            }
        }
    }

    async fn recalled(&self, work: &Work) -> Result<Recalled, String> {
        let mut lent = self.inbox.lend().await.map_err(|error| chain(&error))?;
        let text = |error: DieselError| error.to_string();
        let (name, key) = (self.config.name.as_str(), work.dedup_key.as_str());
        let sql = Sql::new(RECALL).bind(name).bind(key).bind(name).bind(key);
        let not_before = lent.numbers(sql).await.map_err(text)?;
        let recalled = match not_before.as_slice() {
            [done, _] if *done > 0 => Recalled::Done,
            [_, not_before] if *not_before > Utc::now().timestamp_micros() => {
                let wait = u64::try_from(not_before - Utc::now().timestamp_micros()).unwrap_or(0);
                Recalled::NotYet(Duration::from_micros(wait))
            }
            _ => {
                let begun = lent
                    .numbers(Sql::new(COUNT_ATTEMPT).bind(name).bind(key))
                    .await
                    .map_err(text)?;
                let begun = begun.first().copied().unwrap_or(1);
                Recalled::Begin {
                    failed: u32::try_from(begun - 1).unwrap_or(u32::MAX),
                }
            }
        };
        lent.give_back();
        Ok(recalled)
    }

    /// Runs one statement on a connection of its own.
    async fn alone(&self, sql: Sql) -> Result<usize, String> {
        let mut lent = self.inbox.lend().await.map_err(|error| chain(&error))?;
        let changed: QueryResult<usize> = lent.change(sql).await;
        let changed = changed.map_err(|error| error.to_string())?;
        lent.give_back();
        Ok(changed)
    }

    async fn end(&self, mut lent: Lent<C>, cut: bool) {
        if cut {
            // In vain or in time, the connection closes: it is dropped, not given back.
            let _ = timeout(CANCEL, lent.cut_off()).await;
        } else {
            self.roll_back(lent).await;
        }
    }

    /// Ends the transaction and returns the connection; one that cannot be asked any more is closed.
    async fn roll_back(&self, mut lent: Lent<C>) {
        if let Ok(Ok(())) = timeout(STATEMENT, lent.rollback()).await {
            lent.give_back();
        }
    }

    fn of(&self, work: &Work, text: &'static str) -> Sql {
        Sql::new(text)
            .bind(self.config.name.as_str())
            .bind(Value::Text(work.dedup_key.clone()))
    }

    fn trouble(&self, operation: &'static str, error: &(dyn std::error::Error + 'static)) {
        let text = format!("{operation}: {}", chain(error));
        tracing::warn!(
            consumer = self.config.name,
            topic = self.config.topic,
            error = text,
            "the inbox has trouble"
        );
        self.status.error(text);
    }
}

enum Recalled {
    /// Not done: `failed` attempts were begun before the one that is now counted.
    Begin {
        failed: u32,
    },
    Done,
    NotYet(Duration),
}

const RECALL: &str = "SELECT number FROM (\
SELECT 0 AS place, count(*) AS number FROM consumer_inbox WHERE consumer = ? AND dedup_key = ? \
UNION ALL \
SELECT 1, coalesce(max(not_before_us), 0) FROM consumer_attempt WHERE consumer = ? AND dedup_key = ?\
) known ORDER BY place";
const COUNT_ATTEMPT: &str = "INSERT INTO consumer_attempt (consumer, dedup_key, attempts) VALUES (?, ?, 1) \
ON CONFLICT (consumer, dedup_key) DO UPDATE SET attempts = consumer_attempt.attempts + 1 RETURNING attempts AS number";
const UNCOUNT_ATTEMPT: &str =
    "UPDATE consumer_attempt SET attempts = attempts - 1 WHERE consumer = ? AND dedup_key = ?";
const REMEMBER: &str = "INSERT INTO consumer_attempt (consumer, dedup_key, attempts, last_error, not_before_us) \
VALUES (?, ?, ?, ?, ?) ON CONFLICT (consumer, dedup_key) DO UPDATE SET attempts = excluded.attempts, \
last_error = excluded.last_error, not_before_us = excluded.not_before_us, updated_at_us = excluded.updated_at_us";
const FORGET: &str = "DELETE FROM consumer_attempt WHERE consumer = ? AND dedup_key = ?";

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no text".to_owned())
}
