//! What is looked at before the first lock: settings here, and settings of the server.

use std::collections::HashMap;
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{ConnectionInfo, RedisError, RedisResult, cmd};

use super::config::{RedisConfig, Topology};
use super::error::{failed, silent};
use super::link::Target;
use super::{PREFIX_BYTES, RedisBackend, Shared};
use crate::backend::{Backend as _, Hold, Shape};
use crate::{Error, ErrorKind, FencingToken, Key, Owner};

/// Refuses settings that cannot be right.
pub(super) fn settings(config: &RedisConfig) -> Result<(), Error> {
    let wrong = |context: &'static str| Err(Error::new(ErrorKind::Invalid, "configure", context));
    let prefix = &config.prefix;
    if prefix.is_empty() || prefix.len() > PREFIX_BYTES || prefix.contains(['{', '}']) {
        return wrong("the prefix must have 1 to 64 bytes and no braces: they mark a cluster's hash tag");
    }
    if config.response_timeout.is_zero() || config.connect_timeout.is_zero() {
        return wrong("response_timeout and connect_timeout must be longer than zero");
    }
    if config.counter_retention < Duration::from_secs(1) {
        return wrong(
            "counter_retention must be a second at least, and should be longer than clocks are set back by",
        );
    }
    let is_empty = match &config.topology {
        Topology::Node(_) => false,
        Topology::Sentinel {
            sentinels, primary, ..
        } => sentinels.is_empty() || primary.is_empty(),
        Topology::Cluster(nodes) => nodes.is_empty(),
    };
    if is_empty {
        return wrong(
            "name at least one Sentinel and the primary it watches, or at least one node of the cluster",
        );
    }
    match config.replicas {
        Some(replicas) if replicas.acks == 0 => wrong("replicas.acks must be 1 at least; leave replicas out"),
        // Zero would wait for ever.
        Some(replicas) if replicas.within < Duration::from_millis(1) => {
            wrong("replicas.within must be 1 ms at least")
        }
        Some(replicas) if replicas.within >= config.response_timeout => {
            wrong("replicas.within must be shorter than response_timeout")
        }
        _ => Ok(()),
    }
}

/// Looks at each server that was named, then runs a script on a key that nobody locks.
pub(super) async fn check(locks: &RedisBackend, shared: &Shared) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::new();
    match shared.dialer.target() {
        Target::Node(node) => look(shared, node, Expected::Node, &mut warnings).await?,
        Target::Cluster(nodes) => {
            let mut failure = None;
            let mut seen = 0;
            for node in nodes {
                match look(shared, node, Expected::Cluster, &mut warnings).await {
                    Ok(()) => seen += 1,
                    Err(error) if error.kind() == ErrorKind::Unavailable => failure = Some(error),
                    Err(error) => return Err(error),
                }
            }
            match failure {
                Some(error) if seen == 0 => return Err(error),
                Some(_) => warnings.push(format!(
                    "{} of the {} cluster nodes named could not be reached: name nodes that are up",
                    nodes.len() - seen,
                    nodes.len()
                )),
                None => {}
            }
        }
        // Which server it is, is the Sentinels' to say, and changes.
        Target::Sentinel { .. } => {
            let dialled = shared.dialer.dial(None).await;
            if let super::link::Connection::Node(mut node) =
                dialled.map_err(|cause| failed("check", cause))?
            {
                judge(shared, &mut node, Expected::Node, &mut warnings).await?;
            }
        }
    }
    try_a_script(locks).await?;
    warnings.dedup();
    Ok(warnings)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Node,
    Cluster,
}

async fn look(
    shared: &Shared,
    node: &ConnectionInfo,
    expected: Expected,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let dialling = tokio::time::timeout(shared.config.connect_timeout, shared.dialer.node(node, None));
    let dialled = dialling.await.map_err(|_| silent("check"))?;
    let mut connection = dialled.map_err(|cause| failed("check", cause))?;
    judge(shared, &mut connection, expected, warnings).await
}

