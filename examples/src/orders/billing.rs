//! Billing: one invoice an order, however often its message comes.

use async_trait::async_trait;
use diesel::ExpressionMethods;
use diesel_async::RunQueryDsl;
use outbox_consumer::{Context, Handler, HandlerError};

use crate::input::Order;
use crate::shop::Connection;

/// File of billing's database: its invoices, its inbox and what it saw on the wire.
pub(crate) const FILE: &str = "billing.sqlite";

diesel::table! {
    invoices (number) {
        number -> BigInt,
        order_id -> Text,
        customer -> Text,
        total_cents -> BigInt,
    }
}

/// No unique constraint on `order_id`: were an effect to happen twice, the ledger would show it.
pub(crate) const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS invoices (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    order_id    TEXT NOT NULL,
    customer    TEXT NOT NULL,
    total_cents INTEGER NOT NULL
)";

/// Writes an invoice in the consumer's transaction.
pub(crate) struct Bill;

#[async_trait]
impl Handler<Connection> for Bill {
    async fn handle(&self, tx: &mut Connection, context: &Context<'_>) -> Result<(), HandlerError> {
        let order: Order = context.json()?;
        diesel::insert_into(invoices::table)
            .values((
                invoices::order_id.eq(&order.order_id),
                invoices::customer.eq(&order.customer),
                invoices::total_cents.eq(order.total_cents),
            ))
            .execute(tx)
            .await?;
        Ok(())
    }
}
