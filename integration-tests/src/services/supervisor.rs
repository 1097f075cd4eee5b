//! A shell that outlives the test process by a moment: it starts a server, and removes it at the end.
//!
//! The shell reads a pipe whose other end only the test process holds. However that process ends, by
//! returning, by Ctrl-C or by SIGKILL, the pipe closes; the shell then kills the server with all its
//! descendants and removes the directory.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

/// The supervising shell and the directory it removes.
#[derive(Debug)]
pub(crate) struct Supervisor {
    directory: PathBuf,
    channel: Mutex<Channel>,
}

#[derive(Debug)]
struct Channel {
    shell: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Supervisor {
    /// Starts the shell; it makes a directory (mode 0700) that belongs to `owner`, or to us.
    ///
    /// Blocks for some milliseconds.
    pub(crate) fn start(name: &str, owner: Option<&str>) -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args([
                "-c",
                include_str!("supervisor.sh"),
                "outbox-test",
                name,
                owner.unwrap_or_default(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let commands = shell.stdin.take();
        let answers = shell.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut channel = Channel {
            shell,
            commands,
            answers: BufReader::new(answers),
        };
        let directory = PathBuf::from(channel.answer()?);
        Ok(Self {
            directory,
            channel: Mutex::new(channel),
        })
    }

    /// The directory that disappears with the server.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Has the shell take over `definitions`: variables or functions, no output.
    pub(crate) fn define(&self, definitions: &str) -> io::Result<()> {
        self.lock()?.send(definitions)
    }

    /// Runs a command line to its end; its output goes to the log.
    ///
    /// Returns the exit status.
    pub(crate) fn run(&self, line: &str) -> io::Result<i32> {
        let mut channel = self.lock()?;
        channel.send(&format!("{{ {line}; }} </dev/null >>\"$dir/log\" 2>&1; echo $?"))?;
        channel.answer()?.parse().map_err(io::Error::other)
    }

    /// Starts a command line in a session of its own; its output goes to the log.
    ///
    /// Returns the process id.
    pub(crate) fn spawn(&self, line: &str) -> io::Result<i32> {
        let mut channel = self.lock()?;
        channel.send(&format!(
            "if [ -n \"$server\" ]; then wait $server; fi; setsid {line} </dev/null >>\"$dir/log\" 2>&1 & server=$!; echo $server"
        ))?;
        channel.answer()?.parse().map_err(io::Error::other)
    }

    /// The last lines the server wrote, for an error message.
    pub(crate) fn log_tail(&self) -> String {
        let log = std::fs::read(self.directory.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    fn lock(&self) -> io::Result<std::sync::MutexGuard<'_, Channel>> {
        self.channel
            .lock()
            .map_err(|_| io::Error::other("a thread panicked while it spoke to the supervisor"))
    }
}

impl Channel {
    fn send(&mut self, line: &str) -> io::Result<()> {
        let commands = self.commands.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        // One line is one command.
        writeln!(commands, "{}", line.replace('\n', " "))?;
        commands.flush()
    }

    fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the supervising shell ended",
            ));
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Ok(mut channel) = self.channel.lock() {
            drop(channel.commands.take());
            let _ = channel.shell.wait();
        }
    }
}

/// Quotes `text` as one word of the shell.
pub(crate) fn quoted(text: impl AsRef<std::ffi::OsStr>) -> String {
    format!("'{}'", text.as_ref().to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_supervisor_takes_its_process_and_its_directory_along() {
        let supervisor = Supervisor::start("unit", None).unwrap();
        let directory = supervisor.directory().to_owned();
        assert!(directory.is_dir());
        assert_eq!(supervisor.run("test -d \"$dir\"").unwrap(), 0);
        assert_eq!(supervisor.run("false").unwrap(), 1);
        let pid = supervisor
            .spawn("sh -c 'setsid sleep 600 & setsid sleep 601'")
            .unwrap();
        assert!(crate::services::process::is_alive(pid));
        drop(supervisor);
        assert!(!directory.exists());
        assert!(!crate::services::process::is_alive(pid));
    }

    #[test]
    fn a_quoted_word_survives_the_shell() {
        let supervisor = Supervisor::start("unit", None).unwrap();
        let word = "it's $HOME \"and\" `more`";
        assert_eq!(supervisor.run(&format!("printf %s {}", quoted(word))).unwrap(), 0);
        assert_eq!(supervisor.log_tail(), word);
    }
}
