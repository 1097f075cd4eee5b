//! The claim: one short transaction that holds the group's row.

use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text};
use diesel::{QueryResult, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::sql::plan::{Asked, FreshRow, PendingRow, Plan, plan};
use crate::sql::rows::{ContentRow, FreshScan, LockedGroup, PendingScan};
use crate::sql::store::{Claim, Claimed, ClaimedRow, PENDING_LIMIT, SCAN_ROWS, count, micros};

/// The claim itself, inside a transaction.
pub(super) async fn take(db: &mut AsyncPgConnection, claim: Claim) -> QueryResult<Claimed> {
    let group: LockedGroup = sql_query(include_str!("lock_group.sql"))
        .bind::<BigInt, _>(claim.group)
        .get_result(db)
        .await?;
    let pending: Vec<PendingScan> = sql_query(include_str!("scan_pending.sql"))
        .bind::<BigInt, _>(claim.group)
        .load(db)
        .await?;
    let fresh: Vec<FreshScan> = sql_query(include_str!("scan_fresh.sql"))
        .bind::<Text, _>(&group.topic)
        .bind::<BigInt, _>(group.read_to_seq)
        .bind::<BigInt, _>(count(claim.max.max(SCAN_ROWS)))
        .load(db)
        .await?;
    let pending: Vec<PendingRow> = pending.into_iter().map(PendingRow::from).collect();
    let fresh: Vec<FreshRow> = fresh.into_iter().map(FreshRow::from).collect();
    let asked = Asked {
        member: claim.member,
        now: group.now,
        max: claim.max,
        prefetch: claim.prefetch,
        pending_limit: PENDING_LIMIT,
    };
    let plan = plan(&pending, &fresh, asked);
    if plan.is_empty() {
        return Ok(Claimed::default());
    }
    write_plan(db, &plan, claim, group.now).await?;
    let rows = load(db, &plan, claim.group).await?;
    Ok(Claimed {
        rows,
        advanced: plan.cursor.is_some(),
        next_due: None,
    })
}

async fn write_plan(db: &mut AsyncPgConnection, plan: &Plan, claim: Claim, now: i64) -> QueryResult<()> {
    let lease_end = now + micros(claim.visibility);
    if !plan.again.is_empty() {
        sql_query(include_str!("take_again.sql"))
            .bind::<BigInt, _>(claim.member)
            .bind::<BigInt, _>(lease_end)
            .bind::<BigInt, _>(claim.group)
            .bind::<Array<BigInt>, _>(&plan.again)
            .execute(db)
            .await?;
    }
    for (seqs, attempts, owner, visible_at) in [
        (&plan.fresh, 1, Some(claim.member), lease_end),
        (&plan.park, 0, None, 0),
    ] {
        if !seqs.is_empty() {
            sql_query(include_str!("take_fresh.sql"))
                .bind::<BigInt, _>(claim.group)
                .bind::<Integer, _>(attempts)
                .bind::<Nullable<BigInt>, _>(owner)
                .bind::<BigInt, _>(visible_at)
                .bind::<Array<BigInt>, _>(seqs)
                .execute(db)
                .await?;
        }
    }
    if let Some(cursor) = plan.cursor {
        sql_query("UPDATE outbox_queue_group SET read_to_seq = $1 WHERE id = $2")
            .bind::<BigInt, _>(cursor)
            .bind::<BigInt, _>(claim.group)
            .execute(db)
            .await?;
    }
    Ok(())
}

/// Reads what was taken. A row whose message is gone (deleted by hand) is dropped from the group.
async fn load(db: &mut AsyncPgConnection, plan: &Plan, group: i64) -> QueryResult<Vec<ClaimedRow>> {
    let taken = plan.taken();
    let rows: Vec<ContentRow> = sql_query(include_str!("load.sql"))
        .bind::<BigInt, _>(group)
        .bind::<Array<BigInt>, _>(&taken)
        .load(db)
        .await?;
    if rows.len() < taken.len() {
        let lost: Vec<i64> = taken
            .into_iter()
            .filter(|seq| !rows.iter().any(|row| row.seq == *seq))
            .collect();
        sql_query("DELETE FROM outbox_queue_pending WHERE group_id = $1 AND seq = ANY ($2)")
            .bind::<BigInt, _>(group)
            .bind::<Array<BigInt>, _>(&lost)
            .execute(db)
            .await?;
    }
    Ok(rows.into_iter().map(ClaimedRow::from).collect())
}
