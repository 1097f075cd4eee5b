//! Named steps, each with its time; the first failure ends the run.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo::shown;

/// The steps done so far.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<(String, Duration)>,
    /// What is printed at the very end, below any error.
    pub(crate) closing: Option<String>,
}

impl Steps {
    /// Runs `step` under `name` and prints its time.
    pub(crate) fn run<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("==> {name}");
        let start = Instant::now();
        let result = step();
        let time = start.elapsed();
        match result {
            Ok(value) => {
                println!("    {name}: ok in {:.1} s", time.as_secs_f64());
                self.done.push((name.to_owned(), time));
                Ok(value)
            }
            Err(error) => {
                self.print();
                Err(error.context(format!("step `{name}` failed after {:.1} s", time.as_secs_f64())))
            }
        }
    }

    /// Runs `command` as a step; it must succeed.
    pub(crate) fn command(&mut self, name: &str, command: &mut Command) -> Result<()> {
        self.run(name, || {
            println!("    {}", shown(command));
            succeed(command)
        })
    }

    /// Prints every step with its time, and the sum.
    pub(crate) fn print(&self) {
        let width = self.done.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        println!();
        for (name, time) in &self.done {
            println!("{name:width$}  {:8.1} s", time.as_secs_f64());
        }
        let total: Duration = self.done.iter().map(|(_, time)| *time).sum();
        println!("{:width$}  {:8.1} s", "total", total.as_secs_f64());
    }
}

/// Runs `command` and fails unless it ends with 0.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_is_named_with_its_command() {
        let mut steps = Steps::default();
        let error = steps
            .command("always fails", Command::new("/bin/sh").args(["-c", "exit 3"]))
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("always fails") && text.contains("sh -c exit 3") && text.contains('3'),
            "{text}"
        );
        assert!(steps.done.is_empty());
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let error = succeed(&mut Command::new("/nonexistent/program")).unwrap_err();
        assert!(format!("{error:#}").contains("cannot start `program`"));
    }
}
