//! One Lua script a verb and kind of hold, named by its hash.

use std::sync::LazyLock;

use deadpool_redis::redis::{Cmd, Script as Hashed, cmd};

/// Pieces that several scripts share, by the mark `--@name` that stands for them.
const PIECES: [(&str, &str); 8] = [
    ("mint", include_str!("lua/mint.lua")),
    ("raise", include_str!("lua/raise.lua")),
    ("line", include_str!("lua/line.lua")),
    ("clock", include_str!("lua/clock.lua")),
    ("members", include_str!("lua/members.lua")),
    ("members_wake", include_str!("lua/members_wake.lua")),
    ("exclusive_grant", include_str!("lua/exclusive_grant.lua")),
    ("exclusive_wake", include_str!("lua/exclusive_wake.lua")),
];

/// A script: its text and the hash by which the server knows it once it has seen it.
#[derive(Debug)]
pub(super) struct Script {
    text: String,
    hash: String,
}

impl Script {
    fn new(text: &str) -> Self {
        let text = assemble(text);
        let hash = Hashed::new(&text).get_hash().to_owned();
        Self { text, hash }
    }

    /// The call by hash: forty bytes instead of the text.
    pub(super) fn by_hash(&self, keys: &[String], arguments: &[String]) -> Cmd {
        call("EVALSHA", &self.hash, keys, arguments)
    }

    /// The call with the text, for a server that does not know the hash: it was restarted, promoted, or its
    /// scripts were flushed.
    pub(super) fn by_text(&self, keys: &[String], arguments: &[String]) -> Cmd {
        call("EVAL", &self.text, keys, arguments)
    }
}

fn call(verb: &str, script: &str, keys: &[String], arguments: &[String]) -> Cmd {
    let mut call = cmd(verb);
    call.arg(script).arg(keys.len()).arg(keys).arg(arguments);
    call
}

/// Puts the shared pieces in the place of their marks; a piece may hold marks itself.
fn assemble(text: &str) -> String {
    text.lines().fold(String::new(), |mut whole, line| {
        match PIECES
            .iter()
            .find(|(name, _)| line.strip_prefix("--@") == Some(name))
        {
            Some((_, piece)) => whole.push_str(&assemble(piece)),
            // The server need not be sent what only people read.
            None if line.trim_start().starts_with("--") => {}
            None => {
                whole.push_str(line);
                whole.push('\n');
            }
        }
        whole
    })
}

/// The scripts of one kind of hold.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) acquire: Script,
    pub(super) renew: Script,
    pub(super) release: Script,
    pub(super) leave: Script,
    pub(super) remint: Script,
}

/// One holder, a string with a time to live: the common case, and the fast one.
pub(super) static EXCLUSIVE: LazyLock<Scripts> = LazyLock::new(|| Scripts {
    acquire: Script::new(include_str!("lua/exclusive_acquire.lua")),
    renew: Script::new(include_str!("lua/exclusive_renew.lua")),
    release: Script::new(include_str!("lua/exclusive_release.lua")),
    leave: Script::new(include_str!("lua/exclusive_leave.lua")),
    remint: Script::new(include_str!("lua/exclusive_remint.lua")),
});

/// A release and the next acquisition in one round trip.
pub(super) static HAND_OVER: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/exclusive_hand_over.lua")));

/// Several holders, each with an end of its own: readers and writers, permits.
pub(super) static MEMBERS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
    acquire: Script::new(include_str!("lua/members_acquire.lua")),
    renew: Script::new(include_str!("lua/members_renew.lua")),
    release: Script::new(include_str!("lua/members_release.lua")),
    leave: Script::new(include_str!("lua/members_leave.lua")),
    remint: Script::new(include_str!("lua/members_remint.lua")),
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_has_its_piece() {
        for scripts in [&*EXCLUSIVE, &*MEMBERS] {
            for script in [
                &scripts.acquire,
                &scripts.renew,
                &scripts.release,
                &scripts.leave,
                &scripts.remint,
            ] {
                assert!(!script.text.contains("--@"), "{}", script.text);
                assert_eq!(script.hash.len(), 40);
            }
        }
        let acquire = &EXCLUSIVE.acquire.text;
        assert!(acquire.contains("local function mint") && acquire.contains("local function clock"));
    }
}
