//! The tasks of a shard: one database call or publish call each, and what it came back with.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use outbox_broker::crash_point::{self, CrashPoint};
use outbox_broker::{Message, Outcome};
use tokio::time::Instant;

use super::Context;
use crate::Error;
use crate::record::{Claim, ClaimRequest, Lease, Parked, ParkedSettlement, Position, Settlement};
use crate::store::Settled;

/// What a task came back with.
pub(super) enum Done {
    Claimed(Read),
    Published(Returned),
    Wrote(Wrote),
    Due(Result<(Vec<Parked>, Option<Duration>), Error>),
    Begun(Result<Vec<Parked>, (Error, Vec<Parked>)>),
    Keys {
        rows: Result<Vec<(String, u64)>, Error>,
        started: u64,
    },
}

/// A claim to make.
pub(super) struct ClaimCall {
    pub(super) lease: Lease,
    pub(super) above: Position,
    pub(super) limit: usize,
    pub(super) max_bytes: usize,
    pub(super) missing: Vec<(Position, Position)>,
    /// Rows in memory when it was sent; `None`: it reads nothing that can be in memory.
    pub(super) known: Option<HashSet<Position>>,
    /// It compares the whole table with memory.
    pub(super) sweep: bool,
    /// Positions among which to look for rows of open transactions.
    pub(super) look: Option<(Position, Position)>,
}

/// A claim that was made.
pub(super) struct Read {
    pub(super) call: ClaimCall,
    pub(super) result: Result<Claim, Error>,
    /// Positions that had a row, committed or not; `None`: not asked, or no answer.
    pub(super) present: Option<BTreeSet<Position>>,
    pub(super) started: Instant,
}

pub(super) async fn claim(ctx: Arc<Context>, call: ClaimCall) -> Done {
    crash_point::reach(CrashPoint::CommittedNotClaimed);
    let started = Instant::now();
    let request = ClaimRequest {
        lease: &call.lease,
        above: call.above,
        limit: call.limit,
        max_bytes: call.max_bytes,
        missing: &call.missing,
    };
    let result = ctx.store.claim(request).await;
    ctx.meters.claim_seconds.record(started.elapsed().as_secs_f64());
    if result.as_ref().is_ok_and(|claim| !claim.records.is_empty()) {
        crash_point::reach(CrashPoint::ClaimedNotPublished);
    }
    let mut present = None;
    if let (Some((first, last)), Ok(_)) = (call.look, &result) {
        match ctx.store.present(&call.lease, first, last).await {
            Ok(found) => present = found.map(BTreeSet::from_iter),
            Err(error) => {
                tracing::debug!(shard = %call.lease.shard, %error, "no dirty read; gaps are kept");
            }
        }
    }
    Done::Claimed(Read {
        call,
        result,
        present,
        started,
    })
}

/// A publish call that ended.
pub(super) struct Returned {
    pub(super) call: u64,
    pub(super) answer: Answer,
}

/// How a publish call ended.
pub(super) enum Answer {
    /// Every message was accepted; they are dropped already.
    AllAccepted,
    /// At least one was not, or the messages are needed.
    Mixed {
        messages: Vec<Message>,
        outcomes: Vec<Outcome>,
    },
    /// The lease's deadline passed first: nothing was handed to the broker.
    NotStarted(Vec<Message>),
}

/// Publishes `messages` unless `deadline` has passed. `keep`: return the messages even if all is well.
pub(super) async fn publish(
    ctx: Arc<Context>,
    call: u64,
    messages: Vec<Message>,
    deadline: Instant,
    keep: bool,
) -> Done {
    let started = Instant::now();
    if started >= deadline {
        return Done::Published(Returned {
            call,
            answer: Answer::NotStarted(messages),
        });
    }
    let outcomes = ctx.publisher.publish(&messages).await;
    ctx.meters.sent(&messages, &outcomes, started.elapsed());
    let all = outcomes.len() == messages.len() && outcomes.iter().all(Result::is_ok);
    let answer = if all && !keep {
        Answer::AllAccepted
    } else {
        Answer::Mixed { messages, outcomes }
    };
    Done::Published(Returned { call, answer })
}

/// A settle that ended.
pub(super) struct Wrote {
    /// Its number, for the gap list.
    pub(super) number: u64,
    /// The hot part; `None`: there was none.
    pub(super) hot: Option<Settled>,
    pub(super) error: Option<Error>,
}

/// Writes what became of records: the hot table first, then the parked one.
pub(super) async fn settle(
    ctx: Arc<Context>,
    lease: Lease,
    number: u64,
    hot: Option<Arc<Settlement>>,
    parked: Arc<ParkedSettlement>,
) -> Done {
    let mut wrote = Wrote {
        number,
        hot: None,
        error: None,
    };
    let published = hot.as_ref().is_some_and(|hot| !hot.published.is_empty());
    if published || !parked.published.is_empty() {
        crash_point::reach(CrashPoint::PublishedNotSettled);
    }
    let started = Instant::now();
    if let Some(hot) = hot {
        match ctx.store.settle(&lease, &hot).await {
            Ok(settled) => wrote.hot = Some(settled),
            Err(error) => wrote.error = Some(error),
        }
    }
    if wrote.error.is_none() && !(parked.published.is_empty() && parked.failed.is_empty()) {
        wrote.error = ctx.store.settle_parked(&lease, &parked).await.err();
    }
    ctx.meters.settle_seconds.record(started.elapsed().as_secs_f64());
    Done::Wrote(wrote)
}

/// Reads due rows; if there are none, when the next one is due.
pub(super) async fn due(ctx: Arc<Context>, lease: Lease, limit: usize) -> Done {
    let due = async {
        let rows = ctx.store.due(&lease, limit, ctx.skip_dead()).await?;
        let next = match rows.is_empty() {
            true => ctx.store.next_due(&lease, ctx.skip_dead()).await?,
            false => None,
        };
        Ok((rows, next))
    };
    Done::Due(due.await)
}

/// Counts an attempt of `rows`.
pub(super) async fn begin(ctx: Arc<Context>, lease: Lease, rows: Vec<Parked>) -> Done {
    let sequences: Vec<i64> = rows.iter().map(|row| row.sequence).collect();
    match ctx.store.begin_attempts(&lease, &sequences).await {
        Ok(()) => Done::Begun(Ok(rows)),
        Err(error) => Done::Begun(Err((error, rows))),
    }
}
