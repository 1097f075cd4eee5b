//! A program in a process of its own, with what it printed last.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outbox_broker::crash_point::{CRASH_VARIABLE, CrashPoint, CrashRule};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Lines of output kept for a failure's text.
const TAIL_LINES: usize = 60;

/// What to start: a path, arguments and environment. Standard input is empty.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

impl Program {
    /// The program at `path`; in an integration test `env!("CARGO_BIN_EXE_name")`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Sets an environment variable; the others are inherited.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts it; with a rule it aborts where the rule strikes.
    ///
    /// The process is killed when the [`Child`] is dropped and, where `setpriv` is installed, when the test
    /// process dies.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, rule: Option<CrashRule>) -> io::Result<Child> {
        let mut command = match crate::services::find_program("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL"]).arg(&self.path);
                command
            }
            None => Command::new(&self.path),
        };
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        match rule {
            Some(rule) => command.env(CRASH_VARIABLE, rule.to_string()),
            None => command.env_remove(CRASH_VARIABLE),
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut process = command.spawn()?;
        let output = Arc::new(Output::default());
        let readers = [
            process
                .stdout
                .take()
                .map(|stream| read(stream, Arc::clone(&output))),
            process
                .stderr
                .take()
                .map(|stream| read(stream, Arc::clone(&output))),
        ];
        Ok(Child {
            process,
            output,
            readers,
            replay: self.replay(rule),
        })
    }

    /// One shell line that does the same.
    pub fn replay(&self, rule: Option<CrashRule>) -> String {
        let rule = rule.map(|rule| (CRASH_VARIABLE.into(), OsString::from(rule.to_string())));
        let variables = rule.iter().chain(&self.environment);
        let variables = variables.map(|(name, value)| format!("{}={}", name.to_string_lossy(), quote(value)));
        let words =
            std::iter::once(self.path.as_os_str()).chain(self.arguments.iter().map(OsString::as_os_str));
        variables.chain(words.map(quote)).collect::<Vec<_>>().join(" ")
    }
}

fn quote(word: impl AsRef<OsStr>) -> String {
    let text = word.as_ref().to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:@,+%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        crate::services::quoted(&*text)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// At a crash point, on purpose, at its nth passage.
    Crashed(CrashPoint, u64),
    /// By itself; the code tells how well.
    Code(i32),
    /// By a signal that no crash point explains.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crashed(point, nth) => write!(f, "crashed at {point}@{nth}"),
            Self::Code(code) => write!(f, "exited with {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// A running program.
#[derive(Debug)]
pub struct Child {
    process: tokio::process::Child,
    output: Arc<Output>,
    readers: [Option<JoinHandle<()>>; 2],
    replay: String,
}

#[derive(Debug, Default)]
struct Output {
    lines: Mutex<VecDeque<String>>,
    grown: Notify,
}

impl Child {
    /// The process id, until the end was waited for.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] after `deadline`; the process then still runs.
    ///
    /// # Cancel safety
    /// Safe: waiting can be taken up again.
    pub async fn wait(&mut self, deadline: Duration) -> io::Result<Exit> {
        let status = tokio::time::timeout(deadline, self.process.wait())
            .await
            .map_err(|_| self.late(deadline))??;
        // A grandchild may hold the pipes open; what it prints is of no interest.
        for reader in self.readers.iter_mut().filter_map(Option::take) {
            let _ = tokio::time::timeout(Duration::from_secs(1), reader).await;
        }
        Ok(self.explain(status))
    }

    /// Waits until a line contains `text`, as "listening on" does, and returns the line.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] after `deadline`, [`io::ErrorKind::UnexpectedEof`] when the process ends
    /// without it.
    pub async fn printed(&mut self, text: &str, deadline: Duration) -> io::Result<String> {
        let output = Arc::clone(&self.output);
        let find = || output.lock().iter().find(|line| line.contains(text)).cloned();
        let waiting = async {
            loop {
                let grown = output.grown.notified();
                if let Some(line) = find() {
                    return Some(line);
                }
                tokio::select! {
                    () = grown => {}
                    _ = self.wait(deadline) => return find(),
                }
            }
        };
        let found = tokio::time::timeout(deadline, waiting).await;
        let ended = || {
            io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("ended and never printed `{text}`"),
            )
        };
        found
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("never printed `{text}`")))?
            .ok_or_else(ended)
    }

    /// Sends SIGKILL; wait for the end with [`Child::wait`].
    ///
    /// # Errors
    /// When the process has already been waited for.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// Sends SIGTERM, which asks for an orderly end.
    ///
    /// # Errors
    /// As [`Child::kill`].
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Freezes the process, as a long pause of the machine does.
    ///
    /// # Errors
    /// As [`Child::kill`].
    pub fn pause(&self) -> io::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a frozen process go on.
    ///
    /// # Errors
    /// As [`Child::kill`].
    pub fn resume(&self) -> io::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// The last lines of standard output and standard error, in the order they came.
    pub fn tail(&self) -> String {
        self.output
            .lock()
            .iter()
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// One shell line that starts the same program in the same way.
    pub fn replay(&self) -> &str {
        &self.replay
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = self
            .pid()
            .and_then(|pid| i32::try_from(pid).ok())
            .ok_or(io::ErrorKind::NotFound)?;
        kill(Pid::from_raw(pid), signal).map_err(io::Error::from)
    }

    fn late(&self, deadline: Duration) -> io::Error {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("still running after {deadline:?}"),
        )
    }

    fn explain(&self, status: ExitStatus) -> Exit {
        if status.signal() == Some(Signal::SIGABRT as i32)
            && let Some(exit) = self.output.lock().iter().rev().find_map(|line| crash_in(line))
        {
            return exit;
        }
        status
            .code()
            .map_or_else(|| Exit::Signal(status.signal().unwrap_or_default()), Exit::Code)
    }
}

