//! The publish: one statement for all messages of a transaction.

use std::collections::HashMap;

use diesel::sql_types::{Array, BigInt, Binary, Nullable, Text, Uuid};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::sql::store::{Appended, Row};

#[derive(QueryableByName)]
struct Inserted {
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = Text)]
    topic: String,
    #[diesel(sql_type = Text)]
    source: String,
    #[diesel(sql_type = Uuid)]
    message_id: uuid::Uuid,
}

/// Appends `rows`, inside a transaction.
pub(super) async fn append(db: &mut AsyncPgConnection, rows: &[Row]) -> QueryResult<Vec<Appended>> {
    let topics: Vec<&str> = rows.iter().map(|row| row.topic.as_str()).collect();
    sql_query(include_str!("publish_lock.sql"))
        .bind::<Array<Text>, _>(&topics)
        .execute(db)
        .await?;
    let inserted: Vec<Inserted> = sql_query(include_str!("publish.sql"))
        .bind::<Array<Text>, _>(&topics)
        .bind::<Array<Text>, _>(rows.iter().map(|row| row.source.as_str()).collect::<Vec<_>>())
        .bind::<Array<Uuid>, _>(rows.iter().map(|row| row.id).collect::<Vec<_>>())
        .bind::<Array<Nullable<Text>>, _>(rows.iter().map(|row| row.key.as_deref()).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(rows.iter().map(|row| row.attributes.as_str()).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(rows.iter().map(|row| row.headers.as_str()).collect::<Vec<_>>())
        .bind::<Array<Binary>, _>(rows.iter().map(|row| row.payload.as_ref()).collect::<Vec<_>>())
        .load(db)
        .await?;
    let mut seqs: HashMap<(uuid::Uuid, &str, &str), i64> = inserted
        .iter()
        .map(|row| ((row.message_id, row.source.as_str(), row.topic.as_str()), row.seq))
        .collect();
    let mut outcomes = Vec::with_capacity(rows.len());
    for row in rows {
        // The first of equal ids in one batch is the one that was stored.
        let seq = seqs.remove(&(row.id, row.source.as_str(), row.topic.as_str()));
        outcomes.push(seq.map_or(Appended::Duplicate, Appended::At));
    }
    Ok(outcomes)
}
