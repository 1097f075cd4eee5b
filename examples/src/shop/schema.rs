//! The shop's and billing's tables, in one database for brevity.

use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};

/// Topic of the messages.
pub(crate) const TOPIC: &str = "orders";

/// Type of the messages.
pub(crate) const ORDER_PLACED: &str = "order.placed";

diesel::table! {
    orders (order_id) {
        order_id -> Uuid,
        customer -> Text,
        total_cents -> BigInt,
    }
}

diesel::table! {
    invoices (number) {
        number -> BigInt,
        order_id -> Uuid,
        customer -> Text,
        total_cents -> BigInt,
    }
}

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS orders (
    order_id    uuid PRIMARY KEY,
    customer    text NOT NULL,
    total_cents bigint NOT NULL CHECK (total_cents >= 0)
);
CREATE TABLE IF NOT EXISTS invoices (
    number      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id    uuid NOT NULL,
    customer    text NOT NULL,
    total_cents bigint NOT NULL
);";

/// Creates what is missing: the example's own tables, the outbox, the inbox.
pub(crate) async fn create(pool: &Pool<AsyncPgConnection>) -> anyhow::Result<()> {
    let mut connection = pool.get().await?;
    connection.batch_execute(SCHEMA).await?;
    outbox::migrate(&mut *connection).await?;
    outbox_consumer::migrate(&mut *connection).await?;
    Ok(())
}
