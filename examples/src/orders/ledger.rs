//! The ledger: what the databases say after the work is done.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use diesel::QueryDsl;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use crate::{billing, shop, witness};

/// Counts over all orders. Computed from the files alone, never from counters of the process.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Ledger {
    /// Orders in the shop's database.
    pub(crate) orders: u64,
    /// Distinct messages that the broker handed to billing.
    pub(crate) messages: u64,
    /// Invoices in billing's database.
    pub(crate) invoices: u64,
    /// Orders without an invoice.
    pub(crate) lost: u64,
    /// Invoices beyond the first of their order.
    pub(crate) doubled: u64,
    /// Invoices of an order that nobody placed.
    pub(crate) phantom: u64,
    /// Invoices of a customer written after the invoice of a later order of the same customer.
    pub(crate) out_of_order: u64,
    /// Deliveries beyond the first of their message, absorbed by the inbox.
    pub(crate) wire_duplicates: u64,
    /// Times the process was aborted.
    pub(crate) crashes: u32,
    /// Input lines that were no orders.
    pub(crate) refused_lines: u64,
    /// Seed of the crash points; `--seed` replays it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u64>,
}

impl Ledger {
    /// Nothing lost, doubled, invented or out of order.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.phantom == 0 && self.out_of_order == 0
    }
}

/// Reads the three databases in `directory`.
pub(crate) async fn compute(directory: &Path) -> anyhow::Result<Ledger> {
    let mut shop = crate::service::connect(&directory.join(shop::FILE)).await?;
    let mut billing = crate::service::connect(&directory.join(billing::FILE)).await?;
    let mut witness = crate::service::connect(&directory.join(witness::FILE)).await?;
    let orders: Vec<(i64, String)> = shop::orders::table
        .select((shop::orders::seq, shop::orders::order_id))
        .order(shop::orders::seq)
        .load(&mut shop)
        .await?;
    let invoices: Vec<(String, String)> = billing::invoices::table
        .select((billing::invoices::order_id, billing::invoices::customer))
        .order(billing::invoices::number)
        .load(&mut billing)
        .await?;
    let deliveries: Vec<String> = witness::deliveries::table
        .select(witness::deliveries::message_id)
        .load(&mut witness)
        .await?;
    Ok(audit(&orders, &invoices, &deliveries))
}

fn audit(orders: &[(i64, String)], invoices: &[(String, String)], deliveries: &[String]) -> Ledger {
    let placed: HashMap<&str, i64> = orders.iter().map(|(seq, id)| (id.as_str(), *seq)).collect();
    let mut billed: HashMap<&str, u64> = HashMap::new();
    let mut last: HashMap<&str, i64> = HashMap::new();
    let mut ledger = Ledger {
        orders: orders.len() as u64,
        invoices: invoices.len() as u64,
        ..Ledger::default()
    };
    for (order_id, customer) in invoices {
        let copies = billed.entry(order_id).or_default();
        *copies += 1;
        let Some(&seq) = placed.get(order_id.as_str()) else {
            ledger.phantom += 1;
            continue;
        };
        if *copies > 1 {
            ledger.doubled += 1;
            continue;
        }
        let latest = last.entry(customer).or_insert(seq);
        if seq < *latest {
            ledger.out_of_order += 1;
        }
        *latest = seq.max(*latest);
    }
    ledger.lost = placed.keys().filter(|id| !billed.contains_key(*id)).count() as u64;
    let mut distinct = std::collections::HashSet::new();
    for message_id in deliveries {
        if !distinct.insert(message_id.as_str()) {
            ledger.wire_duplicates += 1;
        }
    }
    ledger.messages = distinct.len() as u64;
    ledger
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row =
            |name: &str, value: u64, meaning: &str| writeln!(f, "{name:>16}  {value:>8}  {meaning}");
        row("orders", self.orders, "committed by the shop")?;
        row("messages", self.messages, "delivered to billing")?;
        row("invoices", self.invoices, "written by billing")?;
        row("lost", self.lost, "orders without an invoice")?;
        row("doubled", self.doubled, "orders billed more than once")?;
        row("phantom", self.phantom, "invoices without an order")?;
        row(
            "out of order",
            self.out_of_order,
            "invoices overtaken by a later order of the customer",
        )?;
        row(
            "wire duplicates",
            self.wire_duplicates,
            "deliveries that came again, absorbed by the inbox",
        )?;
        if self.crashes > 0 {
            row("crashes", self.crashes.into(), "aborts survived")?;
        }
        if self.refused_lines > 0 {
            row(
                "refused lines",
                self.refused_lines,
                "input lines that are no orders",
            )?;
        }
        if let Some(seed) = self.seed {
            writeln!(f, "{:>16}  {seed}", "seed")?;
        }
        f.write_str(if self.is_clean() {
            "Every order was billed once and in order."
        } else {
            "The ledger is NOT clean."
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(ids: &[&str]) -> Vec<(i64, String)> {
        ids.iter()
            .zip(1..)
            .map(|(id, seq)| (seq, (*id).to_owned()))
            .collect()
    }

    fn invoices(ids: &[&str]) -> Vec<(String, String)> {
        ids.iter()
            .map(|id| ((*id).to_owned(), "ann".to_owned()))
            .collect()
    }

    #[test]
    fn a_clean_run_is_clean() {
        let ledger = audit(
            &orders(&["a", "b"]),
            &invoices(&["a", "b"]),
            &["1".into(), "2".into()],
        );
        assert!(ledger.is_clean(), "{ledger:?}");
        assert_eq!((ledger.orders, ledger.messages, ledger.invoices), (2, 2, 2));
    }

    #[test]
    fn each_fault_is_counted_as_what_it_is() {
        assert_eq!(audit(&orders(&["a", "b"]), &invoices(&["a"]), &[]).lost, 1);
        assert_eq!(audit(&orders(&["a"]), &invoices(&["a", "a"]), &[]).doubled, 1);
        assert_eq!(audit(&orders(&["a"]), &invoices(&["a", "z"]), &[]).phantom, 1);
        assert_eq!(
            audit(&orders(&["a", "b", "c"]), &invoices(&["a", "c", "b"]), &[]).out_of_order,
            1
        );
        assert_eq!(
            audit(&[], &[], &["1".into(), "1".into(), "2".into()]).wire_duplicates,
            1
        );
    }
}
