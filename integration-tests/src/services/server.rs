//! One server, however it was come by, and what a test may do to it.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::Error;
use super::process;
use super::supervisor::Supervisor;

/// How long a server may take until it answers; chosen: RabbitMQ takes 5 s alone and 20 s on a busy machine.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(90);

/// How long a server may take to stop in order before it is killed.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// Between two questions whether a server is ready.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A server and the way it was come by.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) service: &'static str,
    pub(crate) origin: Origin,
    /// Whether other tests of this process use it too; then nobody may stop it.
    pub(crate) shared: bool,
}

#[derive(Debug)]
pub(crate) enum Origin {
    /// Someone else's, named by an environment variable.
    Url,
    /// A container of ours.
    #[cfg(feature = "docker")]
    Container(super::docker::Container),
    /// A process of ours.
    Local(Local),
}

/// A server started from local binaries.
pub(crate) struct Local {
    pub(crate) supervisor: Arc<Supervisor>,
    /// The command line that starts it on its port and data.
    pub(crate) command: String,
    /// What asks it to stop in order.
    pub(crate) stop_signal: Signal,
    pub(crate) pid: Mutex<Option<i32>>,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local")
            .field("directory", &self.supervisor.directory())
            .field("pid", &self.pid())
            .finish()
    }
}

impl Local {
    pub(crate) fn new(supervisor: Supervisor, command: String, stop_signal: Signal) -> Self {
        Self {
            supervisor: Arc::new(supervisor),
            command,
            stop_signal,
            pid: Mutex::new(None),
        }
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        *self.pid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_pid(&self, pid: Option<i32>) {
        *self.pid.lock().unwrap_or_else(PoisonError::into_inner) = pid;
    }

    /// Starts the process, unless it runs.
    pub(crate) async fn start(&self, service: &'static str) -> Result<(), Error> {
        if self.pid().is_some_and(process::is_alive) {
            return Ok(());
        }
        let (supervisor, command) = (Arc::clone(&self.supervisor), self.command.clone());
        let pid = tokio::task::spawn_blocking(move || supervisor.spawn(&command))
            .await
            .map_err(Error::failed(service, "start"))?
            .map_err(Error::failed(service, "start"))?;
        self.set_pid(Some(pid));
        Ok(())
    }
}

impl Server {
    /// The directory of a private server, removed at the end.
    pub(crate) fn directory(&self) -> Option<&std::path::Path> {
        match &self.origin {
            Origin::Local(local) => Some(local.supervisor.directory()),
            _ => None,
        }
    }

    /// The id of the server's main process, if it is a private one.
    pub(crate) fn pid(&self) -> Option<i32> {
        match &self.origin {
            Origin::Local(local) => local.pid(),
            _ => None,
        }
    }

    /// Asks `probe` until it succeeds, the process ends or the deadline passes.
    pub(crate) async fn ready<T, F>(&self, probe: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let end = Instant::now() + READY_WITHIN;
        loop {
            // A dying listener may accept and never answer.
            let error = match tokio::time::timeout(Duration::from_secs(5), probe()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error @ Error::Refused { .. })) => return Err(error),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer within 5 s".to_owned(),
            };
            if let Origin::Local(local) = &self.origin {
                let ended = !local.pid().is_some_and(process::is_alive);
                if ended || Instant::now() > end {
                    let state = if ended {
                        "the server ended"
                    } else {
                        "the server never became ready"
                    };
                    let text = format!(
                        "{state} ({error}); its log ends with\n{}",
                        local.supervisor.log_tail()
                    );
                    return Err(Error::failed(self.service, "start")(text));
                }
            } else if Instant::now() > end {
                return Err(Error::failed(self.service, "start")(error));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Kills the server: SIGKILL to its process and all descendants; returns when they are gone.
    pub(crate) async fn kill(&self) -> Result<(), Error> {
        match self.controlled("kill")? {
            #[cfg(feature = "docker")]
            Controlled::Container(container) => container.command("kill").await,
            Controlled::Process(_, pid) => {
                // A child may hold the port a moment longer than its parent.
                self.gone(&process::signal_family(pid, Signal::SIGKILL)).await
            }
        }
    }

    /// Freezes every process of the server; connections stay open and nothing answers.
    pub(crate) async fn pause(&self) -> Result<(), Error> {
        match self.controlled("pause")? {
            #[cfg(feature = "docker")]
            Controlled::Container(container) => container.command("pause").await,
            Controlled::Process(_, pid) => {
                process::signal_family(pid, Signal::SIGSTOP);
                Ok(())
            }
        }
    }

    /// Lets a frozen server go on.
    pub(crate) async fn resume(&self) -> Result<(), Error> {
        match self.controlled("resume")? {
            #[cfg(feature = "docker")]
            Controlled::Container(container) => container.command("unpause").await,
            Controlled::Process(_, pid) => {
                process::signal_family(pid, Signal::SIGCONT);
                Ok(())
            }
        }
    }

    /// Stops the server in order; returns when it is gone.
    pub(crate) async fn stop(&self) -> Result<(), Error> {
        match self.controlled("stop")? {
            #[cfg(feature = "docker")]
            Controlled::Container(container) => container.command("stop").await,
            Controlled::Process(local, pid) => {
                let mut family = process::family(pid);
                process::signal(pid, local.stop_signal);
                process::signal_family(pid, Signal::SIGCONT);
                if !process::ended(&family, STOPPED_WITHIN).await {
                    family.extend(process::signal_family(pid, Signal::SIGKILL));
                }
                self.gone(&family).await
            }
        }
    }

    /// Starts the server again on the same port and data, unless it runs.
    pub(crate) async fn start(&self) -> Result<(), Error> {
        match &self.origin {
            Origin::Local(local) => local.start(self.service).await,
            #[cfg(feature = "docker")]
            Origin::Container(container) => container.command("start").await,
            Origin::Url => Err(self.beyond_control("start", "it was given by URL")),
        }
    }

    async fn gone(&self, pids: &[i32]) -> Result<(), Error> {
        if process::ended(pids, STOPPED_WITHIN).await {
            return Ok(());
        }
        Err(Error::failed(self.service, "kill")(format!(
            "of the processes {pids:?} some are still there after {STOPPED_WITHIN:?}"
        )))
    }

    fn controlled(&self, what: &str) -> Result<Controlled<'_>, Error> {
        if self.shared {
            return Err(self.beyond_control(what, "other tests use it too: ask for a server of your own"));
        }
        match &self.origin {
            Origin::Url => Err(self.beyond_control(what, "it was given by URL")),
            #[cfg(feature = "docker")]
            Origin::Container(container) => Ok(Controlled::Container(container)),
            Origin::Local(local) => match local.pid() {
                Some(pid) => Ok(Controlled::Process(local, pid)),
                None => Err(self.beyond_control(what, "it was never started")),
            },
        }
    }

    fn beyond_control(&self, what: &str, why: &str) -> Error {
        Error::refused(
            self.service,
            format!("this test may not {what} the server: {why}"),
        )
    }
}

enum Controlled<'a> {
    #[cfg(feature = "docker")]
    Container(&'a super::docker::Container),
    Process(&'a Local, i32),
}
