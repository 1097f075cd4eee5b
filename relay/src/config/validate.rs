//! Rules that span several settings.

use std::time::Duration;

use super::tree::{Node, Origin};
use super::{Config, Invalid, Secret, VERSION, read};

/// Shortest lease: below it, a pause of the process or of the database loses the lease all the time.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// Least memory for messages, as the engine demands it.
const LEAST_BYTES: usize = 64 << 10;

impl Config {
    pub(super) fn validate(&self, root: &Node) -> Result<(), Invalid> {
        let wrong = |path: &str, message: String| {
            let origin = match root.origin_of(path) {
                Origin::Default => root.origin.clone(),
                origin => origin,
            };
            Err(Invalid::new(origin, format!("{path}: {message}")))
        };
        if self.config_version != VERSION {
            return wrong(
                "config_version",
                format!("this relay reads version {VERSION}; write config_version = {VERSION}"),
            );
        }
        for (section, names, what) in [
            ("source", self.source.keys().collect::<Vec<_>>(), "database"),
            ("sink", self.sink.keys().collect(), "broker"),
        ] {
            if names.is_empty() {
                return wrong(
                    section,
                    format!("no {what} is given; add a section [{section}.NAME]"),
                );
            }
            for name in names {
                if !is_name(name) {
                    return wrong(
                        &format!("{section}.{name}"),
                        "names are made of lower-case letters, digits, `_` and `-`; rename it".to_owned(),
                    );
                }
            }
        }
        self.validate_sources(&wrong)?;
        for (name, sink) in &self.sink {
            if let Some((url, schemes)) = sink.url()
                && let Some(problem) = url_problem(url, schemes)
            {
                return wrong(&format!("sink.{name}.url"), problem);
            }
        }
        self.validate_routes(&wrong)?;
        if self.shutdown.timeout.is_zero() {
            return wrong(
                "shutdown.timeout",
                "zero leaves no time to drain; give at least \"1s\"".to_owned(),
            );
        }
        Ok(())
    }

    fn validate_sources(&self, wrong: &impl Fn(&str, String) -> Result<(), Invalid>) -> Result<(), Invalid> {
        for (name, source) in &self.source {
            let path = |key: &str| format!("source.{name}.{key}");
            let database = source.database();
            if let Some(problem) = url_problem(&database.url, source.schemes()) {
                return wrong(&path("url"), problem);
            }
            if database.lease.ttl < SHORTEST_LEASE {
                return wrong(
                    &path("lease.ttl"),
                    "a lease under 1s is lost by every pause; give at least \"1s\"".to_owned(),
                );
            }
            if database.poll_interval.is_zero() {
                return wrong(
                    &path("poll_interval"),
                    "zero would poll without rest; give at least \"10ms\"".to_owned(),
                );
            }
            if database.max_in_flight < database.batch_size {
                return wrong(
                    &path("max_in_flight"),
                    format!(
                        "it must be at least batch_size ({}); change one of them",
                        database.batch_size
                    ),
                );
            }
            if database.max_bytes < LEAST_BYTES {
                return wrong(&path("max_bytes"), "it must be at least \"64KiB\"".to_owned());
            }
            let backoff = &database.retry.backoff;
            if !(0.0..=1.0).contains(&backoff.jitter) {
                return wrong(
                    &path("retry.backoff.jitter"),
                    "it must be between 0 and 1".to_owned(),
                );
            }
            if backoff.initial.is_zero() || backoff.initial > backoff.max {
                return wrong(
                    &path("retry.backoff"),
                    "`initial` must be more than zero and at most `max`; change one of them".to_owned(),
                );
            }
        }
        Ok(())
    }

    fn validate_routes(&self, wrong: &impl Fn(&str, String) -> Result<(), Invalid>) -> Result<(), Invalid> {
        for (at, route) in self.route.iter().enumerate() {
            if !self.source.contains_key(&route.from) {
                return wrong(
                    &format!("route.{at}.from"),
                    format!(
                        "there is no [source.{}]; {}",
                        route.from,
                        read::suggestion(&route.from, self.source.keys().map(String::as_str))
                    ),
                );
            }
            if !self.sink.contains_key(&route.sink) {
                return wrong(
                    &format!("route.{at}.sink"),
                    format!(
                        "there is no [sink.{}]; {}",
                        route.sink,
                        read::suggestion(&route.sink, self.sink.keys().map(String::as_str))
                    ),
                );
            }
            if self.route[..at].iter().any(|earlier| earlier.from == route.from) {
                return wrong(
                    &format!("route.{at}.from"),
                    format!(
                        "[source.{}] has a route already; remove one of the two",
                        route.from
                    ),
                );
            }
        }
        for name in self.source.keys() {
            if self.sink_of(name).is_none() {
                return wrong(
                    &format!("source.{name}"),
                    format!(
                        "no route leads to one of the sinks; add [[route]] with from = {name:?} and sink = NAME"
                    ),
                );
            }
        }
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
}

/// What is wrong with a URL that is written down; a reference is looked at when it is followed.
fn url_problem(url: &Secret, schemes: &[&str]) -> Option<String> {
    url.written().and_then(|value| scheme_problem(value, schemes))
}

/// What is wrong with the beginning of a URL, without repeating the URL.
pub(crate) fn scheme_problem(value: &str, schemes: &[&str]) -> Option<String> {
    let known = || {
        schemes
            .iter()
            .map(|scheme| {
                if *scheme == "sqlite" {
                    "`sqlite:PATH`".to_owned()
                } else {
                    format!("`{scheme}://…`")
                }
            })
            .collect::<Vec<_>>()
            .join(" or ")
    };
    match value.split_once(':') {
        Some((scheme, rest)) if schemes.contains(&scheme) && !rest.is_empty() => None,
        _ if value.contains("${") => {
            Some("`${…}` is not replaced here; write { env = \"NAME\" } or { file = \"PATH\" }".to_owned())
        }
        _ => Some(format!("the URL must begin with {}", known())),
    }
}
