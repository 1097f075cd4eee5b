//! The verdicts: one statement for each kind, however many there are.

use std::collections::HashSet;

use diesel::sql_types::{Array, BigInt, Bool, Integer, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::sql::store::{Action, Order, micros};

#[derive(QueryableByName, PartialEq, Eq, Hash)]
struct Name {
    #[diesel(sql_type = BigInt)]
    group_id: i64,
    #[diesel(sql_type = BigInt)]
    seq: i64,
}

/// The orders of one kind as columns.
struct Columns<T> {
    groups: Vec<i64>,
    seqs: Vec<i64>,
    members: Vec<i64>,
    attempts: Vec<i32>,
    extra: Vec<T>,
}

impl<T> Columns<T> {
    fn pick<'a>(orders: &'a [Order], extra: impl Fn(&'a Action) -> Option<T>) -> Self {
        let mut out = Self {
            groups: Vec::new(),
            seqs: Vec::new(),
            members: Vec::new(),
            attempts: Vec::new(),
            extra: Vec::new(),
        };
        for order in orders {
            if let Some(value) = extra(&order.action) {
                out.groups.push(order.group);
                out.seqs.push(order.seq);
                out.members.push(order.member);
                out.attempts.push(order.attempt);
                out.extra.push(value);
            }
        }
        out
    }
}

/// Carries out `orders` inside a transaction; says of each whether its lease still stood.
pub(super) async fn settle(db: &mut AsyncPgConnection, orders: &[Order]) -> QueryResult<Vec<bool>> {
    // A delivery is extended at most until its verdict, so extensions go first.
    let extend = Columns::pick(orders, |action| match action {
        Action::Extend(visibility) => Some(micros(*visibility)),
        _ => None,
    });
    let nack = Columns::pick(orders, |action| match action {
        Action::Nack(delay) => Some(micros(*delay)),
        _ => None,
    });
    let extended = delay(db, extend, true).await?;
    let mut held = delay(db, nack, false).await?;
    held.extend(bury(db, orders).await?);
    held.extend(ack(db, orders).await?);
    let done = |order: &Order| {
        let name = Name {
            group_id: order.group,
            seq: order.seq,
        };
        match order.action {
            Action::Extend(_) => extended.contains(&name),
            _ => held.contains(&name),
        }
    };
    Ok(orders.iter().map(done).collect())
}

async fn ack(db: &mut AsyncPgConnection, orders: &[Order]) -> QueryResult<HashSet<Name>> {
    let acks = Columns::pick(orders, |action| matches!(action, Action::Ack).then_some(()));
    if acks.seqs.is_empty() {
        return Ok(HashSet::new());
    }
    let rows: Vec<Name> = sql_query(include_str!("ack.sql"))
        .bind::<Array<BigInt>, _>(acks.groups)
        .bind::<Array<BigInt>, _>(acks.seqs)
        .bind::<Array<BigInt>, _>(acks.members)
        .bind::<Array<Integer>, _>(acks.attempts)
        .load(db)
        .await?;
    Ok(rows.into_iter().collect())
}

async fn delay(db: &mut AsyncPgConnection, rows: Columns<i64>, keep: bool) -> QueryResult<HashSet<Name>> {
    if rows.seqs.is_empty() {
        return Ok(HashSet::new());
    }
    let rows: Vec<Name> = sql_query(include_str!("delay.sql"))
        .bind::<Array<BigInt>, _>(rows.groups)
        .bind::<Array<BigInt>, _>(rows.seqs)
        .bind::<Array<BigInt>, _>(rows.members)
        .bind::<Array<Integer>, _>(rows.attempts)
        .bind::<Array<BigInt>, _>(rows.extra)
        .bind::<Bool, _>(keep)
        .load(db)
        .await?;
    Ok(rows.into_iter().collect())
}

async fn bury(db: &mut AsyncPgConnection, orders: &[Order]) -> QueryResult<HashSet<Name>> {
    let dead = Columns::pick(orders, |action| match action {
        Action::Dead(reason) => Some(reason.as_str()),
        _ => None,
    });
    if dead.seqs.is_empty() {
        return Ok(HashSet::new());
    }
    let rows: Vec<Name> = sql_query(include_str!("bury.sql"))
        .bind::<Array<BigInt>, _>(dead.groups)
        .bind::<Array<BigInt>, _>(dead.seqs)
        .bind::<Array<BigInt>, _>(dead.members)
        .bind::<Array<Integer>, _>(dead.attempts)
        .bind::<Array<Text>, _>(dead.extra)
        .load(db)
        .await?;
    Ok(rows.into_iter().collect())
}
