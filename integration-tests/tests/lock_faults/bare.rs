//! The same race without lock and fence: it must go wrong, or the matrix proves nothing.

use outbox_testing::or_skip;

use crate::history;
use crate::stage::{LONG, database, holder, through};

#[tokio::test]
async fn without_lock_and_fence_the_effect_is_doubled() {
    let database = or_skip!(database().await);
    let key = format!("bare:{}", uuid::Uuid::new_v4());
    history::open(database, &key).await;
    let gate = tempfile::tempdir().unwrap();
    let race = |name: &str| {
        holder(database, &key, name)
            .arg("--redis")
            .arg("redis://127.0.0.1:1")
            .arg("--bare")
            .arg("--at")
            .arg("commit")
            .arg("--gate")
            .arg(gate.path().join("open"))
            .spawn(None)
            .unwrap()
    };
    let (mut first, mut second) = (race("first"), race("second"));
    for racer in [&mut first, &mut second] {
        racer.printed("at commit", LONG).await.unwrap();
    }
    std::fs::write(gate.path().join("open"), "").unwrap();
    through(&mut first).await;
    through(&mut second).await;
    let books = history::read(database, &key).await;
    assert_eq!(books.effects.len(), 2, "{books}");
}
