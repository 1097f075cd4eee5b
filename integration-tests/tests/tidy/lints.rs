//! Lints hold everywhere, and an exception says why.

use crate::tree::Tree;

/// Every crate takes the workspace's lints.
fn crates_without_lints(tree: &Tree) -> Vec<String> {
    tree.files()
        .filter(|(path, text)| path.ends_with("/Cargo.toml") && text.contains("[package]"))
        .filter(|(_, text)| {
            let manifest: toml::Table = text.parse().unwrap();
            let inherited = manifest.get("lints").and_then(|lints| lints.get("workspace"));
            inherited.and_then(toml::Value::as_bool) != Some(true)
        })
        .map(|(path, _)| format!("{path}: add `[lints]` with `workspace = true`"))
        .collect()
}

/// An `allow` or `expect` attribute carries a reason; no test is ignored.
fn attributes(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.rust() {
        for (at, _) in text.match_indices("#[").chain(text.match_indices("#![")) {
            let line = text[..at].matches('\n').count() + 1;
            // Only at the start of a line: elsewhere it is part of a text or a comment.
            if !text[..at]
                .rsplit('\n')
                .next()
                .unwrap_or_default()
                .trim()
                .is_empty()
            {
                continue;
            }
            let attribute = bracketed(&text[at..]);
            let content = attribute.trim_start_matches(['#', '!', '[']);
            let exempts = ["allow(", "expect("].iter().any(|word| content.contains(word));
            if exempts && !content.contains("reason") {
                found.push(format!(
                    "{path}:{line}: an exception from a lint carries `reason = \"…\"`"
                ));
            }
            if content.starts_with("ignore") {
                found.push(format!(
                    "{path}:{line}: a test that cannot run says so when it runs; none is ignored"
                ));
            }
        }
    }
    found
}

/// The part of `text` up to the bracket that closes its first one.
fn bracketed(text: &str) -> &str {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return &text[..at];
                }
            }
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{assert_found, assert_none};

    #[test]
    fn a_crate_without_the_lints_is_found() {
        let tree = Tree::of(&[
            ("Cargo.toml", "[workspace]\n"),
            (
                "a/Cargo.toml",
                "[package]\nname = \"a\"\n[lints]\nworkspace = true\n",
            ),
            ("b/Cargo.toml", "[package]\nname = \"b\"\n"),
            (
                "c/Cargo.toml",
                "[package]\nname = \"c\"\n[lints]\nworkspace = false\n",
            ),
        ]);
        assert_found(&crates_without_lints(&tree), &["b/Cargo.toml", "c/Cargo.toml"]);
    }

    #[test]
    fn an_exception_without_a_reason_and_an_ignored_test_are_found() {
        let tree = Tree::of(&[(
            "a/src/lib.rs",
            "#![allow(dead_code)]\n#[expect(\n    clippy::panic,\n    reason = \"why\"\n)]\nfn a() {}\n    #[ignore = \"slow\"]\n    fn b() {}\n#[cfg_attr(x, allow(y))]\nfn c() {}\nlet text = \"#[ignore]\";\n",
        )]);
        assert_found(&attributes(&tree), &["lib.rs:7", "lib.rs:9", "lib.rs:1"]);
    }

    #[test]
    fn every_crate_takes_the_lints() {
        assert_none(&crates_without_lints(&Tree::real()));
    }

    #[test]
    fn exceptions_have_reasons_and_no_test_is_ignored() {
        assert_none(&attributes(&Tree::real()));
    }
}
