//! Documents say what the manifests say.

use crate::tree::Tree;

/// The crates whose features the front page lists.
const LISTED: [&str; 5] = ["broker", "outbox", "consumer", "relay", "lock"];

/// The feature behind which each contract keeps its conformance suite: for authors of adapters, not listed.
const SUITE: &str = "conformance";

/// The adapter table of `outbox-broker` names every feature that is an adapter, and no other.
fn adapter_table(tree: &Tree) -> Vec<String> {
    let text = tree.text("broker/src/lib.rs").unwrap_or_default();
    let table = column(text, "//! ", "feature");
    let declared = tree.features("broker/Cargo.toml");
    let mut found = Vec::new();
    for feature in declared.iter().filter(|name| *name != SUITE) {
        if !table.contains(feature) {
            found.push(format!("broker/src/lib.rs: the adapter table lacks `{feature}`"));
        }
    }
    for feature in table.iter().filter(|name| *name != "always") {
        if !declared.contains(feature) {
            found.push(format!(
                "broker/src/lib.rs: the adapter table has `{feature}`, which is no feature"
            ));
        }
    }
    found
}

/// The feature table of the front page names every feature of the library crates, and no other.
fn front_page(tree: &Tree) -> Vec<String> {
    let text = tree.text("README.md").unwrap_or_default();
    let table = column(text, "", "feature");
    let mut declared: Vec<_> = LISTED
        .iter()
        .flat_map(|package| tree.features(&format!("{package}/Cargo.toml")))
        .filter(|feature| feature != SUITE)
        .collect();
    declared.sort();
    declared.dedup();
    let mut found = Vec::new();
    for feature in &declared {
        if !table.contains(feature) {
            found.push(format!("README.md: the feature table lacks `{feature}`"));
        }
    }
    for feature in table.iter().filter(|name| !declared.contains(name)) {
        found.push(format!(
            "README.md: the feature table has `{feature}`, which no crate declares"
        ));
    }
    found
}

/// The cells of the column `title` of every table of `text`, whose lines begin with `prefix`; back ticks
/// and folder names (`broker/`) left out, a cell with several names split.
fn column(text: &str, prefix: &str, title: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut place = None;
    for line in text.lines() {
        let Some(row) = line.strip_prefix(prefix).filter(|row| row.starts_with('|')) else {
            place = None;
            continue;
        };
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let Some(at) = place else {
            place = Some(cells.iter().position(|cell| *cell == title).unwrap_or(usize::MAX));
            continue;
        };
        let cell = cells.get(at).copied().unwrap_or_default();
        let names = cell
            .split([',', ' '])
            .map(|name| name.trim_matches('`'))
            .filter(|name| {
                let mut characters = name.chars();
                characters.any(char::is_alphanumeric)
            });
        found.extend(names.map(str::to_owned));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{assert_found, assert_none};

    const MANIFEST: &str = "[features]\ndefault = []\npigeon = []\ndrum = []\nconformance = []\n";

    #[test]
    fn an_adapter_that_the_table_lacks_or_invents_is_found() {
        let page = "//! Front.\n//!\n//! | module | adapter | feature |\n//! |---|---|---|\n//! | `memory` | here | always |\n//! | `drum` | by ear | `drum` |\n//! | `flag` | by eye | `flag` |\n";
        let tree = Tree::of(&[("broker/Cargo.toml", MANIFEST), ("broker/src/lib.rs", page)]);
        assert_found(&adapter_table(&tree), &["lacks `pigeon`", "has `flag`"]);
    }

    #[test]
    fn a_feature_that_the_front_page_lacks_or_invents_is_found() {
        let page = "| feature | crate |\n|---|---|\n| `drum`, `pigeon` | broker |\n| `smoke` | outbox |\n\n| other |\n|---|\n| `x` |\n";
        let other = "[features]\nkite = []\n";
        let tree = Tree::of(&[
            ("broker/Cargo.toml", MANIFEST),
            ("relay/Cargo.toml", other),
            ("README.md", page),
        ]);
        assert_found(&front_page(&tree), &["lacks `kite`", "has `smoke`"]);
    }

    #[test]
    fn the_adapter_table_is_that_of_the_manifest() {
        assert_none(&adapter_table(&Tree::real()));
    }

    #[test]
    fn the_front_page_lists_the_features_of_the_manifests() {
        let tree = Tree::real();
        if tree.text("README.md").is_some() {
            assert_none(&front_page(&tree));
        }
    }
}
