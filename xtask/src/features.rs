//! Which features each crate declares, so that a new one is checked without being listed here.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// One crate of the workspace.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its features, `default` left out.
    pub(crate) features: Vec<String>,
}

/// The sidecar refuses to compile without a database; these are the ones it knows.
const SIDECAR: (&str, [&str; 3]) = ("outbox-relay", ["sqlite", "postgres", "mysql"]);

impl Package {
    /// What is compiled: no feature, then each alone, as `--features` takes it.
    pub(crate) fn selections(&self) -> Vec<String> {
        let (sidecar, databases) = SIDECAR;
        let each = self.features.iter().map(String::as_str);
        std::iter::once("")
            .chain(each)
            .map(|feature| {
                if self.name == sidecar && !databases.contains(&feature) {
                    [feature, databases[0]].join(" ").trim().to_owned()
                } else {
                    feature.to_owned()
                }
            })
            .collect()
    }
}

/// The crates of the workspace at `root` that declare features, by folder.
pub(crate) fn packages(root: &Path) -> Result<Vec<Package>> {
    let mut folders: Vec<_> = fs::read_dir(root)
        .with_context(|| format!("cannot list {}", root.display()))?
        .filter_map(|entry| Some(entry.ok()?.path().join("Cargo.toml")))
        .filter(|manifest| manifest.is_file())
        .collect();
    folders.sort();
    let mut packages = Vec::new();
    for manifest in folders {
        let text =
            fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
        packages.extend(package(&text).filter(|package| !package.features.is_empty()));
    }
    Ok(packages)
}

/// Reads name and features of a manifest; `None` if it is not a package's.
fn package(manifest: &str) -> Option<Package> {
    let mut name = None;
    let mut features = Vec::new();
    let mut section = "";
    let mut depth = 0_usize;
    for line in manifest.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if depth == 0 && line.starts_with('[') {
            section = line;
            continue;
        }
        if depth == 0
            && let Some((key, value)) = line.split_once('=')
        {
            match (section, key.trim()) {
                ("[package]", "name") => name = Some(value.trim().trim_matches('"').to_owned()),
                ("[features]", "default") => {}
                ("[features]", feature) => features.push(feature.trim_matches('"').to_owned()),
                _ => {}
            }
        }
        depth = (depth + line.matches('[').count()).saturating_sub(line.matches(']').count());
    }
    Some(Package {
        name: name?,
        features,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_and_default_is_left_out() {
        let manifest = r#"
[package]
name = "some-crate" # the name
[features]
default = ["one"]
# a comment = with an equals sign
one = []
two = [
  "dep:x",
  "y/z",
]
three = ["one"]
[dependencies]
x = { version = "1", features = ["a"] }
"#;
        assert_eq!(
            package(manifest),
            Some(Package {
                name: "some-crate".to_owned(),
                features: vec!["one".to_owned(), "two".to_owned(), "three".to_owned()],
            })
        );
    }

    #[test]
    fn each_feature_is_selected_alone_and_the_sidecar_keeps_a_database() {
        let package = |name: &str, features: &[&str]| Package {
            name: name.to_owned(),
            features: features.iter().map(|feature| (*feature).to_owned()).collect(),
        };
        assert_eq!(package("any", &["a", "b"]).selections(), ["", "a", "b"]);
        assert_eq!(
            package("outbox-relay", &["postgres", "rabbitmq"]).selections(),
            ["sqlite", "postgres", "rabbitmq sqlite"]
        );
    }

    #[test]
    fn a_manifest_without_a_package_is_none() {
        assert_eq!(package("[workspace]\nmembers = []\n"), None);
    }

    #[test]
    fn this_workspace_has_a_crate_with_features() {
        let packages = packages(crate::cargo::root()).unwrap();
        let broker = packages
            .iter()
            .find(|package| package.name == "outbox-broker")
            .unwrap();
        assert!(broker.features.iter().any(|feature| feature == "rabbitmq"));
    }
}
