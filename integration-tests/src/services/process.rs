//! Signals to a server and everything it started.

use std::collections::HashMap;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Whether the process runs; one that ended and was not waited for does not.
///
/// The first thread of a killed process may show as ended while others still hold its ports and files.
pub(crate) fn is_alive(pid: i32) -> bool {
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X') || threads() > 1)
}

/// Sends `signal` to the process alone.
pub(crate) fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Sends `signal` to the process and all its descendants, parents first.
///
/// Stopping and killing repeat until no further descendant appears, since a child may fork while its parent
/// is already stopped. Returns all it reached.
pub(crate) fn signal_family(root: i32, signal: Signal) -> Vec<i32> {
    let mut reached: Vec<i32> = Vec::new();
    let first = if signal == Signal::SIGKILL {
        Signal::SIGSTOP
    } else {
        signal
    };
    loop {
        let new: Vec<i32> = family(root)
            .into_iter()
            .filter(|pid| !reached.contains(pid))
            .collect();
        if new.is_empty() {
            break;
        }
        for pid in &new {
            let _ = kill(Pid::from_raw(*pid), first);
        }
        reached.extend(new);
    }
    if signal == Signal::SIGKILL {
        for pid in &reached {
            let _ = kill(Pid::from_raw(*pid), signal);
        }
    }
    reached
}

/// Waits until all the processes have ended. Returns whether they did.
pub(crate) async fn ended(pids: &[i32], deadline: Duration) -> bool {
    let end = tokio::time::Instant::now() + deadline;
    while pids.iter().any(|pid| is_alive(*pid)) {
        if tokio::time::Instant::now() > end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

/// The process and its descendants, parents before children.
pub(crate) fn family(root: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            && let Some(stat) = stat(pid)
        {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    found
}

struct Stat {
    state: char,
    parent: i32,
}

/// Reads `/proc/PID/stat`; the command in parentheses may itself hold spaces and parentheses.
fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Stat { state, parent })
}
