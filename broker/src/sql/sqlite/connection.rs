//! A SQLite connection on a thread of its own.
//!
//! SQLite admits one writer at a time, so one connection that works through a queue of short transactions
//! wastes nothing and spares the members of this program the fight for the file's lock. Against other
//! connections and programs the writer lock is taken with short pauses instead of SQLite's busy handler,
//! whose waits grow to 100 ms and starve under a busy neighbour.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::sqlite::SqliteConnection;
use diesel::{Connection, QueryResult};
use tokio::sync::oneshot;

use crate::ErrorKind;
use crate::sql::store::{CANNOT_OPEN, Fault};

/// Wait of SQLite's own busy handler, ms; what is longer is waited here.
const BUSY_TIMEOUT_MS: u32 = 2;

/// Pause between two attempts at the writer lock. Chosen: a transaction of ours takes 0.3–5 ms.
const LOCK_PAUSE: Duration = Duration::from_micros(500);

type Job = Box<dyn FnOnce(&mut Writer) + Send>;

/// A handle to the thread; the thread ends with its last handle.
#[derive(Debug, Clone)]
pub(super) struct Thread {
    jobs: mpsc::Sender<Job>,
}

/// The connection and how long to wait for the file.
pub(super) struct Writer {
    connection: SqliteConnection,
    lock_timeout: Duration,
}

impl Thread {
    /// Opens the file on a new thread; `lock_timeout` bounds the wait for the writer lock.
    pub(super) async fn open(path: &Path, name: &str, lock_timeout: Duration) -> Result<Self, Fault> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (opened, ready) = oneshot::channel();
        let path = path.to_path_buf();
        let body = move || match open(&path, lock_timeout) {
            Err(fault) => drop(opened.send(Err(fault))),
            Ok(connection) => {
                drop(opened.send(Ok(())));
                let mut writer = Writer {
                    connection,
                    lock_timeout,
                };
                for job in queue {
                    job(&mut writer);
                }
            }
        };
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|error| Fault::caused(ErrorKind::Unreachable, "no thread could be started", error))?;
        ready.await.map_err(|_| Fault::closed())??;
        Ok(Self { jobs })
    }

    /// Runs `job` on the thread. A dropped future does not stop the job.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Writer) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let (answer, result) = oneshot::channel();
        let job: Job = Box::new(move |writer| drop(answer.send(job(writer))));
        self.jobs.send(job).map_err(|_| Fault::closed())?;
        Ok(result.await.map_err(|_| Fault::closed())??)
    }
}

impl Writer {
    /// Runs `body` without a transaction: a single read.
    pub(super) fn read<T>(
        &mut self,
        body: impl FnOnce(&mut SqliteConnection) -> QueryResult<T>,
    ) -> QueryResult<T> {
        body(&mut self.connection)
    }

    /// Runs `body` in a transaction that holds the writer lock from its beginning.
    pub(super) fn write<T>(
        &mut self,
        body: impl FnOnce(&mut SqliteConnection) -> QueryResult<T>,
    ) -> QueryResult<T> {
        let deadline = Instant::now() + self.lock_timeout;
        let mut body = Some(body);
        loop {
            let result = self.connection.immediate_transaction(|connection| {
                // The body is gone only after the lock was had, and then the loop ends below.
                body.take().map(|body| body(connection)).transpose()
            });
            match result {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => return Err(diesel::result::Error::RollbackTransaction),
                Err(error) if body.is_some() && is_busy(&error) && Instant::now() < deadline => {
                    thread::sleep(LOCK_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_busy(error: &diesel::result::Error) -> bool {
    error.to_string().contains("database is locked")
}

fn open(path: &Path, lock_timeout: Duration) -> Result<SqliteConnection, Fault> {
    let Some(path) = path.to_str() else {
        return Err(Fault::new(ErrorKind::Invalid, "the path in `url` is no UTF-8"));
    };
    let mut connection = SqliteConnection::establish(path)
        .map_err(|error| Fault::caused(ErrorKind::Unreachable, CANNOT_OPEN, error))?;
    let deadline = Instant::now() + lock_timeout;
    // FULL: a commit is on the disk when it returns, so `Ok` means durably accepted.
    let pragmas = format!(
        "PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
    );
    loop {
        match connection.batch_execute(&pragmas) {
            Ok(()) => return Ok(connection),
            Err(error) if is_busy(&error) && Instant::now() < deadline => thread::sleep(LOCK_PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
}
