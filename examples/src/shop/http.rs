//! The routes.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use diesel::{ExpressionMethods, OptionalExtension, QueryDsl};
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use outbox::Outbox;
use outbox::relay::RelayStatus;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::schema::{ORDER_PLACED, TOPIC, invoices, orders};

/// What a customer asks for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewOrder {
    customer: String,
    total_cents: i64,
}

/// An order as it travels.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) order_id: Uuid,
    pub(crate) customer: String,
    pub(crate) total_cents: i64,
}

#[derive(Debug, Serialize)]
struct Invoice {
    number: i64,
    order_id: Uuid,
    customer: String,
    total_cents: i64,
}

#[derive(Clone)]
struct Shop {
    pool: Pool<AsyncPgConnection>,
    outbox: Outbox,
    relay: RelayStatus,
}

/// All routes over one pool and one outbox.
pub(crate) fn routes(pool: Pool<AsyncPgConnection>, outbox: Outbox, relay: RelayStatus) -> Router {
    Router::new()
        .route("/orders", post(place))
        .route("/orders/{id}/invoice", get(invoice))
        .route("/status", get(status))
        .with_state(Shop { pool, outbox, relay })
}

/// Any failure: the text goes to the log, the client learns that it may try again.
struct Failure(anyhow::Error);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        tracing::error!(error = format!("{:#}", self.0), "request failed");
        (StatusCode::SERVICE_UNAVAILABLE, "try again later\n").into_response()
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

async fn place(State(shop): State<Shop>, Json(new): Json<NewOrder>) -> Result<Response, Failure> {
    if new.customer.is_empty() || new.total_cents < 0 {
        let text = "customer must not be empty, total_cents not negative\n";
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, text).into_response());
    }
    let order = Order {
        order_id: Uuid::now_v7(),
        customer: new.customer,
        total_cents: new.total_cents,
    };
    let message = shop
        .outbox
        .message(TOPIC, ORDER_PLACED)
        .key(&order.customer)
        .json(&order)
        .build();
    let message = match message {
        Ok(message) => message,
        Err(invalid) => return Ok((StatusCode::UNPROCESSABLE_ENTITY, format!("{invalid}\n")).into_response()),
    };
    let mut connection = shop.pool.get().await?;
    shop.outbox
        .transaction(&mut *connection, async |tx| {
            diesel::insert_into(orders::table)
                .values((
                    orders::order_id.eq(order.order_id),
                    orders::customer.eq(&order.customer),
                    orders::total_cents.eq(order.total_cents),
                ))
                .execute(tx.connection())
                .await?;
            tx.enqueue(message)?;
            anyhow::Ok(())
        })
        .await?;
    Ok((StatusCode::CREATED, Json(order)).into_response())
}

async fn invoice(State(shop): State<Shop>, Path(id): Path<Uuid>) -> Result<Response, Failure> {
    let mut connection = shop.pool.get().await?;
    let row: Option<(i64, Uuid, String, i64)> = invoices::table
        .filter(invoices::order_id.eq(id))
        .select((
            invoices::number,
            invoices::order_id,
            invoices::customer,
            invoices::total_cents,
        ))
        .first(&mut connection)
        .await
        .optional()?;
    Ok(match row {
        Some((number, order_id, customer, total_cents)) => Json(Invoice {
            number,
            order_id,
            customer,
            total_cents,
        })
        .into_response(),
        None => (StatusCode::NOT_FOUND, "no invoice yet\n").into_response(),
    })
}

async fn status(State(shop): State<Shop>) -> Response {
    Json(shop.relay.snapshot()).into_response()
}
