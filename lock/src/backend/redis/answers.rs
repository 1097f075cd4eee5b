//! What the scripts' answers mean.

use std::time::Duration;

use deadpool_redis::redis::{
    ErrorKind as Kind, RedisError, RedisResult, ServerErrorKind, Value, from_redis_value,
};

use super::error::{failed, unexpected};
use crate::backend::{Acquire, Release, Renew, Request, Shape};
use crate::{Error, ErrorKind, FencingToken};

/// What no script needs to look at.
pub(super) fn valid(request: &Request) -> Result<(), Error> {
    let refused = |context: &'static str| Err(Error::new(ErrorKind::Invalid, "acquire", context));
    if request.ttl < Duration::from_millis(1) {
        return refused("a lock was asked for with a ttl below 1 ms: lengthen the ttl");
    }
    if request.shape == (Shape::Permit { limit: 0 }) {
        return refused("a semaphore of no permits grants nothing: raise its limit");
    }
    Ok(())
}

pub(super) fn is_unknown_script(error: &RedisError) -> bool {
    matches!(error.kind(), Kind::Server(ServerErrorKind::NoScript))
}

/// A token, or minus the milliseconds to wait.
pub(super) fn grant(answer: Value) -> Result<Acquire, Error> {
    match answer {
        Value::Int(wait) if wait <= 0 => Ok(Acquire::Held {
            retry_after: Duration::from_millis(wait.unsigned_abs().max(1)),
        }),
        answer => token(answer, "acquire").map(|token| Acquire::Granted { token }),
    }
}

pub(super) fn released(answer: &Value) -> Result<Release, Error> {
    match answer {
        Value::Int(1) => Ok(Release::Released),
        Value::Int(0) => Ok(Release::NotHeld),
        _ => Err(unexpected("release")),
    }
}

pub(super) fn token(answer: Value, operation: &'static str) -> Result<FencingToken, Error> {
    from_redis_value(answer)
        .ok()
        .and_then(FencingToken::new)
        .ok_or_else(|| unexpected(operation))
}

pub(super) fn renewed(answer: RedisResult<Value>) -> Result<Renew, Error> {
    match answer.map_err(|cause| failed("renew", cause))? {
        Value::Int(1) => Ok(Renew::Renewed),
        Value::Int(0) => Ok(Renew::Expired),
        Value::Int(2) => Ok(Renew::Stolen),
        _ => Err(unexpected("renew")),
    }
}
