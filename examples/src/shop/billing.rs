//! Billing: the consumer's side.

use async_trait::async_trait;
use diesel::ExpressionMethods;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use outbox_consumer::{Context, Handler, HandlerError};

use crate::http::Order;
use crate::schema::invoices;

/// Writes an invoice in the consumer's transaction.
pub(crate) struct Bill;

#[async_trait]
impl Handler<AsyncPgConnection> for Bill {
    async fn handle(&self, tx: &mut AsyncPgConnection, context: &Context<'_>) -> Result<(), HandlerError> {
        let order: Order = context.json()?;
        diesel::insert_into(invoices::table)
            .values((
                invoices::order_id.eq(order.order_id),
                invoices::customer.eq(&order.customer),
                invoices::total_cents.eq(order.total_cents),
            ))
            .execute(tx)
            .await?;
        Ok(())
    }
}
