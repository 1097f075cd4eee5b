//! A synchronous diesel connection is fenced as an asynchronous one is.

use diesel::connection::SimpleConnection as _;
use diesel::sqlite::SqliteConnection;
use diesel::{Connection as _, RunQueryDsl as _};
use outbox_lock::{Error, ErrorKind, fence_sync};
use outbox_testing::or_skip;

use crate::site::{self, key, token};

#[tokio::test]
async fn a_synchronous_transaction_is_fenced_and_rolled_back() {
    let site = or_skip!(site::sqlite().await);
    let (mut connection, key) = (
        SqliteConnection::establish(&site.path()).unwrap(),
        key("order:42"),
    );
    connection.batch_execute("CREATE TABLE written (n int)").unwrap();
    let mut write = |shown: i64| {
        connection.transaction::<_, Error, _>(|tx| {
            fence_sync(tx, &key, token(shown))?;
            diesel::sql_query("INSERT INTO written VALUES (1)").execute(tx)?;
            Ok(())
        })
    };
    write(2).unwrap();
    write(2).unwrap();
    let refused = write(1).unwrap_err();
    assert_eq!(refused.fenced().unwrap().seen(), token(2));
    let refused = fence_sync(&mut connection, &key, token(3)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    let rows = diesel::sql_query("DELETE FROM written").execute(&mut connection);
    assert_eq!(rows.unwrap(), 2);
}
