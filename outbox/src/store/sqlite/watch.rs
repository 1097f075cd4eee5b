//! Notices commits of other connections and processes by `PRAGMA data_version`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use tokio::time::Instant;

use crate::Error;

/// Poll interval. Measured (relay measurements, §6): a poll costs 14–30 µs; at 1 ms the median latency is
/// 0.6 ms.
const EAGER: Duration = Duration::from_millis(1);
/// Poll interval once nothing came for [`EAGER_FOR`]: half a percent of a core.
const PATIENT: Duration = Duration::from_millis(5);
/// How long to poll eagerly. Chosen: a burst of commits rarely pauses for longer.
const EAGER_FOR: Duration = Duration::from_millis(100);

/// A connection of its own and the version it saw last, kept over calls so that a commit between two waits
/// is noticed by the second.
pub(super) struct Watch {
    connection: SqliteConnection,
    seen: i64,
}

impl Watch {
    pub(super) fn new(mut connection: SqliteConnection) -> Result<Self, Error> {
        let seen = version(&mut connection).map_err(|error| Error::database("connect", error))?;
        Ok(Self { connection, seen })
    }

    /// Whether another connection committed since the last call that said so.
    fn changed(&mut self) -> QueryResult<bool> {
        let now = version(&mut self.connection)?;
        Ok(std::mem::replace(&mut self.seen, now) != now)
    }
}

fn version(connection: &mut SqliteConnection) -> QueryResult<i64> {
    #[derive(QueryableByName)]
    struct Version {
        #[diesel(sql_type = BigInt)]
        data_version: i64,
    }
    diesel::sql_query("PRAGMA data_version")
        .get_result::<Version>(connection)
        .map(|row| row.data_version)
}

/// Waits for a commit of another connection, or for `at_most`. The poll is far shorter than a task switch to
/// a blocking thread, so it runs where it is.
pub(super) async fn wait(watch: &Mutex<Watch>, at_most: Duration) -> Result<(), Error> {
    let begin = Instant::now();
    loop {
        let changed = watch
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .changed()
            .map_err(|error| Error::database("wait", error))?;
        let waited = begin.elapsed();
        if changed || waited >= at_most {
            return Ok(());
        }
        let pause = if waited < EAGER_FOR { EAGER } else { PATIENT };
        tokio::time::sleep(pause.min(at_most - waited)).await;
    }
}
