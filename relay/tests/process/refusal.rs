//! What is wrong before the start ends it: one clear line, the right exit code, nothing written.

use diesel::connection::SimpleConnection;
use outbox_testing::or_skip;
use outbox_testing::services;

use crate::sidecar::Folder;
use crate::sqlite::{self, CONFIG};

#[test]
fn an_unknown_key_ends_run_and_check_before_anything_is_touched() {
    let folder = Folder::new(&CONFIG.replace("url = ", "batchsize = 5\nurl = "));
    for command in [
        &["run"][..],
        &["migrate"],
        &["status"],
        &["config", "check"],
        &["config", "show"],
    ] {
        assert_eq!(
            folder.run(command).refused(78),
            "outbox-relay: outbox-relay.toml:6:1: unknown key `batchsize` in [source.orders]; did you mean `batch_size`?"
        );
    }
    assert!(!folder.path("orders.db").exists());
}

#[test]
fn a_wrong_type_ends_it_with_its_place() {
    let folder = Folder::new(&CONFIG.replace("url = ", "batch_size = true\nurl = "));
    assert_eq!(
        folder.run(&["run"]).refused(78),
        "outbox-relay: outbox-relay.toml:6:14: source.orders.batch_size: expected a whole number, found true"
    );
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let folder = Folder::new(CONFIG);
    for command in [&["walk"][..], &["run", "--fast"], &["run", "--wait", "5"], &[]] {
        assert_eq!(folder.run(command).code, Some(64), "{command:?}");
    }
}

#[test]
fn a_secret_that_is_not_there_is_named() {
    let folder = Folder::new(&CONFIG.replace("\"sqlite:orders.db\"", "{ env = \"NO_SUCH_VARIABLE\" }"));
    assert_eq!(
        folder.run(&["run"]).refused(78),
        "outbox-relay: outbox-relay.toml:6:7: source.orders.url: the environment variable NO_SUCH_VARIABLE is not set; set it or change the setting"
    );
    folder.run(&["config", "check"]).ok();
}

#[test]
fn a_missing_file_is_not_created() {
    let folder = Folder::new(CONFIG);
    let line = folder.run(&["run"]).refused(69);
    assert!(
        line.contains("source orders") && line.contains("unreachable"),
        "{line}"
    );
    assert!(!folder.path("orders.db").exists());
}

#[test]
fn a_database_without_the_tables_is_refused_with_the_command_that_makes_them() {
    let folder = Folder::new(CONFIG);
    let mut database = sqlite::open(&folder.path("orders.db"));
    database
        .batch_execute("CREATE TABLE business (id INTEGER)")
        .unwrap();
    let line = folder.run(&["run"]).refused(78);
    assert!(line.contains("outbox-relay migrate"), "{line}");
    assert_eq!(
        sqlite::count(&mut database, "SELECT count(*) AS n FROM sqlite_master"),
        1
    );
}

#[test]
fn a_schema_of_a_later_version_is_refused_by_run_and_by_migrate() {
    let folder = Folder::new(CONFIG);
    folder.run(&["migrate"]).ok();
    let mut database = sqlite::open(&folder.path("orders.db"));
    database
        .batch_execute("UPDATE outbox_schema SET version = 99 WHERE component = 'outbox'")
        .unwrap();
    for command in ["run", "migrate"] {
        let line = folder.run(&[command]).refused(78);
        assert!(line.contains("99"), "{line}");
    }
    assert_eq!(sqlite::lease_owner(&mut database), None);
}

/// PostgreSQL to standard output; the URL comes from the environment.
const POSTGRES: &str = r#"
config_version = 1
[source.orders]
kind = "postgres"
url = { env = "DATABASE_URL" }
[sink.lines]
kind = "stdout"
[ops]
listen = "127.0.0.1:0"
"#;

fn run_postgres(folder: &Folder, command: &str, url: &str) -> String {
    let code = if url.contains(":1/") { 69 } else { 78 };
    let output = folder
        .command(&[command])
        .env("DATABASE_URL", url)
        .output()
        .unwrap();
    crate::sidecar::Ended::from(output).refused(code)
}

#[test]
fn a_database_that_cannot_be_reached_is_unavailable() {
    let folder = Folder::new(POSTGRES);
    for command in ["run", "migrate", "status"] {
        let line = run_postgres(&folder, command, "postgres://relay:hunter2@127.0.0.1:1/orders");
        assert!(line.starts_with("outbox-relay: source orders: "), "{line}");
        assert!(line.contains("start the database or correct the url"), "{line}");
        assert!(!line.contains("hunter2"), "{line}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_a_configuration_error() {
    let postgres = or_skip!(services::own_postgres().await);
    let database = postgres.database().await.unwrap();
    let client = database.client().await.unwrap();
    client
        .batch_execute("CREATE ROLE relay LOGIN PASSWORD 'right'")
        .await
        .unwrap();
    let Some(directory) = postgres.directory() else {
        return outbox_testing::announce_skip("needs a private PostgreSQL, whose pg_hba.conf it changes");
    };
    let hba = directory.join("data/pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(
        &hba,
        format!("host all relay 127.0.0.1/32 scram-sha-256\n{rules}"),
    )
    .unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();

    let mut url: url::Url = database.url().parse().unwrap();
    url.set_username("relay").unwrap();
    url.set_password(Some("hunter2")).unwrap();
    let folder = Folder::new(POSTGRES);
    for command in ["run", "migrate"] {
        let line = run_postgres(&folder, command, url.as_str());
        assert!(line.contains("correct user, password or grants"), "{line}");
        assert!(!line.contains("hunter2"), "{line}");
    }
    let row = client
        .query_one("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
}

#[tokio::test]
async fn missing_tables_in_postgres_are_named_with_the_command_that_makes_them() {
    let postgres = or_skip!(services::postgres().await);
    let database = postgres.database().await.unwrap();
    let folder = Folder::new(POSTGRES);
    let line = run_postgres(&folder, "run", database.url());
    assert!(line.contains("outbox-relay migrate"), "{line}");
    let client = database.client().await.unwrap();
    let row = client
        .query_one("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
}
