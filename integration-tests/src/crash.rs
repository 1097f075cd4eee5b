//! Programs that die for real, and are started again until they get through.
//!
//! The program calls [`arm_from_environment`] first thing. A [`CrashPlan`] starts it with `OUTBOX_CRASH` set,
//! lets it abort, starts it again, and at last lets it run through. What the plan does follows from its seed
//! alone; a failure prints the seed, the points and the command that replays the last run.

mod child;
mod plan;

pub use outbox_broker::crash_point::{CRASH_VARIABLE, CrashPoint, CrashRule, arm_from_environment};

pub use child::{Child, Exit, Program};
pub use plan::{CrashFailure, CrashPlan, Crashed, Survived};
