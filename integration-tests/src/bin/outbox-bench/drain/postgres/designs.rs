//! Three usual ways to drain an outbox, each written as well as its design allows: one connection,
//! prepared statements, every field decoded.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, Row};

use crate::rows::COLUMNS;

/// The tables of the designs that need a column of their own, otherwise as the outbox.
pub(super) const TABLES: &str = "
CREATE TABLE published_at_outbox (LIKE outbox INCLUDING DEFAULTS INCLUDING IDENTITY, published_at timestamptz,
  PRIMARY KEY (shard, id)) WITH (autovacuum_enabled = false);
CREATE INDEX published_at_pending ON published_at_outbox (id) WHERE published_at IS NULL;
CREATE TABLE lease_column_outbox (LIKE outbox INCLUDING DEFAULTS INCLUDING IDENTITY, locked_until timestamptz,
  PRIMARY KEY (shard, id)) WITH (autovacuum_enabled = false);
";

/// A design in common use.
#[derive(Clone, Copy)]
pub(super) enum Design {
    /// Lock a batch, skip what others locked, delete it in the same transaction.
    SkipLocked,
    /// Mark rows as published and leave them.
    PublishedAt,
    /// Write a lease into each row, delete the row afterwards.
    LeaseColumn,
}

impl Design {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::SkipLocked => "SKIP LOCKED, then DELETE",
            Self::PublishedAt => "UPDATE published_at",
            Self::LeaseColumn => "UPDATE a lease column, then DELETE",
        }
    }

    pub(super) const fn table(self) -> &'static str {
        match self {
            Self::SkipLocked => "outbox",
            Self::PublishedAt => "published_at_outbox",
            Self::LeaseColumn => "lease_column_outbox",
        }
    }

    /// The rows not yet published.
    pub(super) const fn pending(self) -> &'static str {
        match self {
            Self::SkipLocked => "SELECT FROM outbox",
            Self::PublishedAt => "SELECT FROM published_at_outbox WHERE published_at IS NULL",
            Self::LeaseColumn => "SELECT FROM lease_column_outbox",
        }
    }

    /// Takes batches until `rows` rows were taken.
    pub(super) async fn drain(self, client: &Client, rows: u64, batch: usize) -> Result<Duration> {
        let take = client.prepare(&self.take(batch)).await?;
        let delete = match self {
            Self::PublishedAt => None,
            _ => {
                let sql = format!("DELETE FROM {} WHERE shard = 0 AND id = ANY($1)", self.table());
                Some(client.prepare(&sql).await?)
            }
        };
        let start = Instant::now();
        let mut taken = 0;
        while taken < rows {
            if matches!(self, Self::SkipLocked) {
                client.batch_execute("BEGIN").await?;
            }
            let batch = client.query(&take, &[]).await?;
            if batch.is_empty() {
                break;
            }
            black_box(batch.iter().map(touch).sum::<usize>());
            if let Some(delete) = &delete {
                let ids: Vec<i64> = batch.iter().map(|row| row.get(1)).collect();
                client.execute(delete, &[&ids]).await?;
            }
            if matches!(self, Self::SkipLocked) {
                client.batch_execute("COMMIT").await?;
            }
            taken += batch.len() as u64;
        }
        Ok(start.elapsed())
    }

    /// The statement that takes a batch.
    fn take(self, batch: usize) -> String {
        let table = self.table();
        let pending = match self {
            Self::SkipLocked => {
                return format!(
                    "SELECT {COLUMNS} FROM outbox ORDER BY shard, id LIMIT {batch} FOR UPDATE SKIP LOCKED"
                );
            }
            Self::PublishedAt => "published_at IS NULL ORDER BY id",
            Self::LeaseColumn => "(locked_until IS NULL OR locked_until < now()) ORDER BY shard, id",
        };
        let mark = match self {
            Self::LeaseColumn => "locked_until = now() + interval '30 s'",
            _ => "published_at = now()",
        };
        let columns: Vec<_> = COLUMNS.split(", ").map(|column| format!("o.{column}")).collect();
        format!(
            "UPDATE {table} AS o SET {mark} FROM
               (SELECT shard, id FROM {table} WHERE {pending} LIMIT {batch} FOR UPDATE SKIP LOCKED) AS t
             WHERE o.shard = t.shard AND o.id = t.id RETURNING {}",
            columns.join(", ")
        )
    }
}

/// A field as it came, whatever its type.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Reads every field.
fn touch(row: &Row) -> usize {
    (0..row.len())
        .map(|at| row.get::<_, Option<Raw<'_>>>(at).map_or(0, |field| field.0.len()))
        .sum()
}