async fn judge(
    shared: &Shared,
    node: &mut MultiplexedConnection,
    expected: Expected,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let info: String = match cmd("INFO").query_async(node).await {
        Ok(info) => info,
        Err(error) => {
            let what = "INFO, so role and persistence of Redis were not looked at: allow it (+info)";
            return forbidden(error, what, warnings);
        }
    };
    let info = fields(&info);
    let is = |name: &str, value: &str| info.get(name).is_some_and(|found| *found == value);
    role(&is, expected)?;
    let replicas: u32 = info
        .get("connected_slaves")
        .and_then(|count| count.parse().ok())
        .unwrap_or(0);
    if is("role", "master") && !is("aof_enabled", "1") && replicas == 0 {
        warnings.push(
            "Redis keeps nothing across a restart (`appendonly no`, no replica): every lock is open after it, \
             and tokens start again; set `appendonly yes` or add a replica"
                .to_owned(),
        );
    }
    if let Some(wanted) = shared.config.replicas
        && is("role", "master")
        && replicas < wanted.acks
    {
        warnings.push(format!(
            "{} replicas must confirm a grant and {replicas} are connected: no lock will be granted until \
             more are; add replicas or lower replicas.acks",
            wanted.acks
        ));
    }
    let policy: RedisResult<Vec<String>> = cmd("CONFIG")
        .arg("GET")
        .arg("maxmemory-policy")
        .query_async(node)
        .await;
    match policy {
        Ok(policy) => {
            if let Some(policy) = policy.get(1).filter(|policy| *policy != "noeviction") {
                warnings.push(format!(
                    "`maxmemory-policy {policy}` lets Redis evict locks and fence counters when it runs full: \
                     set it to `noeviction`, or keep locks on a Redis of their own"
                ));
            }
            Ok(())
        }
        Err(error) => {
            let what =
                "CONFIG GET, so its maxmemory-policy was not looked at: make sure that it is `noeviction`";
            forbidden(error, what, warnings)
        }
    }
}

/// Whether this is the kind of server that was meant.
fn role(is: &impl Fn(&str, &str) -> bool, expected: Expected) -> Result<(), Error> {
    let wrong = |context: &'static str| Err(Error::new(ErrorKind::Misconfigured, "check", context));
    if is("redis_mode", "sentinel") {
        return wrong(
            "this is a Sentinel, which keeps no locks: use RedisConfig::sentinel with the name of the primary",
        );
    }
    let is_cluster = is("cluster_enabled", "1") || is("redis_mode", "cluster");
    if expected == Expected::Node && is_cluster {
        return wrong(
            "this Redis is a node of a cluster: use RedisConfig::cluster instead of RedisConfig::node",
        );
    }
    if expected == Expected::Cluster && !is_cluster {
        return wrong(
            "this Redis has cluster support disabled: use RedisConfig::node, or enable the cluster",
        );
    }
    if expected == Expected::Node && is("role", "slave") {
        return wrong(
            "this Redis is a read-only replica: give the address of its primary, or use RedisConfig::sentinel",
        );
    }
    Ok(())
}

/// A command that the user may not run leaves a warning; any other failure is one.
fn forbidden(error: RedisError, what: &str, warnings: &mut Vec<String>) -> Result<(), Error> {
    // A hosted Redis that has renamed the command calls it unknown.
    let is_unknown = error
        .detail()
        .is_some_and(|detail| detail.contains("unknown command"));
    if error.code() == Some("NOPERM") || is_unknown {
        warnings.push(format!("the Redis user may not run {what}"));
        return Ok(());
    }
    Err(failed("check", error))
}

/// Scripts must be allowed, and our keys. Renewing what nobody holds changes nothing.
async fn try_a_script(locks: &RedisBackend) -> Result<(), Error> {
    let (Ok(key), Some(token)) = (Key::new("check"), FencingToken::new(1)) else {
        return Ok(());
    };
    let hold = Hold {
        key,
        owner: Owner::new(),
        shape: Shape::Exclusive,
        token,
    };
    let answers = locks.renew(&[(hold, Duration::from_millis(1))]).await;
    answers.into_iter().try_for_each(|answer| answer.map(drop))
}

fn fields(info: &str) -> HashMap<&str, &str> {
    info.lines()
        .filter_map(|line| line.trim_end().split_once(':'))
        .collect()
}
