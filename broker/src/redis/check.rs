//! Settings of the server under which the promises do not hold.

use std::collections::HashMap;

use deadpool_redis::redis::{FromRedisValue, Value, cmd};

use super::error::Failure;
use super::link::Link;
use crate::{ErrorKind, Warning};

/// Asks the server and judges.
pub(super) async fn run(link: &Link) -> Result<Vec<Warning>, Failure> {
    let mut warnings = Vec::new();
    let mut ask = cmd("CONFIG");
    ask.arg("GET")
        .arg(&["append*", "maxmemory*", "min-replicas-to-write"]);
    match link.ask::<HashMap<String, String>>(&ask).await {
        Ok(settings) => warnings.extend(judge(&settings)),
        Err(failure) if matches!(failure.kind, ErrorKind::Unreachable | ErrorKind::Closed) => {
            return Err(failure);
        }
        Err(_) => warnings.push(Warning::new(
            "CONFIG GET",
            "refused",
            "the server does not tell its settings; see to appendonly, appendfsync and maxmemory-policy",
        )),
    }
    let mut ask = cmd("INFO");
    ask.arg("replication");
    if let Ok(Value::VerbatimString { text, .. }) = link.ask(&ask).await {
        warnings.extend(replication(&text, link.config.replicas));
    } else if let Ok(text) = link.ask::<Value>(&ask).await.and_then(text) {
        warnings.extend(replication(&text, link.config.replicas));
    }
    Ok(warnings)
}

fn text(value: Value) -> Result<String, Failure> {
    String::from_redis_value(value).map_err(|_| Failure::garbled())
}

fn judge(settings: &HashMap<String, String>) -> Vec<Warning> {
    let value = |name: &str| settings.get(name).map_or("", String::as_str);
    let mut warnings = Vec::new();
    match (value("appendonly"), value("appendfsync")) {
        ("no", _) => warnings.push(Warning::new(
            "appendonly",
            "no",
            "messages are lost with the process; set it to yes",
        )),
        (_, "always") => {}
        (_, fsync) => warnings.push(Warning::new(
            "appendfsync",
            fsync,
            "a crash of the machine loses what was accepted in the last second; `always` does not",
        )),
    }
    let (limit, policy) = (value("maxmemory"), value("maxmemory-policy"));
    if policy != "noeviction" {
        let consequence = if limit == "0" {
            "without a maxmemory nothing is evicted yet; set it to noeviction"
        } else {
            "messages and the ids that suppress duplicates may be evicted; set it to noeviction"
        };
        warnings.push(Warning::new("maxmemory-policy", policy, consequence));
    }
    warnings
}

fn replication(info: &str, wanted: u32) -> Option<Warning> {
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
    };
    if field("role") == Some("slave") {
        return Some(Warning::new(
            "role",
            "replica",
            "it takes no writes; name the primary",
        ));
    }
    let replicas: u32 = field("connected_slaves")?.parse().ok()?;
    if replicas < wanted {
        return Some(Warning::new(
            "connected_slaves",
            replicas.to_string(),
            "fewer than `replicas` asks for: no publish will be confirmed",
        ));
    }
    (replicas > 0 && wanted == 0).then(|| {
        Warning::new(
            "replicas",
            "0",
            "a failover may lose accepted messages; set `replicas` to wait for the replicas",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(settings: &[(&str, &str)]) -> Vec<String> {
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let warnings = judge(&settings.collect());
        warnings.iter().map(|warning| warning.setting.clone()).collect()
    }

    #[test]
    fn settings_that_lose_messages_are_named() {
        let safe = [
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("maxmemory", "0"),
            ("maxmemory-policy", "noeviction"),
        ];
        assert!(found(&safe).is_empty());
        let loose = [
            ("appendonly", "no"),
            ("appendfsync", "everysec"),
            ("maxmemory", "100"),
            ("maxmemory-policy", "allkeys-lru"),
        ];
        assert_eq!(found(&loose), ["appendonly", "maxmemory-policy"]);
    }

    #[test]
    fn replicas_that_are_not_waited_for_are_named() {
        let setting = |info, wanted| replication(info, wanted).map(|warning| warning.setting);
        assert_eq!(setting("role:master\r\nconnected_slaves:0\r\n", 0), None);
        assert_eq!(
            setting("role:master\r\nconnected_slaves:1\r\n", 0).as_deref(),
            Some("replicas")
        );
        assert_eq!(
            setting("role:master\r\nconnected_slaves:1\r\n", 2).as_deref(),
            Some("connected_slaves")
        );
        assert_eq!(setting("role:slave\r\n", 0).as_deref(), Some("role"));
    }
}
