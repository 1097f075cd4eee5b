//! The files that the checks look at.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What holds nothing written by hand (`.git` is a file in a second work tree).
const SKIPPED: [&str; 3] = ["target", ".git", "node_modules"];

/// Text files by their path from the root, with `/` between the parts.
#[derive(Default)]
pub(crate) struct Tree {
    files: BTreeMap<String, String>,
}

impl Tree {
    /// A made-up tree.
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        Self {
            files: files
                .iter()
                .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
                .collect(),
        }
    }

    /// The tree of this repository.
    pub(crate) fn real() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut tree = Self::default();
        tree.read(root, "");
        assert!(
            tree.text("Cargo.toml").is_some(),
            "the workspace's root is not where it was"
        );
        tree
    }

    fn read(&mut self, folder: &Path, prefix: &str) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = format!("{prefix}{name}");
            let kind = entry.file_type().unwrap();
            if SKIPPED.contains(&name.as_str()) {
                continue;
            }
            if kind.is_dir() {
                self.read(&entry.path(), &format!("{path}/"));
            } else if kind.is_file()
                && let Ok(text) = fs::read_to_string(entry.path())
            {
                self.files.insert(path, text);
            }
        }
    }

    /// Every file, by path.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The Rust sources, by path.
    pub(crate) fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files().filter(|(path, _)| path.ends_with(".rs"))
    }

    /// The text of one file.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// The files below `folder` (which ends with `/`), by their path from there.
    pub(crate) fn below<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a str> {
        self.files
            .keys()
            .filter_map(move |path| path.strip_prefix(folder))
    }

    /// The folders right below `folder` (which ends with `/`).
    pub(crate) fn folders(&self, folder: &str) -> Vec<String> {
        let mut found: Vec<_> = self
            .below(folder)
            .filter_map(|path| Some(path.split_once('/')?.0.to_owned()))
            .collect();
        found.dedup();
        found
    }

    /// The features that the manifest at `path` declares, `default` left out.
    pub(crate) fn features(&self, path: &str) -> Vec<String> {
        let manifest: toml::Table = self.text(path).unwrap_or_default().parse().unwrap();
        let features = manifest.get("features").and_then(toml::Value::as_table);
        let names = features.into_iter().flat_map(toml::Table::keys);
        names.filter(|name| *name != "default").cloned().collect()
    }
}

/// Fails with every finding on a line of its own.
#[track_caller]
pub(crate) fn assert_none(findings: &[String]) {
    assert!(
        findings.is_empty(),
        "{} found:\n{}",
        findings.len(),
        findings.join("\n")
    );
}

/// Fails unless there is one finding for each of `expected`, in order, each holding its text.
#[track_caller]
pub(crate) fn assert_found(findings: &[String], expected: &[&str]) {
    assert_eq!(findings.len(), expected.len(), "{findings:#?}");
    for (finding, expected) in findings.iter().zip(expected) {
        assert!(finding.contains(expected), "{expected:?} is not in {finding:?}");
    }
}
