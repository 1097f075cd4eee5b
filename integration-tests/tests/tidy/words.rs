//! The words we use, and those that say nothing.

use crate::source::{declared, words};
use crate::tree::Tree;

/// Words that say nothing in the name of a file or of a type.
const EMPTY_WORDS: [&str; 8] = [
    "manager",
    "managers",
    "processor",
    "processors",
    "helper",
    "helpers",
    "util",
    "utils",
];

/// Names that other crates gave, each with its reason.
const FOREIGN: [(&str, &str); 1] = [(
    "Manager",
    "deadpool's and diesel's word for what makes connections",
)];

/// Marks of unfinished work. Written in two halves, so that this file does not break the rule.
const UNFINISHED: [&str; 4] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
];

/// Words about how the text came to be, which tell its reader nothing about the program.
const PROVENANCE: [&str; 6] = [
    concat!("sub", "agent"),
    concat!("language ", "model"),
    concat!("/wo", "rk/"),
    concat!("issues ", "show"),
    concat!("this ", "session of"),
    concat!("another ", "session of"),
];

/// Hosts that may stand in an address, each with its reason. Everything else is a machine that a test, a
/// document or the program would reach out to.
const HOSTS: [(&str, &str); 2] = [
    ("127.0.0.1", "this machine"),
    (
        "www.apache.org",
        "the text of the Apache licence names itself by this address",
    ),
];

/// Schemes that are no network address.
const NO_HOST: [&str; 4] = ["file", "sqlite", "unix", "urn"];

/// Names of files and types.
fn names(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.rust() {
        let file = path.rsplit('/').next().unwrap_or(path);
        if let Some(word) = empty_word(file) {
            found.push(format!("{path}: `{word}` in a file's name says nothing"));
        }
        for (line, name) in declared(text, &["struct", "enum", "trait", "type", "mod"]) {
            let is_foreign = FOREIGN.iter().any(|(foreign, _)| *foreign == name);
            if let Some(word) = empty_word(name).filter(|_| !is_foreign) {
                found.push(format!("{path}:{line}: `{word}` in `{name}` says nothing"));
            }
        }
        for (line, name) in declared(text, &["fn"]) {
            if name.starts_with("get_") {
                found.push(format!(
                    "{path}:{line}: `{name}`: a getter has the name of what it returns"
                ));
            }
        }
    }
    found
}

fn empty_word(name: &str) -> Option<String> {
    words(name)
        .into_iter()
        .find(|word| EMPTY_WORDS.contains(&word.as_str()))
}

/// Unfinished work, and words about how the text came to be.
fn marks(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, number, line) in lines(tree) {
        for mark in UNFINISHED {
            if line
                .split(|c: char| !c.is_alphanumeric())
                .any(|word| word == mark)
            {
                found.push(format!(
                    "{path}:{number}: {mark}: finish it, or say what is missing in the documents"
                ));
            }
        }
        let lower = line.to_lowercase();
        for phrase in PROVENANCE {
            if lower.contains(phrase) {
                found.push(format!("{path}:{number}: `{phrase}` is not about the program"));
            }
        }
        if names_an_issue(&lower) {
            found.push(format!(
                "{path}:{number}: say what the matter is instead of its number"
            ));
        }
    }
    found
}

/// The word, one or many, and then a number, with or without its sign.
fn names_an_issue(line: &str) -> bool {
    line.match_indices("issue").any(|(at, word)| {
        let after = line[at + word.len()..].trim_start_matches('s');
        let number = after.trim_start_matches([' ', '#']);
        let is_word = !line[..at].ends_with(|c: char| c.is_alphanumeric());
        is_word && number.len() < after.len() && number.starts_with(|c: char| c.is_ascii_digit())
    })
}

/// Hosts in addresses of any scheme.
fn hosts(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, number, line) in lines(tree) {
        for (at, _) in line.match_indices("://") {
            let scheme = line[..at]
                .rsplit(|c: char| !c.is_ascii_alphanumeric())
                .next()
                .unwrap_or_default();
            if scheme.is_empty() || NO_HOST.contains(&scheme) {
                continue;
            }
            if let Some(host) = host(&line[at + 3..])
                && !HOSTS.iter().any(|(allowed, _)| *allowed == host)
            {
                found.push(format!("{path}:{number}: the address of `{host}`"));
            }
        }
    }
    found
}

/// The host at the start of `rest`, what follows `://`; `None` if there is none or it is a placeholder.
fn host(rest: &str) -> Option<&str> {
    let end = rest
        .find(|c: char| {
            c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '`' | '\'' | ')' | '<' | ',')
        })
        .unwrap_or(rest.len());
    let authority = &rest[..end];
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.split(':').next().unwrap_or_default();
    // One label is a placeholder or this machine, and the top level `invalid` is reserved never to exist.
    let has_domain = host.contains('.') && !host.ends_with(".invalid");
    let is_name =
        host.starts_with(|c: char| c.is_ascii_alphanumeric()) && !host.contains(['{', '$', '%', '*']);
    (is_name && has_domain).then_some(host)
}

fn lines(tree: &Tree) -> impl Iterator<Item = (&str, usize, &str)> {
    tree.files()
        .filter(|(path, _)| *path != "Cargo.lock")
        .flat_map(|(path, text)| {
            text.lines()
                .enumerate()
                .map(move |(at, line)| (path, at + 1, line))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{assert_found, assert_none};

    #[test]
    fn names_that_say_nothing_are_found() {
        let tree = Tree::of(&[
            ("a/src/string_utils.rs", "pub struct Fine;\n"),
            (
                "a/src/b.rs",
                "struct JobManager;\nfn get_size() {}\npub enum Utility {}\n",
            ),
        ]);
        assert_found(&names(&tree), &["JobManager", "get_size", "string_utils.rs"]);
    }

    #[test]
    fn unfinished_work_is_found() {
        let text = format!("fine\n// {}: later\nmastodon\n", UNFINISHED[0]);
        assert_found(&marks(&Tree::of(&[("a.md", &text)])), &["a.md:2"]);
    }

    #[test]
    fn words_about_how_the_text_came_to_be_are_found() {
        let number = concat!("as issue", " #12 asks\n");
        let path = format!(
            "see {}notes\nthe issue of order\ntissue 3\nissue12\n",
            PROVENANCE[2]
        );
        let tree = Tree::of(&[("a.rs", number), ("b.md", &path)]);
        assert_found(&marks(&tree), &["a.rs:1", "b.md:1"]);
    }

    #[test]
    fn addresses_of_other_machines_are_found() {
        let separator = "://";
        let text = [
            format!("amqp{separator}guest@localhost:5672/x"),
            format!("postgres{separator}user:secret@db.example.org:5432/x"),
            format!("http{separator}127.0.0.1:80 http{separator}{{host}}/"),
            format!("(https{separator}www.somewhere.net/page)"),
            format!("sqlite{separator}orders.sqlite"),
        ]
        .join("\n");
        assert_found(&hosts(&Tree::of(&[("a.md", &text)])), &["a.md:2", "a.md:4"]);
    }

    #[test]
    fn names_say_what_things_are() {
        assert_none(&names(&Tree::real()));
    }

    #[test]
    fn nothing_is_left_unfinished() {
        assert_none(&marks(&Tree::real()));
    }

    #[test]
    fn no_address_of_another_machine() {
        assert_none(&hosts(&Tree::real()));
    }
}
