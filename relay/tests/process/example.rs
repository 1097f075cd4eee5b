//! The commands of examples/sidecar/README.md, as they stand there.

use std::path::{Path, PathBuf};
use std::process::Command;

use outbox_testing::or_skip;
use outbox_testing::services;

use crate::sidecar::{Ended, Folder, lines};

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples/sidecar")
        .canonicalize()
        .unwrap()
}

/// The `sh` blocks of the README.
fn blocks() -> Vec<String> {
    let readme = std::fs::read_to_string(example().join("README.md")).unwrap();
    readme
        .split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

/// A Python that has psycopg2: Debian's, whatever stands first in the path.
fn python() -> Option<&'static str> {
    ["/usr/bin/python3", "python3"].into_iter().find(|python| {
        let found = Command::new(python).args(["-c", "import psycopg2"]).output();
        found.is_ok_and(|output| output.status.success())
    })
}

#[test]
fn the_sqlite_commands_of_the_readme_work_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_outbox-relay")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh")
        .args(["-e", "-c", &blocks()[1]])
        .current_dir(folder.path())
        .env("PATH", path)
        .env("SIDECAR", example())
        .output()
        .unwrap();
    let printed = Ended::from(output).ok();
    assert!(
        printed.contains(r#"{"committed": 90, "rolled_back": 10, "waiting": 0}"#),
        "{printed}"
    );

    let published = lines(&folder.path().join("published.jsonl"));
    assert_eq!(published.len(), 90);
    let mut connection = crate::sqlite::open(&folder.path().join("orders.db"));
    for message in &published {
        let order = message["data"]["order"].as_i64().unwrap();
        let query = format!("SELECT count(*) AS n FROM orders WHERE id = {order}");
        assert_eq!(
            crate::sqlite::count(&mut connection, &query),
            1,
            "order {order} is committed"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_service_on_postgres_is_published_to_rabbitmq() {
    let Some(python) = python() else {
        return outbox_testing::announce_skip("needs Debian's python3-psycopg2");
    };
    let postgres = or_skip!(services::postgres().await);
    let rabbit = or_skip!(services::rabbitmq().await);
    let database = postgres.database().await.unwrap();
    let vhost = rabbit.vhost().await.unwrap();

    let shipped = std::fs::read_to_string(example().join("postgres.toml")).unwrap();
    let folder = Folder::new(&shipped);
    let run = |arguments: &[&str]| {
        let mut command = folder.command(arguments);
        command
            .env("DATABASE_URL", database.url())
            .env("AMQP_URL", vhost.url());
        Ended::from(command.output().unwrap())
    };
    run(&["config", "check"]).ok();
    run(&["migrate"]).ok();
    let urls = [
        "--set=ops.listen=127.0.0.1:0".to_owned(),
        format!("--set=source.orders.url={}", database.url()),
        format!("--set=sink.events.url={}", vhost.url()),
    ];
    let sidecar = folder.start_with(&urls.each_ref().map(String::as_str)).await;
    let shop = |orders: &str| {
        let script = example().join("sidecar.py");
        let mut command = Command::new(python);
        command
            .arg(script)
            .args([database.url(), "--orders", orders, "--wait", "30"]);
        command
    };
    // The exchange has no queue yet: the script ends with an error once it has waited long enough, so only
    // its rows count here.
    let first = shop("10").args(["--wait", "0"]).output().unwrap();
    Ended::from(first).ok();
    sidecar
        .until("the word unroutable", |source| {
            source["relay"]["last_error"]["kind"] == "unroutable"
        })
        .await;
    let channel = crate::broker::bind(&vhost, "outbox").await;
    let second = tokio::task::spawn_blocking({
        let mut second = shop("90");
        move || second.output().unwrap()
    });
    assert_eq!(
        Ended::from(second.await.unwrap()).ok().trim(),
        r#"{"committed": 81, "rolled_back": 9, "waiting": 0}"#
    );
    let mut orders: Vec<i64> = crate::broker::take_all(&channel)
        .await
        .iter()
        .map(|body| {
            serde_json::from_str::<serde_json::Value>(body).unwrap()["order"]
                .as_i64()
                .unwrap()
        })
        .collect();
    orders.sort_unstable();
    let client = database.client().await.unwrap();
    let committed: Vec<i64> = client
        .query("SELECT id FROM orders ORDER BY id", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(committed.len(), 90);
    assert_eq!(orders, committed);
}
