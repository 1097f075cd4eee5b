//! The embedded example, run as a person runs it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test program")]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

fn orders(arguments: &[&str], input: Option<&str>) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_orders"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.unwrap_or_default().as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn ledger(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}, {output:?}"))
}

#[test]
fn the_sample_is_billed_once_and_in_order() {
    let output = orders(&["--output", "json"], None);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let ledger = ledger(&output);
    for (count, value) in [("orders", 200), ("messages", 200), ("invoices", 200)] {
        assert_eq!(ledger[count], value, "{ledger}");
    }
    for count in ["lost", "doubled", "phantom", "out_of_order"] {
        assert_eq!(ledger[count], 0, "{ledger}");
    }
}

#[test]
fn a_malformed_line_is_named_and_the_others_are_billed() {
    let input = "{\"order_id\":\"1\",\"customer\":\"ann\",\"total_cents\":1}\nnot an order\n{\"order_id\":\"2\",\"customer\":\"ann\",\"total_cents\":2}\n";
    let output = orders(&["--input", "-", "--output", "json"], Some(input));
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("<stdin>:2: not an order:"), "{errors}");
    let ledger = ledger(&output);
    assert_eq!(
        (&ledger["orders"], &ledger["invoices"]),
        (&2.into(), &2.into()),
        "{ledger}"
    );
    assert_eq!(ledger["refused_lines"], 1, "{ledger}");
}

#[test]
fn crashes_leave_a_clean_ledger() {
    let output = orders(
        &[
            "--generate",
            "200",
            "--crash",
            "3",
            "--seed",
            "5",
            "--output",
            "json",
        ],
        None,
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let ledger = ledger(&output);
    assert_eq!(
        (&ledger["orders"], &ledger["crashes"]),
        (&200.into(), &3.into()),
        "{ledger}"
    );
    for count in ["lost", "doubled", "phantom", "out_of_order"] {
        assert_eq!(ledger[count], 0, "{ledger}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = orders(&["--input", "no-such-orders.jsonl"], None);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("cannot read orders from no-such-orders.jsonl"),
        "{errors}"
    );
}
