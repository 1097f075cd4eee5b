//! What is counted, under names that do not change and labels that are few: never a key.
//!
//! | metric | kind | labels |
//! |---|---|---|
//! | `lock_wait_seconds` | histogram | `backend`, `shape`, `result`: `granted`, `held`, `timeout`, `failed` |
//! | `lock_hold_seconds` | histogram | `backend`, `shape` |
//! | `lock_contended_total` | counter | `backend`, `shape`: waits that did not get the lock at once |
//! | `lock_late_grants_total` | counter | `backend`, `shape`: grants given back, come after their deadline |
//! | `lock_renewals_total` | counter | `backend`, `result`: `renewed`, `expired`, `stolen`, `failed` |
//! | `lock_lost_total` | counter | `backend`, `shape`, `reason`: `deadline`, `expired`, `stolen`, `max_hold` |
//! | `lock_dropped_unreleased_total` | counter | `backend`, `shape`: guards dropped without `release` |
//! | `lock_backend_errors_total` | counter | `backend`, `operation`, `kind` |
//! | `lock_fenced_total` | counter | `database`: writes refused because of a higher token |

use std::time::Duration;

use metrics::{counter, histogram};

use crate::backend::Shape;
use crate::error::Error;
use crate::lease::LossReason;

/// How a wait ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Waited {
    Granted,
    Held,
    Timeout,
    Failed,
}

impl Waited {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Held => "held",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
        }
    }
}

pub(crate) fn waited(backend: &'static str, shape: Shape, how: Waited, time: Duration) {
    histogram!("lock_wait_seconds", "backend" => backend, "shape" => shape.as_str(), "result" => how.as_str())
        .record(time);
}

pub(crate) fn held(backend: &'static str, shape: Shape, time: Duration) {
    histogram!("lock_hold_seconds", "backend" => backend, "shape" => shape.as_str()).record(time);
}

pub(crate) fn contended(backend: &'static str, shape: Shape) {
    counter!("lock_contended_total", "backend" => backend, "shape" => shape.as_str()).increment(1);
}

pub(crate) fn late_grant(backend: &'static str, shape: Shape) {
    counter!("lock_late_grants_total", "backend" => backend, "shape" => shape.as_str()).increment(1);
}

pub(crate) fn renewed(backend: &'static str, result: &'static str) {
    counter!("lock_renewals_total", "backend" => backend, "result" => result).increment(1);
}

pub(crate) fn lost(backend: &'static str, shape: Shape, reason: LossReason) {
    counter!("lock_lost_total", "backend" => backend, "shape" => shape.as_str(), "reason" => reason.as_str())
        .increment(1);
}

pub(crate) fn dropped(backend: &'static str, shape: Shape) {
    counter!("lock_dropped_unreleased_total", "backend" => backend, "shape" => shape.as_str()).increment(1);
}

pub(crate) fn failed(backend: &'static str, operation: &'static str, error: &Error) {
    counter!(
        "lock_backend_errors_total",
        "backend" => backend, "operation" => operation, "kind" => error.kind().as_str()
    )
    .increment(1);
}

/// A write was refused by the fence of `database`.
#[allow(dead_code, reason = "called by the fence of each database feature")]
pub(crate) fn fenced(database: &'static str) {
    counter!("lock_fenced_total", "database" => database).increment(1);
}
