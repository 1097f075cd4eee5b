//! What Redis does in one step: the scripts, loaded with each connection.

use std::sync::LazyLock;

use deadpool_redis::redis::{Cmd, Script, cmd};

/// A script by its text, loaded when first needed.
pub(super) type Step = LazyLock<Script>;

pub(super) static PUBLISH: Step = LazyLock::new(|| Script::new(include_str!("lua/publish.lua")));
pub(super) static AGREE: Step = LazyLock::new(|| Script::new(include_str!("lua/agree.lua")));
pub(super) static JOIN: Step = LazyLock::new(|| Script::new(include_str!("lua/join.lua")));
pub(super) static PRESENT: Step = LazyLock::new(|| Script::new(include_str!("lua/present.lua")));
pub(super) static TAKE: Step = LazyLock::new(|| Script::new(include_str!("lua/take.lua")));
pub(super) static SETTLE: Step = LazyLock::new(|| Script::new(include_str!("lua/settle.lua")));
pub(super) static LEAVE: Step = LazyLock::new(|| Script::new(include_str!("lua/leave.lua")));
pub(super) static RELEASE: Step = LazyLock::new(|| Script::new(include_str!("lua/release.lua")));
pub(super) static TRIM: Step = LazyLock::new(|| Script::new(include_str!("lua/trim.lua")));
pub(super) static LAG: Step = LazyLock::new(|| Script::new(include_str!("lua/lag.lua")));
pub(super) static SEEK: Step = LazyLock::new(|| Script::new(include_str!("lua/seek.lua")));

/// Every script.
pub(super) static ALL: [&Step; 11] = [
    &PUBLISH, &AGREE, &JOIN, &PRESENT, &TAKE, &SETTLE, &LEAVE, &RELEASE, &TRIM, &LAG, &SEEK,
];

/// A call of `step` on `keys`; its arguments follow.
pub(super) fn call(step: &Step, keys: &[&str]) -> Cmd {
    let mut command = cmd("EVALSHA");
    command.arg(step.get_hash()).arg(keys.len()).arg(keys);
    command
}
