//! A child process that runs `outbox-relay`, and what tests ask it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Chosen: a hundred times what any of the waits takes on an idle machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A folder with a configuration.
pub(crate) struct Folder {
    folder: TempDir,
}

impl Folder {
    /// A folder whose `outbox-relay.toml` holds `config`.
    pub(crate) fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("outbox-relay.toml"), config).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// A command in this folder, without the settings of this process.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("OUTBOX_") {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.command(arguments).output().unwrap())
    }

    /// Starts `run` and waits until it has started.
    pub(crate) async fn start(&self) -> Sidecar<'_> {
        self.start_with(&[]).await
    }

    /// Starts `run` with more arguments and waits until it has started.
    pub(crate) async fn start_with(&self, more: &[&str]) -> Sidecar<'_> {
        let ready = self.path("ready");
        let _ = std::fs::remove_file(&ready);
        let stream = |name: &str| std::fs::File::create(self.path(name)).unwrap();
        let child = self
            .command(&["run", "--ready-file", "ready"])
            .args(more)
            .stdout(stream("stdout"))
            .stderr(stream("log"))
            .spawn()
            .unwrap();
        let mut sidecar = Sidecar {
            folder: self,
            child,
            ops: String::new(),
        };
        let deadline = Instant::now() + DEADLINE;
        while !ready.exists() {
            if let Some(status) = sidecar.child.try_wait().unwrap() {
                panic!(
                    "the relay ended with {status} instead of starting:\n{}",
                    self.text("log")
                );
            }
            assert!(
                Instant::now() < deadline,
                "the relay did not start:\n{}",
                self.text("log")
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sidecar.ops = self.text("ready").trim().to_owned();
        sidecar
    }
}

/// What a command left.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ended {
    /// Checks the exit code and returns standard output.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// Checks that the command ended with `code`, printed no result and one line of error; returns that.
    #[track_caller]
    pub(crate) fn refused(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "", "a refusal prints no result");
        assert_eq!(
            self.stderr.lines().count(),
            1,
            "one clear line, not {}",
            self.stderr
        );
        self.stderr.trim_end().to_owned()
    }
}

/// A running relay; killed when dropped.
pub(crate) struct Sidecar<'a> {
    folder: &'a Folder,
    child: std::process::Child,
    ops: String,
}

impl Sidecar<'_> {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for the end of the process.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the relay did not end:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn log(&self) -> String {
        self.folder.text("log")
    }

    /// `GET path` of the ops listener: status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.ops).await.unwrap();
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.ops);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// The one source in `/status`.
    pub(crate) async fn source(&self) -> Value {
        let (code, body) = self.get("/status").await;
        assert_eq!(code, 200);
        let status: Value = serde_json::from_str(&body).unwrap();
        status["sources"][0].clone()
    }

    /// Waits until `/status` shows a source for which `holds` is true.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let source = self.source().await;
            if holds(&source) {
                return source;
            }
            assert!(
                Instant::now() < deadline,
                "not seen: {what}\n{source:#}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until nothing is pending.
    pub(crate) async fn until_drained(&self) {
        self.until("an empty outbox", |source| {
            source["backlog"]["pending"] == 0 && source["backlog"]["retry"] == 0
        })
        .await;
    }
}

impl Drop for Sidecar<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `holds` returns true.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not seen: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The messages that a `stdout` sink wrote.
pub(crate) fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
