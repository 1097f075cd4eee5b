//! `cargo xtask test`: makes the machine ready, runs every test, runs the `orders` example.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::machine;
use crate::steps::Steps;

/// The services whose tests must run: with this a missing server is a failure, not a skip.
const REQUIRED: &str = "postgres,mariadb,rabbitmq,redis";

/// Makes the machine ready and runs the tests whose names contain one of `filters` (none: all).
pub(crate) fn run(steps: &mut Steps, filters: &[String], as_is: bool) -> Result<()> {
    if !as_is {
        steps.run("machine", machine::make_ready)?;
    }
    // Tests and binaries in one selection of features and one profile: nothing is compiled twice.
    let all = ["--workspace", "--all-features", "--locked"];
    steps.command(
        "build",
        &mut cargo::command(["build", "--bins", "--tests"].into_iter().chain(all)),
    )?;
    let mut tests = cargo::command(["test", "--no-fail-fast"].into_iter().chain(all));
    tests.arg("--").args(filters);
    if env::var_os("OUTBOX_TEST_REQUIRE").is_none() {
        tests.env("OUTBOX_TEST_REQUIRE", REQUIRED);
    }
    let mut tally = Tally::default();
    let tested = steps.run("tests", || run_counting(&mut tests, &mut tally));
    steps.closing = Some(format!(
        "{} passed, {} failed, {} ignored",
        tally.passed, tally.failed, tally.ignored
    ));
    tested?;
    if filters.is_empty() {
        steps.run("orders example", orders)?;
    }
    steps.print();
    Ok(())
}

/// Test results, summed over all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`; other lines count nothing.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split(';') {
            let mut words = part.split_whitespace();
            let count = words
                .next()
                .and_then(|word| word.parse::<u64>().ok())
                .unwrap_or(0);
            match words.next() {
                Some("passed") => self.passed += count,
                Some("failed") => self.failed += count,
                Some("ignored") => self.ignored += count,
                _ => {}
            }
        }
    }
}

/// Runs `command`, passes its lines on and counts the results among them.
fn run_counting(command: &mut Command, tally: &mut Tally) -> Result<()> {
    println!("    {}", cargo::shown(command));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let stdout = child.stdout.take().context("cargo has no output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read what cargo prints")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.add(line.trim_end());
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("`{}` ended with {status}", cargo::shown(command));
    }
    if tally.passed + tally.failed == 0 {
        bail!("no test ran; is the filter right?");
    }
    Ok(())
}

/// Runs the example a newcomer starts with, crashing it three times, and checks the ledger it prints.
fn orders() -> Result<()> {
    const ORDERS: u64 = 300; // chosen: enough for three crashes at random points, a few seconds in a dev build
    let mut command = Command::new(cargo::binary("orders")?);
    command
        .args([
            "--generate",
            &ORDERS.to_string(),
            "--crash",
            "3",
            "--output",
            "json",
        ])
        .current_dir(cargo::root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    println!("    {}", cargo::shown(&command));
    let output = command
        .output()
        .context("cannot start the orders example; `cargo build` makes it")?;
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{}", text.trim_end());
    if !output.status.success() {
        bail!("orders ended with {}", output.status);
    }
    let ledger = text
        .lines()
        .rev()
        .find(|line| line.starts_with('{'))
        .unwrap_or_default();
    check_ledger(ledger, ORDERS)
}

/// Every order became an invoice, once, in order.
fn check_ledger(ledger: &str, orders: u64) -> Result<()> {
    for (name, expected) in [
        ("orders", orders),
        ("invoices", orders),
        ("lost", 0),
        ("doubled", 0),
        ("out_of_order", 0),
    ] {
        let found = number(ledger, name);
        if found != Some(expected) {
            bail!("the ledger says {name} = {found:?}, not {expected}: {ledger}");
        }
    }
    Ok(())
}

/// The number under `name` in one line of flat JSON.
fn number(line: &str, name: &str) -> Option<u64> {
    let (_, rest) = line.split_once(&format!("\"{name}\""))?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_are_summed() {
        let mut tally = Tally::default();
        for line in [
            "running 4 tests",
            "test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "test some::name ... ok",
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            tally.add(line);
        }
        assert_eq!(
            tally,
            Tally {
                passed: 6,
                failed: 3,
                ignored: 1
            }
        );
    }

    #[test]
    fn a_run_without_a_test_fails() {
        let error =
            run_counting(Command::new("/bin/echo").arg("nothing"), &mut Tally::default()).unwrap_err();
        assert!(error.to_string().contains("no test ran"));
    }

    #[test]
    fn a_ledger_with_a_lost_message_is_refused() {
        let fine = r#"{"orders":300,"messages": 300,"invoices":300,"lost":0,"doubled":0,"out_of_order":0,"wire_duplicates":17}"#;
        check_ledger(fine, 300).unwrap();
        for broken in [
            fine.replace("\"lost\":0", "\"lost\":1"),
            fine.replace("\"doubled\":0", "\"doubled\":2"),
            fine.replace("\"out_of_order\":0", "\"out_of_order\":9"),
            fine.replace("\"invoices\":300", "\"invoices\":299"),
            fine.replace("\"lost\":0,", ""),
            String::new(),
        ] {
            assert!(check_ledger(&broken, 300).is_err(), "{broken}");
        }
    }
}
