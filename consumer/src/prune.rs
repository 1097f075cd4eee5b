//! Forgetting old inbox rows, in small batches beside the traffic.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::builder::Config;
use crate::statement::Sql;
use crate::{Connection, Error, Inbox};

/// Rows of one statement. Chosen: a few milliseconds, so that no handler waits long for a lock.
const BATCH: usize = 1_000;
/// Batches of one round; 20,000 rows a minute keep up with 333 messages a second, and a round that was
/// full is followed by another at once.
const BATCHES: usize = 20;
/// The time between rounds.
const EVERY: Duration = Duration::from_secs(60);
/// The pause after a full round, for the traffic.
const BREATH: Duration = Duration::from_millis(200);

/// Prunes until shutdown.
pub(crate) async fn run<C: Connection>(inbox: Inbox<C>, config: Arc<Config>, shutdown: CancellationToken) {
    loop {
        let pause = match round(&inbox, &config.name, config.retention).await {
            Ok(rows) if rows >= BATCH * BATCHES => BREATH,
            Ok(_) => EVERY,
            Err(error) => {
                tracing::debug!(consumer = config.name, %error, "the inbox was not pruned this time");
                EVERY
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Deletes what `consumer` has done with longer than `retention` ago, at most 20,000 rows, and returns how many. Rows
/// of dead letters stay with them.
///
/// # Errors
/// The database refused or cannot be reached; the batches before stay deleted.
pub async fn round<C: Connection>(
    inbox: &Inbox<C>,
    consumer: &str,
    retention: Duration,
) -> Result<usize, Error> {
    let retention = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
    let before = Utc::now().timestamp_micros().saturating_sub(retention);
    let failed = |error| Error::database("prune", error);
    let mut rows = 0;
    for _ in 0..BATCHES {
        let mut lent = inbox.lend().await?;
        let sql = Sql::new(C::PRUNE).bind(consumer).bind(consumer).bind(before);
        let deleted = lent.change(sql).await.map_err(failed)?;
        lent.give_back();
        rows += deleted;
        if deleted < BATCH {
            break;
        }
    }
    let mut lent = inbox.lend().await?;
    let sql = Sql::new("DELETE FROM consumer_attempt WHERE consumer = ? AND updated_at_us < ?")
        .bind(consumer)
        .bind(before);
    lent.change(sql).await.map_err(failed)?;
    lent.give_back();
    Ok(rows)
}
