//! Nothing is written to a stranger's server, and nothing is left behind.
//!
//! The `victim_…` functions are bodies of child processes: the tests start this very program again with
//! `VICTIM` set. Without it they do nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outbox_broker::crash_point::{self, CrashPoint};
use outbox_testing::crash::{CrashPlan, Exit, Program};
use outbox_testing::settle::{Condition, settle};
use outbox_testing::{or_skip, services};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

const VICTIM: &str = "VICTIM";

/// Starting four servers, RabbitMQ among them, on a busy machine.
const START: Duration = Duration::from_secs(120);

/// This program again, running one function only.
fn victim(function: &str) -> Program {
    let program = Program::new(std::env::current_exe().unwrap()).env(VICTIM, "1");
    program
        .arg("--exact")
        .arg(function)
        .arg("--nocapture")
        .arg("--test-threads=1")
}

/// Process id and parent of everything that runs; what ended and was not yet waited for does not.
fn running() -> Vec<(u32, u32)> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let parse = |stat: String| {
        let pid = stat.split(' ').next()?.parse().ok()?;
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        let alive = fields.next()? != "Z";
        let parent = fields.next()?.parse().ok()?;
        alive.then_some((pid, parent))
    };
    stats.filter_map(parse).collect()
}

/// Everything the process started, and what that started in turn.
fn descendants(of: u32) -> Vec<u32> {
    let running = running();
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(running.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| pid));
        next += 1;
    }
    found.split_off(1)
}

#[tokio::test]
async fn victim_starts_servers() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let postgres = or_skip!(services::postgres().await);
    let mariadb = or_skip!(services::mariadb().await);
    let redis = or_skip!(services::own_redis().await);
    let rabbitmq = or_skip!(services::rabbitmq().await);
    let sqlite = services::sqlite().unwrap();
    std::fs::write(sqlite.path(), "rows").unwrap();
    let database = postgres.database().await.unwrap();
    println!("database {}", database.name());
    let directories = [
        postgres.directory(),
        mariadb.directory(),
        redis.directory(),
        rabbitmq.directory(),
    ];
    let sqlite = sqlite.path().parent().map(Path::to_owned);
    for directory in directories.into_iter().chain([sqlite]).flatten() {
        println!("directory {}", directory.display());
    }
    println!("all is up");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_test_process_leaves_no_server_and_no_directory_behind() {
    let mut child = victim("victim_starts_servers").spawn(None).unwrap();
    let up = child.printed("all is up", START).await;
    let output = child.tail();
    if let Some((_, reason)) = output.split_once("SKIPPED: victim_starts_servers ") {
        outbox_testing::announce_skip(reason.lines().next().unwrap_or_default());
        return;
    }
    up.expect(&output);
    let directories: Vec<PathBuf> = output
        .lines()
        .filter_map(|line| line.strip_prefix("directory "))
        .map(PathBuf::from)
        .collect();
    if directories.len() < 5 {
        outbox_testing::announce_skip("needs private servers: these come from a URL or a container");
        return;
    }
    for directory in &directories {
        assert!(directory.is_dir(), "{}", directory.display());
    }
    let processes = descendants(child.pid().unwrap());
    assert!(
        processes.len() > 14,
        "four servers with their supervisors: {processes:?}"
    );

    child.kill().unwrap();
    assert_eq!(child.wait(START).await.unwrap(), Exit::Signal(9));
    let left = Condition::new("left behind", || async {
        let running = running();
        let alive = processes
            .iter()
            .filter(|pid| running.iter().any(|(alive, _)| alive == *pid));
        let alive = alive.map(|pid| format!("process {pid}"));
        let folders = directories.iter().filter(|directory| directory.exists());
        let left: Vec<String> = alive
            .chain(folders.map(|folder| folder.display().to_string()))
            .collect();
        Ok::<_, std::io::Error>(Some(left.join(", ")).filter(|left| !left.is_empty()))
    });
    settle(Duration::from_secs(20), &[left]).await.unwrap();
}

#[test]
fn victim_reaches_crash_points() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    crash_point::arm_from_environment().unwrap();
    for _ in 0..10 {
        for point in CrashPoint::ALL {
            crash_point::reach(point);
        }
    }
    println!("through");
}

#[tokio::test]
async fn a_program_aborts_at_each_named_point() {
    let program = victim("victim_reaches_crash_points");
    for point in CrashPoint::ALL {
        let plan = CrashPlan::new(1, 1).at([point]).latest_passage(10);
        let survived = plan.run(&program).await.unwrap();
        assert_eq!(survived.runs, 2);
        assert_eq!(survived.crashes.len(), 1, "{point}");
        assert_eq!(survived.crashes[0].to_string(), plan.rule(0).unwrap().to_string());
    }
}

#[tokio::test]
async fn a_point_that_is_never_reached_lets_the_program_through() {
    let program = victim("victim_reaches_crash_points");
    let mut child = program
        .spawn(Some("published_not_settled@11".parse().unwrap()))
        .unwrap();
    child.printed("through", START).await.unwrap();
    assert_eq!(child.wait(START).await.unwrap(), Exit::Code(0));
}

/// Answers at `address` in the name of the server at `upstream`.
async fn impostor(address: &str, upstream: String) -> AbortOnDropHandle<()> {
    let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let upstream = upstream.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(upstream).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    }))
}

#[tokio::test]
async fn a_stranger_at_the_port_of_our_postgres_is_refused_before_any_ddl() {
    let stranger = or_skip!(services::postgres().await);
    let ours = or_skip!(services::own_postgres().await);
    ours.kill().await.unwrap();
    let _impostor = impostor(&ours.address(), stranger.address()).await;
    let refused = ours.database().await.unwrap_err();
    assert!(matches!(refused, services::Error::Refused { .. }), "{refused}");
}

#[tokio::test]
async fn a_stranger_at_the_port_of_our_mariadb_is_refused_before_any_ddl() {
    let stranger = or_skip!(services::mariadb().await);
    let ours = or_skip!(services::own_mariadb().await);
    ours.kill().await.unwrap();
    let _impostor = impostor(&ours.address(), stranger.address()).await;
    let refused = ours.database().await.unwrap_err();
    assert!(matches!(refused, services::Error::Refused { .. }), "{refused}");
}

#[tokio::test]
async fn a_stranger_at_the_port_of_our_redis_is_refused() {
    let stranger = or_skip!(services::redis().await);
    let ours = or_skip!(services::own_redis().await);
    ours.kill().await.unwrap();
    let _impostor = impostor(&ours.address(), stranger.address()).await;
    let refused = ours.database().await.unwrap_err();
    assert!(matches!(refused, services::Error::Refused { .. }), "{refused}");
}

#[tokio::test]
async fn a_stranger_at_the_port_of_our_rabbitmq_gets_no_virtual_host() {
    let stranger = or_skip!(services::rabbitmq().await);
    let ours = or_skip!(services::own_rabbitmq().await);
    ours.kill().await.unwrap();
    let _impostor = impostor(&ours.address(), stranger.address()).await;
    ours.vhost().await.unwrap_err();
}
