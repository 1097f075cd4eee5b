//! The shop: one transaction an order, writing the order and its message.

use std::path::Path;

use diesel::{ExpressionMethods, QueryDsl};
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use outbox::Outbox;

use crate::input::Order;

/// The connection this example's databases are used through.
pub(crate) type Connection = SyncConnectionWrapper<diesel::SqliteConnection>;

/// File of the shop's database: its orders and its outbox.
pub(crate) const FILE: &str = "shop.sqlite";

/// Topic of the messages.
pub(crate) const TOPIC: &str = "orders";

/// Type of the messages.
pub(crate) const ORDER_PLACED: &str = "order.placed";

diesel::table! {
    orders (seq) {
        seq -> BigInt,
        order_id -> Text,
        customer -> Text,
        total_cents -> BigInt,
    }
}

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS orders (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    order_id    TEXT NOT NULL UNIQUE,
    customer    TEXT NOT NULL,
    total_cents INTEGER NOT NULL
)";

/// The shop's side of the example.
pub(crate) struct Shop {
    connection: Connection,
    outbox: Outbox,
}

impl Shop {
    /// Opens the shop's database, creating the tables it lacks.
    pub(crate) async fn open(directory: &Path, outbox: Outbox) -> anyhow::Result<Self> {
        let mut connection = crate::service::connect(&directory.join(FILE)).await?;
        connection.batch_execute(SCHEMA).await?;
        outbox::migrate(&mut connection).await?;
        Ok(Self { connection, outbox })
    }

    /// Writes the order and its message in one transaction; false if the order is already there.
    pub(crate) async fn place(&mut self, order: &Order) -> anyhow::Result<bool> {
        let message = self
            .outbox
            .message(TOPIC, ORDER_PLACED)
            .key(&order.customer)
            .json(order)
            .build()?;
        self.outbox
            .transaction(&mut self.connection, async |tx| {
                let inserted = diesel::insert_or_ignore_into(orders::table)
                    .values((
                        orders::order_id.eq(&order.order_id),
                        orders::customer.eq(&order.customer),
                        orders::total_cents.eq(order.total_cents),
                    ))
                    .execute(tx.connection())
                    .await?;
                if inserted == 1 {
                    tx.enqueue(message)?;
                }
                anyhow::Ok(inserted == 1)
            })
            .await
    }
    /// How many orders are committed.
    pub(crate) async fn orders(&mut self) -> anyhow::Result<u64> {
        let count: i64 = orders::table.count().get_result(&mut self.connection).await?;
        Ok(count.unsigned_abs())
    }
}
