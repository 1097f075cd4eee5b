//! Adapters of one contract mirror each other, file by file.

use std::collections::BTreeSet;

use crate::tree::Tree;

/// The files of every broker adapter.
const ADAPTER: [&str; 4] = ["mod.rs", "config.rs", "publisher.rs", "subscriber.rs"];

/// Features of `outbox-broker` that are no adapter.
const NOT_ADAPTERS: [&str; 1] = ["conformance"];

/// Adapters that need no server to test.
const NO_SERVER: [&str; 2] = ["sql", "sqlite"];

/// Stores whose tests run on a server of another name.
const SERVERS: [(&str, &str); 1] = [("mysql", "mariadb")];

/// Folders whose sub-folders are twins: one per database.
const TWINS: [&str; 1] = ["outbox/src/store/"];

/// Twin files that one side has alone, each with its reason.
const ALONE: [(&str, &str); 10] = [
    (
        "outbox/src/store/mysql/poll.rs",
        "the server notifies nobody; the twins' files are listen.rs and watch.rs",
    ),
    (
        "outbox/src/store/postgres/config.rs",
        "a server has more settings than a file",
    ),
    (
        "outbox/src/store/postgres/error.rs",
        "a server has error codes of its own",
    ),
    (
        "outbox/src/store/postgres/horizon.rs",
        "the others cannot tell whether a transaction is open",
    ),
    (
        "outbox/src/store/postgres/listen.rs",
        "LISTEN; the twin's file is watch.rs",
    ),
    (
        "outbox/src/store/postgres/notifier.rs",
        "NOTIFY; a file is watched instead",
    ),
    (
        "outbox/src/store/postgres/pool.rs",
        "a file has three fixed connections",
    ),
    (
        "outbox/src/store/postgres/rows.rs",
        "read by the bare driver; the twin's file is tables.rs",
    ),
    (
        "outbox/src/store/sqlite/tables.rs",
        "read by diesel; the twin's file is rows.rs",
    ),
    (
        "outbox/src/store/sqlite/watch.rs",
        "PRAGMA data_version; the twin's file is listen.rs",
    ),
];

/// Files in `ALONE` that are not there any more, or that both sides have, are taken off the list.
fn stale(tree: &Tree) -> Vec<String> {
    let listed = ALONE.iter().map(|(path, _)| *path);
    listed
        .filter(|path| tree.text(path).is_none())
        .map(|path| format!("{path} is gone: take it off the list"))
        .collect()
}

/// Sub-folders of one twin folder must hold the same names.
fn twins(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for parent in TWINS {
        let folders = tree.folders(parent);
        let names: BTreeSet<&str> = folders
            .iter()
            .flat_map(|folder| {
                tree.below(parent)
                    .filter_map(move |path| path.strip_prefix(folder.as_str()))
            })
            .filter(|name| !name.contains("/migrations/"))
            .collect();
        for folder in &folders {
            for name in &names {
                let path = format!("{parent}{folder}{name}");
                if tree.text(&path).is_none()
                    && !ALONE
                        .iter()
                        .any(|(alone, _)| alone.ends_with(name) && alone.starts_with(parent))
                {
                    found.push(format!("{path} is missing: a sibling of {folder} has it"));
                }
            }
        }
    }
    found
}

/// Every adapter has the same four files; every server has a service file of the harness.
fn adapters(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let features = tree.features("broker/Cargo.toml");
    let adapters: Vec<_> = features
        .iter()
        .filter(|name| !NOT_ADAPTERS.contains(&name.as_str()))
        .collect();
    for adapter in &adapters {
        for file in ADAPTER {
            let path = format!("broker/src/{adapter}/{file}");
            if tree.text(&path).is_none() {
                found.push(format!(
                    "{path} is missing: every adapter has {}",
                    ADAPTER.join(", ")
                ));
            }
        }
    }
    let stores = tree.folders("outbox/src/store/");
    for server in adapters.into_iter().chain(&stores) {
        let program = SERVERS.iter().find(|(store, _)| store == server);
        let program = program.map_or(server.as_str(), |(_, program)| program);
        let path = format!("integration-tests/src/services/{program}.rs");
        if !NO_SERVER.contains(&server.as_str()) && tree.text(&path).is_none() {
            found.push(format!("{path} is missing: nothing starts {server} for a test"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{assert_found, assert_none};

    #[test]
    fn a_file_that_one_database_lacks_is_found() {
        let tree = Tree::of(&[
            ("outbox/src/store/postgres/mod.rs", ""),
            ("outbox/src/store/postgres/claim.rs", ""),
            ("outbox/src/store/sqlite/mod.rs", ""),
        ]);
        assert_found(&twins(&tree), &["outbox/src/store/sqlite/claim.rs"]);
    }

    #[test]
    fn an_adapter_without_one_of_its_files_or_its_server_is_found() {
        let tree = Tree::of(&[
            (
                "broker/Cargo.toml",
                "[features]\ndefault = []\npigeon = []\nconformance = []\n",
            ),
            ("broker/src/pigeon/mod.rs", ""),
            ("broker/src/pigeon/config.rs", ""),
            ("broker/src/pigeon/subscriber.rs", ""),
        ]);
        assert_found(&adapters(&tree), &["pigeon/publisher.rs", "services/pigeon.rs"]);
    }

    #[test]
    fn stores_mirror_each_other() {
        let tree = Tree::real();
        assert_none(&twins(&tree));
        assert_none(&stale(&tree));
    }

    #[test]
    fn adapters_mirror_each_other() {
        assert_none(&adapters(&Tree::real()));
    }
}
