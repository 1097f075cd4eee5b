//! The published table, one cell a test.

use std::fmt::Write as _;
use std::path::Path;

use crate::FAULTS;
use crate::fault::Fault;
use crate::stage::Step;

const HEAD: &str = "\
# What faults do to a lock

Every cell is a test against a real Redis, with holders in processes of their own and the fence in
PostgreSQL: `cargo test -p outbox-testing --test lock_faults -- FAULT::STEP`. The fault strikes the first holder
right before the step; a second one waits for the lock meanwhile, and a third comes after all.

After every cell the books are read, and these must hold:

- no committed write carries a smaller token than one committed before it;
- a later grant has a greater token than every earlier one;
- the effect, which looks first and then acts behind the fence, happened once;
- two holders believed in the lock at once only where Redis forgot it (marked *), and no longer than ttl less
  margin; everywhere else not for a microsecond;
- the next holder got the lock.

The same race without lock and fence doubles its effect: `bare::without_lock_and_fence_the_effect_is_doubled`.

";

/// What the fault is, in a few words.
fn title(fault: Fault) -> &'static str {
    match fault {
        Fault::HolderStopped => "The holder is stopped (SIGSTOP) past its lease",
        Fault::HolderKilled => "The holder is killed (SIGKILL)",
        Fault::RedisStopped => "Redis is stopped (SIGSTOP) past the lease",
        Fault::RedisRestartedEmpty => "Redis is killed and restarted without persistence",
        Fault::ReplicaPromoted => "The primary dies, a replica that is behind is promoted",
        Fault::ClockForward => "Redis' clock jumps 60 s forward",
        Fault::ClockBack => "Redis' clock jumps 60 s back, and forward again",
        Fault::ReplySwallowed => "The next answer is swallowed by the network",
        Fault::WakesCut => "Pub/sub is cut again and again",
        Fault::ConnectionsExhausted => "Redis takes no more connections, open ones are closed",
        Fault::RuntimeShutDown => "The holder's runtime is shut down",
    }
}

/// What happens to the first holder.
fn cell(fault: Fault, step: Step) -> &'static str {
    use Fault as F;
    use Step as S;
    match (fault, step) {
        (F::HolderStopped, S::Acquire) => "asks after the second is done",
        (F::HolderStopped, S::Hold | S::Renew) => "lost at the local deadline, does not write",
        (F::HolderStopped, S::Commit) => {
            "**fenced**: it had looked at its lease, the database refuses its write"
        }
        (F::HolderStopped, S::Release) => "written; its release ends nobody else's hold",
        (F::HolderKilled, S::Release) => "written; the lease runs out",
        (F::HolderKilled, S::Acquire) => "asks for nothing, leaves nothing",
        (F::HolderKilled, _) => "the lease runs out, nothing was written",
        (F::RedisStopped, S::Acquire) => "waits until Redis is back",
        (F::RedisStopped, S::Hold | S::Renew) => "suspect, then lost at the local deadline",
        (F::RedisStopped, S::Commit) => "writes within its lease; the release is not confirmed",
        (F::RedisStopped, S::Release) => "written; the release is not confirmed",
        (F::RedisRestartedEmpty | F::ReplicaPromoted, S::Acquire) => "asks the new server",
        (F::RedisRestartedEmpty | F::ReplicaPromoted, S::Hold | S::Renew) => {
            "the next renewal finds it gone: lost"
        }
        (F::RedisRestartedEmpty | F::ReplicaPromoted, S::Commit) => {
            "writes if it comes before the second, is fenced after it"
        }
        (F::RedisRestartedEmpty | F::ReplicaPromoted, S::Release) => "written; nothing left to release",
        (F::ClockForward, S::Hold | S::Renew) => "expired at the server, lost at the next renewal",
        (F::ClockForward, S::Commit) => "writes if it comes before the second, is fenced after it",
        (F::ClockForward, S::Release) => "written; nothing left to release",
        (F::ClockForward | F::ClockBack, S::Acquire) => "granted; the token grows all the same",
        (F::ClockBack, _) => "keeps it; renewals set the ttl by the new clock",
        (F::ReplySwallowed, S::Acquire) => "asks again as the same owner, gets the same grant",
        (F::ReplySwallowed, S::Hold | S::Renew) => "one renewal fails: suspect, then held",
        (F::ReplySwallowed, S::Commit) => "writes; what Redis does not answer is repeated",
        (F::ReplySwallowed, S::Release) => "the release is repeated under its request id",
        (F::WakesCut, S::Acquire) => "the poll floor gets it the lock",
        (F::WakesCut, _) => "keeps it; waiters poll",
        (F::ConnectionsExhausted, S::Acquire) => "keeps asking until connections are taken again",
        (F::ConnectionsExhausted, S::Hold | S::Renew) => "suspect, then lost at the local deadline",
        (F::ConnectionsExhausted, S::Commit) => "writes within its lease; the release is not confirmed",
        (F::ConnectionsExhausted, S::Release) => "written; the lease runs out",
        (F::RuntimeShutDown, S::Release) => "written; no panic, the lease runs out",
        (F::RuntimeShutDown, _) => "no panic, the lease runs out",
    }
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("| fault | acquire | hold | renew | commit | release |\n|---|---|---|---|---|---|\n");
    for (name, fault) in FAULTS {
        let mark = if fault.forgets() { " *" } else { "" };
        let _ = write!(page, "| {}{mark}<br>`{name}` |", title(*fault));
        for step in Step::ALL {
            let _ = write!(page, " {} |", cell(*fault, step));
        }
        page.push('\n');
    }
    page
}

#[test]
fn the_published_table_is_the_one_that_was_tested() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lock/src/docs/faults.md");
    if std::env::var_os("OUTBOX_TEST_WRITE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, page()).unwrap();
    }
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        published == page(),
        "lock/src/docs/faults.md differs: run this test with OUTBOX_TEST_WRITE=1"
    );
}
