//! What a store must do, by the part of the contract.

pub mod claim;
pub mod lease;
pub mod parked;
pub mod schema;
pub mod settle;

use crate::record::Claim;
use crate::store::Renewed;

/// No message.
const NONE: [usize; 0] = [];

/// The payloads of a claim's messages, as the numbers they hold.
fn numbers(claim: &Claim) -> Vec<usize> {
    claim
        .records
        .iter()
        .map(|record| number(&record.message.as_ref().unwrap().payload))
        .collect()
}

fn number(payload: &[u8]) -> usize {
    std::str::from_utf8(payload).unwrap().parse().unwrap()
}

fn positions(claim: &Claim) -> Vec<i64> {
    claim.records.iter().map(|record| record.position).collect()
}

fn held(renewed: &[Renewed]) -> Vec<bool> {
    renewed.iter().map(|one| *one == Renewed::Held).collect()
}
