//! What processes used, as the system tells (Linux): CPU time and peak memory.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};

/// Clock ticks a second of `/proc/PID/stat`: 100 on every Linux that Rust runs on.
const TICKS: u64 = 100;

/// CPU time of a process and its descendants so far, those that ended included.
///
/// 10 ms are the unit: measure over seconds.
pub(crate) fn cpu(root: i32) -> Result<Duration> {
    let mut processes: HashMap<i32, (i32, u64)> = HashMap::new();
    for entry in std::fs::read_dir("/proc").context("no /proc here")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that ended meanwhile counts with its parent.
        if let Some(found) = stat(pid) {
            processes.insert(pid, found);
        }
    }
    let mut ticks = processes
        .get(&root)
        .with_context(|| format!("process {root} is gone"))?
        .1;
    let mut family = vec![root];
    while let Some(parent) = family.pop() {
        for (pid, (of, used)) in &processes {
            if *of == parent {
                ticks += used;
                family.push(*pid);
            }
        }
    }
    Ok(Duration::from_millis(ticks * 1_000 / TICKS))
}

/// CPU time of this process.
pub(crate) fn own_cpu() -> Result<Duration> {
    let own = i32::try_from(std::process::id()).context("no process id")?;
    let (_, ticks) = stat(own).context("no /proc here")?;
    Ok(Duration::from_millis(ticks * 1_000 / TICKS))
}

/// Parent and ticks used, by itself and by children it has waited for.
fn stat(pid: i32) -> Option<(i32, u64)> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The command in parentheses may itself hold spaces and parentheses.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let used = number(11)? + number(12)? + number(13)? + number(14)?;
    Some((fields.get(1)?.parse().ok()?, used))
}

/// The most memory that a process has had resident, in MiB.
pub(crate) fn peak_memory(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|line| line.split_whitespace().next())
        .context("no VmHWM in /proc/PID/status")?
        .parse()?;
    Ok(kib / 1_024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_as_cpu_time_and_memory() {
        let before = own_cpu().unwrap();
        let mut number = 1_u64;
        while own_cpu().unwrap() < before + Duration::from_millis(30) {
            number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005));
        }
        let own = std::process::id();
        assert!(cpu(i32::try_from(own).unwrap()).unwrap() >= before + Duration::from_millis(30));
        assert!(peak_memory(own).unwrap() > 0.5);
    }
}
