//! What is sent for each verb: the script, the keys it touches, its arguments.

use std::time::Duration;

use deadpool_redis::redis::Cmd;

use super::names::Names;
use super::scripts::{EXCLUSIVE, HAND_OVER, MEMBERS, Script, Scripts};
use crate::{FencingToken, Hold, Key, Owner, Request, RequestId, Shape};

/// One script call, ready to be sent by hash or with its text.
#[derive(Debug)]
pub(super) struct Call {
    script: &'static Script,
    keys: Vec<String>,
    arguments: Vec<String>,
}

impl Call {
    pub(super) fn by_hash(&self) -> Cmd {
        self.script.by_hash(&self.keys, &self.arguments)
    }

    pub(super) fn by_text(&self) -> Cmd {
        self.script.by_text(&self.keys, &self.arguments)
    }

    /// A key of the call; all of them are in one cluster slot.
    pub(super) fn any_key(&self) -> &str {
        self.keys.first().map_or("", String::as_str)
    }
}

/// What all calls of one backend have in common.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    pub(super) prefix: String,
    /// `PUBLISH`, or `SPUBLISH` in a cluster: there the message stays on the key's shard.
    pub(super) publish: &'static str,
    /// How long a release is remembered.
    pub(super) latch: Duration,
    pub(super) counter_retention: Duration,
}

impl Calls {
    pub(super) fn acquire(&self, request: &Request) -> Call {
        let names = self.names(&request.key, request.shape);
        let mut keys = vec![names.hold()];
        if !is_exclusive(request.shape) {
            keys.push(names.tokens());
        }
        keys.extend([names.counter(), names.line(), names.until()]);
        let arguments = vec![
            request.owner.to_string(),
            milliseconds(request.ttl),
            request.place.map_or_else(|| "0".to_owned(), milliseconds),
            self.retention(),
            letter(request.shape).to_owned(),
            limit(request.shape),
        ];
        Call {
            script: &scripts(request.shape).acquire,
            keys,
            arguments,
        }
    }

    pub(super) fn renew(&self, hold: &Hold, ttl: Duration) -> Call {
        Call {
            script: &scripts(hold.shape).renew,
            keys: self.hold_keys(&hold.key, hold.shape),
            arguments: vec![
                hold.owner.to_string(),
                milliseconds(ttl),
                letter(hold.shape).to_owned(),
                limit(hold.shape),
            ],
        }
    }

    /// A release and the next acquisition, for exclusive holds of one key.
    pub(super) fn hand_over(&self, hold: &Hold, request: RequestId, next: &Request) -> Call {
        let names = self.names(&hold.key, hold.shape);
        let mut call = self.acquire(next);
        call.script = &HAND_OVER;
        call.keys.push(names.latch(request));
        // The limit, which an exclusive hold has not.
        call.arguments.pop();
        call.arguments.extend([
            hold.owner.to_string(),
            milliseconds(self.latch),
            self.publish.to_owned(),
            names.channel(),
        ]);
        call
    }

    pub(super) fn release(&self, hold: &Hold, request: RequestId) -> Call {
        let names = self.names(&hold.key, hold.shape);
        let mut keys = self.hold_keys(&hold.key, hold.shape);
        keys.extend([names.line(), names.until(), names.latch(request)]);
        let arguments = vec![
            hold.owner.to_string(),
            milliseconds(self.latch),
            self.publish.to_owned(),
            names.channel(),
            letter(hold.shape).to_owned(),
            limit(hold.shape),
        ];
        Call {
            script: &scripts(hold.shape).release,
            keys,
            arguments,
        }
    }

    pub(super) fn leave(&self, key: &Key, owner: Owner, shape: Shape) -> Call {
        let names = self.names(key, shape);
        let mut keys = self.hold_keys(key, shape);
        keys.extend([names.line(), names.until()]);
        let arguments = vec![
            owner.to_string(),
            self.publish.to_owned(),
            names.channel(),
            letter(shape).to_owned(),
            limit(shape),
        ];
        Call {
            script: &scripts(shape).leave,
            keys,
            arguments,
        }
    }

    /// A token above `above`, or, if `exact`, that very one.
    pub(super) fn remint(&self, hold: &Hold, above: FencingToken, exact: bool) -> Call {
        let mut keys = self.hold_keys(&hold.key, hold.shape);
        keys.push(self.names(&hold.key, hold.shape).counter());
        let arguments = vec![
            hold.owner.to_string(),
            above.to_string(),
            self.retention(),
            letter(hold.shape).to_owned(),
            if exact { "1" } else { "0" }.to_owned(),
        ];
        Call {
            script: &scripts(hold.shape).remint,
            keys,
            arguments,
        }
    }

    pub(super) fn channel(&self, key: &Key, shape: Shape) -> String {
        self.names(key, shape).channel()
    }

    fn hold_keys(&self, key: &Key, shape: Shape) -> Vec<String> {
        let names = self.names(key, shape);
        if is_exclusive(shape) {
            vec![names.hold()]
        } else {
            vec![names.hold(), names.tokens()]
        }
    }

    fn names(&self, key: &Key, shape: Shape) -> Names {
        Names::new(&self.prefix, key, shape)
    }

    fn retention(&self) -> String {
        milliseconds(self.counter_retention)
    }
}

fn scripts(shape: Shape) -> &'static Scripts {
    if is_exclusive(shape) { &EXCLUSIVE } else { &MEMBERS }
}

fn is_exclusive(shape: Shape) -> bool {
    matches!(shape, Shape::Exclusive)
}

fn letter(shape: Shape) -> &'static str {
    match shape {
        Shape::Exclusive => "x",
        Shape::Read => "r",
        Shape::Write => "w",
        Shape::Permit { .. } => "p",
    }
}

fn limit(shape: Shape) -> String {
    match shape {
        Shape::Permit { limit } => limit.to_string(),
        Shape::Exclusive | Shape::Read | Shape::Write => "0".to_owned(),
    }
}

/// Whole milliseconds, at least one: Redis refuses a time to live of zero.
fn milliseconds(time: Duration) -> String {
    time.as_millis().max(1).to_string()
}
