//! The race, run as a person runs it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test program")]

use std::process::{Command, Output};

use serde_json::Value;

fn check_then_act(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_check-then-act"))
        .args(arguments)
        .output()
        .unwrap()
}

fn assert_proven(output: &Output, payments: u64) {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let proof: Value = serde_json::from_slice(&output.stdout).unwrap();
    let part = |at: usize, count: &str| proof["parts"][at][count].as_u64().unwrap();
    assert!(part(0, "doubled") > 0, "without a lock: {proof}");
    assert_eq!(part(1, "charges"), payments, "with a lock: {proof}");
    assert_eq!(part(1, "doubled"), 0, "with a lock: {proof}");
    assert_eq!(part(2, "doubled"), part(2, "payments"), "paused: {proof}");
    assert_eq!(part(3, "doubled"), 0, "paused and fenced: {proof}");
    assert_eq!(
        part(3, "refused"),
        part(3, "payments"),
        "paused and fenced: {proof}"
    );
    for at in 0..4 {
        assert_eq!(part(at, "missed"), 0, "{proof}");
    }
}

#[test]
fn the_race_is_lost_without_a_lock_and_won_with_lock_and_fence() {
    let output = check_then_act(&["--payments", "12", "--output", "json"]);
    assert_proven(&output, 12);
}

#[test]
fn the_proof_is_told_in_words() {
    let output = check_then_act(&["--payments", "5"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for words in [
        "payments in SQLite, locks in this process",
        "with a lock:   5 payments,   5 charges,   0 paid twice",
        "3 late writes refused",
        "proven: a lock is advice, the fencing token is the guarantee",
    ] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
}

/// Twice, and Redis emptied in between: whatever tokens the second run's holders get, the fence that has seen
/// those of the first lets them through in the end, and nobody else.
#[cfg(feature = "servers")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_race_is_won_on_servers_also_after_redis_was_emptied() {
    use outbox_testing::{or_skip, services};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let postgres = or_skip!(services::postgres().await);
    let redis = or_skip!(services::own_redis().await);
    let database = postgres.database().await.unwrap();
    for _ in 0..2 {
        let url = redis.url();
        let arguments = [
            "--payments",
            "12",
            "--output",
            "json",
            "--redis",
            url,
            "--postgres",
            database.url(),
        ];
        assert_proven(&check_then_act(&arguments), 12);
        let mut plain = tokio::net::TcpStream::connect(redis.address()).await.unwrap();
        plain.write_all(b"FLUSHALL\r\n").await.unwrap();
        let mut answer = [0; 3];
        plain.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"+OK");
    }
}
