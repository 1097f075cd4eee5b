//! The commands that do not run for ever.

use serde_json::Value;

use crate::sidecar::Folder;
use crate::sqlite::{self, CONFIG};

#[test]
fn what_init_writes_passes_check() {
    let folder = Folder::new("");
    std::fs::remove_file(folder.path("outbox-relay.toml")).unwrap();
    folder.run(&["config", "init"]).ok();
    assert_eq!(
        folder.run(&["config", "check"]).ok(),
        "ok: source orders (postgres) -> sink events (rabbitmq)\n"
    );
    let line = folder.run(&["config", "init"]).refused(1);
    assert!(line.contains("exists already"), "{line}");
}

#[test]
fn show_prints_every_value_with_its_origin() {
    let folder = Folder::new(CONFIG);
    let output = folder
        .command(&[
            "config",
            "show",
            "--origin",
            "--set",
            "source.orders.batch_size=7",
        ])
        .env("OUTBOX_SOURCE__ORDERS__LEASE__TTL", "30s")
        .output()
        .unwrap();
    let shown = crate::sidecar::Ended::from(output).ok();
    let line = |path: &str| {
        let line = shown
            .lines()
            .find(|line| line.starts_with(path))
            .unwrap_or_default();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        line("source.orders.batch_size"),
        "source.orders.batch_size = 7 # --set source.orders.batch_size"
    );
    assert_eq!(
        line("source.orders.lease.ttl"),
        "source.orders.lease.ttl = \"30s\" # environment variable OUTBOX_SOURCE__ORDERS__LEASE__TTL"
    );
    assert_eq!(
        line("source.orders.kind"),
        "source.orders.kind = \"sqlite\" # outbox-relay.toml:5:8"
    );
    assert_eq!(line("shutdown.timeout"), "shutdown.timeout = \"25s\" # default");
}

#[test]
fn migrate_twice_does_nothing_and_print_is_what_it_runs() {
    let folder = Folder::new(CONFIG);
    assert_eq!(folder.run(&["migrate"]).ok(), "source orders: migrated\n");
    assert_eq!(folder.run(&["migrate"]).ok(), "source orders: up to date\n");

    let printed = Folder::new(CONFIG);
    let ddl = printed.run(&["migrate", "--print"]).ok();
    assert!(!printed.path("orders.db").exists());
    diesel::connection::SimpleConnection::batch_execute(&mut sqlite::open(&printed.path("orders.db")), &ddl)
        .unwrap();
    assert_eq!(printed.run(&["migrate"]).ok(), "source orders: up to date\n");
}

#[tokio::test]
async fn status_asks_the_database_without_a_relay_and_the_relay_where_it_runs() {
    let folder = Folder::new(CONFIG);
    folder.run(&["migrate"]).ok();
    let mut database = sqlite::open(&folder.path("orders.db"));
    for number in 0..3 {
        sqlite::insert(&mut database, "orders", "key", number);
    }
    let report = |folder: &Folder, more: &[&str]| -> Value {
        let arguments = [&["status", "--output", "json"], more].concat();
        serde_json::from_str(&folder.run(&arguments).ok()).unwrap()
    };
    let without = report(&folder, &[]);
    assert_eq!(without["relay"], "not running here");
    assert_eq!(without["sources"][0]["backlog"]["pending"], 3);
    assert_eq!(without["sources"][0]["leases"][0]["owner"], Value::Null);

    let sidecar = folder.start().await;
    sidecar.until_drained().await;
    let listen = format!("ops.listen={}", folder.text("ready").trim());
    let with = report(&folder, &["--set", &listen]);
    assert_eq!(with["relay"], "running");
    assert_eq!(with["state"], "ok");
    assert_eq!(with["sources"][0]["backlog"]["pending"], 0);
    assert_eq!(with["sources"][0]["relay"]["totals"]["published"], 3);

    let table = folder.run(&["status", "--set", &listen]).ok();
    assert!(table.contains("orders (sqlite) -> lines (stdout)"), "{table}");
    assert!(table.contains("published 3"), "{table}");
}
