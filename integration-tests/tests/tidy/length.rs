//! No source file grows long unseen.

use crate::tree::Tree;

/// Lines of a source file, its tests left out. Chosen: 300 is what we aim at, documents included; a third
/// more is where a file is cut in two.
const LIMIT: usize = 400;

/// Files that are longer, with their present length as the ceiling. The list only shrinks.
const LONGER: [(&str, usize); 8] = [
    ("broker/src/memory/group.rs", 401),
    // The message's documented front door.
    ("broker/src/message.rs", 504),
    ("consumer/src/dead_letter.rs", 438),
    ("consumer/src/worker.rs", 565),
    ("integration-tests/src/services/postgres.rs", 434),
    ("integration-tests/src/services/rabbitmq.rs", 469),
    ("outbox/src/relay/lease.rs", 509),
    ("relay/src/config/read.rs", 491),
];

fn too_long(tree: &Tree, limit: usize, longer: &[(&str, usize)]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.rust().filter(|(path, _)| is_source(path)) {
        let lines = lines_without_tests(text);
        let ceiling = longer
            .iter()
            .find(|(listed, _)| *listed == path)
            .map(|(_, ceiling)| *ceiling);
        let finding = match ceiling {
            None if lines > limit => format!("{path} has {lines} lines, more than {limit}: cut it in two"),
            Some(ceiling) if lines > ceiling => format!("{path} grew from {ceiling} to {lines} lines"),
            Some(_) if lines <= limit => format!("{path} has only {lines} lines now: take it off the list"),
            Some(ceiling) if lines < ceiling => format!("{path} shrank: lower its ceiling to {lines}"),
            _ => continue,
        };
        found.push(finding);
    }
    for (path, _) in longer {
        if tree.text(path).is_none() {
            found.push(format!("{path} is gone: take it off the list"));
        }
    }
    found
}

/// Tests are long where the matter is; what they test is not.
fn is_source(path: &str) -> bool {
    path.contains("src/") && !path.contains("/tests/") && !path.ends_with("/tests.rs")
}

/// Lines up to the test module.
fn lines_without_tests(text: &str) -> usize {
    text.lines().take_while(|line| *line != "#[cfg(test)]").count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{assert_found, assert_none};

    #[test]
    fn a_long_file_is_found_and_its_tests_do_not_count() {
        let tree = Tree::of(&[
            ("a/src/long.rs", "1\n2\n3\n4\n"),
            ("a/src/tested.rs", "1\n2\n3\n#[cfg(test)]\n5\n6\n"),
            ("a/tests/anything.rs", "1\n2\n3\n4\n5\n"),
        ]);
        assert_found(&too_long(&tree, 3, &[]), &["long.rs has 4 lines"]);
    }

    #[test]
    fn the_list_of_longer_files_only_shrinks() {
        let tree = Tree::of(&[
            ("a/src/grown.rs", "1\n2\n3\n4\n5\n"),
            ("a/src/kept.rs", "1\n2\n3\n4\n"),
            ("a/src/mended.rs", "1\n"),
            ("a/src/shrunk.rs", "1\n2\n3\n4\n"),
        ]);
        let longer = [
            ("a/src/grown.rs", 4),
            ("a/src/kept.rs", 4),
            ("a/src/mended.rs", 4),
            ("a/src/shrunk.rs", 5),
            ("a/src/vanished.rs", 9),
        ];
        assert_found(
            &too_long(&tree, 3, &longer),
            &[
                "grown.rs grew from 4 to 5",
                "mended.rs has only",
                "shrunk.rs shrank",
                "vanished.rs is gone",
            ],
        );
    }

    #[test]
    fn no_source_file_is_too_long() {
        assert_none(&too_long(&Tree::real(), LIMIT, &LONGER));
    }
}
