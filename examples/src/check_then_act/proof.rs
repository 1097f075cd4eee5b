//! What was shown, counted in the database.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use crate::places::Places;
use crate::worker::{Plan, Protection, race};

/// Payments in the parts with a pause: each costs a lease.
const PAUSED_PAYMENTS: i64 = 3;

/// One part.
#[derive(Debug, Serialize)]
pub(crate) struct Part {
    name: &'static str,
    /// Payments that two workers found.
    payments: usize,
    /// Charges in the database.
    charges: usize,
    /// Payments charged more than once.
    doubled: usize,
    /// Payments not charged at all.
    missed: usize,
    /// Late writes that the fence refused.
    refused: u64,
    /// Whether payments should have been doubled.
    #[serde(skip)]
    should_double: bool,
}

/// All parts.
#[derive(Debug, Serialize)]
pub(crate) struct Proof {
    places: String,
    parts: Vec<Part>,
    proven: bool,
}

impl Proof {
    /// Plays the four parts.
    pub(crate) fn of(places: &Places, payments: i64) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async { places.shop().await?.create().await })?;
        let mut parts = Vec::new();
        let mut from = 1;
        for (name, count, protection, frozen) in [
            ("without a lock", payments, Protection::Nothing, false),
            ("with a lock", payments, Protection::Lock, false),
            ("paused, with a lock", PAUSED_PAYMENTS, Protection::Lock, true),
            (
                "paused, with the fence",
                PAUSED_PAYMENTS,
                Protection::LockAndFence,
                true,
            ),
        ] {
            let plan = Plan {
                payments: from..from + count,
                protection,
                frozen,
            };
            from += count;
            runtime.block_on(place(places, &plan))?;
            let refused = race(places, &plan)?;
            let charged = runtime.block_on(async { places.shop().await?.charges().await })?;
            parts.push(Part::counted(name, &plan, &charged, refused));
        }
        let mut proof = Self {
            places: places.describe(),
            proven: false,
            parts,
        };
        proof.proven = proof.parts.iter().all(Part::is_as_expected);
        Ok(proof)
    }

    pub(crate) fn holds(&self) -> bool {
        self.proven
    }
}

async fn place(places: &Places, plan: &Plan) -> anyhow::Result<()> {
    let mut shop = places.shop().await?;
    for payment in plan.payments.clone() {
        shop.place(payment).await?;
    }
    Ok(())
}

impl Part {
    fn counted(name: &'static str, plan: &Plan, charged: &[i64], refused: u64) -> Self {
        let mut copies: HashMap<i64, usize> = HashMap::new();
        for payment in charged.iter().filter(|payment| plan.payments.contains(payment)) {
            *copies.entry(*payment).or_default() += 1;
        }
        let payments = plan.payments.clone().count();
        Self {
            name,
            payments,
            charges: copies.values().sum(),
            doubled: copies.values().filter(|copies| **copies > 1).count(),
            missed: payments - copies.len(),
            refused,
            should_double: plan.protection == Protection::Nothing
                || (plan.frozen && plan.protection == Protection::Lock),
        }
    }

    /// A race that did not double anything where nothing prevents it proves nothing elsewhere.
    fn is_as_expected(&self) -> bool {
        self.missed == 0 && (self.doubled > 0) == self.should_double
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>22}: {:>3} payments, {:>3} charges, {:>3} paid twice",
            self.name, self.payments, self.charges, self.doubled
        )?;
        if self.refused > 0 {
            write!(f, ", {} late writes refused", self.refused)?;
        }
        if !self.is_as_expected() {
            f.write_str("  <- not what should have happened")?;
        }
        Ok(())
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "two workers, {}", self.places)?;
        for part in &self.parts {
            writeln!(f, "{part}")?;
        }
        f.write_str(if self.proven {
            "proven: a lock is advice, the fencing token is the guarantee"
        } else {
            "NOT proven"
        })
    }
}
