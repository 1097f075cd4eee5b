//! What may stand in the dependency tree: licences, banned crates, where they come from.
//!
//! The lists are those of `deny.toml`, so that cargo-deny, where it is installed, says the same.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::licence::is_allowed;

/// Clients of brokers: an application that embeds everything must not link one.
const BROKER_CLIENTS: [&str; 12] = [
    "amqprs",
    "async-nats",
    "deadpool-redis",
    "fe2o3-amqp",
    "kafka",
    "lapin",
    "nats",
    "pulsar",
    "rdkafka",
    "redis",
    "rskafka",
    "tonic",
];

/// A package of the tree.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    /// Where it comes from if that is not the registry: a folder or a repository.
    source: Option<String>,
    licence: String,
}

/// Checks licences, bans and sources of everything the workspace can depend on.
pub(crate) fn check_tree() -> Result<()> {
    let path = cargo::root().join("deny.toml");
    let deny = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let allowed = strings(&deny, "licenses", "allow");
    let banned = strings(&deny, "bans", "deny");
    if allowed.is_empty() || banned.is_empty() {
        bail!("{} names no licence or no banned crate", path.display());
    }
    let tree = tree(&["--workspace", "--all-features", "--edges", "normal,build,dev"])?;
    let found = findings(&tree, &allowed, &banned);
    if !found.is_empty() {
        bail!("{}", found.join("\n"));
    }
    println!("    {} packages: licences, bans and sources are fine", tree.len());
    Ok(())
}

/// Checks that the examples, as a newcomer builds them, link no broker's client.
pub(crate) fn check_embedded() -> Result<()> {
    let tree = tree(&["--package", "outbox-examples", "--edges", "normal"])?;
    let found = clients(&tree);
    if !found.is_empty() {
        bail!("outbox-examples with default features links {}", found.join(", "));
    }
    println!("    {} packages, no broker client among them", tree.len());
    Ok(())
}

fn tree(selection: &[&str]) -> Result<BTreeSet<Package>> {
    let fixed = ["tree", "--locked", "--prefix", "none", "--format", "{p}|{l}"];
    let text = cargo::output(fixed.into_iter().chain(selection.iter().copied()))?;
    parse(&text)
}

fn parse(text: &str) -> Result<BTreeSet<Package>> {
    text.lines()
        .map(|line| line.trim_end_matches(" (*)").trim())
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (package, licence) = line.rsplit_once('|').context("no licence column")?;
            let mut words = package.split_whitespace();
            let (name, version) = (words.next(), words.next());
            let rest = words.collect::<Vec<_>>().join(" ");
            let source = rest
                .replace("(proc-macro)", "")
                .trim()
                .trim_matches(['(', ')'])
                .to_owned();
            Ok(Package {
                name: name.context("no name")?.to_owned(),
                version: version.context("no version")?.to_owned(),
                source: (!source.is_empty()).then_some(source),
                licence: licence.trim().to_owned(),
            })
        })
        .collect::<Result<_>>()
        .context("cannot read what `cargo tree` printed")
}

fn findings(tree: &BTreeSet<Package>, allowed: &[String], banned: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for package in tree {
        let Package {
            name,
            version,
            source,
            licence,
        } = package;
        if banned.contains(name) {
            found.push(format!("{name} {version} is banned; `cargo tree --workspace --all-features -i {name}` shows who brings it"));
        }
        match is_allowed(licence, allowed) {
            Ok(true) => {}
            Ok(false) => found.push(format!(
                "{name} {version}: licence `{licence}` is not in deny.toml"
            )),
            Err(error) => found.push(format!("{name} {version}: {error}")),
        }
        if let Some(source) = source
            && !source.starts_with('/')
        {
            found.push(format!(
                "{name} {version} comes from {source}, not from the registry"
            ));
        }
    }
    found
}

fn clients(tree: &BTreeSet<Package>) -> Vec<String> {
    tree.iter()
        .filter(|package| BROKER_CLIENTS.contains(&package.name.as_str()))
        .map(|package| format!("{} {}", package.name, package.version))
        .collect()
}

/// The quoted strings of `key = [ … ]` in `[section]` of a TOML text.
fn strings(text: &str, section: &str, key: &str) -> Vec<String> {
    let header = format!("[{section}]");
    let mut inside = false;
    let mut open = false;
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !open && line.starts_with('[') {
            inside = line == header;
            continue;
        }
        let rest = match line.split_once('=') {
            Some((name, rest)) if inside && !open && name.trim() == key => rest,
            _ if open => line,
            _ => continue,
        };
        found.extend(rest.split('"').skip(1).step_by(2).map(str::to_owned));
        open = !rest.trim_end().ends_with(']');
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "\
app v0.1.0 (/somewhere/app)|MIT OR Apache-2.0
lapin v4.1.0|MIT
derive v1.0.0 (proc-macro)|MIT (*)

openssl v0.10.0|Apache-2.0
viral v3.0.0|GPL-3.0
fork v1.0.0 (git+ssh://localhost/fork#abc)|MIT
";

    fn list(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_banned_crate_a_foreign_licence_and_a_fork_are_found() {
        let found = findings(
            &parse(TREE).unwrap(),
            &list(&["MIT", "Apache-2.0"]),
            &list(&["openssl"]),
        );
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(
            found[0].contains("fork 1") || found[0].contains("fork v1"),
            "{found:#?}"
        );
        assert!(found[1].contains("openssl") && found[1].contains("banned"));
        assert!(found[2].contains("viral") && found[2].contains("GPL-3.0"));
    }

    #[test]
    fn a_broker_client_in_the_tree_is_found() {
        assert_eq!(clients(&parse(TREE).unwrap()), ["lapin v4.1.0"]);
    }

    #[test]
    fn lists_of_a_toml_section_are_read() {
        let text = "[a]\nallow = [\"x\"]\n[b] # here\nallow = [\n  \"y\", # why\n  \"z\",\n]\ndeny = [\n { name = \"w\" },\n]\n";
        assert_eq!(strings(text, "a", "allow"), ["x"]);
        assert_eq!(strings(text, "b", "allow"), ["y", "z"]);
        assert_eq!(strings(text, "b", "deny"), ["w"]);
        assert!(strings(text, "a", "deny").is_empty());
    }
}
