//! A message that no broker takes ends as a dead letter and stops nobody else.

use serde_json::Value;

use crate::sidecar::{Folder, lines};
use crate::sqlite;

/// A SQLite outbox to a SQLite queue, whose adapter checks every message.
const CONFIG: &str = r#"
config_version = 1
[source.orders]
kind = "sqlite"
url = "sqlite:orders.db"
[source.orders.retry]
max_attempts = 2
backoff = { initial = "10ms", max = "20ms" }
[sink.queue]
kind = "sql"
url = "sqlite:queue.db"
[ops]
listen = "127.0.0.1:0"
"#;

fn letters(folder: &Folder) -> Vec<Value> {
    serde_json::from_str(&folder.run(&["dead", "list", "--output", "json"]).ok()).unwrap()
}

#[tokio::test]
async fn a_poison_message_becomes_a_dead_letter_that_can_be_redriven_or_discarded() {
    let folder = Folder::new(CONFIG);
    folder.run(&["migrate"]).ok();
    let mut database = sqlite::open(&folder.path("orders.db"));
    let sidecar = folder.start().await;
    for number in 0..3 {
        sqlite::insert(&mut database, "no such topic", &format!("bad-{number}"), number);
        sqlite::insert(&mut database, "orders", "good", number);
    }
    let source = sidecar
        .until("three dead letters", |source| {
            source["backlog"]["dead"] == 3 && source["backlog"]["pending"] == 0
        })
        .await;
    assert_eq!(
        source["relay"]["totals"]["published"], 3,
        "the good ones go on: {source:#}"
    );
    assert!(
        source["problems"][0].as_str().unwrap().contains("dead letters"),
        "{source:#}"
    );

    let found = letters(&folder);
    assert_eq!(found.len(), 3);
    assert!(found[0]["error"].as_str().unwrap().contains("topic"), "{found:?}");
    let id = found[0]["id"].as_str().unwrap();
    let shown: Value = serde_json::from_str(&folder.run(&["dead", "show", id]).ok()).unwrap();
    assert_eq!(shown["payload"], 0);
    assert_eq!(shown["attributes"]["topic"], "no such topic");

    let line = folder.run(&["dead", "show", "4711"]).refused(1);
    assert!(line.contains("4711 is no dead letter"), "{line}");
    let refused = folder.run(&["dead", "discard", "--all"]);
    assert_eq!(refused.code, Some(64), "nobody can be asked: {}", refused.stderr);
    assert!(
        refused.stderr.contains("3 dead letters would be changed"),
        "{}",
        refused.stderr
    );
    folder.run(&["dead", "discard", "--all", "--dry-run"]).ok();
    assert_eq!(letters(&folder).len(), 3, "neither changed anything");

    assert_eq!(folder.run(&["dead", "discard", id]).ok(), "1 discarded\n");
    assert_eq!(letters(&folder).len(), 2);
    assert_eq!(
        folder.run(&["dead", "redrive", "--all", "--yes"]).ok(),
        "2 redriven\n"
    );
    sidecar
        .until("two dead letters again", |source| {
            source["backlog"]["dead"] == 2 && source["relay"]["totals"]["dead"] == 5
        })
        .await;
    assert_eq!(lines(&folder.path("stdout")).len(), 0);
}