/// Reads the line that an armed process writes before it aborts.
fn crash_in(line: &str) -> Option<Exit> {
    let place = line.strip_prefix(CRASH_VARIABLE)?.strip_prefix(" aborted at ")?;
    let (point, nth) = place.split_once('@')?;
    Some(Exit::Crashed(point.parse().ok()?, nth.trim().parse().ok()?))
}

impl Output {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(stream: impl AsyncRead + Send + Unpin + 'static, output: Arc<Output>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(stream.read_until(b'\n', &mut line).await, Ok(read) if read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            let mut lines = output.lock();
            if lines.len() == TAIL_LINES {
                lines.pop_front();
            }
            lines.push_back(text);
            drop(lines);
            output.grown.notify_waiters();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replay_line_is_one_the_shell_takes() {
        let program = Program::new("/bin/orders")
            .arg("--input")
            .arg("a b")
            .env("RUST_LOG", "info");
        let rule = "published_not_settled@3".parse().unwrap();
        assert_eq!(
            program.replay(Some(rule)),
            "OUTBOX_CRASH=published_not_settled@3 RUST_LOG=info /bin/orders --input 'a b'"
        );
        assert_eq!(program.replay(None), "RUST_LOG=info /bin/orders --input 'a b'");
    }

    #[test]
    fn only_the_line_of_the_crash_point_explains_an_abort() {
        let crash = crash_in("OUTBOX_CRASH aborted at handled_not_committed@12");
        assert_eq!(crash, Some(Exit::Crashed(CrashPoint::HandledNotCommitted, 12)));
        assert_eq!(crash_in("thread 'main' panicked"), None);
    }

    #[tokio::test]
    async fn an_end_is_told_from_an_abort() {
        let second = Duration::from_secs(10);
        let shell = |script: &str| Program::new("/bin/sh").arg("-c").arg(script).spawn(None).unwrap();
        assert_eq!(shell("exit 3").wait(second).await.unwrap(), Exit::Code(3));
        assert_eq!(
            shell("kill -ABRT $$").wait(second).await.unwrap(),
            Exit::Signal(6)
        );
        let crash = shell("echo OUTBOX_CRASH aborted at received_not_begun@2 >&2; kill -ABRT $$")
            .wait(second)
            .await;
        assert_eq!(crash.unwrap(), Exit::Crashed(CrashPoint::ReceivedNotBegun, 2));
        let mut sleeper = shell("echo ready; exec sleep 600");
        assert_eq!(sleeper.printed("ready", second).await.unwrap(), "ready");
        sleeper.kill().unwrap();
        assert_eq!(sleeper.wait(second).await.unwrap(), Exit::Signal(9));
        let silent = shell("exit 0").printed("ready", second).await.unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::UnexpectedEof);
    }
}
